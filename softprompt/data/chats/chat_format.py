"""ChatFormat: how the conversations of a task are written, as a saved prompt keeps it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from softprompt.data.chats.conversation import Conversation, Message, Role, ToolCall
from softprompt.errors import ConfigError, PromptFileError

PlacementName = Literal["system-start", "system-end", "first"]
LearnedTurns = Literal["all", "last"]
Asking = Literal["turn", "thoughts", "answer"]
PLACEMENTS: tuple[PlacementName, ...] = get_args(PlacementName)
OWN_TEMPLATE = ""  # the model's, as long as no model is known
NO_TEMPLATE = "none"  # rows stand in the plain template, whatever the model has
LONGEST_TEMPLATE = 200_000  # characters

# Llama 3 and gpt-oss write the day into the system turn: another one than the day of training is another prompt
_TODAY = re.compile(r"strftime_now\(\s*(?:\"([^\"]*)\"|'([^']*)')\s*\)")


@dataclass(frozen=True)
class ChatFormat:
    """How conversations become text.

    Attributes:
        template: the Jinja2 source of the chat template; ``OWN_TEMPLATE``: the model's, ``NO_TEMPLATE``: none at all.
        arguments: what the template is given by name, as ``enable_thinking``.
        system: the text of the system turn of every conversation that has none of its own.
        tools: offered in every conversation that has none of its own.
        turns: in front of every conversation, behind its system turn: solved examples.
        placement: where the virtual tokens stand: at the beginning or end of the system turn's text, or before the
            first turn, as always where the template has no system turn.
        learn: which of the assistant's turns are learned.
        shared: whether all conversations have the same system turn and tools, which then are computed once; or each
            brings its own.
        asking: where what is asked ends: where an answer begins that was learned; behind the beginning of thoughts,
            where the template writes one; or behind all that an answer without thoughts begins with.
        replaces: a system prompt whose place the virtual tokens take, which they were distilled from: a conversation
            that begins with it is read as one without.
    """

    template: str = OWN_TEMPLATE
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    system: str | None = None
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    turns: tuple[Message, ...] = ()
    placement: PlacementName = "system-start"
    learn: LearnedTurns = "all"
    shared: bool = True
    asking: Asking = "turn"
    replaces: str | None = None

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise ConfigError(f"placement: expected one of {', '.join(PLACEMENTS)}, got {self.placement!r}")
        if self.learn not in get_args(LearnedTurns):
            raise ConfigError(f"learn: expected 'all' or 'last' of the assistant's turns, got {self.learn!r}")
        if len(self.template) > LONGEST_TEMPLATE:
            raise ConfigError(
                f"expected a chat template of at most {LONGEST_TEMPLATE:,} characters, got {len(self.template):,}"
            )

    def with_template(self, source: str, day: date | None = None) -> Self:
        """With this template, in which the day is written out that it asks for: that of learning, ever after."""
        day = day or date.today()
        fixed = _TODAY.sub(lambda asked: repr(day.strftime(asked[1] or asked[2] or "")), source)
        return replace(self, template=fixed)

    def __str__(self) -> str:
        """In words, for people: what is written beside the virtual tokens, and where these stand."""
        kept = None if self.system is None else f"system prompt {self.system!r}"
        tools = f"{len(self.tools)} tools" if self.tools else None
        turns = f"{len(self.turns)} turns in front" if self.turns else None
        own = None if self.shared else "each with a system message of its own"
        given = ", ".join(f"{name}={value}" for name, value in self.arguments.items()) or None
        where = f"virtual tokens {self.placement}"
        return "; ".join(one for one in ("chats", kept, own, tools, turns, where, given) if one is not None)

    def to_dict(self) -> dict[str, Any]:
        """What a saved prompt keeps of it; what is as usual is left out."""
        usual = ChatFormat()
        facts = {
            "arguments": dict(self.arguments),
            "system": self.system,
            "tools": [dict(tool) for tool in self.tools],
            "turns": [message.to_dict() for message in self.turns],
            "learn": self.learn,
            "shared": self.shared,
            "asking": self.asking,
            "replaces": self.replaces,
        }
        unusual = {
            name: value for name, value in facts.items() if value not in ({}, [], None, getattr(usual, name, None))
        }
        return {"template": self.template, "placement": self.placement, **unusual}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """``to_dict`` undone; raises PromptFileError for anything else."""
        try:
            saved = _SavedFormat.model_validate(values)
            turns = tuple(one.to_message() for one in saved.turns)
            return cls(
                saved.template,
                saved.arguments,
                saved.system,
                tuple(saved.tools),
                turns,
                saved.placement,
                saved.learn,
                saved.shared,
                saved.asking,
                saved.replaces,
            )
        except (ValidationError, ConfigError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise PromptFileError(f"the saved chat format cannot be used: {reason}") from error


def keeps_shared_turns(chat: ChatFormat, conversation: Conversation) -> bool:
    """Whether a conversation begins as all do: with the kept system message or none, and with the kept tools.

    The system message that the virtual tokens replace is none.
    """
    same_tools = not conversation.tools or conversation.tools == chat.tools
    return chat.shared and same_tools and conversation.system in (None, chat.system, chat.replaces)


class _Saved(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _SavedFunction(_Saved):
    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class _SavedCall(_Saved):
    function: _SavedFunction
    id: str | None = None


class _SavedTurn(_Saved):
    role: Role
    content: str
    tool_calls: list[_SavedCall] = Field(default_factory=list)
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None

    def to_message(self) -> Message:
        calls = tuple(ToolCall(one.function.name, one.function.arguments, one.id) for one in self.tool_calls)
        return Message(self.role, self.content, calls, self.tool_call_id, self.name, self.reasoning_content)


class _SavedFormat(_Saved):
    template: str = Field(max_length=LONGEST_TEMPLATE)
    arguments: dict[str, Any] = Field(default_factory=dict)
    system: str | None = None
    tools: list[dict[str, Any]] = Field(default_factory=list)
    turns: list[_SavedTurn] = Field(default_factory=list)
    placement: PlacementName = "system-start"
    learn: LearnedTurns = "all"
    shared: bool = True
    asking: Asking = "turn"
    replaces: str | None = None
