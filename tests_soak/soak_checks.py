"""What is right: answers by ``Predictor``, each worked out once, and memory that does not grow."""

import asyncio
import statistics
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeAlias

from torch import Tensor

import softprompt as sp
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.inference.generation import GenerationConfig, complete
from softprompt.inference.predictor import Predictor
from softprompt.prompts.state import PromptState

KEPT = 200  # predictors

Which: TypeAlias = tuple[str, int] | None  # name and version, or no prompt


@dataclass(frozen=True)
class Expected:
    """A right answer.

    Attributes:
        text: a completion, or the label.
        margin: how much more the model favours it over the next one, where that is least: in probability for a label,
            in logits for a token.
        probabilities: of labels.
        tokens: of a completion.
    """

    text: str
    margin: float
    probabilities: dict[str, float] | None = None
    tokens: int = 0


class Right:
    """Works out right answers, one after the other, beside the event loop."""

    def __init__(self, base: sp.FrozenLM) -> None:
        self._base = base
        self._thread = ThreadPoolExecutor(1, "right answers")
        self._known: dict[Hashable, Expected] = {}
        self._predictors: OrderedDict[Hashable, Predictor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    async def label(self, which: Which, spec: TaskSpec, states: Sequence[PromptState], example: Example) -> Expected:
        return await self._had(("label", which, spec, example.text), lambda: self._label(which, spec, states, example))

    async def text(
        self,
        which: Which,
        spec: TaskSpec,
        states: Sequence[PromptState],
        example: Example,
        generation: GenerationConfig,
    ) -> Expected:
        key = ("text", which, spec, example.text, generation.max_new_tokens, generation.stop)
        return await self._had(key, lambda: self._text(which, spec, states, example, generation))

    async def _had(self, key, work) -> Expected:  # type: ignore[no-untyped-def]
        if key not in self._known:
            self._known[key] = await asyncio.get_running_loop().run_in_executor(self._thread, work)
        return self._known[key]

    def _label(self, which: Which, spec: TaskSpec, states: Sequence[PromptState], example: Example) -> Expected:
        (answer,) = self._predictor(which, spec, states, GenerationConfig()).predict([example])
        first, second, *_ = sorted((answer.probabilities or {}).values(), reverse=True)
        return Expected(str(answer.label), first - second, answer.probabilities)

    def _text(
        self,
        which: Which,
        spec: TaskSpec,
        states: Sequence[PromptState],
        example: Example,
        generation: GenerationConfig,
    ) -> Expected:
        predictor = self._predictor(which, replace(spec, kind="generation"), states, generation)
        margins: list[float] = []

        def watch(indices: list[int], logits: Tensor, tokens: list[int]) -> None:
            first, second = logits[0].float().topk(2).values.tolist()
            margins.append(first - second)

        ((_, text, _),) = complete(
            self._base, predictor.prefix, predictor.encoder.encode_inputs([example]), generation, 100_000, watch
        )
        return Expected(text, min(margins), None, len(margins))

    def _predictor(
        self, which: Which, spec: TaskSpec, states: Sequence[PromptState], generation: GenerationConfig
    ) -> Predictor:
        key = (which, spec, generation.max_new_tokens)
        if key not in self._predictors:
            self._predictors[key] = Predictor(self._base, spec, tuple(states), generation)
            if len(self._predictors) > KEPT:
                self._predictors.popitem(last=False)
        self._predictors.move_to_end(key)
        return self._predictors[key]


@dataclass(frozen=True)
class Memory:
    """How a process's memory went.

    Attributes:
        first, last: MiB, medians of the tenth part behind the warm-up and of the last one.
        slope: MiB in 10,000 requests, the median over pairs of moments (Theil 1950, Sen 1968).
    """

    first: float
    last: float
    slope: float


def memory(samples: Sequence[tuple[int, float]], warmup: float, most: int = 300) -> Memory:
    """Of ``(requests so far, MiB)``, without the first ``warmup`` share of the requests."""
    begin = samples[-1][0] * warmup
    steady = [one for one in samples if one[0] >= begin]
    if len(steady) < 3:
        raise ValueError(f"{len(steady)} samples behind the warm-up, expected at least 3: let it run longer")
    few = steady[:: len(steady) // most + 1]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(few, 2) if b[0] > a[0]]
    tenth = max(1, len(steady) // 10)
    first, last = (statistics.median(mib for _, mib in part) for part in (steady[:tenth], steady[-tenth:]))
    return Memory(first, last, 10_000 * statistics.median(slopes) if slopes else 0.0)
