"""Texts that are read as they are behind prompts: scored alike alone and in one batch, in every kind of model."""

import asyncio
from collections.abc import Sequence

import pytest
import torch
from helpers.served_prompts import MANY, WORDS, attention, collected, completed, examples_of, joined, tokens
from helpers.tiny_models import plain_logits, random_prompt, tiny_base

from softprompt.errors import DataError
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.grammar import Grammar
from softprompt.models.frozen_lm import FrozenLM
from softprompt.serving.engine.completion_chunks import CompletionChunk, TokenLogprob
from softprompt.serving.engine.engine_requests import RawPrompt, ServedPrompt
from softprompt.serving.engine.inference_engine import InferenceEngine

LONG = "the cat sat on the mat. a good film and a great story, a bad film and a dull story. " * 3
TEXTS = ("what is the film about?", "dull", LONG[:110])
ONE = GenerationConfig(1)


def ids_of(base: FrozenLM, text: str) -> tuple[int, ...]:
    return tuple(base.tokenizer(text, add_special_tokens=False).input_ids)


def values(pieces: Sequence[CompletionChunk]) -> list[float | None]:
    return [one.logprob for one in told(pieces)]


def told(pieces: Sequence[CompletionChunk]) -> list[TokenLogprob]:
    return [one for piece in pieces for one in piece.logprobs]


@torch.no_grad()
def reference(base: FrozenLM, seed: int | None, length: int, ids: Sequence[int]) -> list[float]:
    """By transformers alone, from the second token on."""
    prompt = None if seed is None else random_prompt(base, length, seed).detach()
    rows = plain_logits(base, prompt, ids).float().log_softmax(-1)
    return [float(row[token]) for row, token in zip(rows, ids[1:], strict=False)]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "mpt", "mamba"])
def test_of_several_prompts_in_one_batch(family: str) -> None:
    base = tiny_base(family)
    asked = [
        (ServedPrompt("words@1", WORDS, (tokens(base, 6, 9),)), 9, 6),
        (ServedPrompt("many@1", MANY, (tokens(base, 11, 4),)), 4, 11),
        (ServedPrompt("bare@1", WORDS, ()), None, 0),
    ]

    async def main() -> None:
        async with InferenceEngine(base) as engine:
            found = await asyncio.gather(
                *(
                    collected(engine.generate(served, RawPrompt(text, True, False), ONE, logprobs=1))
                    for served, _, _ in asked
                    for text in TEXTS
                )
            )
        answers = iter(found)
        for _, seed, length in asked:
            for text in TEXTS:
                pieces, ids = next(answers), ids_of(base, text)
                assert [piece.finish for piece in pieces] == ["length"]
                assert joined(pieces) == text
                first, *others = values(pieces)
                assert first is None
                assert others == pytest.approx(reference(base, seed, length, ids), abs=1e-4)
                assert pieces[0].read.tokens == length + len(ids)

    asyncio.run(main())


def test_beside_completions_and_prompts_of_keys_and_values() -> None:
    base = tiny_base("llama")
    words = ServedPrompt("words@1", WORDS, (tokens(base, 6, 9),))
    layers = ServedPrompt("layers@1", WORDS, (attention(base, 6, 9),))
    (text,) = examples_of("a good film")
    plain = GenerationConfig(8)

    async def main() -> None:
        async with InferenceEngine(base) as engine:
            scored, same, other, followed = await asyncio.gather(
                collected(engine.generate(words, RawPrompt(LONG[:60], True, False), ONE, logprobs=0)),
                collected(engine.generate(layers, RawPrompt(LONG[:60], True, False), ONE, logprobs=0)),
                collected(engine.generate(words, text, plain)),
                collected(engine.generate(layers, RawPrompt("dull", True), plain, logprobs=2)),
            )
            with pytest.raises(DataError, match="leave BOS out"):
                await collected(engine.generate(layers, RawPrompt((*base.bos_ids, 7, 8), True, False), ONE, logprobs=1))
            alone = await collected(engine.generate(layers, RawPrompt("dull"), plain))
        assert joined(other).strip() == completed(base, words, text, plain)
        # the same prompt, its keys and values computed before
        assert values(scored)[1:] == pytest.approx(values(same)[1:], abs=1e-4)
        assert joined(followed) == "dull" + joined(alone)
        likeliest = [one.top[0][1] for one in told(followed)[len(ids_of(base, "dull")) :]]
        assert [one.logprob for one in told(followed)[len(ids_of(base, "dull")) :]] == likeliest

    asyncio.run(main())


def test_words_spell_no_special_token() -> None:
    base = tiny_base("llama")
    bare = ServedPrompt("bare@1", WORDS, ())

    async def main() -> None:
        async with InferenceEngine(base) as engine:
            pieces = await collected(engine.generate(bare, RawPrompt("<bos>a<eos>", True, False), ONE, logprobs=0))
            assert not any(one.mark for one in told(pieces))
            assert b"".join(one.token for one in told(pieces)) == b"<bos>a<eos>"
            given = (*ids_of(base, "a"), base.tokenizer.eos_token_id)
            pieces = await collected(engine.generate(bare, RawPrompt(given, True, False), ONE, logprobs=0))
            assert [one.mark for one in told(pieces)] == [False] * (len(given) - 1) + [True]
            assert joined(pieces) == "a"

    asyncio.run(main())


def test_what_fails_is_told_and_changes_nothing_for_the_others() -> None:
    base = tiny_base("llama")
    sound = ServedPrompt("words@1", WORDS, (tokens(base, 6, 9),))
    state = tokens(base, 6, 9)
    state.tensors[0].fill_(float("nan"))
    damaged = ServedPrompt("damaged@1", WORDS, (state,))

    async def main() -> None:
        async with InferenceEngine(base) as engine:
            ask = RawPrompt("a good film", True, False)
            failed, found = await asyncio.gather(
                collected(engine.generate(damaged, ask, ONE, logprobs=1)),
                collected(engine.generate(sound, ask, ONE, logprobs=1)),
                return_exceptions=True,
            )
        assert isinstance(failed, Exception)
        assert "not finite" in str(failed)
        assert isinstance(found, list)
        expected = reference(base, 9, 6, ids_of(base, "a good film"))
        assert values(found)[1:] == pytest.approx(expected, abs=1e-4)

    asyncio.run(main())


def test_an_encoder_gives_its_text_no_log_probabilities() -> None:
    base = tiny_base("t5")
    bare = ServedPrompt("bare@1", WORDS, ())
    strict = GenerationConfig(20, temperature=1.0, grammar=Grammar.of_json_schema({"enum": [1, 2]}))

    async def main() -> None:
        async with InferenceEngine(base) as engine:
            with pytest.raises(DataError, match="leave echo out"):
                await collected(engine.generate(bare, RawPrompt("a film", True), ONE, logprobs=1))
            pieces = await collected(engine.generate(bare, RawPrompt("a film", True), GenerationConfig(4)))
            assert joined(pieces).startswith("a film")
            pieces = await collected(engine.generate(bare, RawPrompt("a film"), strict, logprobs=1))
            assert joined(pieces).strip() in ("1", "2")
            assert told(pieces)

    asyncio.run(main())
