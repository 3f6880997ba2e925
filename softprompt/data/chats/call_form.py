"""How a chat template writes the calls of tools: found out by having it write one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from softprompt.data.chats.chat_template import ChatTemplate
from softprompt.data.chats.conversation import Conversation, Message, ToolCall
from softprompt.data.encoding.tokenization import compile_marks
from softprompt.errors import DataError

_NAME, _KEY, _ID = "Qtool", "Qkey", "Qwertyuio"
_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string", "description": ""}}},
    },
}
_ARGUMENTS = re.compile(r"\{\s*\"" + _KEY + r"\"\s*:\s*\"\"\s*\}")


@dataclass(frozen=True)
class CallForm:
    """What stands around a call in an assistant's turn: ``before``, the tool's name, ``between``, its arguments.

    Attributes:
        begin: what tells that a call begins; empty where calls are bare JSON.
        short_ids: whether ids of calls are written, which then have nine letters or digits.
    """

    before: str
    between: str
    begin: str
    short_ids: bool

    @property
    def is_json(self) -> bool:
        """Whether name and arguments stand in one JSON object."""
        return "{" in self.before


def find_call_form(template: ChatTemplate, marks: Mapping[str, int]) -> CallForm | None:
    """The form of calls in this template; ``None`` where it writes none.

    Args:
        marks: of the tokenizer, by what is written for them.
    """
    asked = Conversation((Message("user", "Q"),), (_TOOL,))
    call = Message("assistant", "", (ToolCall(_NAME, {_KEY: ""}, _ID),))
    try:
        question = template.render(asked).text
        written = template.render(replace(asked, messages=(*asked.messages, call)), ask=False).text
    except DataError:
        return None
    arguments = [*_ARGUMENTS.finditer(written)]
    if not written.startswith(question) or not arguments or arguments[-1].start() < len(question):
        return None
    answer = written[len(question) : arguments[-1].start()]
    front, found, between = answer.rpartition(_NAME)
    if not found:
        return None
    before = front.removeprefix(template.opening) if template.opening.strip() else front
    first = compile_marks(marks).search(before)
    begin = first[0] if first is not None else ""
    return CallForm(before.lstrip() if begin else before, between, begin, _ID in written)
