"""Answers as the families' own templates write them, read in pieces of any size."""

from dataclasses import replace
from typing import Any

import pytest
from helpers.chat_models import WITH_TOOLS, chat_template, chat_tokenizer

from softprompt.data.chats.answer_reading import AnswerForm, find_answer_form
from softprompt.data.chats.chat_format import ChatFormat
from softprompt.data.chats.chat_template import ChatTemplate
from softprompt.data.chats.conversation import Conversation, Message, ToolCall
from softprompt.data.encoding.tokenization import safe_tokenizer

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Find it.",
        "parameters": {"type": "object", "properties": {"what": {"type": "string"}}},
    },
}
ASKED = Conversation((Message("user", "Where is it?"),), (TOOL,))
CALL = ToolCall("find", {"what": "a } b", "more": [1, {"c": 2}]}, "abcdefghi")
ONE_CALL = ("llama3_1",)  # at a time


def template_of(family: str, **options: Any) -> tuple[ChatTemplate, AnswerForm]:
    tokenizer = chat_tokenizer(family)
    found = ChatTemplate(tokenizer, ChatFormat(chat_template(family), placement="first", shared=False, **options))
    return found, find_answer_form(found, safe_tokenizer(tokenizer).marks)


def written(template: ChatTemplate, answer: Message) -> str:
    """What the template writes behind what is asked, to the end of the turn."""
    asked = template.render(ASKED).text
    whole = template.render(replace(ASKED, messages=(*ASKED.messages, answer)), ask=False).text
    assert whole.startswith(asked)
    said = whole[len(asked) :]
    return said[: min(at for end in (template.end, "<|call|>") if (at := said.find(end)) >= 0)]


def read(form: AnswerForm, text: str, size: int, tools: tuple[str, ...] = ("find",)) -> dict[str, Any]:
    reader = form.reader(tools)
    parts = [part for at in range(0, len(text), size) for part in reader.read(text[at : at + size])]
    parts += reader.close()
    words = {kind: "".join(one.text for one in parts if one.kind == kind) for kind in ("content", "reasoning")}
    return {**words, "calls": [(one.call.name, dict(one.call.arguments)) for one in parts if one.call is not None]}


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("family", WITH_TOOLS)
class TestCalls:
    def test_a_call(self, family: str, size: int) -> None:
        template, form = template_of(family)
        found = read(form, written(template, Message("assistant", "", (CALL,))), size)
        assert found["calls"] == [("find", dict(CALL.arguments))]
        assert not found["content"].strip()

    def test_two_calls(self, family: str, size: int) -> None:
        template, form = template_of(family)
        if family in (*ONE_CALL, "gptoss"):
            pytest.skip("one call at a time")
        other = ToolCall("find", {}, "abcdefghj")
        found = read(form, written(template, Message("assistant", "", (CALL, other))), size)
        assert found["calls"] == [("find", dict(CALL.arguments)), ("find", {})]

    def test_content_is_content(self, family: str, size: int) -> None:
        template, form = template_of(family)
        found = read(form, written(template, Message("assistant", "It is {here} <b>, [1].")), size)
        assert (found["content"].strip(), found["calls"]) == ("It is {here} <b>, [1].", [])

    def test_what_calls_no_tool_is_content(self, family: str, size: int) -> None:
        template, form = template_of(family)
        text = written(template, Message("assistant", "", (CALL,)))
        for tools in ((), ("other",)):
            found = read(form, text, size, tools)
            assert found["calls"] == []
            assert "a } b" in found["content"]


@pytest.mark.parametrize("size", [1, 3, 1000])
class TestThoughts:
    def test_between_tags(self, size: int) -> None:
        _, form = template_of("qwen3")
        found = read(form, "<think>\nHm, <so>.\n</think>\n\nYes.", size)
        assert (found["reasoning"].strip(), found["content"].strip()) == ("Hm, <so>.", "Yes.")

    def test_that_were_asked_with(self, size: int) -> None:
        _, form = template_of("deepseekv3", asking="thoughts")
        assert form.thinks
        found = read(form, "Hm.</think>Yes.", size)
        assert (found["reasoning"], found["content"]) == ("Hm.", "Yes.")
        assert read(form, "Hm.", size) == {"reasoning": "Hm.", "content": "", "calls": []}

    def test_in_channels(self, size: int) -> None:
        _, form = template_of("gptoss")
        text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes."
        found = read(form, text, size)
        assert (found["reasoning"], found["content"]) == ("Hm.", "Yes.")
        assert read(form, "Yes.", size)["content"] == "Yes."


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_call_without_its_tags(size: int) -> None:
    _, form = template_of("qwen2_5")
    call = '{"name": "find", "arguments": {"what": "x"}}'
    assert read(form, call, size)["calls"] == [("find", {"what": "x"})]
    for said in ('{"answer": 1} as JSON', f"As in {call}"):
        assert read(form, said, size) == {"content": said, "reasoning": "", "calls": []}


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    "text", ["<tool_call>", "<tool_call>\n{", '<tool_call>{"name": "find", "arguments": 3}', "<tool_"]
)
def test_what_is_no_call_after_all_is_not_lost(text: str, size: int) -> None:
    _, form = template_of("qwen2_5")
    found = read(form, f"So: {text}", size)
    assert (found["content"], found["calls"]) == (f"So: {text}", [])
