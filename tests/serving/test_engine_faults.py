"""What goes wrong with one request, or with all at once, and what the others get: their answers."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest
import torch
from helpers.served_prompts import (
    MANY,
    TWO,
    WORDS,
    Held,
    alone,
    assert_same,
    collected,
    completed,
    examples_of,
    grown,
    lasting,
    said,
    tokens,
    until,
)
from helpers.tiny_models import tiny_base

from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.errors import BaseModelError, ConfigError, DataError, PromptFileError, TemplateError
from softprompt.inference.decoding_batch import DecodingBatch
from softprompt.inference.generation import GenerationConfig
from softprompt.prompts.state import PromptState
from softprompt.serving.engine import decoding_loop
from softprompt.serving.engine.engine_requests import DeadlineExceededError, EngineBusyError, ServedPrompt
from softprompt.serving.engine.inference_engine import EngineClosedError, EngineLimits, InferenceEngine
from softprompt.serving.http.http_errors import to_api_error

BASE = tiny_base("llama")
LABELS = ServedPrompt("labels@1", TWO, (tokens(BASE, 3),))
OTHERS = ServedPrompt("others@1", MANY, (tokens(BASE, 6, 2),))
TEXTS = ServedPrompt("texts@1", WORDS, (tokens(BASE, 4),))
GOOD = examples_of("a good film", "the story", "dull: what is the cat? " * 3)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


class TestGivenUp:
    def test_a_cancelled_request_leaves_the_queue(self) -> None:
        async def main() -> None:
            held = Held()
            async with InferenceEngine(BASE, observer=held) as engine:
                first = await held.busy(engine, LABELS)
                waits = [asyncio.create_task(engine.classify(one, GOOD)) for one in (LABELS, OTHERS)]
                text = asyncio.create_task(collected(engine.generate(TEXTS, GOOD[0], GenerationConfig(4))))
                await until(lambda: engine.snapshot().waiting == 7)
                waits[0].cancel()
                text.cancel()
                await until(lambda: engine.snapshot().waiting == 3)
                held.go.set()
                assert_same(await waits[1], alone(BASE, OTHERS, GOOD))
                await first
                assert waits[0].cancelled()
                assert [batch.rows for batch in held.batches] == [1, 3]

        run(main())

    def test_a_request_that_is_cancelled_before_it_waits_keeps_no_room(self) -> None:
        async def main() -> None:
            async with InferenceEngine(BASE, EngineLimits(waiting=3)) as engine:
                free = threading.Event()
                engine._preparer.submit(free.wait)
                task = asyncio.create_task(engine.classify(LABELS, GOOD))
                await until(lambda: engine.snapshot().waiting == 3)
                task.cancel()
                await until(lambda: engine.snapshot().waiting == 0)
                free.set()
                assert_same(await engine.classify(LABELS, GOOD), alone(BASE, LABELS, GOOD))

        run(main())

    @pytest.mark.parametrize("how", ["closed", "cancelled"])
    def test_a_completion_that_nobody_reads_leaves_its_batch(self, how: str) -> None:
        async def main() -> None:
            held, text = Held(), lasting(BASE, TEXTS, 100)
            async with InferenceEngine(BASE, observer=held) as engine:
                pieces = engine.generate(TEXTS, text, GenerationConfig(100))
                other = asyncio.create_task(collected(engine.generate(TEXTS, GOOD[1], GenerationConfig(100))))
                if how == "closed":
                    await anext(pieces)
                    await pieces.aclose()  # type: ignore[attr-defined]
                else:
                    task = asyncio.create_task(collected(pieces))
                    await until(lambda: engine.snapshot().tokens_made > 3)
                    task.cancel()
                assert said(await other) == completed(BASE, TEXTS, GOOD[1], GenerationConfig(100))
                await until(lambda: engine.snapshot().running == 0)
                assert engine.snapshot().tokens_made < 150

        run(main())

    def test_a_deadline_ends_the_waiting(self) -> None:
        async def main() -> None:
            held = Held()
            async with InferenceEngine(BASE, observer=held) as engine:
                first = await held.busy(engine, LABELS)
                with pytest.raises(DeadlineExceededError):
                    await engine.classify(OTHERS, GOOD, deadline=0.02)
                with pytest.raises(DeadlineExceededError):
                    await collected(engine.generate(TEXTS, GOOD[0], GenerationConfig(4), deadline=0.02))
                assert (engine.snapshot().waiting, engine.snapshot().expired) == (0, 2)
                held.go.set()
                await first
                assert_same(await engine.classify(OTHERS, GOOD, deadline=50), alone(BASE, OTHERS, GOOD))

        run(main())

    def test_a_deadline_in_the_middle_of_a_completion(self) -> None:
        async def main() -> None:
            held = Held()
            async with InferenceEngine(BASE, observer=held) as engine:
                pieces = engine.generate(TEXTS, lasting(BASE, TEXTS, 100), GenerationConfig(100), deadline=0.5)
                assert (await anext(pieces)).text
                await held.hold()
                with pytest.raises(DeadlineExceededError):
                    await collected(pieces)
                held.go.set()
                await until(lambda: engine.snapshot().running == 0)

        run(main())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"gather": -1.0}, "gather must be at least 0, got -1.0"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1, got 0"),
    ],
)
def test_limits_out_of_range_are_an_error(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EngineLimits(**settings)


class TestFull:
    def test_a_full_queue_refuses_and_says_when_to_come_again(self) -> None:
        async def main() -> None:
            held = Held()
            async with InferenceEngine(BASE, EngineLimits(waiting=4), held) as engine:
                first = await held.busy(engine, LABELS)
                waits = asyncio.create_task(engine.classify(LABELS, GOOD))
                await until(lambda: engine.snapshot().waiting == 3)
                for refused in (
                    engine.classify(OTHERS, GOOD[:2]),
                    collected(engine.generate(TEXTS, GOOD[0], GenerationConfig(4))),
                ):
                    if engine.snapshot().waiting == 3 and engine.snapshot().refused:
                        last = asyncio.create_task(engine.classify(OTHERS, GOOD[:1]))
                        await until(lambda: engine.snapshot().waiting == 4)
                    with pytest.raises(EngineBusyError) as caught:
                        await refused
                    assert 1 <= caught.value.retry_after <= 60
                assert engine.snapshot().refused == 2
                held.go.set()
                await asyncio.gather(first, waits, last)
                assert_same(await engine.classify(OTHERS, GOOD[:2]), alone(BASE, OTHERS, GOOD[:2]))

        run(main())

    def test_more_at_once_than_can_ever_wait_is_a_mistake(self) -> None:
        async def main() -> None:
            async with InferenceEngine(BASE, EngineLimits(waiting=2)) as engine:
                with pytest.raises(DataError, match="3 examples at once: expected at most 2, send fewer"):
                    await engine.classify(LABELS, GOOD)

        run(main())

    def test_a_request_of_many_examples_does_not_keep_another_waiting(self) -> None:
        async def main() -> None:
            held = Held()
            async with InferenceEngine(BASE, EngineLimits(rows=8), held) as engine:
                first = await held.busy(engine, LABELS)
                many = asyncio.create_task(engine.classify(LABELS, GOOD * 100))
                await until(lambda: engine.snapshot().waiting == 300)
                one = asyncio.create_task(engine.classify(OTHERS, GOOD[:1]))
                await until(lambda: engine.snapshot().waiting == 301)
                held.go.set()
                await one
                assert not many.done()
                assert_same(await many, alone(BASE, LABELS, GOOD * 100))
                await first

        run(main())


def poisons() -> list[tuple[ServedPrompt, Example, type[Exception], str]]:
    bad = tokens(BASE, 3).tensor.clone()
    bad[1, 2] = torch.nan
    column = TaskSpec.of(labels=["a", "b"], template="{{ text }} {{ author }}:")
    layers = (torch.zeros(2, 2, 3, 8),) * 5
    return [
        (
            ServedPrompt("nan@1", TWO, (PromptState.of_embeddings(bad),)),
            GOOD[0],
            PromptFileError,
            "prompt 'nan@1' makes",
        ),
        (ServedPrompt("lacks@1", column, LABELS.states), GOOD[0], TemplateError, "a name that the data lacks"),
        (LABELS, Example("a" * 200_001), DataError, "200,001 characters: expected at most 200,000"),
        (ServedPrompt("layers@1", TWO, (PromptState("key_values", layers),)), GOOD[0], PromptFileError, "damaged"),
        (ServedPrompt("wide@1", TWO, (tokens(BASE, 155),)), GOOD[0], TemplateError, "use a shorter prompt"),
        (ServedPrompt("size@1", TWO, (PromptState.of_embeddings(torch.zeros(3, 5)),)), GOOD[0], RuntimeError, "Sizes"),
    ]


@pytest.mark.parametrize("kind", ["labels", "text"])
@pytest.mark.parametrize("number", range(len(poisons())))
def test_a_poison_request_hurts_only_itself(number: int, kind: str) -> None:
    poison, example, error, words = poisons()[number]

    async def main() -> None:
        held = Held()
        async with InferenceEngine(BASE, observer=held) as engine:
            first = await held.busy(engine, LABELS)
            good = asyncio.gather(engine.classify(LABELS, GOOD), engine.classify(OTHERS, GOOD))
            text = asyncio.create_task(collected(engine.generate(TEXTS, GOOD[0], GenerationConfig(9))))
            wrong = asyncio.create_task(
                engine.classify(poison, [GOOD[1], example])
                if kind == "labels"
                else collected(engine.generate(poison, example, GenerationConfig(9)))  # type: ignore[arg-type]
            )
            await until(lambda: engine.snapshot().waiting >= 7)
            await asyncio.sleep(0.05)
            held.go.set()
            with pytest.raises(error, match=words):
                await wrong
            for found, served in zip(await good, (LABELS, OTHERS), strict=True):
                assert_same(found, alone(BASE, served, GOOD))
            assert said(await text) == completed(BASE, TEXTS, GOOD[0], GenerationConfig(9))
            await first
            assert (engine.snapshot().waiting, engine.snapshot().running) == (0, 0)

    run(main())


@pytest.mark.parametrize("after", [0, 4])
def test_a_batch_that_fails_is_taken_apart(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that the model fails at: in a text, or as the fifth of a completion."""
    others = examples_of("a good film", "the story", "what is great?")
    if after:
        ids = grown(BASE, TEXTS, others[2], 9).tokens
        poison = ids[after]
        assert all(poison not in grown(BASE, TEXTS, text, 9).tokens for text in others[:2])
    else:
        others[2] = Example("what is great? %")
        poison = BASE.tokenizer.convert_tokens_to_ids("%")
    embed = BASE.embed

    def failing(ids: torch.Tensor) -> torch.Tensor:
        if (ids == poison).any() and (ids.shape[1] == 1 or not after):
            raise RuntimeError("cannot read this")
        return embed(ids)

    expected = [completed(BASE, TEXTS, text, GenerationConfig(9)) for text in others[:2]]
    labels = alone(BASE, OTHERS, others[:2])

    async def main() -> None:
        held = Held()
        async with InferenceEngine(BASE, observer=held) as engine:
            first = await held.busy(engine, LABELS)
            texts = [
                asyncio.create_task(collected(engine.generate(TEXTS, text, GenerationConfig(9)))) for text in others
            ]
            asked = [asyncio.create_task(engine.classify(OTHERS, [text])) for text in others]
            await until(lambda: engine.snapshot().waiting == 6)
            monkeypatch.setattr(BASE, "embed", failing)
            held.go.set()
            with pytest.raises(RuntimeError, match="cannot read this"):
                await texts[2]
            assert [said(await text) for text in texts[:2]] == expected
            found = [(await one)[0] for one in asked[:2]]
            assert [one.label for one in found] == [one.label for one in labels]
            if after:
                await asked[2]
            else:
                with pytest.raises(RuntimeError, match="cannot read this"):
                    await asked[2]
            await first

    run(main())


def test_texts_that_cannot_join_grow_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for lack of memory: nobody's completion is lost, or another."""
    texts = examples_of("a good film", "the story", "what is great?")
    expected = [completed(BASE, TEXTS, text, GenerationConfig(9)) for text in texts]
    tried: list[DecodingBatch] = []

    def failing(rows: DecodingBatch, others: DecodingBatch) -> bool:
        tried.append(others)
        raise RuntimeError("out of memory")

    async def main() -> None:
        held = Held()
        async with InferenceEngine(BASE, observer=held) as engine:
            first = await held.busy(engine, LABELS)
            asked = [asyncio.create_task(collected(engine.generate(TEXTS, texts[0], GenerationConfig(9))))]
            await until(lambda: engine.snapshot().waiting == 1)
            held.go.set()
            await first
            await until(lambda: engine.snapshot().running == 1)
            monkeypatch.setattr(decoding_loop, "join_batches", failing)
            asked += [
                asyncio.create_task(collected(engine.generate(TEXTS, text, GenerationConfig(9)))) for text in texts[1:]
            ]
            assert [said(await one) for one in asked] == expected
        assert tried

    run(main())


def test_a_prompt_that_gives_no_numbers_is_no_fault_of_who_asks() -> None:
    for error in (PromptFileError("the prompt is damaged"), BaseModelError("numbers that are not finite")):
        problem = to_api_error(error)
        assert (problem.status_code, problem.code) == (503, "model_unavailable")


def test_numbers_that_are_not_finite_without_a_prompt_are_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with InferenceEngine(BASE) as engine:
            monkeypatch.setattr(BASE, "embed", lambda ids: torch.full((*ids.shape, 32), torch.nan))
            for asked in (
                engine.classify(ServedPrompt("bare", TWO, ()), GOOD),
                collected(engine.generate(ServedPrompt("bare", TWO, ()), GOOD[0], GenerationConfig(3))),
            ):
                with pytest.raises(BaseModelError, match="not finite for a text of 'bare'"):
                    await asked

    run(main())


def test_a_prompt_in_layers_that_the_model_cannot_take() -> None:
    base = tiny_base("mamba")
    layers = ServedPrompt("layers", TWO, (PromptState("key_values", (torch.zeros(2, 2, 3, 8),) * 2),))

    async def main() -> None:
        async with InferenceEngine(base) as engine:
            found = await asyncio.gather(
                engine.classify(layers, GOOD),
                engine.classify(ServedPrompt("bare", TWO, ()), GOOD),
                return_exceptions=True,
            )
            assert isinstance(found[0], BaseModelError)
            assert not isinstance(found[1], BaseException)
            assert_same(found[1], alone(base, ServedPrompt("bare", TWO, ()), GOOD))

    run(main())


class TestClosing:
    def test_what_runs_and_waits_is_finished(self) -> None:
        async def main() -> None:
            held = Held()
            engine = InferenceEngine(BASE, observer=held)
            first = await held.busy(engine, LABELS)
            text = asyncio.create_task(collected(engine.generate(TEXTS, GOOD[0], GenerationConfig(30))))
            labels = asyncio.create_task(engine.classify(OTHERS, GOOD))
            await until(lambda: engine.snapshot().waiting == 4)
            closing = asyncio.create_task(engine.close())
            await asyncio.sleep(0.02)
            with pytest.raises(EngineClosedError, match="the engine is closing"):
                await engine.classify(LABELS, GOOD)
            held.go.set()
            await closing
            assert said(await text) == completed(BASE, TEXTS, GOOD[0], GenerationConfig(30))
            assert_same(await labels, alone(BASE, OTHERS, GOOD))
            await first

        run(main())

    def test_what_runs_and_waits_is_dropped(self) -> None:
        async def main() -> None:
            held = Held()
            engine = InferenceEngine(BASE, observer=held)
            pieces = engine.generate(TEXTS, lasting(BASE, TEXTS, 100), GenerationConfig(100))
            await anext(pieces)
            await held.hold()
            labels = asyncio.create_task(engine.classify(OTHERS, GOOD))
            await until(lambda: engine.snapshot().waiting == 3)
            closing = asyncio.create_task(engine.close(graceful=False))
            await asyncio.sleep(0.02)
            held.go.set()
            await closing
            with pytest.raises(EngineClosedError):
                await labels
            with pytest.raises(EngineClosedError):
                await collected(pieces)

        run(main())

    def test_what_is_being_prepared_is_dropped_too(self) -> None:
        async def main() -> None:
            engine = InferenceEngine(BASE)
            free = threading.Event()
            engine._preparer.submit(free.wait)
            few = asyncio.create_task(engine.classify(LABELS, GOOD))
            many = asyncio.create_task(engine.classify(LABELS, GOOD * 40))
            await until(lambda: engine.snapshot().waiting == 123)
            await engine.close(graceful=False)
            free.set()
            for task in (few, many):
                with pytest.raises(EngineClosedError):
                    await task

        run(main())

    def test_an_idle_engine_closes_and_may_be_closed_again(self) -> None:
        async def main() -> None:
            engine = InferenceEngine(BASE)
            await engine.close()
            await engine.close()
            with pytest.raises(EngineClosedError):
                await collected(engine.generate(TEXTS, GOOD[0], GenerationConfig(3)))

        run(main())
