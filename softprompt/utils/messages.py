"""Words for messages: names in quotes, kinds of values, what a file that cannot be read is said to be."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from softprompt.errors import DataError, MissingExtraError


def type_name(value: Any) -> str:
    """What messages call a value of this kind."""
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object", str: "a string"}
    if isinstance(value, float) and math.isinf(value):
        return "an infinite number"
    return "null" if value is None or value != value else names.get(type(value), f"a {type(value).__name__}")


def quote_names(names: Iterable[str], last: str = ", ", most: int = 12) -> str:
    """Names in quotes, for messages; no more than ``most`` of them, and how many were left out."""
    quoted = [f"'{name}'" for name in names]
    more = [f"{len(quoted) - most} more"] if len(quoted) > most else []
    return last.join([*quoted[:most], *more]) or "nothing"


def import_optional(module: str) -> Any:
    """Import a module of the extra ``data``; MissingExtraError where it is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(module.partition(".")[0], "data") from error


@contextmanager
def map_read_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's read errors into a DataError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot read '{path}': {error.strerror or error}: check the path and its permissions"
        ) from error


MOST_SHOWN = 600  # characters of one text of the data in a cell or an example


def excerpt(text: str, most: int = MOST_SHOWN) -> str:
    """A text as a page shows it: a long one is cut, and its length told."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"
