from softprompt.data.chats.conversation import Conversation, Message, ToolCall


def test_messages_are_what_chat_templates_take() -> None:
    call = ToolCall("weather", {"city": "Oslo"}, "c1")
    assert Message("assistant", "", (call,)).to_dict() == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
        ],
    }
    assert Message("tool", "rain", tool_call_id="c1", name="weather").to_dict() == {
        "role": "tool",
        "content": "rain",
        "tool_call_id": "c1",
        "name": "weather",
    }
    assert Message("assistant", "4", reasoning="2 + 2").to_dict()["reasoning_content"] == "2 + 2"


def test_system_is_the_message_that_a_conversation_begins_with() -> None:
    system, user = Message("system", "Be brief."), Message("user", "Hello")
    assert Conversation((system, user)).system == "Be brief."
    assert Conversation((user, system)).system is None
    assert Conversation(()).system is None
