"""Folders of runs that can be gone on with: what they have in common, immutable records as they land, unfinished work.

Every file is written beside its place and renamed: it is there whole or not at all.
"""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from filelock import FileLock

from softprompt.errors import DataError, OutputError, map_write_errors
from softprompt.utils.files import acquire_lock, replace_file
from softprompt.utils.safe_io import FILE_LIMIT, parse_json, read_file
from softprompt.utils.seals import SealedRecord, read_sealed, seal

SETUP_FILE, LOCK_FILE = "setup.json", ".lock"

Landed = TypeVar("Landed", bound=SealedRecord)


class RunFolder:
    """A folder of immutable records that have a setup in common, for this process alone within ``with``.

    Attributes:
        what, doing: what messages call it, and what goes on in it.
        records: the folder in it that the records land in.
    """

    what: ClassVar[str]
    doing: ClassVar[str]
    records: ClassVar[str]

    def __init__(self, path: Path, setup: Mapping[str, Any]) -> None:
        """``setup``: what must be the same in all results, as JSON has it."""
        self.path = path
        self._setup: dict[str, Any] = json.loads(json.dumps(setup))
        self._lock = FileLock(path / LOCK_FILE)

    def __enter__(self) -> Self:
        """Take the folder, or begin it.

        Raises:
            OutputError: it holds something else, results of another setup, or another process has it.
        """
        self.check(self.path)
        with map_write_errors(self.path):
            for name in (self.records, "learning"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            acquire_lock(self._lock, self.path, self.doing)
        try:
            self._check_setup()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            (self.path / LOCK_FILE).unlink()
        self._lock.release()

    @classmethod
    def check(cls, path: Path) -> None:
        """Raise OutputError if ``path`` is taken by something else."""
        if path.exists() and not path.is_dir():
            raise OutputError(f"'{path}' is a file: expected a folder for the {cls.what}, give another --out")
        own = (cls.records, "learning", LOCK_FILE)
        taken = path.is_dir() and any(one.name not in own for one in path.iterdir())
        if taken and not (path / SETUP_FILE).is_file():
            raise OutputError(
                f"'{path}' holds something else than a {cls.what}: give another --out, or remove it first"
            )

    def notes(self, name: str) -> dict[str, Any]:
        """What is known of a method that is being learned; raises OutputError if the file is damaged."""
        path = self._notes_path(name)
        try:
            return read_sealed(path)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise OutputError(
                f"'{path}' is damaged: {error}; remove it and the folder beside it, and '{name}' begins anew"
            ) from error

    def note(self, name: str, **changes: Any) -> None:
        """Add to ``notes``; ``None`` takes away."""
        notes = {key: value for key, value in (self.notes(name) | changes).items() if value is not None}
        self._write(self._notes_path(name), json.dumps(seal(notes), indent=1))

    def forget(self, name: str) -> None:
        """Drop ``notes``."""
        self._notes_path(name).unlink(missing_ok=True)

    def unfinished(self, name: str) -> Path:
        """The folder of a method's unfinished run."""
        return self.path / "learning" / make_file_name(name)

    def drop_unfinished(self, name: str) -> None:
        """The run is finished."""
        shutil.rmtree(self.unfinished(name), ignore_errors=True)

    def scratch(self) -> Path:
        """A place for a new folder; what an earlier process left there is gone."""
        path = self.path / "learning" / ".saving"
        shutil.rmtree(path, ignore_errors=True)
        return path

    def artifact(self, name: str) -> Path:
        """Where the best of a method is kept."""
        return self.path / "artifacts" / make_file_name(name)

    def keep(self, name: str, saved: Path) -> None:
        """Put the folder ``saved`` in the place of a method's artifact."""
        self.put(saved, self.artifact(name))

    def put(self, saved: Path, place: Path) -> None:
        """Put the folder ``saved`` in ``place``, in the stead of what is there."""
        with map_write_errors(place):
            place.parent.mkdir(exist_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            saved.rename(place)

    def _check_setup(self) -> None:
        path = self.path / SETUP_FILE
        try:
            setup = read_sealed(path)
        except FileNotFoundError:
            self._write(path, json.dumps(seal(self._setup), indent=1))
            return
        except (OSError, ValueError) as error:
            raise OutputError(f"'{path}' is damaged: {error}; give another --out") from error
        if differing := list_differences(setup, self._setup):
            raise OutputError(
                f"'{self.path}' holds results of another {self.what} ({'; '.join(differing)}): give the same model, "
                "data and settings to go on with it, or another --out"
            )

    def _read(self, path: Path, kind: type[Landed]) -> Landed | None:
        try:
            return kind.model_validate(parse_json(read_file(path), limit=FILE_LIMIT))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DataError(
                f"'{path}' is damaged: expected the result of a {self.what}; remove it, and it is measured again"
            ) from error

    def _land(self, path: Path, record: SealedRecord) -> None:
        self._write(path, record.to_sealed())

    def _notes_path(self, name: str) -> Path:
        return self.path / "learning" / f"{make_file_name(name)}.json"

    def _write(self, path: Path, text: str) -> None:
        with map_write_errors(path):
            replace_file(path, text.encode() + b"\n")


def make_file_name(method: str) -> str:
    """A method's name as a file's: what some file systems do not take is left out."""
    return "".join(character if character.isalnum() or character in "-_.=" else "_" for character in method)


def list_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs, by name; within mappings only the entries that do."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key), new.get(key)
        if was == now:
            continue
        if isinstance(was, dict) and isinstance(now, dict):
            found += list_differences(was, now)
        else:
            found.append(f"{key} was {was!r}, is {now!r}")
    return found
