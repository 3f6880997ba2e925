"""What all conversations of some examples have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

from softprompt.data.examples import Example


def shared_system(examples: Sequence[Example]) -> str | None:
    """The system message that every example begins with; ``None`` where one has none or another."""
    first = examples[0].conversation if examples else None
    system = None if first is None else first.system
    same = system is not None and all(
        one.conversation is not None and one.conversation.system == system for one in examples
    )
    return system if same else None


def shared_tools(examples: Sequence[Example]) -> tuple[Mapping[str, Any], ...]:
    """The tools that every example offers, in the same order; none where one offers others."""
    first = examples[0].conversation if examples else None
    tools = () if first is None else first.tools
    same = all(one.conversation is not None and one.conversation.tools == tools for one in examples)
    return tools if same else ()


def describe_shared_parts(examples: Sequence[Example]) -> list[str]:
    """That conversations have the same system message, or the same tools; nothing where there are none."""
    notes = []
    if (system := shared_system(examples)) is not None:
        notes.append(f"All conversations have the same system message ({len(system):,} characters).")
    if tools := shared_tools(examples):
        names = ", ".join(str(one["function"]["name"]) for one in tools)
        notes.append(f"All conversations have the same tools ({names}).")
    return notes
