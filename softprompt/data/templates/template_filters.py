"""Filters and tests of the template language, and what they may spend: each size is known before it is made.

A filter takes the room that is left, the value, and its own arguments, named and meant as in Jinja2.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from softprompt.data.column_values import format_value

_CONTAINERS = (list, dict)
_WORDS = re.compile(r"([-\s({\[<]+)")  # where Jinja2's ``title`` begins a word


class FillError(Exception):
    """What a template does cannot be done with this row; the message says why."""


class Undefined:
    """A name or an item that the row lacks; may be asked for with ``is defined`` and ``default``, and no more."""

    def __init__(self, name: str) -> None:
        self.name = name


class Budget:
    """What may still be made of one row: characters, and steps."""

    def __init__(self, characters: int, steps: float) -> None:
        self._most = self._characters = characters
        self._steps: float = steps

    def make(self, characters: int) -> None:
        """Take off what is about to be made."""
        self._characters -= characters
        if self._characters < 0:
            raise FillError(f"it makes too much, more than {self._most:,} characters: simplify it")
        self.step(characters)

    def step(self, read: int = 0) -> None:
        """Take off a step, and what it reads: characters, which a machine reads a thousand in the time of a step."""
        self._steps -= 1 + read / 1_000
        if self._steps < 0:
            raise FillError("it takes too many steps: simplify it")


def measure_size(value: Any) -> int:
    """Characters and items of ``value``, whatever is in it."""
    size, rest = 0, [value]
    while rest:
        one = rest.pop()
        if isinstance(one, str | list | dict):
            size += len(one)
        else:
            size += 1 + one.bit_length() // 3 if isinstance(one, int) else 24
        if isinstance(one, dict):
            rest += [*one, *one.values()]
        elif isinstance(one, list):
            rest += one
    return size


def print_value(room: Budget, value: Any) -> str:
    """What ``{{ }}`` writes of a value: text as it is, nothing for none, true and false, JSON of lists and objects."""
    if isinstance(value, str):
        return value
    if isinstance(value, _CONTAINERS):
        return _to_json(room, value)
    text = format_value(value)
    room.make(len(text))
    return text


def _to_json(room: Budget, value: Any) -> str:
    size = 2 * measure_size(value)
    room.make(size)
    text = json.dumps(value, ensure_ascii=False)
    room.make(max(0, len(text) - size))  # at most four times as much: quotes, commas, escapes
    return text


def _text(room: Budget, value: Any, what: str) -> str:
    """A scalar as text, to be made something of."""
    if isinstance(value, _CONTAINERS):
        raise FillError(f"{what} expects text, got {describe_type(value)}")
    text = print_value(room, value)
    room.make(len(text))
    return text


def describe_type(value: Any) -> str:
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise FillError(f"{what} expects a list, got {describe_type(value)}")
    return value


def _whole(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise FillError(f"{what} expects a whole number of at least 0, got {describe_type(value)}")
    return value


def _default(room: Budget, value: Any, default_value: Any = "", boolean: Any = False) -> Any:
    return default_value if isinstance(value, Undefined) or (boolean and not value) else value


def _change_text(name: str, change: Callable[[str], str]) -> Callable[[Budget, Any], str]:
    return lambda room, value: change(_text(room, value, name))


def _take_end(name: str, index: int) -> Callable[[Budget, Any], Any]:
    def take(room: Budget, value: Any) -> Any:
        if not isinstance(value, str | list):
            raise FillError(f"{name} expects a list or text, got {describe_type(value)}")
        return value[index] if value else Undefined(f"the {name} of nothing")

    return take


def _items(room: Budget, value: Any) -> list[list[Any]]:
    if not isinstance(value, dict):
        raise FillError(f"items expects an object, got {describe_type(value)}")
    room.make(2 * len(value))
    return [[name, one] for name, one in value.items()]


def _join(room: Budget, value: Any, d: Any = "") -> str:
    between = print_value(room, d)
    parts = [print_value(room, one) for one in _list(value, "join")]
    room.make(sum(map(len, parts)) + len(between) * len(parts))
    return between.join(parts)


def _length(room: Budget, value: Any) -> int:
    if not isinstance(value, str | list | dict):
        raise FillError(f"length expects text, a list or an object, got {describe_type(value)}")
    return len(value)


def _replace(room: Budget, value: Any, old: Any, new: Any) -> str:
    text, gone, put = (_text(room, one, "replace") for one in (value, old, new))
    room.make(len(text) + text.count(gone) * max(0, len(put) - len(gone)))
    return text.replace(gone, put)


def _title(room: Budget, value: Any) -> str:
    parts = _WORDS.split(_text(room, value, "title"))
    room.make(8 * len(parts))
    return "".join(part[0].upper() + part[1:].lower() for part in parts if part)


def _truncate(
    room: Budget, value: Any, length: Any = 255, killwords: Any = False, end: Any = "...", leeway: Any = 5
) -> str:
    text, behind = _text(room, value, "truncate"), _text(room, end, "truncate")
    most = _whole(length, "truncate")
    if most < len(behind):
        raise FillError(f"truncate expects a length of at least {len(behind)}, that of {behind!r}, got {most}")
    if len(text) <= most + _whole(leeway, "truncate"):
        return text
    kept = text[: most - len(behind)]
    return (kept if killwords else kept.rsplit(" ", 1)[0]) + behind


FILTERS: Mapping[str, Callable[..., Any]] = {
    "capitalize": _change_text("capitalize", str.capitalize),
    "count": _length,
    "d": _default,
    "default": _default,
    "first": _take_end("first", 0),
    "items": _items,
    "join": _join,
    "last": _take_end("last", -1),
    "length": _length,
    "lower": _change_text("lower", str.lower),
    "replace": _replace,
    "string": print_value,
    "title": _title,
    "tojson": _to_json,
    "trim": _change_text("trim", str.strip),
    "truncate": _truncate,
    "upper": _change_text("upper", str.upper),
}


def _is(*types: type) -> Callable[[Budget, Any], bool]:
    return lambda room, value: isinstance(value, types)


TESTS: Mapping[str, Callable[..., bool]] = {
    "boolean": _is(bool),
    "defined": lambda room, value: not isinstance(value, Undefined),
    "false": lambda room, value: value is False,
    "mapping": _is(dict),
    "none": lambda room, value: value is None,
    "number": _is(int, float),
    "sequence": _is(str, list, dict),
    "string": _is(str),
    "true": lambda room, value: value is True,
    "undefined": lambda room, value: isinstance(value, Undefined),
}
LENIENT: Sequence[str] = ("d", "default", "defined", "undefined")  # those that a missing value may be given to
