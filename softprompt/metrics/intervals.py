"""Intervals of scores, and of differences between scores of the same examples.

Every interval is a percentile bootstrap over examples (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
chapter 13): the statistic is computed anew on each resample, and the 2.5% and 97.5% quantiles are reported. Two of its
limits to know when reading one: when all examples score alike (all right, all wrong, or n = 1) it has no width, and for
a statistic that is not a mean (macro-F1, BLEU) it need not be centred on the value.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from softprompt.errors import DataError

Floats = NDArray[np.float64]

QUANTILES = (0.025, 0.975)
_CELLS_AT_ONCE = 2**22  # resamples times distinct rows that are drawn in one go: 32 MiB


@dataclass(frozen=True, slots=True)
class Metric:
    """One score: ``value`` and its 95% interval ``low`` to ``high``, over ``n`` examples."""

    name: str
    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, str | float | int]:
        """The JSON object that ``softprompt eval --json`` prints."""
        return {"metric": self.name, "value": self.value, "low": self.low, "high": self.high, "n": self.n}

    def __str__(self) -> str:
        from softprompt.metrics.registry import digits_of

        digits = digits_of(self.name)
        return f"{self.name} {self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}] n={self.n}"


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of A minus mean of B on the same ``n`` examples, its 95% interval, and a two-sided ``p_value``."""

    difference: float
    low: float
    high: float
    p_value: float
    n: int

    def to_dict(self) -> dict[str, float | int]:
        """The fields by name, ready for JSON."""
        return asdict(self)


def mean_metric(name: str, scores: Sequence[float], resamples: int = 2000, seed: int = 0) -> Metric:
    """The mean over examples of any score, with its interval; DataError without examples."""
    check_lengths(scores, scores, "scores")
    values, counts = np.unique(np.asarray(scores, dtype=np.float64), return_counts=True)
    n = len(scores)
    return bootstrap_score(name, lambda weights: weights @ values / n, counts, resamples, seed)


def paired_bootstrap(
    scores_a: Sequence[float], scores_b: Sequence[float], *, resamples: int = 10000, seed: int = 0
) -> PairedDifference:
    """Does A score higher than B on the same examples? Position ``i`` of both is the score on example ``i``.

    The p-value inverts the percentile interval: twice the smaller share of resamples on one side of zero, with one
    added to count and total so that it is never 0.

    Raises:
        DataError: no examples, not as many scores in A as in B, or a score that is not finite.
    """
    check_lengths(scores_a, scores_b, "scores of A", "scores of B")
    differences = np.asarray(scores_a, dtype=np.float64) - np.asarray(scores_b, dtype=np.float64)
    if not np.isfinite(differences).all():
        raise DataError(
            "expected finite scores, got NaN or infinity: leave out the examples that have no score, in A and B"
        )
    n = len(differences)
    values, counts = np.unique(differences, return_counts=True)
    sums = np.concatenate([weights @ values for weights in draw_resamples(counts, resamples, seed)])
    # sums that cancel in exact arithmetic leave rounding dust, which must not count as a side
    sums[np.abs(sums) <= 1e-12 * n * np.abs(values).max()] = 0.0
    return make_difference(float(differences.mean()), sums / n, n)


def make_difference(difference: float, resampled: Floats, n: int) -> PairedDifference:
    """``difference`` over ``n`` examples, with the interval and p-value that its values ``[R]`` in resamples give."""
    tail = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    low, high = np.quantile(resampled, QUANTILES)
    p_value = min(1.0, 2 * (tail + 1) / (len(resampled) + 1))
    return PairedDifference(difference, float(low), float(high), p_value, n)


def bootstrap_score(
    name: str, statistic: Callable[[Floats], Floats], counts: NDArray[np.int64], resamples: int, seed: int
) -> Metric:
    """Score the data and its resamples.

    ``counts[k]`` examples share the distinct row ``k``; ``statistic`` maps ``[R, K]`` such counts to ``[R]`` values.
    """
    value = float(statistic(counts[None].astype(np.float64))[0])
    samples = np.concatenate([statistic(weights) for weights in draw_resamples(counts, resamples, seed)])
    low, high = np.quantile(samples, QUANTILES)
    return Metric(name, value, float(low), float(high), int(counts.sum()))


def draw_resamples(counts: NDArray[np.int64], resamples: int, seed: int) -> Iterator[Floats]:
    """How often each of ``K`` distinct rows occurs in each resample: chunks of ``[R, K]`` that add up to ``resamples``.

    Drawing ``n`` examples with replacement is one multinomial draw over the distinct rows, which are few for labels.
    """
    if resamples < 1:
        raise DataError(f"expected at least 1 resample, got {resamples}: the usual number is 2000")
    generator = np.random.default_rng(seed)
    n = int(counts.sum())
    chunk = max(1, _CELLS_AT_ONCE // len(counts))
    for start in range(0, resamples, chunk):
        counts_drawn = generator.multinomial(n, counts / n, size=min(chunk, resamples - start))
        yield counts_drawn.astype(np.float64)


def check_lengths(expected: Sequence[object], got: Sequence[object], left: str, right: str = "predictions") -> None:
    if len(expected) != len(got):
        raise DataError(
            f"expected as many {right} as {left}, got {len(got)} and {len(expected)}: pass one for each example"
        )
    if len(expected) == 0:
        raise DataError(f"expected at least one example to score, got no {left}: check the split and its filters")
