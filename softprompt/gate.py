"""The gate before promotion: is a new version worse than the one in place, on the same examples?

The scores of both on each example are compared by a paired bootstrap (Koehn, "Statistical Significance Tests for
Machine Translation Evaluation", 2004): right or wrong for classification, chrF for generation, which unlike BLEU has a
value for a single example. A difference that chance explains does not close the gate, so few examples let much pass:
the interval says how much.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from softprompt import metrics
from softprompt.base import FrozenLM
from softprompt.config import GateConfig
from softprompt.data import Example
from softprompt.evaluate import Evaluation, evaluate
from softprompt.generate import Sampling
from softprompt.metrics import PairedDifference
from softprompt.store import Prompt


@dataclass(frozen=True)
class Lost:
    """An example that the new version answers worse.

    Attributes:
        index: of the example, from 0.
        text: what was asked.
        expected: label, or references with " | " between them.
        before, now: the answers of the version in place and of the new one.
        loss: of score, in units of the metric.
    """

    index: int
    text: str
    expected: str
    before: str
    now: str
    loss: float


@dataclass(frozen=True)
class Verdict:
    """What the gate found.

    Attributes:
        passed: whether the new version may be promoted.
        metric: accuracy (0..1), or chrf (0..100).
        before, now: mean score of the version in place and of the new one.
        difference: ``now`` minus ``before``, with its interval.
        p_value: of being worse by more than the tolerance, two-sided.
        gained: examples that the new version answers better.
        lost: those that it answers worse, the worst first.
        config: the thresholds.
    """

    passed: bool
    metric: str
    before: float
    now: float
    difference: PairedDifference
    p_value: float
    gained: int
    lost: tuple[Lost, ...]
    config: GateConfig

    def figures(self) -> dict[str, Any]:
        """All but the examples, ready for JSON: what the history of an alias keeps."""
        return {
            "passed": self.passed,
            "metric": self.metric,
            "before": self.before,
            "now": self.now,
            "difference": self.difference.difference,
            "low": self.difference.low,
            "high": self.difference.high,
            "p_value": self.p_value,
            "n": self.difference.n,
            "gained": self.gained,
            "lost": len(self.lost),
            **self.config.model_dump(),
        }

    def to_dict(self, examples: int = 10) -> dict[str, Any]:
        """The figures, and at most so many of the lost examples under ``examples``."""
        return {**self.figures(), "examples": [asdict(one) for one in self.lost[:examples]]}

    def __str__(self) -> str:
        digits = 1 if self.metric == "chrf" else 3
        before, now, difference, low, high = (
            f"{value:.{digits}f}"
            for value in (self.before, self.now, self.difference.difference, self.difference.low, self.difference.high)
        )
        return (
            f"{self.metric} {now} against {before}, difference {difference} [{low}, {high}], p {self.p_value:.2g}, "
            f"n={self.difference.n:,}: {len(self.lost)} lost, {self.gained} gained"
        )


class Gate:
    """Compares two prompts on examples."""

    def __init__(
        self,
        base: FrozenLM | Callable[[Prompt], FrozenLM],
        examples: Sequence[Example],
        config: GateConfig | None = None,
        *,
        sampling: Sampling | None = None,
    ) -> None:
        """Make ready.

        Args:
            base: the model that both were learned on; or what gives the model of a prompt, where they differ.
            examples: labelled ones, or with references.
            config: the thresholds.
            sampling: how completions are made (generation).
        """
        self._base, self._examples, self._sampling = base, examples, sampling
        self._config = config or GateConfig()

    def __call__(self, new: Prompt, in_place: Prompt) -> Verdict:
        """Whether ``new`` may take the place of the other.

        Raises:
            DataError: no examples, or examples without label or references.
            PromptFileError: a prompt was learned on another base model.
        """
        before, now = (
            evaluate(self._base_of(prompt), self._examples, prompt, sampling=self._sampling)
            for prompt in (in_place, new)
        )
        return compared(self._examples, before, now, self._config)

    def _base_of(self, prompt: Prompt) -> FrozenLM:
        return self._base if isinstance(self._base, FrozenLM) else self._base(prompt)


def compared(examples: Sequence[Example], before: Evaluation, now: Evaluation, config: GateConfig) -> Verdict:
    """What the answers of two prompts to ``examples`` mean for the second of them."""
    (metric, old), (_, new) = _scores(before), _scores(now)
    difference = metrics.paired_bootstrap(new, old, resamples=config.resamples, seed=config.seed)
    accepted = metrics.paired_bootstrap(
        [score + config.tolerance for score in new], old, resamples=config.resamples, seed=config.seed
    )
    lost = [
        Lost(index, example.text, _expected(example), _answer(before, index), _answer(now, index), old[index] - score)
        for index, (example, score) in enumerate(zip(examples, new, strict=True))
        if score < old[index]
    ]
    return Verdict(
        passed=not (accepted.difference < 0 and accepted.p_value < config.significance),
        metric=metric,
        before=fmean(old),
        now=fmean(new),
        difference=difference,
        p_value=accepted.p_value,
        gained=sum(score > was for score, was in zip(new, old, strict=True)),
        lost=tuple(sorted(lost, key=lambda one: -one.loss)),
        config=config,
    )


def _scores(evaluation: Evaluation) -> tuple[str, list[float]]:
    """The name of a metric that each example has a value of, and these."""
    if evaluation.metric.name == "accuracy":
        pairs = zip(evaluation.gold, evaluation.predictions, strict=True)
        return "accuracy", [float(gold == prediction.label) for gold, prediction in pairs]
    completions = [str(prediction.completion) for prediction in evaluation.predictions]
    return "chrf", metrics.chrf_of_each(evaluation.gold, completions)


def _expected(example: Example) -> str:
    return example.label if example.label is not None else " | ".join(example.references)


def _answer(evaluation: Evaluation, index: int) -> str:
    prediction = evaluation.predictions[index]
    return str(prediction.completion if prediction.label is None else prediction.label)
