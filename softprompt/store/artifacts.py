"""Versioned artifacts: folders of files that never change, by name and number, and aliases that move between them.

    softprompt-store.json            says that this is a store, and of which schema
    NAME/3/version.json              who made version 3 and when, size and SHA-256 of its files; the last one written
    NAME/3/prompt.json, ...          its files, a saved prompt as any other
    NAME/aliases/prod/2.json         the second move of the alias ``prod``, by promote or rollback; the last one counts

Each write creates what was not there before (see ``places``), so that of two writers none can undo the other. Nothing
here needs to know what the files mean.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from softprompt.errors import PromptFileError, StoreError
from softprompt.store.backends import open_backend
from softprompt.store.metadata import MOST_FILES, AliasChange, FileDigest, Marker, StoreRecord, Version
from softprompt.store.references import LATEST, Reference, check_alias, check_name, is_name, is_number, is_reference
from softprompt.utils.files import expand_user
from softprompt.utils.place_kinds import describe_mistaken_place
from softprompt.utils.safe_io import FILE_LIMIT, FILE_NAME, TEXT_LIMIT, read_file

MARKER, RECORD = "softprompt-store.json", "version.json"
SINGLE_WRITER = "SOFTPROMPT_SINGLE_WRITER"

Kind = TypeVar("Kind", bound=StoreRecord)
Content = TypeVar("Content")


class ArtifactStore:
    """Versions and aliases in one place."""

    def __init__(self, url: str | Path, *, single_writer: bool | None = None) -> None:
        """Nothing is made or read yet.

        Args:
            url: folder, or URL of fsspec.
            single_writer: that nobody else writes at the same time, which lets a backend be used that cannot keep
                writers apart; what the environment variable SOFTPROMPT_SINGLE_WRITER says, if not given.

        Raises:
            StoreError, MissingExtraError: no such kind of place.
        """
        self._backend = open_backend(url)
        self.url = self._backend.url
        self._single_writer = bool(os.environ.get(SINGLE_WRITER)) if single_writer is None else single_writer

    def names(self) -> list[str]:
        """Names that have versions, sorted; raises StoreError if this is no store."""
        return [name for name in self.possible_names() if self.numbers(name)]

    def possible_names(self) -> list[str]:
        """Names that may have versions, without a look at any of them; raises as ``names``."""
        self._check_store()
        return [name for name in self._backend.list_names("") if is_name(name)]

    def numbers(self, name: str) -> list[int]:
        """The versions of a name, ascending; those that are still being written may be among them."""
        check_name(name)
        return sorted(int(one) for one in self._backend.list_names(name) if is_number(one))

    def versions(self, name: str) -> list[Version]:
        """The records of all versions of a name, ascending.

        Raises:
            StoreError: there is none, or a record is damaged.
        """
        self._check_store()
        found = [record for number in self.numbers(name) if (record := self._read_record(name, number)) is not None]
        if not found:
            raise StoreError(
                f"the store '{self.url}' holds no '{name}': softprompt list '{self.url}' tells what it has"
            )
        return found

    def version(self, name: str, which: str) -> Version:
        """The record of one version, by number, alias, or ``latest``; raises StoreError if there is none."""
        self._check_store()
        number = self._find_number(name, which)
        record = self._read_record(name, number)
        if record is None:
            there = ", ".join(str(one.number) for one in self.versions(name))
            raise StoreError(f"the store '{self.url}' holds no {name}@{number}, its versions are {there}")
        return record

    def read(self, version: Version, only: Sequence[str] | None = None) -> dict[str, bytes]:
        """Files of a version, all or some, by name.

        Raises:
            StoreError: one is missing, or is not what the record says.
        """
        found = {}
        for name in version.files if only is None else only:
            facts, path = version.files.get(name), f"{version.name}/{version.number}/{name}"
            if facts is None:
                raise StoreError(f"'{version}' in the store '{self.url}' is damaged: it holds no {name}")
            try:
                content = self._backend.read(path, facts.size)
            except FileNotFoundError as error:
                raise StoreError(f"'{version}' in the store '{self.url}' is damaged: {name} is missing") from error
            if len(content) != facts.size or hashlib.sha256(content).hexdigest() != facts.sha256:
                raise StoreError(
                    f"'{version}' in the store '{self.url}' is damaged: the size or SHA-256 of {name} is not the one "
                    f"in {RECORD}"
                )
            found[name] = content
        return found

    def add(
        self, name: str, files: Mapping[str, bytes], *, parent: str | None = None, by: str | None = None
    ) -> Version:
        """Make a new version: the next number that nobody has taken.

        Raises:
            StoreError, OutputError: wrong names, too many or too large files, or it cannot be written.
        """
        check_name(name)
        if wrong := [one for one in files if not FILE_NAME.fullmatch(one) or one == RECORD]:
            raise StoreError(f"a version cannot hold a file of the name {wrong[0]!r}: rename it")
        if len(files) > MOST_FILES:
            raise StoreError(f"a version holds at most {MOST_FILES} files, got {len(files)}: leave some out")
        if large := [one for one, content in files.items() if len(content) > FILE_LIMIT]:
            raise StoreError(f"a version holds files of at most {FILE_LIMIT:,} bytes, '{large[0]}' is larger")
        facts = {
            one: FileDigest(size=len(content), sha256=hashlib.sha256(content).hexdigest())
            for one, content in files.items()
        }
        try:  # before anything is written
            Version.new(name, 1, facts, parent=parent, by=by)
        except ValidationError as error:
            first = error.errors()[0]
            raise StoreError(f"cannot keep '{name}': its {first['loc'][0]} is no good, {first['msg']}") from error
        self._make_store()
        number = max(self.numbers(name), default=0)
        while True:
            number += 1
            if not is_number(str(number)):
                raise StoreError(f"the store '{self.url}' has no more numbers for '{name}': use another name")
            version = Version.new(name, number, facts, parent=parent, by=by)
            try:
                self._backend.create_folder(f"{name}/{number}", {**files, RECORD: version.to_bytes()})
            except FileExistsError:
                continue
            return version

    def aliases(self, name: str) -> dict[str, int]:
        """The version that each alias of a name is at."""
        check_name(name)
        found = {alias: self._read_alias(name, alias) for alias in self._backend.list_names(f"{name}/aliases")}
        return {alias: number for alias, number in found.items() if number is not None}

    def alias_changes(self, name: str, alias: str) -> list[AliasChange]:
        """The history of an alias, the oldest move first; empty if there is none."""
        return [self._read_change(name, alias, number) for number in self._list_changes(name, alias)]

    def append(self, history: Sequence[AliasChange], move: AliasChange) -> AliasChange:
        """Move an alias, ``history`` being its moves so far.

        Raises:
            StoreError: it has moved meanwhile.
        """
        self._make_store()
        path, content = f"{move.name}/aliases/{move.alias}/{len(history) + 1}.json", move.to_bytes()
        try:
            self._backend.create(path, content)
        except FileExistsError as error:
            other = self._read_change(move.name, move.alias, len(history) + 1)
            # a request that was sent again, its first answer being lost, finds what it wrote itself
            if other.token != move.token:
                raise StoreError(
                    f"{move.name}@{move.alias} was moved to {move.name}@{other.to} meanwhile, by {other.by}: nothing "
                    "was changed, look at it and try again"
                ) from error
        return move

    @cached_property
    def _is_store(self) -> bool:
        if Path(self.url).is_file():
            return False
        try:
            content = self._backend.read(MARKER, TEXT_LIMIT)
        except FileNotFoundError:
            return False
        self._parse(Marker, MARKER, content)
        return True

    def _check_store(self) -> None:
        if not self._is_store:
            if told := describe_mistaken_place(self.url, "store"):
                raise StoreError(f"expected a store; {told}")
            raise StoreError(f"'{self.url}' is no store, it holds no {MARKER}: softprompt push makes one")

    def _make_store(self) -> None:
        """Make this a store if it is none.

        The marker is created twice: a place that keeps two writers apart refuses the second time.
        """
        self.__dict__.pop("_is_store", None)
        for _ in range(2):
            try:
                self._backend.create(MARKER, Marker().to_bytes())
            except FileExistsError:
                self._check_store()
                return
        if not self._single_writer:
            raise StoreError(
                f"the backend of '{self.url}' does not keep two writers apart: use a folder, S3 or Google Cloud "
                f"Storage, or set {SINGLE_WRITER}=1 if nobody else writes at the same time"
            )

    def _find_number(self, name: str, which: str) -> int:
        check_name(name)
        if is_number(which):
            return int(which)
        if which == LATEST:
            whole = (number for number in reversed(self.numbers(name)) if self._read_record(name, number) is not None)
            number = next(whole, None)
        else:
            number = self._read_alias(name, which)
        if number is None:
            self.versions(name)
            there = ", ".join(sorted([*self.aliases(name), LATEST]))
            raise StoreError(f"'{name}' in the store '{self.url}' has no alias '{which}', its aliases are {there}")
        return number

    def _read_alias(self, name: str, alias: str) -> int | None:
        numbers = self._list_changes(name, alias)
        return self._read_change(name, alias, numbers[-1]).to if numbers else None

    def _list_changes(self, name: str, alias: str) -> list[int]:
        check_name(name)
        check_alias(alias)
        stems = [one.removesuffix(".json") for one in self._backend.list_names(f"{name}/aliases/{alias}")]
        numbers = sorted(int(one) for one in stems if is_number(one))
        if numbers != list(range(1, len(numbers) + 1)):
            raise StoreError(f"the history of {name}@{alias} in the store '{self.url}' is damaged: a move is missing")
        return numbers

    def _read_change(self, name: str, alias: str, number: int) -> AliasChange:
        path = f"{name}/aliases/{alias}/{number}.json"
        try:
            move = self._parse(AliasChange, path, self._backend.read(path, TEXT_LIMIT))
        except FileNotFoundError as error:
            raise StoreError(f"'{path}' in the store '{self.url}' is gone: try again") from error
        if (move.name, move.alias) != (name, alias):
            raise StoreError(f"'{path}' in the store '{self.url}' is damaged: it is a move of {move.name}@{move.alias}")
        return move

    def _read_record(self, name: str, number: int) -> Version | None:
        """``None`` if there is none, or it is still being written."""
        path = f"{name}/{number}/{RECORD}"
        try:
            version = self._parse(Version, path, self._backend.read(path, TEXT_LIMIT))
        except FileNotFoundError:
            return None
        if (version.name, version.number) != (name, number):
            raise StoreError(f"'{path}' in the store '{self.url}' is damaged: it is the record of {version}")
        return version

    def _parse(self, kind: type[Kind], path: str, content: bytes) -> Kind:
        try:
            return kind.from_bytes(content)
        except ValueError as error:
            raise StoreError(f"'{path}' in the store '{self.url}' is damaged: {error}") from error


def resolve_reference(reference: Reference) -> tuple[ArtifactStore, Version]:
    """The store and the version that are meant; raises StoreError if they are not there."""
    artifacts = ArtifactStore(reference.store)
    return artifacts, artifacts.version(reference.name, reference.which)


def read_record(place: str, name: str, parse: Callable[[bytes], Content]) -> Content | None:
    """A file beside a saved prompt, by the prompt's folder or reference, parsed; ``None`` if there is none.

    Raises:
        PromptFileError: it is damaged.
        StoreError: the prompt is not in the store, or damaged there.
    """
    try:
        if is_reference(place):
            artifacts, version = resolve_reference(Reference.parse(place))
            return parse(artifacts.read(version, [name])[name]) if name in version.files else None
        return parse(read_file(expand_user(place) / name, TEXT_LIMIT))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise PromptFileError(f"'{place}/{name}' is damaged: {error}; remove it, or learn the prompt again") from error
