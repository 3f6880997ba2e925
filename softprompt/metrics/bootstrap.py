"""Intervals of scores, and of differences between scores of the same examples, by a percentile bootstrap.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13: the statistic is computed anew on each
resample of the examples, and the 2.5% and 97.5% quantiles are reported. Where several seeds of a method are compared,
each method's seeds are drawn with replacement too, for each method anew. When all examples score alike an interval has
no width; for a statistic that is not a mean (macro-F1, BLEU) it need not be centred on the value.

Shapes: ``S`` seeds, ``n`` examples, ``K`` rows that differ, ``k`` numbers kept of each, ``R`` resamples.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from softprompt.errors import DataError
from softprompt.metrics.scores import PairedDifference, Score

Floats = NDArray[np.float64]

QUANTILES = (0.025, 0.975)
RESAMPLES = 2000
_CELLS_AT_ONCE = 2**22  # resamples times distinct rows that are drawn in one go: 32 MiB


@dataclass(frozen=True)
class RunScores:
    """What the runs of one method scored on the same examples, in a form that resamples can be scored in.

    Attributes:
        rows: what the metric keeps of each example ``[S, n, k]``.
        value: of how often each row was drawn ``[R, K]`` and the rows ``[K, k]`` the metric's values ``[R]``.
    """

    rows: Floats
    value: Callable[[Floats, Floats], Floats]

    @property
    def means(self) -> Floats:
        """The metric of each seed ``[S]``."""
        every_row = np.ones((1, self.rows.shape[1]))
        return np.array([self.value(every_row, rows)[0] for rows in self.rows])


@dataclass(frozen=True)
class Interval:
    """Mean over seeds with its 95% interval; standard deviation over seeds (``None`` with one)."""

    mean: float
    deviation: float | None
    low: float
    high: float


def mean_score(name: str, scores: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> Score:
    """The mean over examples of any score, with its interval; DataError without examples."""
    check_lengths(scores, scores, "scores")
    values, counts = np.unique(np.asarray(scores, dtype=np.float64), return_counts=True)
    n = len(scores)
    return bootstrap_score(name, lambda weights: weights @ values / n, counts, resamples, seed)


def bootstrap_score(
    name: str, statistic: Callable[[Floats], Floats], counts: NDArray[np.int64], resamples: int, seed: int
) -> Score:
    """Score the data and its resamples.

    ``counts[k]`` examples share the distinct row ``k``; ``statistic`` maps ``[R, K]`` such counts to ``[R]`` values.
    """
    value = float(statistic(counts[None].astype(np.float64))[0])
    samples = np.concatenate([statistic(weights) for weights in draw_resamples(counts, resamples, seed)])
    low, high = np.quantile(samples, QUANTILES)
    return Score(metric=name, value=value, low=float(low), high=float(high), n=int(counts.sum()))


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


def resample_scores(scores: Mapping[str, RunScores], resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Floats]:
    """Each method's value in each resample ``[R]``, the examples drawn being the same for all."""
    if not scores:
        return {}
    n = next(iter(scores.values())).rows.shape[1]
    flat = [one.rows.transpose(1, 0, 2).reshape(n, -1) for one in scores.values()]
    # examples on which all runs of all methods scored alike are one row, drawn as often as there are of them
    distinct, repeats = np.unique(np.concatenate(flat, axis=1), axis=0, return_counts=True)
    columns = np.split(distinct, np.cumsum([one.shape[1] for one in flat])[:-1], axis=1)
    generator = np.random.default_rng([seed, 1])
    values: dict[str, list[Floats]] = {name: [] for name in scores}
    for weights in draw_resamples(repeats, resamples, seed):
        for (name, one), own in zip(scores.items(), columns, strict=True):
            seeds = len(one.rows)
            by_seed = np.stack([one.value(weights, rows) for rows in np.split(own, seeds, axis=1)], axis=1)
            shares = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=len(weights)) / seeds
            values[name].append((by_seed * shares).sum(axis=1))
    return {name: np.concatenate(parts) for name, parts in values.items()}


def bootstrap_interval(scores: RunScores, values: Floats) -> Interval:
    """``values``: of the method in the resamples."""
    means = scores.means
    low, high = np.quantile(values, QUANTILES)
    deviation = float(means.std(ddof=1)) if len(means) > 1 else None
    return Interval(float(means.mean()), deviation, float(low), float(high))


def paired_difference(one: RunScores, other: RunScores, values: Floats, other_values: Floats) -> PairedDifference:
    """One method minus another, mean over seeds; ``values`` and ``other_values`` are of the same resamples."""
    differences = values - other_values
    # as in ``paired_bootstrap``
    differences[np.abs(differences) <= 1e-12 * max(1.0, float(np.abs(values).max()))] = 0.0
    return make_difference(float(one.means.mean() - other.means.mean()), differences, one.rows.shape[1])


def make_difference(difference: float, resampled: Floats, n: int) -> PairedDifference:
    """``difference`` over ``n`` examples, with the interval and p-value that its values ``[R]`` in resamples give."""
    tail = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    low, high = np.quantile(resampled, QUANTILES)
    p_value = min(1.0, 2 * (tail + 1) / (len(resampled) + 1))
    return PairedDifference(difference=difference, low=float(low), high=float(high), p_value=p_value, n=n)


def draw_resamples(counts: NDArray[np.int64], resamples: int, seed: int) -> Iterator[Floats]:
    """How often each of ``K`` distinct rows occurs in each resample: chunks of ``[R, K]`` that add up to ``resamples``.

    Drawing ``n`` examples with replacement is one multinomial draw over the distinct rows, which are few for labels.
    """
    if resamples < 1:
        raise DataError(f"expected at least 1 resample, got {resamples}: the usual number is {RESAMPLES}")
    generator = np.random.default_rng(seed)
    n = int(counts.sum())
    chunk = max(1, _CELLS_AT_ONCE // len(counts))
    for start in range(0, resamples, chunk):
        yield generator.multinomial(n, counts / n, size=min(chunk, resamples - start)).astype(np.float64)


def check_lengths(expected: Sequence[object], got: Sequence[object], left: str, right: str = "predictions") -> None:
    """Raise DataError unless both are of one length, and not empty; messages call them ``left`` and ``right``."""
    if len(expected) != len(got):
        raise DataError(
            f"expected as many {right} as {left}, got {len(got)} and {len(expected)}: pass one for each example"
        )
    if len(expected) == 0:
        raise DataError(f"expected at least one example to score, got no {left}: check the split and its filters")
