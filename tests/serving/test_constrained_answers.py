"""JSON that follows a schema, by the ``openai`` client from a running server, alone and among other requests."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema
import openai
import pytest
from helpers.served_prompts import WORDS, Held, collected, examples_of, joined, tokens
from helpers.tiny_models import tiny_base
from helpers.tiny_server import RealPlace, a_store
from pydantic import BaseModel, ConfigDict

from softprompt.errors import GrammarError
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.grammar import Grammar
from softprompt.serving.engine.completion_chunks import CompletionChunk
from softprompt.serving.engine.engine_requests import ServedPrompt
from softprompt.serving.engine.inference_engine import InferenceEngine

TEXT = "a fine film"
SCHEMA = {
    "type": "object",
    "properties": {
        "tone": {"enum": ["good", "bad"]},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "words": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
    },
    "required": ["tone", "stars", "words"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "review", "schema": SCHEMA, "strict": True}}
ASKED: Any = [{"role": "user", "content": TEXT}]
ROOM = 120


class Review(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tone: Literal["good", "bad"]
    stars: bool


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = RealPlace.of_store(a_store(tmp_path_factory.mktemp("constrained")), max_tokens=ROOM)
    with place.running() as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as one:
        yield one


class TestSchemas:
    def test_a_hundred_of_a_hundred_among_plain_requests(self, url: str, client: openai.OpenAI) -> None:
        plain = {"model": "words", "messages": ASKED, "max_tokens": 8}
        alone = client.chat.completions.create(**plain).choices[0].message.content  # type: ignore[call-overload]

        async def ask() -> tuple[list[Any], list[Any]]:
            async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as many:
                create: Any = many.chat.completions.create
                strict = {"model": "words", "messages": ASKED, "max_tokens": ROOM, "response_format": FORMAT}
                asked = [create(**strict, temperature=1 + one % 3 / 2, seed=one) for one in range(100)]
                others = [create(**plain) for _ in range(20)]
                return await asyncio.gather(*asked), await asyncio.gather(*others)

        answers, others = asyncio.run(ask())
        whole = [one.choices[0] for one in answers if one.choices[0].finish_reason == "stop"]
        for choice in whole:
            jsonschema.validate(json.loads(choice.message.content), SCHEMA)
        assert len(whole) == 100
        assert [one.choices[0].message.content for one in others] == [alone] * 20

    def test_as_a_stream(self, client: openai.OpenAI) -> None:
        stream = client.chat.completions.create(
            model="words", messages=ASKED, response_format=FORMAT, temperature=1, seed=2, max_tokens=ROOM, stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        jsonschema.validate(json.loads(text), SCHEMA)

    def test_by_the_client_s_own_models(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.parse(
            model="words", messages=ASKED, response_format=Review, temperature=1, seed=1, max_tokens=ROOM
        )
        assert isinstance(answer.choices[0].message.parsed, Review)

    def test_any_object(self, client: openai.OpenAI) -> None:
        create: Any = client.chat.completions.create
        for seed in range(20):
            choice = create(
                model="words",
                messages=ASKED,
                response_format={"type": "json_object"},
                temperature=1,
                seed=seed,
                max_tokens=ROOM,
            ).choices[0]
            if choice.finish_reason == "stop":
                assert isinstance(json.loads(choice.message.content), dict)
                return
        raise AssertionError("all of them were cut")

    def test_completions_of_several_texts(self, client: openai.OpenAI) -> None:
        answer = client.completions.create(
            model="words",
            prompt=[TEXT, "a dull story"],
            max_tokens=ROOM,
            temperature=1,
            seed=4,
            n=2,
            extra_body={"response_format": FORMAT},
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        for choice in answer.choices:
            jsonschema.validate(json.loads(choice.text), SCHEMA)

    def test_the_limit_cuts(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(model="words", messages=ASKED, response_format=FORMAT, max_tokens=2)
        assert answer.choices[0].finish_reason == "length"


class TestRefusals:
    @pytest.mark.parametrize(
        ("schema", "words"),
        [
            ({"type": "nothing"}, "Invalid type: nothing"),
            ({"type": "string", "pattern": "(?<=a)b"}, "look-around"),
            ({"enum": ["x" * 300_000]}, "expected at most 262,144"),
        ],
    )
    def test_a_schema_that_no_answer_can_follow(self, client: openai.OpenAI, schema: Any, words: str) -> None:
        asked: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        with pytest.raises(openai.BadRequestError, match=words) as refused:
            client.chat.completions.create(model="words", messages=ASKED, response_format=asked)
        assert (refused.value.code, refused.value.param) == ("invalid_schema", "response_format")
        assert "\n" not in str(refused.value.body)

    def test_labels_are_no_json(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.UnprocessableEntityError, match="never in JSON"):
            client.chat.completions.create(model="tone", messages=ASKED, response_format=FORMAT)


class TestMixedBatches:
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_one_with_a_grammar_one_that_tells_one_plain(self, temperature: float) -> None:
        base = tiny_base("llama")
        served = ServedPrompt("words@1", WORDS, (tokens(base, 6, 9),))
        (text,) = examples_of(TEXT)
        plain = GenerationConfig(12, temperature=temperature, seed=7)
        strict = GenerationConfig(60, temperature=temperature, seed=7, grammar=Grammar.of_json_schema(SCHEMA))
        asked: list[tuple[GenerationConfig, int | None]] = [(strict, None), (plain, 2), (plain, None), (strict, 1)]

        async def ask(
            engine: InferenceEngine, some: list[tuple[GenerationConfig, int | None]]
        ) -> list[list[CompletionChunk]]:
            return await asyncio.gather(
                *(collected(engine.generate(served, text, config, logprobs=tops)) for config, tops in some)
            )

        async def main() -> None:
            held = Held()
            async with InferenceEngine(base, observer=held) as engine:
                alone = [(await ask(engine, [one]))[0] for one in asked]
                together = await ask(engine, asked)
            assert [joined(pieces) for pieces in together] == [joined(pieces) for pieces in alone]
            assert max(batch.rows for batch in held.batches if batch.what == "grow") == len(asked)
            assert joined(alone[1]) == joined(alone[2])
            told = [[one for piece in pieces for one in piece.logprobs] for pieces in together]
            assert [bool(one) for one in told] == [False, True, False, True]

        asyncio.run(main())

    def test_one_whose_grammar_fails_ends_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from softprompt.inference.grammar import GrammarState

        base = tiny_base("llama")
        served = ServedPrompt("words@1", WORDS, (tokens(base, 6, 9),))
        (text,) = examples_of(TEXT)
        plain, strict = GenerationConfig(6), GenerationConfig(40, grammar=Grammar.of_json_schema(SCHEMA))
        find, looks = GrammarState.find_allowed, []

        def fail_later(state: GrammarState) -> Any:
            looks.append(state)
            if len(looks) > 6:
                raise GrammarError("too much work")
            return find(state)

        async def main() -> None:
            async with InferenceEngine(base) as engine:
                alone = joined(await collected(engine.generate(served, text, plain)))
                monkeypatch.setattr(GrammarState, "find_allowed", fail_later)
                failing, other = await asyncio.gather(
                    collected(engine.generate(served, text, strict)),
                    collected(engine.generate(served, text, plain)),
                    return_exceptions=True,
                )
            assert isinstance(failing, GrammarError)
            assert isinstance(other, list)
            assert joined(other) == alone

        asyncio.run(main())
