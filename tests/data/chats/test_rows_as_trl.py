"""Rows say what TRL makes of them: the same words, through the same chat templates."""

import copy
import json
import warnings
from typing import Any

import pytest
from helpers.chat_models import CHAT_FAMILIES, WITH_TOOLS, WITHOUT_SYSTEM, chat_tokenizer

from softprompt.data.examples import Example
from softprompt.data.splits import read_splits

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of TRL's own imports
    pytest.importorskip("trl")
    from trl import apply_chat_template, extract_prompt, maybe_convert_to_chatml

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [
    {"role": "user", "content": "Which colour has the sky?"},
    {"role": "assistant", "content": "Blue."},
    {"role": "user", "content": "And at <|im_end|> night?"},
    {"role": "assistant", "content": "Black, or  grey.\n"},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "at the sky",
        "parameters": {"type": "object", "properties": {"hour": {"type": "integer", "description": "of the day"}}},
    },
}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"hour": 23}}}
CALLING = [
    TURNS[0],
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "look", "content": "dark"},
    TURNS[1],
]


def read(row: dict[str, Any]) -> Example:
    (example,) = read_splits([row])["all"]
    return example


def render(family: str, example: Example) -> str:
    """All turns through the family's template."""
    assert example.conversation is not None
    tools = [dict(one) for one in example.conversation.tools] or None
    messages = [one.to_dict() for one in example.conversation.messages]
    return str(chat_tokenizer(family).apply_chat_template(messages, tools=tools, tokenize=False))


def turns(family: str) -> list[dict[str, Any]]:
    return TURNS if family in WITHOUT_SYSTEM else [SYSTEM, *TURNS]


@pytest.mark.parametrize("family", CHAT_FAMILIES)
class TestFamilies:
    def test_messages(self, family: str) -> None:
        row = {"messages": turns(family)}
        assert render(family, read(row)) == apply_chat_template(row, chat_tokenizer(family))["text"]

    def test_sharegpt(self, family: str) -> None:
        names = {"system": "system", "user": "human", "assistant": "gpt"}
        row = {"conversations": [{"from": names[one["role"]], "value": one["content"]} for one in turns(family)]}
        plain = {"conversations": [{"from": one["role"], "value": one["content"]} for one in turns(family)]}
        expected = apply_chat_template(maybe_convert_to_chatml(plain), chat_tokenizer(family))["text"]
        assert render(family, read(row)) == expected

    def test_prompt_and_completion(self, family: str) -> None:
        row = {"prompt": turns(family)[:-1], "completion": TURNS[-1:]}
        expected = apply_chat_template(row, chat_tokenizer(family))
        assert render(family, read(row)) == expected["prompt"] + expected["completion"]
        words = {"prompt": TURNS[0]["content"], "completion": TURNS[1]["content"]}
        expected = apply_chat_template({"prompt": TURNS[:1], "completion": TURNS[1:2]}, chat_tokenizer(family))
        assert render(family, read(words)) == expected["prompt"] + expected["completion"]

    def test_preference(self, family: str) -> None:
        other = {"role": "assistant", "content": "Who knows"}
        row = {"chosen": turns(family), "rejected": [*turns(family)[:-1], other]}
        expected = apply_chat_template(row, chat_tokenizer(family))["chosen"]
        assert render(family, read(row)) == expected
        parted = extract_prompt(copy.deepcopy(row))
        assert render(family, read(parted)) == expected


@pytest.mark.parametrize("family", WITH_TOOLS)
@pytest.mark.parametrize("given", ["object", "text", "no content"])
def test_tools(family: str, given: str) -> None:
    row: dict[str, Any] = {"messages": copy.deepcopy(CALLING), "tools": [TOOL]}
    call_id = "a1b2c3d4e"  # Mistral's template demands nine letters
    row["messages"][1]["tool_calls"][0]["id"] = row["messages"][2]["tool_call_id"] = call_id
    expected = apply_chat_template(row, chat_tokenizer(family), tools=[TOOL])["text"]
    if given == "text":  # as OpenAI's files have it
        row["messages"][1]["tool_calls"][0]["function"]["arguments"] = json.dumps({"hour": 23})
    if given == "no content":
        row["messages"][1]["content"] = None
    assert render(family, read(row)) == expected
