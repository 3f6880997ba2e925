"""Values of columns with one of JSON's types, and as words."""

import json
import math
from collections.abc import Mapping
from typing import Any

from softprompt.errors import DataError
from softprompt.utils.messages import type_name

_DEEPEST = 32  # levels of lists and objects in a column


def is_blank(value: Any) -> bool:
    """Whether a value is missing, or a text of white space."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def read_value(value: Any, name: str, place: str, depth: int = 0) -> Any:
    """A value with one of JSON's types: what is none of them (a date, a decimal number) is its string.

    Args:
        name: of its column.
        place: of its row.

    Raises:
        DataError: too many levels, or half a character.
    """
    if depth > _DEEPEST:
        raise DataError(f"{place}: expected at most {_DEEPEST} levels in column '{name}', got more: flatten it")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return None if value != value else value  # NaN stands for null
    if isinstance(value, Mapping):
        return {
            str(read_value(str(key), name, place)): read_value(one, name, place, depth + 1)
            for key, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [read_value(one, name, place, depth + 1) for one in value]
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return _check_unicode(str(value), name, place)


def read_string(value: Any, name: str, place: str) -> str:
    """A text that is there; DataError for a blank one, and for what is none."""
    if not isinstance(value, str) or not value.strip():
        got = "a blank string" if isinstance(value, str) else type_name(value)
        raise DataError(f"{place}: expected a string in column '{name}', got {got}: mend or remove this row")
    return _check_unicode(value, name, place)


def read_output(value: Any, name: str, place: str) -> str:
    """What is to be written for a value: itself, or JSON for what is no string; DataError for what is missing."""
    return read_string(_write_output(value, name, place), name, place)


def format_value(value: Any) -> str:
    """The value of a column as words, as templates and reports have it."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def _write_output(value: Any, name: str, place: str) -> Any:
    if not isinstance(value, bool | int | float | Mapping | list) or value in (math.inf, -math.inf):
        return value
    found = read_value(value, name, place)
    try:
        json.dumps(found, allow_nan=False)
    except ValueError as error:
        raise DataError(
            f"{place}: expected finite numbers in column '{name}', got one that JSON has no word for: mend it"
        ) from error
    return None if found is None else format_value(found)


def _check_unicode(value: str, name: str, place: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(value[error.start]):x}"
        raise DataError(
            f"{place}: expected Unicode text in column '{name}', got half a character ({code}): mend it"
        ) from error
    return value
