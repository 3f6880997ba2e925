"""Writing files and folders so that they are there whole or not at all."""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from softprompt.errors import OutputError, map_write_errors

LEFTOVER_AGE = 24 * 3600  # seconds: no write takes as long
_LEFTOVER = re.compile(r"\.(.+)\.(?:[a-z0-9_]{8}|[0-9a-f]{16})")  # as mkdtemp names them, or with token_hex(8)


def check_free(folder: Path) -> None:
    """Raise OutputError if ``folder`` is taken, lies under a file, or may not be written."""
    with map_write_errors(folder):
        if folder.exists() or folder.is_symlink():
            raise OutputError(f"'{folder}' exists already: give another --out, or remove it first")
        parent = next(parent for parent in folder.absolute().parents if parent.exists())
        if not parent.is_dir():
            raise OutputError(f"'{folder}' cannot be made, '{parent}' is a file: give another --out")
        if not os.access(parent, os.W_OK):
            raise OutputError(f"no permission to write '{folder}': give another --out")


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write ``files`` into a new ``folder``, all of them or none; until then they are in a hidden one beside it."""
    with atomic_folder(folder) as temporary:
        for name, content in files.items():
            write_durably(temporary / name, content)


def clear_leftovers(folder: Path, of: str = "") -> None:
    """Remove what writers that were killed left in ``folder``: hidden, named as theirs are, and older than any write.

    ``of``: only what was to become this.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            found = _LEFTOVER.fullmatch(path.name)
            if found is None or (of and found[1] != of) or path.is_symlink():
                continue
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > LEFTOVER_AGE:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder to write into that becomes ``folder`` in the end, or is removed if anything goes wrong.

    Raises:
        OutputError: ``folder`` is there already, or cannot be written.
    """
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        yield temporary
        temporary.chmod(0o755)


@contextmanager
def atomic_path(place: Path) -> Iterator[Path]:
    """A path to write a file or folder at, renamed to ``place`` if all goes well; else nothing of it stays.

    Raises:
        OutputError: ``place`` is there already, or cannot be written.
    """
    with map_write_errors(place):
        parent = place.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(parent, place.name)
        hidden = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=parent))
        try:
            yield hidden / place.name
            if place.exists():
                raise OutputError(f"'{place}' appeared while it was being written: nothing was overwritten")
            (hidden / place.name).rename(place)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def acquire_lock(lock: FileLock, folder: Path, doing: str) -> None:
    """Have ``folder`` for this process alone; raises OutputError if another one is ``doing`` something there."""
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(
            f"another process is {doing} in '{folder}' now: wait until it ends, or give another --out"
        ) from error


def write_durably(path: Path, content: bytes) -> None:
    """Write and flush to the disk."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def write_file(path: Path, content: bytes, instead: str = "give another --out") -> None:
    """``replace_file``, in folders made where they are missing; ``instead`` is the advice in its OutputError."""
    with map_write_errors(path, instead):
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)


def replace_file(path: Path, content: bytes) -> None:
    """Put ``content`` in place of a file: a reader, or a crash, sees the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write_durably(temporary, content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def expand_user(path: str | Path) -> Path:
    """The path with the home folder in place of ``~``; unchanged where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
