"""openai: a conversation of five turns, streams, objects that a schema accepts, tools, log-probabilities."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest
from conftest import Server
from openai import OpenAI

SYSTEM = {"role": "system", "content": "Answer in one short sentence."}
ASKED = (
    "My name is Ada, I live in Paris, and I am 36 years old.",
    "What is my name?",
    "In which city do I live?",
    "How old am I?",
    "What is my name, once more?",
)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mood": {"enum": ["good", "bad", "mixed"]},
        "friends": {"type": "array", "items": {"type": "string", "maxLength": 10}, "maxItems": 3},
    },
    "required": ["name", "age", "mood", "friends"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "find_weather",
        "description": "Find the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=server.url, api_key=server.key, max_retries=0)


def test_a_conversation_of_five_turns(client: OpenAI, server: Server) -> None:
    messages: list[Any] = [SYSTEM]
    said = []
    for text in ASKED:
        messages.append({"role": "user", "content": text})
        answer = client.chat.completions.create(model=server.model, messages=messages, temperature=0, max_tokens=40)
        assert answer.choices[0].finish_reason == "stop"
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        said.append(answer.choices[0].message.content)
    assert ["Ada" in said[1], "Paris" in said[2], "36" in said[3], "Ada" in said[4]] == [True] * 4


def test_each_turn_streams_as_it_is_answered_whole(client: OpenAI, server: Server) -> None:
    messages: list[Any] = [SYSTEM]
    for text in ASKED:
        messages.append({"role": "user", "content": text})
        asked: Any = {"model": server.model, "messages": messages, "temperature": 0, "max_completion_tokens": 40}
        whole = client.chat.completions.create(**asked)
        parts = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        said = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        assert said == whole.choices[0].message.content
        assert parts[-1].usage == whole.usage
        messages.append({"role": "assistant", "content": said})


def test_a_developer_message_is_a_system_message(client: OpenAI, server: Server) -> None:
    said = []
    for role in ("system", "developer"):
        messages: Any = [{"role": role, "content": SYSTEM["content"]}, {"role": "user", "content": "What is Paris?"}]
        answer = client.chat.completions.create(model=server.model, messages=messages, temperature=0, max_tokens=40)
        said.append(answer.choices[0].message.content)
    assert said[0] == said[1]


def test_the_schema_accepts_100_objects_of_100(client: OpenAI, server: Server) -> None:
    """At a temperature of 1, so that no two need be equal."""

    def ask(seed: int) -> str:
        answer = client.chat.completions.create(
            model=server.model,
            messages=[SYSTEM, {"role": "user", "content": f"Make up a person, number {seed}."}],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "person", "schema": SCHEMA, "strict": True},
            },
            temperature=1,
            seed=seed,
            max_tokens=150,
        )
        assert answer.choices[0].finish_reason == "stop"
        return answer.choices[0].message.content or ""

    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(ask, range(100)))
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert len(set(texts)) > 50


def test_an_object_without_a_schema(client: OpenAI, server: Server) -> None:
    answer = client.chat.completions.create(
        model=server.model,
        messages=[{"role": "user", "content": "Ada is 36. Answer with a JSON object of name and age."}],
        response_format={"type": "json_object"},
        temperature=0,
        max_tokens=60,
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "find_weather"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called(client: OpenAI, server: Server, choice: Any, stream: bool) -> None:
    asked: Any = {
        "model": server.model,
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [TOOL],
        "tool_choice": choice,
        "temperature": 0,
        "max_tokens": 60,
    }
    if stream:
        parts = list(client.chat.completions.create(**asked, stream=True))
        calls = [call for part in parts for call in part.choices[0].delta.tool_calls or []]
        name = "".join(call.function.name or "" for call in calls)
        arguments = "".join(call.function.arguments or "" for call in calls)
        reason = parts[-1].choices[0].finish_reason
    else:
        (one,) = client.chat.completions.create(**asked).choices
        ((call,), reason) = one.message.tool_calls, one.finish_reason
        name, arguments = call.function.name, call.function.arguments
    assert (name, reason) == ("find_weather", "tool_calls")
    assert "Paris" in json.loads(arguments)["city"]


def test_log_probabilities_of_an_answer(client: OpenAI, server: Server) -> None:
    answer = client.chat.completions.create(
        model=server.model,
        messages=[SYSTEM, {"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        max_tokens=20,
        logprobs=True,
        top_logprobs=3,
        n=2,
    )
    assert [one.index for one in answer.choices] == [0, 1]
    for one in answer.choices:
        found = one.logprobs.content
        assert bytes(byte for token in found for byte in token.bytes).decode().startswith(one.message.content)
        for token in found:
            assert len(token.top_logprobs) == 3
            # greedy: the likeliest
            assert token.logprob == max(other.logprob for other in token.top_logprobs) <= 0


def test_an_echoed_text_has_its_log_probabilities(client: OpenAI, server: Server) -> None:
    text = "The capital of France is"
    one = client.completions.create(model=server.model, prompt=text, echo=True, logprobs=1, max_tokens=1).choices[0]
    assert one.text.startswith(text)
    found = one.logprobs
    assert found.token_logprobs[0] is None
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset)
    assert all(number <= 0 for number in found.token_logprobs[1:])
