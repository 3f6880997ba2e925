"""What must hold of the turns of a conversation, whatever template they are written with."""

from collections.abc import Sequence

from softprompt.data.chats.conversation import Message, ToolCall
from softprompt.errors import DataError


def check_turns(messages: Sequence[Message]) -> None:
    """Raise DataError, with the number of the message, for turns that no template can be relied on to take.

    Needed are a turn of the user, the system message at the beginning if there is one, behind the calls of a turn the
    result of each (those of the last turn need none, for they are an answer), and one answer at the end.
    """
    waiting: list[ToolCall] = []
    for number, one in enumerate(messages, start=1):
        if one.role == "system" and number > 1:
            what = "a second one" if messages[0].role == "system" else f"one as message {number}"
            raise DataError(
                f"message {number}: expected one system message, at the beginning, got {what}: join or remove them"
            )
        if one.role == "tool":
            waiting.remove(_find_call(one, waiting, number))
        elif waiting:
            raise DataError(
                f"message {number}: expected the result of the call of '{waiting[0].name}', got a turn of {one.role}: "
                "add a message of the role tool"
            )
        waiting += one.tool_calls
    if waiting and not messages[-1].tool_calls:
        raise DataError(f"expected the result of the call of '{waiting[0].name}' too, got none: add a message of tool")
    if [one.role for one in messages[-2:]] == ["assistant", "assistant"]:
        raise DataError(
            f"message {len(messages)}: expected one answer at the end, got a second turn of assistant: join them"
        )
    if not any(one.role == "user" for one in messages):
        raise DataError("expected a turn of the user, got none: add it, or remove the row")


def _find_call(result: Message, waiting: Sequence[ToolCall], number: int) -> ToolCall:
    """The call that a tool's turn answers: by its id, else by the tool's name, else the first."""
    given, name = result.tool_call_id, result.name
    if given is not None and any(call.id is not None for call in waiting):
        found = next((call for call in waiting if call.id == given), None)
    else:
        found = next((call for call in waiting if call.name == name), waiting[0] if waiting else None)
    if found is None:
        told = f" of '{given or name}'" if given or name else ""
        raise DataError(
            f"message {number}: expected a tool's result behind the call that it answers, got one{told} without a call:"
            " add the call ('tool_calls' of the assistant), or remove the result"
        )
    return found
