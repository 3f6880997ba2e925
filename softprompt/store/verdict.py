"""What a gate found of a new version beside the one in place: the history of an alias keeps it."""

from dataclasses import asdict, dataclass
from typing import Any

from softprompt.config import GateConfig
from softprompt.data.split_assignment import Subsample
from softprompt.metrics.registry import metric_format
from softprompt.metrics.scores import PairedDifference
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
