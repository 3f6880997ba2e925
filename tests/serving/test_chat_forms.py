"""Thoughts, channels and calls of the families' own kinds, from a server; labels of conversations."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from helpers.chat_models import WITH_TOOLS, chat_base
from helpers.chat_server import BASE, SYSTEM, ChatPlace, chat_prompt, chat_spec, chat_store, written_by_transformers

from softprompt.data.chats.conversation import Conversation, Message
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.inference.predictor import Predictor

ASKED: list[Any] = [{"role": "user", "content": "Where is Ada?"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Find it.",
        "parameters": {
            "type": "object",
            "properties": {"who": {"enum": ["Ada"]}},
            "required": ["who"],
            "additionalProperties": False,
        },
    },
}
OTHER: Any = {"type": "function", "function": {"name": "other", "parameters": {"type": "object", "properties": {}}}}
SCHEMA: Any = {
    "type": "object",
    "properties": {"who": {"enum": ["Ada"]}},
    "required": ["who"],
    "additionalProperties": False,
}


@contextmanager
def serving(family: str, folder: Path, **specs: TaskSpec) -> Iterator[tuple[openai.OpenAI, str]]:
    place = ChatPlace.of_family(family, chat_store(family, folder, **specs), max_tokens=200)
    with place.running() as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client, address


@pytest.mark.parametrize("family", WITH_TOOLS)
def test_each_family_calls_and_answers_in_json(family: str, tmp_path: Path) -> None:
    with serving(family, tmp_path, talk=chat_spec(family, system=SYSTEM)) as (client, _):
        create = client.chat.completions.create
        for model in ("talk", BASE):
            answer = create(model=model, messages=ASKED, tools=[TOOL], tool_choice="required", max_tokens=90)
            (call,) = answer.choices[0].message.tool_calls or []
            assert (call.function.name, json.loads(call.function.arguments)) == ("find", {"who": "Ada"})
            # the answer is sent back as it is, with what the tool says
            turns: list[Any] = [*ASKED, answer.choices[0].message.model_dump(exclude_unset=True)]
            turns.append({"role": "tool", "tool_call_id": call.id, "content": "in London"})
            assert create(model=model, messages=turns, tools=[TOOL], max_tokens=4).choices[0].finish_reason
            turns[1]["tool_calls"][0]["id"] = turns[2]["tool_call_id"] = "call_of_another_length"
            assert create(model=model, messages=turns, tools=[TOOL], max_tokens=4).choices[0].finish_reason
            form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
            wanted = create(model=model, messages=ASKED, response_format=form, max_tokens=90)
            assert json.loads(wanted.choices[0].message.content or "") == {"who": "Ada"}
        named: Any = {"type": "function", "function": {"name": "find"}}
        both = create(model="talk", messages=ASKED, tools=[OTHER, TOOL], tool_choice=named, max_tokens=90)
        assert [one.function.name for one in both.choices[0].message.tool_calls or []] == ["find"]


def test_a_call_is_one_of_the_tools(tmp_path: Path) -> None:
    with serving("qwen2_5", tmp_path, talk=chat_spec("qwen2_5", system=SYSTEM)) as (client, _):
        found = {
            call.function.name
            for seed in range(8)
            for call in client.chat.completions.create(
                model="talk",
                messages=ASKED,
                tools=[OTHER, TOOL],
                tool_choice="required",
                temperature=2,
                seed=seed,
                max_tokens=90,
            )
            .choices[0]
            .message.tool_calls
            or []
        }
        assert found == {"find", "other"}
        with pytest.raises(openai.BadRequestError, match="tool_choice: expected tools to choose from"):
            client.chat.completions.create(model="talk", messages=ASKED, tool_choice="required")
        nobody: Any = {"type": "function", "function": {"name": "nobody"}}
        with pytest.raises(openai.BadRequestError, match="tool_choice: expected the name of one of the tools"):
            client.chat.completions.create(model="talk", messages=ASKED, tools=[TOOL], tool_choice=nobody)


def test_thinking_is_asked_for_by_the_request(tmp_path: Path) -> None:
    spec = chat_spec("qwen3", system=SYSTEM, arguments={"enable_thinking": False})
    with serving("qwen3", tmp_path, talk=spec) as (client, _):

        def read(model: str, **given: Any) -> int:
            extra = {"chat_template_kwargs": given} if given else {}
            answer = client.chat.completions.create(model=model, messages=ASKED, max_tokens=1, extra_body=extra)
            assert answer.usage is not None
            return answer.usage.prompt_tokens

        thinking, not_thinking = (
            len(written_by_transformers("qwen3", ASKED, enable_thinking=one)) for one in (True, False)
        )
        assert thinking < not_thinking
        assert (read(BASE), read(BASE, enable_thinking=False)) == (thinking, not_thinking)
        assert read("talk") == read("talk", enable_thinking=False)
        assert read("talk", enable_thinking=True) == read("talk") - (not_thinking - thinking)


def test_labels_of_a_conversation(tmp_path: Path) -> None:
    family = "qwen2_5"
    chat = chat_spec(family, system=SYSTEM).chat
    spec = TaskSpec("classification", "{{ text }}", ("good", "bad"), ("good", "bad"), chat=chat, max_length=500)
    predictor = Predictor(chat_base(family), spec, chat_prompt(family, spec).states)
    turns = [{"role": "system", "content": "Is it good?"}, *ASKED]
    with serving(family, tmp_path, tone=spec) as (client, address):
        for messages in (ASKED, turns):
            said = tuple(Message(one["role"], one["content"]) for one in messages)
            expected = predictor.predict(Example("", conversation=Conversation(said)))
            answer = client.chat.completions.create(model="tone", messages=messages)
            assert answer.choices[0].message.content == expected.label
        found = httpx.post(f"{address}/v1/classify", json={"model": "tone", "input": ASKED[0]["content"]}).json()
        assert found["results"][0]["label"] == predictor.predict(ASKED[0]["content"]).label
        with pytest.raises(openai.BadRequestError, match="tool_choice"):
            client.chat.completions.create(model="tone", messages=ASKED, tools=[TOOL], tool_choice="required")
