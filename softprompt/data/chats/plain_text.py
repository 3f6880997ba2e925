"""Conversations as plain text with roles: for people, and for models without a chat template."""

import json
from collections.abc import Sequence

from softprompt.data.chats.conversation import Conversation, Message

_NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


def plain_text(conversation: Conversation) -> str:
    """What a model without a chat template reads: each turn on a line behind its role, tools in front.

    The user's words where these are all. An answer at the end is left out.
    """
    asked = conversation.without_answer()
    if len(asked.messages) == 1 and not asked.tools:
        return asked.messages[0].content
    tools = [f"Tools: {json.dumps([dict(one) for one in asked.tools], ensure_ascii=False)}"] if asked.tools else []
    return "\n".join([*tools, *_write_turns(asked.messages)])


def readable_text(conversation: Conversation) -> str:
    """What people read of it: the user's words where these and a system message are all, else each turn with its role.

    An answer at the end is left out.
    """
    asked = conversation.without_answer().messages
    turns = [one for one in asked if one.role != "system"]
    if len(turns) == 1 and turns[0].role == "user":
        return turns[0].content
    return "\n".join(_write_turns(asked))


def answer_text(message: Message) -> str:
    """An assistant's turn as text: its content, and its calls as JSON, one a line."""
    calls = [
        json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)
        for call in message.tool_calls
    ]
    return "\n".join([*([message.content] if message.content else []), *calls])


def _write_turns(messages: Sequence[Message]) -> list[str]:
    return [f"{_NAMES[one.role]}: {answer_text(one)}" for one in messages]
