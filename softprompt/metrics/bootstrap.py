"""Intervals over examples and seeds, and differences between methods that were scored on the same examples.

A resample draws examples with replacement, the same for all methods, and each method's seeds with replacement, for each
method anew; a method's value is the mean over its drawn seeds of the metric on the drawn examples. The 2.5% and 97.5%
quantiles of the values bound the interval, as in metrics/. Shapes: ``S`` seeds, ``n`` examples, ``k`` numbers kept of
each, ``R`` resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from softprompt.metrics import METRICS, QUANTILES, Floats, PairedDifference, Scorer, draw_resamples, make_difference

RESAMPLES = 2000


@dataclass(frozen=True)
class RunScores:
    """What the runs of one method scored on the same examples, in a form that resamples can be scored in.

    Attributes:
        rows: what the metric keeps of each example ``[S, n, k]``.
        scorer: the metric.
    """

    rows: Floats
    scorer: Scorer

    @property
    def means(self) -> Floats:
        """The metric of each seed ``[S]``."""
        all_of_them = np.ones((1, self.rows.shape[1]))
        return np.array([self.scorer.value(all_of_them, rows)[0] for rows in self.rows])


@dataclass(frozen=True)
class Interval:
    """Mean over seeds with its 95% interval; standard deviation over seeds (``None`` with one)."""

    mean: float
    deviation: float | None
    low: float
    high: float


def score_runs(metric: str, gold: Sequence[Any], runs: Sequence[Sequence[str]]) -> RunScores:
    """``runs``: the label or completion that each seed gave, in the order of ``gold``, labels or references."""
    scorer = METRICS[metric]
    return RunScores(np.stack([scorer.checked_rows(gold, predicted) for predicted in runs]), scorer)


def resample_scores(scores: Mapping[str, RunScores], resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Floats]:
    """Each method's value in each resample ``[R]``."""
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
            by_seed = np.stack([one.scorer.value(weights, rows) for rows in np.split(own, seeds, axis=1)], axis=1)
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
    # sums that cancel in exact arithmetic leave rounding dust, which must not count as a side
    differences[np.abs(differences) <= 1e-12 * max(1.0, float(np.abs(values).max()))] = 0.0
    difference = float(one.means.mean() - other.means.mean())
    return make_difference(difference, differences, one.rows.shape[1])
