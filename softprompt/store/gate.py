"""The gate before promotion: is a new version worse than the one in place, on the same examples?

The answers of both are compared by a paired bootstrap over the examples (Koehn, "Statistical Significance Tests for
Machine Translation Evaluation", 2004), in the metric that the new version is judged by. A difference that chance
explains does not close the gate, so few examples let much pass: the interval says how much.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from softprompt.config import GateConfig
from softprompt.data.examples import Example
from softprompt.data.split_assignment import Subsample, sample_examples
from softprompt.inference.evaluation import Evaluation, evaluate
from softprompt.inference.generation import GenerationConfig
from softprompt.metrics.bootstrap import paired_difference, resample_scores
from softprompt.metrics.registry import METRICS, metric_format, score_runs
from softprompt.metrics.scores import PairedDifference
from softprompt.metrics.user_metrics import import_metric
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.utils.summaries import summarize


@dataclass(frozen=True)
class LostExample:
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
        metric: what both were judged by.
        before, now: score of the version in place and of the new one.
        difference: ``now`` minus ``before``, with its interval.
        p_value: of being worse by more than the tolerance, two-sided.
        gained: examples that the new version answers better.
        lost: those that it answers worse, the worst first.
        config: the thresholds.
        drawn: of how many rows the examples are a sample, if they are one.
    """

    passed: bool
    metric: str
    before: float
    now: float
    difference: PairedDifference
    p_value: float
    gained: int
    lost: tuple[LostExample, ...]
    config: GateConfig
    drawn: Subsample | None = None

    def __repr__(self) -> str:
        told = "passed" if self.passed else "refused"
        return summarize(self, told, str(self), gained=self.gained, lost=len(self.lost))

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
            **({} if self.drawn is None else self.drawn.to_dict()),
        }

    def to_dict(self, examples: int = 10) -> dict[str, Any]:
        """The figures, and at most so many of the lost examples under ``examples``."""
        return {**self.figures(), "examples": [asdict(one) for one in self.lost[:examples]]}

    def __str__(self) -> str:
        digits = metric_format(self.metric).digits
        before, now, difference, low, high = (
            f"{value:.{digits}f}"
            for value in (self.before, self.now, self.difference.difference, self.difference.low, self.difference.high)
        )
        words = self.drawn.describe("given") if self.drawn else ""
        sample = f" ({words})" if words else ""
        return (
            f"{self.metric} {now} against {before}, difference {difference} [{low}, {high}], p {self.p_value:.2g}, "
            f"n={self.difference.n:,}: {len(self.lost)} lost, {self.gained} gained{sample}"
        )


class Gate:
    """Compares two prompts on examples.

    Attributes:
        examples: those that both answer.
    """

    def __init__(
        self,
        base: FrozenLM | Callable[[Prompt], FrozenLM],
        examples: Sequence[Example],
        config: GateConfig | None = None,
        *,
        limit: int | None = None,
        generation: GenerationConfig | None = None,
        metric: str | None = None,
    ) -> None:
        """Make ready.

        Args:
            base: the model that both were learned on; or what gives the model of a prompt, where they differ.
            examples: labelled ones, or with references.
            config: the thresholds.
            limit: so many of the examples at most, drawn with every label in its proportion.
            sampling: how completions are made (generation).
            metric: what to judge by; what the new version is judged by, if not given.
        """
        self._base, self._generation, self._metric = base, generation, import_metric(metric)
        self.examples = sample_examples(examples, limit)
        self._drawn = Subsample(len(self.examples), len(examples))
        self._config = config or GateConfig()

    def __call__(self, new: Prompt, in_place: Prompt) -> Verdict:
        """Whether ``new`` may take the place of the other.

        Raises:
            DataError: no examples, or examples without label or references.
            PromptFileError: a prompt was learned on another base model.
        """
        metric = self._metric or new.spec.metric
        alike = [replace(one, spec=replace(one.spec, metric=metric)) for one in (in_place, new)]
        before, now = (
            evaluate(self._load_base(prompt), self.examples, prompt, generation=self._generation) for prompt in alike
        )
        return replace(judge_answers(self.examples, before, now, self._config), drawn=self._drawn)

    def _load_base(self, prompt: Prompt) -> FrozenLM:
        return self._base if isinstance(self._base, FrozenLM) else self._base(prompt)


def judge_answers(examples: Sequence[Example], before: Evaluation, now: Evaluation, config: GateConfig) -> Verdict:
    """What the answers of two prompts to ``examples`` mean for the second of them."""
    metric = now.metric.metric
    indices = range(len(examples))
    old, new = ([_format_answer(one, index) for index in indices] for one in (before, now))
    scores = {name: score_runs(metric, now.gold, [words]) for name, words in (("now", new), ("before", old))}
    values = resample_scores(scores, config.resamples, config.seed)
    difference = paired_difference(scores["now"], scores["before"], values["now"], values["before"])
    # how surely it is worse by more than what is accepted
    p_value = paired_difference(
        scores["now"], scores["before"], values["now"] + config.tolerance, values["before"]
    ).p_value
    was, score = (METRICS[metric].score_each(now.gold, words) for words in (old, new))
    lost = [
        LostExample(
            index,
            examples[index].text,
            _format_expected(examples[index]),
            old[index],
            new[index],
            was[index] - score[index],
        )
        for index in indices
        if score[index] < was[index]
    ]
    return Verdict(
        passed=not (difference.difference + config.tolerance < 0 and p_value < config.significance),
        metric=metric,
        before=float(scores["before"].means[0]),
        now=float(scores["now"].means[0]),
        difference=difference,
        p_value=p_value,
        gained=sum(score[index] > was[index] for index in indices),
        lost=tuple(sorted(lost, key=lambda one: -one.loss)),
        config=config,
    )


def _format_expected(example: Example) -> str:
    return example.label if example.label is not None else " | ".join(example.references)


def _format_answer(evaluation: Evaluation, index: int) -> str:
    prediction = evaluation.predictions[index]
    return str(prediction.completion if prediction.label is None else prediction.label)
