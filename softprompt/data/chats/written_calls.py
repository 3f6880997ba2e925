"""Calls and results that stand as text between tags, as Hermes' data has them in ShareGPT's form."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from softprompt.data.chats.conversation import Message, ToolCall
from softprompt.data.column_values import read_value

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_RESULT = re.compile(r"<tool_response>(.*?)</tool_response>", re.DOTALL)


def read_written_calls(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages with calls between ``<tool_call>`` tags as calls, and each ``<tool_response>`` as a tool's turn.

    Only where turns of tools answer them: without any, what is written stays text. So does what is no JSON.
    """
    if any(one.tool_calls for one in messages) or not any(one.role == "tool" for one in messages):
        return tuple(messages)
    return tuple(turn for one in messages for turn in _read_turn(one))


def _read_turn(message: Message) -> list[Message]:
    if message.role == "assistant":
        calls = [_read_call(one) for one in _CALL.findall(message.content)]
        if calls and None not in calls:
            said = _CALL.sub("", message.content).strip()
            return [replace(message, content=said, tool_calls=tuple(one for one in calls if one is not None))]
    if message.role == "tool" and (results := _RESULT.findall(message.content)):
        return [replace(message, content=one.strip()) for one in results]
    return [message]


def _read_call(text: str) -> ToolCall | None:
    try:
        found: Any = read_value(json.loads(text), "value", "call")
    except (ValueError, RecursionError):
        return None
    known = isinstance(found, dict) and isinstance(found.get("name"), str) and found["name"].strip()
    arguments = found.get("arguments", {}) if known else None
    return ToolCall(found["name"], arguments) if isinstance(arguments, dict) else None
