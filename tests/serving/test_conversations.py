"""Conversations with a server, by the official ``openai`` client: what they may say, and what answers them."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from helpers.chat_server import BASE, SYSTEM, ChatPlace, chat_spec, chat_store

from softprompt.data.chats.conversation import Conversation, Message
from softprompt.data.examples import Example
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictor import Predictor

FAMILY = "qwen2_5"
ROOM = 6
FIVE: list[Any] = [
    {"role": "system", "content": "Answer in one short sentence."},
    {"role": "user", "content": "My name is Ada."},
    {"role": "assistant", "content": "Nice to meet you, Ada."},
    {"role": "user", "content": "Two and two?"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "What is my name?"},
]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "find_weather",
        "description": "Find the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

NAMED: Any = {"type": "function", "function": {"name": "find_weather"}}


class Running:
    def __init__(self, place: ChatPlace, address: str) -> None:
        self.place, self.address = place, address
        self.client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)

    def ask(self, model: str, messages: list[Any], **options: Any) -> Any:
        return self.client.chat.completions.create(model=model, messages=messages, **{"max_tokens": ROOM, **options})

    def refused(self, **body: Any) -> dict[str, Any]:
        answer = httpx.post(f"{self.address}/v1/chat/completions", json={"max_tokens": ROOM, **body})
        assert answer.status_code == 400, answer.text
        return dict(answer.json()["error"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    specs = {
        "kept": chat_spec(FAMILY, system=SYSTEM),
        "none": chat_spec(FAMILY),
        "any": chat_spec(FAMILY, shared=False),
        "end": chat_spec(FAMILY, system=SYSTEM, placement="system-end"),
    }
    store = chat_store(FAMILY, tmp_path_factory.mktemp("chats"), **specs)
    place = ChatPlace.of_family(FAMILY, store, max_tokens=128)
    with place.running() as address:
        running = Running(place, address)
        yield running
        running.client.close()


def alone(server: Running, name: str, messages: list[Any]) -> str:
    """What a Predictor says, of one conversation by itself."""
    loaded = server.place.registry.get_loaded(f"{name}@1")
    assert loaded is not None
    served = loaded.served
    predictor = Predictor(server.place.base, served.spec, served.states, GenerationConfig(max_new_tokens=ROOM))
    turns = tuple(Message(one["role"], one["content"]) for one in messages)
    (answer,) = predictor.predict([Example("", conversation=Conversation(turns))])
    return str(answer.completion)


class TestSystemMessages:
    @pytest.mark.parametrize("name", ["kept", "any", "end"])
    def test_one_of_its_own_is_answered_as_by_a_predictor(self, server: Running, name: str) -> None:
        answer = server.ask(name, FIVE)
        assert answer.choices[0].message.content == alone(server, name, FIVE)
        assert answer.model == f"{name}@1"

    def test_it_replaces_the_one_that_was_kept(self, server: Running) -> None:
        asked = {one: server.ask("kept", [{"role": "system", "content": one}, *FIVE[1:]]) for one in (SYSTEM, "Talk.")}
        without = server.ask("kept", FIVE[1:])
        assert without.usage.prompt_tokens == asked[SYSTEM].usage.prompt_tokens
        assert without.choices[0].message.content == asked[SYSTEM].choices[0].message.content
        assert asked["Talk."].usage.prompt_tokens != without.usage.prompt_tokens

    def test_developer_messages_are_system_messages(self, server: Running) -> None:
        renamed = [{**FIVE[0], "role": "developer"}, *FIVE[1:]]
        assert server.ask("kept", renamed).choices[0].message == server.ask("kept", FIVE).choices[0].message

    def test_it_is_refused_by_name_where_none_was_learned_with(self, server: Running) -> None:
        error = server.refused(model="none", messages=FIVE)
        assert error["param"] == "messages[0]"
        assert "learned without one" in error["message"]
        assert server.ask("none", FIVE[1:]).choices[0].message.content == alone(server, "none", FIVE[1:])

    def test_the_base_model_by_its_name_has_its_template(self, server: Running) -> None:
        base = server.place.base
        ids = base.tokenizer.apply_chat_template(FIVE, add_generation_prompt=True)["input_ids"]
        assert server.ask(BASE, FIVE).usage.prompt_tokens == len(ids)
        raw = server.client.completions.create(model=BASE, prompt="What is", max_tokens=1)
        assert raw.usage is not None
        assert raw.usage.prompt_tokens == len(base.tokenizer.encode("What is"))


class TestStreams:
    def test_five_turns_with_a_system_message(self, server: Running) -> None:
        stream = server.ask("kept", FIVE, stream=True, stream_options={"include_usage": True})
        chunks = list(stream)
        text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
        whole = server.ask("kept", FIVE)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage == whole.usage


class TestAnswers:
    def test_alone_and_turn_by_turn_and_mixed_with_other_prompts(self, server: Running) -> None:
        names = ("kept", "any", "end", "none", BASE)
        parts = [FIVE[1 if name == "none" else 0 : end] for name in names for end in (2, 4, 6)]
        asked = list(zip([name for name in names for _ in range(3)], parts, strict=True))
        one_by_one = [server.ask(*one).choices[0].message.content for one in asked]

        async def all_at_once() -> list[Any]:
            url = f"{server.address}/v1"
            async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
                create = client.chat.completions.create
                return await asyncio.gather(
                    *(create(model=name, messages=said, max_tokens=ROOM) for name, said in asked)
                )

        together = asyncio.run(all_at_once())
        assert [one.choices[0].message.content for one in together] == one_by_one
        predicted = [alone(server, *one) for one in asked if one[0] != BASE]
        assert one_by_one[: len(predicted)] == predicted

    def test_a_hundred_json_objects(self, server: Running) -> None:
        schema = {"type": "object", "properties": {"name": {"enum": ["Ada", "Bob"]}}, "required": ["name"]}
        schema["additionalProperties"] = False
        wanted = {"type": "json_schema", "json_schema": {"name": "Person", "schema": schema, "strict": True}}

        async def ask() -> list[Any]:
            url = f"{server.address}/v1"
            async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
                create = client.chat.completions.create
                options: Any = {"messages": FIVE, "response_format": wanted, "temperature": 1.0, "max_tokens": 60}
                return await asyncio.gather(
                    *(create(model=("kept", BASE)[seed % 2], seed=seed, **options) for seed in range(100))
                )

        answers = asyncio.run(ask())
        for one in answers:
            jsonschema.validate(json.loads(one.choices[0].message.content), schema)

    def test_a_text_is_what_a_user_says(self, server: Running) -> None:
        text = server.client.completions.create(model="kept", prompt="What is it?", max_tokens=ROOM).choices[0].text
        chat = server.ask("kept", [{"role": "user", "content": "What is it?"}]).choices[0].message.content
        assert text.strip() == chat

    def test_a_baseline_has_the_system_message_alone(self, server: Running) -> None:
        base, turns = server.place.base, FIVE[1:]
        for asked, first in (({}, SYSTEM), ({"instruction": "Talk."}, "Talk.")):
            answer = server.ask("kept", turns, extra_body={"baseline": asked})
            whole = [{"role": "system", "content": first}, *turns]
            ids = base.tokenizer.apply_chat_template(whole, add_generation_prompt=True)["input_ids"]
            assert answer.usage.prompt_tokens == len(ids)


class TestMessages:
    @pytest.mark.parametrize(
        ("messages", "place", "words"),
        [
            ([{"role": "wizard", "content": "x"}], "messages[0]", "role"),
            ([FIVE[1], {"role": "system", "content": "Late."}], "messages[1]", "system"),
            ([FIVE[1], {"role": "assistant", "content": ""}], "messages[1]", "content"),
            ([FIVE[1], FIVE[2]], "messages[1]", "last message"),
            ([{"role": "user", "content": "  "}], "messages[0]", "content"),
            ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages[0]", "image"),
            ([FIVE[1], {"role": "tool", "content": "sunny", "tool_call_id": "7"}], "messages[1]", "without a call"),
            ([FIVE[0]], "messages", "user"),
        ],
        ids=str,
    )
    def test_what_is_no_conversation_is_refused(
        self, server: Running, messages: list[Any], place: str, words: str
    ) -> None:
        answer = httpx.post(f"{server.address}/v1/chat/completions", json={"model": "kept", "messages": messages})
        error = answer.json()["error"]
        assert answer.status_code in (400, 422)
        assert error["param"].startswith(place)
        assert words in error["message"]
        assert "\n" not in error["message"]

    def test_parts_of_text_are_joined(self, server: Running) -> None:
        parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "my name?"}]
        divided = [*FIVE[:-1], {"role": "user", "content": parts}]
        assert server.ask("kept", divided).choices[0].message == server.ask("kept", FIVE).choices[0].message

    def test_results_of_tools_and_tools(self, server: Running) -> None:
        call = {
            "id": "call_1",
            "type": "function",
            "function": {"name": "find_weather", "arguments": '{"city": "Rome"}'},
        }
        turns = [
            *FIVE[:2],
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ]
        ids = server.place.base.tokenizer.apply_chat_template(
            [
                {**turns[2], "tool_calls": [{"function": {"name": "find_weather", "arguments": {"city": "Rome"}}}]}
                if one is turns[2]
                else one
                for one in turns
            ],
            tools=[TOOL],
            add_generation_prompt=True,
        )["input_ids"]
        answer = server.ask(BASE, turns, tools=[TOOL])
        assert answer.usage.prompt_tokens == len(ids)
        learned = server.ask("kept", turns, tools=[TOOL])
        assert learned.usage.prompt_tokens == len(ids) + 4
        assert "without tools" in learned.warnings[0]


class TestCalls:
    @pytest.mark.parametrize(
        "choice", ["required", {"type": "function", "function": {"name": "find_weather"}}], ids=str
    )
    @pytest.mark.parametrize("stream", [False, True])
    def test_a_tool_has_to_be_called(self, server: Running, choice: Any, stream: bool) -> None:
        other = {"type": "function", "function": {"name": "other", "parameters": {"type": "object", "properties": {}}}}
        parameters = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]}
        tool = {"type": "function", "function": {"name": "find_weather", "parameters": parameters}}
        tools = [tool, other] if isinstance(choice, dict) else [tool]
        answer = server.ask("kept", FIVE, tools=tools, tool_choice=choice, max_tokens=64, stream=stream)
        if stream:
            chunks = [one.choices[0] for one in answer]
            calls = [call for one in chunks for call in one.delta.tool_calls or []]
            finish = chunks[-1].finish_reason
        else:
            (choice_,) = answer.choices
            calls, finish = choice_.message.tool_calls, choice_.finish_reason
            assert choice_.message.content is None
        told = [(one.function.name, one.function.arguments) for one in calls]
        assert told == [("find_weather", '{"city": "Rome"}')]
        assert calls[0].id.startswith("call_")
        assert finish == "tool_calls"
