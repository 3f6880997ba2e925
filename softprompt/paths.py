"""Paths as users write them, and files that are there whole or not at all."""

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path with the home folder in place of ``~``; unchanged where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def write_durably(path: Path, content: bytes) -> None:
    """Write and flush to the disk."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Put ``content`` in place of a file: a reader, or a crash, sees the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write_durably(temporary, content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
