"""Messages as JSON has them to ``Message``: OpenAI's form (role, content), and ShareGPT's (from, value).

Errors begin with the number of the message; who reads a row says in front of it where the row stands.
"""

import json
from collections.abc import Mapping
from typing import Any

from softprompt.data.chats.conversation import ROLES, Conversation, Message, Role, ToolCall
from softprompt.data.chats.turn_order import check_turns
from softprompt.data.column_values import read_value
from softprompt.errors import DataError
from softprompt.utils.messages import type_name

_ROLE_NAMES: Mapping[str, Role] = {
    **{role: role for role in ROLES},
    "developer": "system",
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("observation", "function", "tool_response", "function_response"), "tool"),
}
_CALLING = ("function_call", "tool_call")  # of ShareGPT's form: the text is the call
_REASONING = ("reasoning_content", "reasoning", "thinking")
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def parse_conversation(messages: Any, tools: Any = None) -> Conversation:
    """A conversation of messages and tools in either form, its turns checked.

    Raises:
        DataError: as ``parse_messages``, ``check_turns`` and ``parse_tools``.
    """
    turns = parse_messages(messages)
    check_turns(turns)
    return Conversation(turns, parse_tools(tools))


def parse_messages(values: Any, name: str = "messages") -> tuple[Message, ...]:
    """The messages of a list that is called ``name``.

    Raises:
        DataError: no list of messages; a message of an unknown role, without text, or with what is no text.
    """
    if not isinstance(values, list | tuple) or not values:
        got = "an empty list" if isinstance(values, list | tuple) else type_name(values)
        expected = f'a list of messages such as {{"role": "user", "content": "…"}} in \'{name}\''
        raise DataError(f"expected {expected}, got {got}: mend it")
    return tuple(_parse_numbered(one, number) for number, one in enumerate(values, start=1))


def parse_tools(values: Any) -> tuple[Mapping[str, Any], ...]:
    """The tools of a list as OpenAI's form has them; DataError for what is no tool."""
    if not values:
        return ()
    if not isinstance(values, list | tuple):
        raise DataError(f"expected a list of tools, got {type_name(values)}: mend it")
    return tuple(_parse_tool(one, number) for number, one in enumerate(values, start=1))


def parse_json(text: str, expected: str) -> Any:
    """The value of JSON text; DataError where it does not parse."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"expected {expected} as JSON, got text that does not parse ({what}): mend it") from error


def is_message(value: Any) -> bool:
    """Whether a value looks like a message of either form."""
    if not isinstance(value, Mapping):
        return False
    said = not value.keys().isdisjoint({"content", "tool_calls"})
    return ("role" in value and said) or value.keys() >= {"from", "value"}


def is_messages(value: Any) -> bool:
    """Whether a value is a list of messages."""
    return isinstance(value, list | tuple) and bool(value) and all(is_message(one) for one in value)


def _parse_numbered(value: Any, number: int) -> Message:
    try:
        return _parse_message(value)
    except DataError as error:
        raise DataError(f"message {number}: {error}") from error


def _parse_message(value: Any) -> Message:
    if not isinstance(value, Mapping):
        raise DataError(f'expected an object such as {{"role": "user", "content": "…"}}, got {type_name(value)}')
    given = {name: one for name, one in value.items() if one is not None}
    named = given.get("role", given.get("from"))
    kind = named.strip().lower() if isinstance(named, str) else ""
    if kind not in _ROLE_NAMES:
        got = f"'{named}'" if isinstance(named, str) else "none" if named is None else type_name(named)
        raise DataError(f"expected a role of system, developer, user, assistant or tool, got {got}: correct it")
    role = _ROLE_NAMES[kind]
    content = given.get("content", given.get("value", given.get("refusal")))
    calls: tuple[ToolCall, ...] = ()
    if kind in _CALLING:
        calls, content = _parse_written_calls(content), None
    elif role == "assistant":
        legacy = [given["function_call"]] if "function_call" in given else []
        calls = _parse_calls(given.get("tool_calls", legacy))
    return Message(
        role,
        _parse_content(content, role, may_be_empty=role == "tool" or bool(calls)),
        calls,
        _optional_text(given, "tool_call_id") if role == "tool" else None,
        _optional_text(given, "name"),
        next((_optional_text(given, name) for name in _REASONING if name in given), None)
        if role == "assistant"
        else None,
        _parse_weight(given.get("weight", 1)) if role == "assistant" else True,
    )


def _optional_text(given: Mapping[str, Any], name: str) -> str | None:
    found = given.get(name)
    if found is not None and not isinstance(found, str):
        raise DataError(f"expected a string in '{name}', got {type_name(found)}: correct it")
    return found or None


def _parse_content(content: Any, role: Role, *, may_be_empty: bool) -> str:
    if isinstance(content, list | tuple):
        content = "".join(_parse_part(one) for one in content)
    if content is not None and not isinstance(content, str):
        raise DataError(f"expected text as the content of {role}, got {type_name(content)}: write it as a string")
    if not (content or "").strip() and not may_be_empty:
        part = "message" if role == "system" else "row"
        raise DataError(f"expected text as the content of {role}, got none: write it, or remove the {part}")
    return content or ""


def _parse_part(part: Any) -> str:
    """The text of a part of a message's content."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(kind, str):
        raise DataError(f'expected parts such as {{"type": "text", "text": "…"}}, got {type_name(part)}: correct it')
    if kind not in _TEXT_PARTS:
        raise DataError(f"expected text only, got a part of the type '{kind}': remove the part, or the row")
    text = part.get(_TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise DataError(f"expected text in a part of the type '{kind}', got {type_name(text)}: correct it")
    return text


def _parse_weight(weight: Any) -> bool:
    """Whether a turn of this weight is learned."""
    if isinstance(weight, bool | int | float) and weight in (0, 1):
        return bool(weight)
    got = "another number" if isinstance(weight, int | float) else type_name(weight)
    raise DataError(f"expected a weight of 0 or 1, got {got}: a turn is learned or not")


def _parse_calls(values: Any) -> tuple[ToolCall, ...]:
    if not isinstance(values, list | tuple):
        raise DataError(f"expected a list in 'tool_calls', got {type_name(values)}: correct it")
    return tuple(_parse_call(one) for one in values)


def _parse_written_calls(content: Any) -> tuple[ToolCall, ...]:
    """The calls that a turn of ShareGPT's form is: JSON of one, or of a list of them."""
    found = read_value(parse_json(content, "a tool call"), "value", "call") if isinstance(content, str) else content
    if not found:
        raise DataError("expected a tool call as JSON, got none: write it, or remove the row")
    return _parse_calls(found if isinstance(found, list) else [found])


def _parse_call(value: Any) -> ToolCall:
    inner = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"].strip():
        raise DataError(
            'expected a tool call such as {"function": {"name": "…", "arguments": "{}"}}, got '
            f"{'one without a name' if isinstance(inner, Mapping) else type_name(value)}: correct it"
        )
    known = value.get("id")
    return ToolCall(inner["name"], _parse_arguments(inner), None if known is None else str(known))


def _parse_arguments(call: Mapping[str, Any]) -> Mapping[str, Any]:
    given = call.get("arguments")
    what = f"the arguments of '{call['name']}'"
    found = parse_json(given, what) if isinstance(given, str) and given.strip() else given or {}
    if not isinstance(found, Mapping):
        raise DataError(f"expected {what} as a JSON object, got {type_name(found)}: correct them")
    checked: Mapping[str, Any] = read_value(found, "arguments", what)
    return checked


def _parse_tool(value: Any, number: int) -> Mapping[str, Any]:
    inner = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        got = "one without a name" if isinstance(inner, Mapping) else type_name(value)
        raise DataError(
            f'tool {number}: expected {{"type": "function", "function": {{"name": "…", …}}}}, got {got}: correct it'
        )
    return value if "function" in value else {"type": "function", "function": dict(value)}
