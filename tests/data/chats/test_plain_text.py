"""Conversations as plain text: what people read of them, and what a model without a chat template does."""

from helpers.tiny_models import tiny_base

from softprompt.data.chats.conversation import Conversation, Message, ToolCall
from softprompt.data.chats.plain_text import answer_text, plain_text, readable_text
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.splits import read_splits
from softprompt.data.task import Task, TaskSpec

SYSTEM, USER, ANSWER = Message("system", "Be brief."), Message("user", "one"), Message("assistant", "two")
CALLING = Message("assistant", "I add.", (ToolCall("add", {"a": "é"}), ToolCall("stop")))
TOOL = {"type": "function", "function": {"name": "add"}}


def test_words_of_the_user_alone() -> None:
    for turns in ((USER,), (USER, ANSWER)):
        assert plain_text(Conversation(turns)) == readable_text(Conversation(turns)) == "one"
    assert readable_text(Conversation((SYSTEM, USER, ANSWER), (TOOL,))) == "one"


def test_turns_behind_their_roles() -> None:
    told = Conversation((SYSTEM, USER, ANSWER, Message("user", "three")))
    assert plain_text(told) == readable_text(told) == "System: Be brief.\nUser: one\nAssistant: two\nUser: three"
    assert plain_text(Conversation((SYSTEM, USER))) == "System: Be brief.\nUser: one"
    assert plain_text(Conversation((USER,), (TOOL,))) == (
        'Tools: [{"type": "function", "function": {"name": "add"}}]\nUser: one'
    )
    calling = Conversation((USER, CALLING, Message("tool", "3"), Message("tool", ""), ANSWER))
    calls = '{"name": "add", "arguments": {"a": "é"}}\n{"name": "stop", "arguments": {}}'
    assert plain_text(calling) == f"User: one\nAssistant: I add.\n{calls}\nTool: 3\nTool: "
    assert answer_text(CALLING) == f"I add.\n{calls}"
    assert answer_text(Message("assistant", "", CALLING.tool_calls)) == calls


def test_a_model_without_a_chat_template_reads_all_turns() -> None:
    messages = [one.to_dict() for one in (SYSTEM, USER, ANSWER)]
    (example,) = read_splits([{"messages": messages}])["all"]
    base = tiny_base("llama")
    encoder = ExampleEncoder(base, TaskSpec.of(template="{{ text }}\nAssistant:"), 4)
    (ids,) = encoder.encode_texts([example])
    assert base.tokenizer.decode(list(ids)) == "System: Be brief.\nUser: one\nAssistant:"
    (same,) = encoder.encode_texts([Example("System: Be brief.\nUser: one")])
    assert ids == same
    encoder.limit = 12
    (cut,) = encoder.encode_texts([example])
    assert len(cut) <= 12
    assert encoder.truncated == 1


def test_a_template_may_have_words_of_its_own() -> None:
    task = Task.of(
        [{"prompt": f"number {number}", "completion": str(number)} for number in range(20)], template="{{ text }} ->"
    )
    assert {task.spec.compiled.render(one) for one in task.splits["all"]} == {f"number {i} ->" for i in range(20)}
