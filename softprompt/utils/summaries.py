"""Objects in a few lines, as ``repr`` gives them."""

import dataclasses
import textwrap
from collections.abc import Collection, Mapping
from typing import Any

from softprompt.errors import shorten

LINES, WIDTH = 3, 100  # of what a person sees of an object
_MOST_TEXT = 60  # characters of a text
_MOST_ITEMS = 6  # of a collection


def summarize(shown: object, *parts: str, **facts: Any) -> str:
    """``Name(parts, name=fact, ...)`` in at most three lines; facts that are ``None`` or empty are left out.

    Texts and collections are shortened, tensors are never written out.
    """
    named = [f"{name}={describe_value(value)}" for name, value in facts.items() if not _is_nothing(value)]
    told = ", ".join([*(shorten(part, LINES * WIDTH) for part in parts if part), *named])
    lines = textwrap.wrap(
        f"{type(shown).__name__}({told})",
        WIDTH,
        subsequent_indent="  ",
        max_lines=LINES,
        placeholder=" …)",
        break_on_hyphens=False,
    )
    return "\n".join(lines)


def summarize_fields(shown: Any, *, only_changed: bool = False) -> str:
    """``summarize`` of the fields of a dataclass or record; or only of those that differ from their defaults."""
    if hasattr(type(shown), "model_fields"):
        fields = [(name, one.get_default(call_default_factory=True)) for name, one in type(shown).model_fields.items()]
    else:
        fields = [(one.name, one.default) for one in dataclasses.fields(shown) if one.repr]
    values = [(name, getattr(shown, name), default) for name, default in fields]
    return summarize(shown, **{name: value for name, value, default in values if not only_changed or value != default})


def describe_value(value: Any) -> str:
    """A value in a few words: the beginning of a text, some of a list and how many more there are."""
    if isinstance(value, str):
        return repr(shorten(value, _MOST_TEXT))
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool | int) or value is None:
        return str(value)
    if isinstance(value, Mapping):
        items = [f"{describe_key(name)}: {describe_value(one)}" for name, one in _take(value.items())]
        return f"{{{_join(items, len(value))}}}"
    if isinstance(value, list | tuple | set | frozenset):
        if all(isinstance(one, str | bool | int | float) for one in _take(value)):
            return f"[{_join([describe_value(one) for one in _take(value)], len(value))}]"
        return f"[{len(value):,} {type(next(iter(value))).__name__}]"
    return shorten(value, _MOST_TEXT)


def describe_key(name: object) -> str:
    """A name within a mapping."""
    return shorten(name, _MOST_TEXT)


def _take(items: Collection[Any]) -> list[Any]:
    return [one for _, one in zip(range(_MOST_ITEMS), items, strict=False)]


def _join(items: list[str], count: int) -> str:
    return ", ".join([*items, *([f"… {count - _MOST_ITEMS:,} more"] if count > _MOST_ITEMS else [])])


def _is_nothing(value: object) -> bool:
    return value is None or (isinstance(value, str | Collection) and not len(value))
