"""What is prepared for one prompt is bounded, in time beside others and in what is kept of it."""

import asyncio
import sys

from helpers.served_prompts import TWO, Held, alone, assert_same, examples_of, tokens, until
from helpers.tiny_models import tiny_base

from softprompt.data.encoding.verbalizer import TREE
from softprompt.data.examples import Example
from softprompt.data.task import LABELS, TaskSpec
from softprompt.serving.engine.engine_requests import ServedPrompt
from softprompt.serving.engine.inference_engine import EngineLimits, InferenceEngine
from softprompt.serving.engine.request_preparation import RequestPreparer, WeightedCache, split_portions
from softprompt.serving.engine.request_queue import RequestQueue

BASE = tiny_base("llama")


def test_others_get_their_turn_between_few_or_long_texts() -> None:
    short, long = Example("a"), Example("b", columns={"c": "x" * 90_000})
    assert [len(one) for one in split_portions("{{ text }}", [short] * 130)] == [64, 64, 2]
    assert [len(one) for one in split_portions("{{ text }}", [long, long, short, long])] == [1, 2, 1]
    assert [len(one) for one in split_portions("word " * 13_000 + "{{ text }}", [short] * 5)] == [2, 2, 1]
    assert list(split_portions("{{ text }}", [])) == []


def test_few_heavy_values_are_kept_where_many_light_ones_would_be() -> None:
    kept: WeightedCache[int] = WeightedCache(10, weigh=lambda value: value)
    for key, weight in (("a", 3), ("b", 3), ("c", 3), ("a", 0), ("d", 3)):
        kept.get(key, lambda weight=weight: weight)  # type: ignore[misc]
    assert list(kept._values) == ["c", "a", "d"]
    kept.get("heavy", lambda: 99)
    assert list(kept._values) == ["heavy"]
    kept.get("light", lambda: 1)
    assert list(kept._values) == ["light"]


def many(count: int, prompts: int = 1) -> ServedPrompt:
    """Labels of eleven words, so many that a text is read several times for them."""
    names = tuple(" ".join(f"{number:011b}") for number in range(count))
    return ServedPrompt("many@1", TaskSpec("classification", "{{ text }}:", names, names), (tokens(BASE, 3),) * prompts)


def test_a_prompt_with_all_the_labels_there_may_be_counts_for_many() -> None:
    served = many(LABELS)
    preparing = RequestPreparer(BASE, 1_000)
    preparing.encode_examples(ServedPrompt("two@1", TWO, (tokens(BASE, 3),)), [Example("film")])
    light = preparing._objectives._weight
    asking, *_ = preparing.encode_examples(served, [Example("film")])
    assert asking.objective.verbalizer is not None
    assert len(asking.objective.verbalizer.decisions) == LABELS - 1
    assert light == 1
    assert preparing._objectives._weight - light > 50


def test_readings_of_a_text_are_made_when_they_are_asked() -> None:
    asking, texts, _ = RequestPreparer(BASE, 10_000).encode_examples(many(LABELS), [Example("film " * 200)] * 64)
    assert asking.objective.verbalizer is not None
    assert asking.count == len(asking.objective.verbalizer.trees) > LABELS // TREE
    assert sum(len(text) for text in texts) < 64 * 300
    # what is held is the texts alone, not the readings of each
    assert sum(map(sys.getsizeof, texts)) < 64 * 4_000


def test_many_labels_are_asked_batch_by_batch_and_other_prompts_are_answered_between() -> None:
    """However many requests there are for the prompt with many readings of each text."""
    heavy, small, texts = (
        many(LABELS, prompts=2),
        ServedPrompt("two@1", TWO, (tokens(BASE, 3),)),
        examples_of("a film", "dull"),
    )

    async def main() -> None:
        held = Held()
        async with InferenceEngine(BASE, EngineLimits(rows=16), held) as engine:
            first = await held.busy(engine, small)
            long = [asyncio.create_task(engine.classify(heavy, texts)) for _ in range(5)]
            await until(lambda: engine._queue.ready == 10)
            held.go.set()
            await until(lambda: len(held.batches) > 2)
            await held.hold()
            before, waiting = len(held.batches), engine._queue.ready
            short = asyncio.create_task(engine.classify(small, texts))
            await until(lambda: engine._queue.ready == waiting + 2)
            held.go.set()
            assert_same(await short, alone(BASE, small, texts))
            assert sum("two@1" in batch.tokens for batch in held.batches) == 2
            assert any("two@1" in batch.tokens for batch in held.batches[before : before + 3])
            for one in await asyncio.gather(*long):
                assert_same(one, alone(BASE, heavy, texts))
            await first
        assert max(batch.rows for batch in held.batches) <= 16
        # the readings of each text, behind each of two prompts
        readings = RequestPreparer(BASE, 10_000).encode_examples(heavy, texts)[0].count
        assert readings > 2 * 16
        assert sum(batch.rows for batch in held.batches) == 5 * 2 * readings + 3
        assert engine.snapshot().answered == 13
        assert engine.snapshot().waiting == 0
        assert not engine._queue.counts_by_prompt

    asyncio.run(main())


def test_no_prompt_keeps_the_others_out_of_the_queue() -> None:
    waiting = RequestQueue(16)
    assert waiting.reserve("classification", "greedy", 16)
    assert not waiting.reserve("classification", "greedy", 1)
    assert not waiting.reserve("generation", "other", 3)
    assert waiting.reserve("generation", "other", 1)
    assert waiting.reserve("classification", "other", 1)
    # what there is for such prompts together is bounded too
    assert not waiting.reserve("generation", "third", 1)
    waiting.release("classification", "other", 1)
    assert waiting.reserve("generation", "third", 1)
    for kind, key, count in (("classification", "greedy", 16), ("generation", "other", 1), ("generation", "third", 1)):
        waiting.release(kind, key, count)  # type: ignore[arg-type]
    assert not waiting.counts_by_prompt
    assert not waiting.preparing
