"""Conversations: messages with their roles, and the tools that an assistant may call in them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an assistant's message makes; ``arguments`` have JSON's types."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """In the form that chat templates take, which is OpenAI's but for the arguments, an object here."""
        known = {} if self.id is None else {"id": self.id}
        return {**known, "type": "function", "function": {"name": self.name, "arguments": dict(self.arguments)}}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: whose turn it is; OpenAI's ``developer`` is ``system`` here.
        content: its text, which may be empty where it calls tools.
        tool_calls: of an assistant.
        tool_call_id: of a tool's turn, the call that it answers.
        name: of the tool, or of one of several users.
        reasoning: what an assistant thought before it answered, for templates that have a place for it.
        learned: whether an assistant's turn is one to learn (a weight of 0 in OpenAI's form says not).
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str | None = None
    learned: bool = True

    def to_dict(self) -> dict[str, Any]:
        """In the form that chat templates take; what is not there is left out."""
        calls = [call.to_dict() for call in self.tool_calls]
        others = {
            "tool_calls": calls or None,
            "tool_call_id": self.tool_call_id,
            "name": self.name,
            "reasoning_content": self.reasoning,
        }
        return {
            "role": self.role,
            "content": self.content,
            **{key: value for key, value in others.items() if value is not None},
        }


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in their order, and the tools offered in them, as JSON schemas in OpenAI's form."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)

    @property
    def system(self) -> str | None:
        """The text of the system message that it begins with, if it does."""
        first = self.messages[0] if self.messages else None
        return first.content if first is not None and first.role == "system" else None

    @property
    def answer(self) -> Message | None:
        """The assistant's turn that it ends with, if it does."""
        last = self.messages[-1] if self.messages else None
        return last if last is not None and last.role == "assistant" else None

    def without_answer(self) -> "Conversation":
        """The turns before the answer; itself where it has none."""
        return self if self.answer is None else Conversation(self.messages[:-1], self.tools)

    def to_row(self) -> dict[str, Any]:
        """The columns of a row in OpenAI's form that it is read from again."""
        weights = [{} if one.learned else {"weight": 0} for one in self.messages]
        messages = [{**one.to_dict(), **weight} for one, weight in zip(self.messages, weights, strict=True)]
        return {"messages": messages, **({"tools": [dict(one) for one in self.tools]} if self.tools else {})}
