"""What all conversations of some examples have in common."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from softprompt.data.examples import Example


def list_different(values: Iterable[Any]) -> list[Any]:
    """The first three different ones of ``values``, which need not be hashable."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
        if len(found) > 2:
            break
    return found


def shared_system(examples: Sequence[Example]) -> str | None:
    """The system message that every example begins with; ``None`` where one has none or another."""
    found = list_different(None if one.conversation is None else one.conversation.system for one in examples)
    return found[0] if len(found) == 1 else None


def shared_tools(examples: Sequence[Example]) -> tuple[Mapping[str, Any], ...]:
    """The tools that every example offers, in the same order; none where one offers others."""
    found = list_different(() if one.conversation is None else one.conversation.tools for one in examples)
    return found[0] if len(found) == 1 else ()


def describe_shared_parts(examples: Sequence[Example]) -> list[str]:
    """That conversations have the same system message, or the same tools; nothing where there are none."""
    notes = []
    if (system := shared_system(examples)) is not None:
        notes.append(f"All conversations have the same system message ({len(system):,} characters).")
    if tools := shared_tools(examples):
        names = ", ".join(str(one["function"]["name"]) for one in tools)
        notes.append(f"All conversations have the same tools ({names}).")
    return notes
