"""The engine: whatever is mixed in its batches, every request gets what it gets alone."""

import asyncio
import random
from collections.abc import Sequence

import pytest
from helpers.served_prompts import Held, alone, assert_same, collected, completed, examples, prompts, said, until
from helpers.tiny_models import tiny_base

from softprompt.data.examples import Example
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictions import Prediction
from softprompt.models.frozen_lm import FrozenLM
from softprompt.serving.engine.engine_requests import ServedPrompt
from softprompt.serving.engine.inference_engine import EngineLimits, InferenceEngine

FAMILIES = {"llama": True, "gemma3": True, "gpt2": True, "mamba": False, "t5": True, "bart": True}


Asked = tuple[ServedPrompt, list[Example], GenerationConfig | None]


def mix(base: FrozenLM, seed: int, in_layers: bool, count: int = 14) -> list[Asked]:
    """Random requests for labels and completions."""
    generator = random.Random(seed)
    asked: list[Asked] = []
    for _ in range(count):
        # one for labels first, which an engine can be held with
        served = generator.choice(prompts(base, in_layers=in_layers)[: None if asked else 8])
        if served.spec.kind == "classification":
            asked.append((served, examples(generator, generator.choice((1, 1, 2, 9))), None))
        else:
            generation = GenerationConfig(
                generator.choice((1, 3, 8, 12)),
                temperature=generator.choice((0.0, 0.0, 0.8)),
                top_p=generator.choice((1.0, 0.9)),
                top_k=generator.choice((0, 20)),
                stop=generator.choice(((), ("e",), ("the", "a f"))),
                seed=generator.randrange(100),
            )
            asked.append((served, examples(generator, 1), generation))
    return asked


async def answered(
    engine: InferenceEngine, asked: Sequence[Asked], generator: random.Random, held: Held | None
) -> list[list[Prediction] | str]:
    """All requests, each starting some moment after the one before, or all at once, the engine being ``held``."""

    async def one(
        served: ServedPrompt, texts: list[Example], generation: GenerationConfig | None
    ) -> list[Prediction] | str:
        if generation is None:
            return await engine.classify(served, texts)
        return said(await collected(engine.generate(served, texts[0], generation)))

    first = None if held is None else await held.busy(engine, asked[0][0])
    waiting = []
    for request in asked:
        waiting.append(asyncio.create_task(one(*request)))
        await asyncio.sleep(generator.choice((0, 0, 0.002, 0.02)) if held is None else 0)
    if held is not None and first is not None:
        await until(lambda: engine.snapshot().waiting == sum(len(texts) for _, texts, _ in asked))
        held.go.set()
        await first
    return await asyncio.gather(*waiting)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_request_gets_what_it_gets_alone(family: str, at_once: bool) -> None:
    base, held = tiny_base(family), Held()
    limits = (
        EngineLimits(rows=24, batch_tokens=900)
        if at_once
        else EngineLimits(rows=7, batch_tokens=90, running_tokens=600)
    )

    async def main() -> None:
        async with InferenceEngine(base, limits, held) as engine:
            for seed in range(8):
                asked = mix(base, seed + 100 * at_once, FAMILIES[family])
                found = await answered(engine, asked, random.Random(seed), held if at_once else None)
                for (served, texts, generation), answer in zip(asked, found, strict=True):
                    if generation is None:
                        assert isinstance(answer, list)
                        assert_same(answer, alone(base, served, texts))
                    else:
                        assert answer == completed(base, served, texts[0], generation), (
                            served.key,
                            generation,
                        )
            facts = engine.snapshot()
            assert (facts.waiting, facts.running, facts.failed) == (0, 0, 0)
        if at_once:
            assert any(batch.what == "label" and len(batch.tokens) > 3 for batch in held.batches)
            assert any(batch.what == "grow" and len(batch.tokens) > 2 for batch in held.batches)

    asyncio.run(main())
