"""Prompts for engines of tiny models, and what each of their requests is answered alone."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import torch
from helpers.tiny_models import random_prompt

from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.inference.decoding_batch import start_decoding
from softprompt.inference.generation import Completion, GenerationConfig, next_tokens
from softprompt.inference.predictions import Prediction
from softprompt.inference.predictor import Predictor
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import compute_keys_and_values, make_prefix
from softprompt.prompts.state import PromptState
from softprompt.serving.engine.completion_chunks import CompletionChunk
from softprompt.serving.engine.engine_requests import ServedPrompt
from softprompt.serving.engine.engine_stats import BatchStats
from softprompt.serving.engine.inference_engine import InferenceEngine
from softprompt.serving.engine.request_preparation import RequestPreparer

ATOL = 1e-4  # of probabilities

TWO = TaskSpec.of(labels=["good", "bad"], template="{{ text }}:")
# labels of several tokens, one of them the beginning of another, and a text in the middle
MANY = TaskSpec.of(labels=["a", "a film", "the cat sat", "the mat"], template="what is {{ text }}? Output:")
WORDS = TaskSpec.of(template="{{ text }}\nOutput:", max_length=64)


def tokens(base: FrozenLM, length: int, seed: int = 7) -> PromptState:
    """Virtual tokens."""
    return PromptState.of_embeddings(random_prompt(base, length, seed).detach())


def attention(base: FrozenLM, length: int, seed: int = 7) -> PromptState:
    """The same, as keys and values in every layer."""
    return compute_keys_and_values(base, random_prompt(base, length, seed).detach())


def with_labels(base: FrozenLM, state: PromptState, count: int = 4, seed: int = 5) -> PromptState:
    """The same with labels of its own (a soft verbalizer), as many as ``MANY`` has."""
    generator = torch.Generator().manual_seed(seed + state.length)
    return replace(state, label_rows=torch.randn(count, base.embedding_size, generator=generator))


def prompts(base: FrozenLM, *, in_layers: bool = True) -> list[ServedPrompt]:
    """Of every kind: lengths, tasks, in the layers or before them, several that vote, and none."""
    kinds = attention if in_layers else tokens
    return [
        ServedPrompt("short@1", TWO, (tokens(base, 2),)),
        ServedPrompt("soft@1", MANY, (with_labels(base, tokens(base, 4, 11)),)),
        ServedPrompt(
            "soft voting@1", TWO, (with_labels(base, tokens(base, 3), 2), with_labels(base, kinds(base, 6, 5), 2))
        ),
        ServedPrompt("long@1", MANY, (tokens(base, 14, 3),)),
        ServedPrompt("layers@1", TWO, (kinds(base, 5, 4),)),
        ServedPrompt("voting@2", MANY, (tokens(base, 3, 5), kinds(base, 1, 6), tokens(base, 9, 8))),
        ServedPrompt("plain@1", MANY, ()),
        ServedPrompt("bare@1", TWO, ()),
        ServedPrompt("words@1", WORDS, (tokens(base, 6, 9),)),
        ServedPrompt("other words@3", replace(WORDS, template="{{ text }}"), (kinds(base, 11, 10),)),
        ServedPrompt("no words@1", WORDS, ()),
    ]


def examples(generator: random.Random, count: int) -> list[Example]:
    """Texts of one to many words."""
    words = ("a", "good", "bad film", "story", "cat", "the", "is", "what?", "great!", "dull:", "é€", "<bos>", "<eos>")
    return [
        Example(" ".join(generator.choice(words) for _ in range(generator.choice((1, 2, 3, 5, 9, 14)))))
        for _ in range(count)
    ]


def alone(
    base: FrozenLM, served: ServedPrompt, texts: Sequence[Example], generation: GenerationConfig | None = None
) -> list[Prediction]:
    """What a Predictor answers."""
    spec = served.spec if generation is None else served.spec.as_generation
    predictor = Predictor(base, spec, served.states, generation)
    return sorted(predictor.predict(texts), key=lambda prediction: prediction.index)


def completed(base: FrozenLM, served: ServedPrompt, text: Example, generation: GenerationConfig) -> str:
    """One completion, by a Predictor."""
    (prediction,) = alone(base, served, [text], generation)
    assert prediction.completion is not None
    return prediction.completion


def joined(pieces: Sequence[CompletionChunk]) -> str:
    """The completion, if its pieces are as they must be."""
    assert [piece.finish is not None for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(piece.text for piece in pieces[:-1])
    assert len({piece.read for piece in pieces}) == 1
    return "".join(piece.text for piece in pieces)


def said(pieces: Sequence[CompletionChunk]) -> str:
    """The same, without the white space around it, as a Predictor gives it."""
    return joined(pieces).strip()


def assert_same(found: Sequence[Prediction], expected: Sequence[Prediction]) -> None:
    """As likely labels, but for rounding."""
    assert [one.index for one in found] == [one.index for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.probabilities is not None
        assert other.probabilities is not None
        assert list(one.probabilities) == list(other.probabilities)
        torch.testing.assert_close(
            torch.tensor(list(one.probabilities.values())),
            torch.tensor(list(other.probabilities.values())),
            atol=ATOL,
            rtol=0,
        )


async def collected(pieces: AsyncIterator[CompletionChunk]) -> list[CompletionChunk]:
    return [piece async for piece in pieces]


def examples_of(*texts: str) -> list[Example]:
    return [Example(text) for text in texts]


@torch.no_grad()
def grown(base: FrozenLM, served: ServedPrompt, text: Example, count: int) -> Completion:
    """The likeliest tokens, at most ``count``."""
    completion = Completion(base, GenerationConfig(count))
    growing = start_decoding(
        make_prefix(base, *(served.states or (None,))),
        [RequestPreparer(base, 1000).encode_text(served, text, count).item],
    )
    while completion.add(*next_tokens(base.logits(growing.last), [completion])):
        growing.extend(torch.tensor(completion.tokens[-1:]))
    return completion


def lasting(base: FrozenLM, served: ServedPrompt, count: int) -> Example:
    """A text whose likeliest completion goes on for so many tokens."""
    for text in examples_of("a good film", "the cat", "dull", "what is the mat?", "great", "story story"):
        if grown(base, served, text, count).finish == "length":
            return text
    raise AssertionError("all of them end")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that is to happen soon."""
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


class Held:
    """An observer that can hold the model's thread after a batch, and remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[BatchStats] = []
        self.go = threading.Event()
        self.go.set()
        self._holding = False

    def record_batch(self, batch: BatchStats) -> None:
        self.batches.append(batch)
        self._holding = not self.go.is_set()
        assert self.go.wait(30)
        self._holding = False

    async def hold(self) -> None:
        """Hold the thread, which is at work."""
        self.go.clear()
        await until(lambda: self._holding)

    async def busy(self, engine: InferenceEngine, served: ServedPrompt) -> "asyncio.Task[list[Prediction]]":
        """Hold the thread, with a request of its own."""
        first = asyncio.create_task(engine.classify(served, [Example("first")]))
        await self.hold()
        return first
