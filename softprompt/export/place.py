"""Files and folders that are there whole or not at all, for what is too large to be held in memory first."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from softprompt.errors import OutputError, writing
from softprompt.folders import check_free


@contextmanager
def appearing(place: Path) -> Iterator[Path]:
    """A path to write a file or folder at, renamed to ``place`` if all goes well; else nothing of it stays.

    Raises:
        OutputError: ``place`` is taken, or cannot be written.
    """
    check_free(place)
    with writing(place):
        parent = place.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=parent))
    try:
        with writing(place):
            yield hidden / place.name
            if place.exists():
                raise OutputError(f"'{place}' appeared while it was being written: nothing was overwritten")
            (hidden / place.name).rename(place)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
