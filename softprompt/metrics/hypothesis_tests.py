"""Tests of whether groups or distributions differ and by how much, and intervals of means and shares."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from softprompt.metrics.bootstrap import QUANTILES, RESAMPLES, Floats, draw_resamples, paired_bootstrap
from softprompt.metrics.scores import Mean

_LEAST_EXPECTED = 5.0  # in each cell of a table, for the chi-square distribution to hold (Cochran 1954)


class Significance(NamedTuple):
    """A statistic and the probability of one as large by chance."""

    statistic: float
    p_value: float


def bootstrap_mean(values: Sequence[float] | Floats, seed: int = 0) -> Mean:
    """Mean of ``values`` with its bootstrap interval."""
    array = np.asarray(values, dtype=np.float64)
    low, high = np.quantile(_resampled_means(array, seed), QUANTILES)
    return Mean(value=float(array.mean()), low=float(low), high=float(high), n=len(array))


def paired_mean_difference(a: Sequence[float] | Floats, b: Sequence[float] | Floats) -> tuple[Mean, float]:
    """Mean of ``a`` minus ``b`` on the same examples, and the two-sided p-value."""
    found = paired_bootstrap(np.asarray(a).tolist(), np.asarray(b).tolist(), resamples=RESAMPLES)
    return Mean(value=found.difference, low=found.low, high=found.high, n=found.n), found.p_value


def mean_difference(a: Sequence[float] | Floats, b: Sequence[float] | Floats, seed: int = 0) -> Mean:
    """Mean of ``a`` minus mean of ``b``, two groups of their own; ``n`` is the size of both together."""
    one, other = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    low, high = np.quantile(_resampled_means(one, seed) - _resampled_means(other, seed + 1), QUANTILES)
    return Mean(value=float(one.mean() - other.mean()), low=float(low), high=float(high), n=len(one) + len(other))


def wilson_interval(right: float, n: int) -> tuple[float, float]:
    """Interval of a share of ``n`` (Wilson 1927): unlike the bootstrap's it has a width at 0 and 1."""
    z = 1.959964
    share = right / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def hypergeometric_p_value(right: int, n: int, all_right: int, total: int) -> float:
    """P(at most ``right``) of ``n`` drawn from ``total`` examples of which ``all_right`` are right (Fisher's exact)."""
    return float(stats.hypergeom.cdf(right, total, all_right, n))


def sign_test(one: int, other: int) -> float:
    """Two-sided p-value of ``one`` against ``other`` where both are as likely, as McNemar's exact test has it."""
    return float(stats.binomtest(one, one + other).pvalue) if one + other else 1.0


def subset_mean_p_value(values: Floats, inside: Floats) -> float:
    """P(a random part of ``values`` of that size has so low a mean), by its normal approximation."""
    total, n = len(values), int(inside.sum())
    deviation = float(values.std()) * math.sqrt((total - n) / max(1, total - 1) / n)
    if deviation == 0:
        return 1.0
    return float(stats.norm.sf((values.mean() - values[inside.astype(bool)].mean()) / deviation))


def holm_adjust(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979): below 0.05, even one false alarm in all has a chance of 5%."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def area_under_roc_curve(a: Floats, b: Floats) -> float:
    """Probability that one of ``a`` is greater than one of ``b``, ties counting half (Mann and Whitney 1947)."""
    ranks = stats.rankdata(np.concatenate([a, b]))[: len(a)]
    return float((ranks.sum() - len(a) * (len(a) + 1) / 2) / (len(a) * len(b)))


def z_test(difference: float, error: float) -> Significance:
    """Is a difference with this standard error 0? Two-sided, the difference taken for normal."""
    if error == 0:
        return Significance(difference, float(difference == 0))
    return Significance(difference / error, float(2 * stats.norm.sf(abs(difference) / error)))


def cohens_h(one: float, other: float) -> float:
    """How far two shares are apart, on a scale where 0.2 is small and 0.5 medium, wherever they lie (Cohen 1988)."""
    return 2 * abs(math.asin(math.sqrt(other)) - math.asin(math.sqrt(one)))


def kolmogorov_smirnov_p_value(gap: float, n: int, m: int) -> float:
    """Of the largest gap between the distributions of two samples of ``n`` and ``m``, as Stephens (1970) has it."""
    root = math.sqrt(n * m / (n + m))
    return float(special.kolmogorov((root + 0.12 + 0.11 / root) * gap))


def chi_square(one: Sequence[int], other: Sequence[int]) -> Significance:
    """Are the counts of two groups of the same shares (Pearson 1900)? Rare kinds are counted as one."""
    table = np.array([one, other], dtype=np.float64)
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / table.sum()
    rare = expected.min(axis=0) < _LEAST_EXPECTED
    table = np.concatenate([table[:, ~rare], table[:, rare].sum(axis=1, keepdims=True)], axis=1)
    found = stats.chi2_contingency(table[:, table.sum(axis=0) > 0], correction=False)
    return Significance(float(found.statistic), float(found.pvalue))


def population_stability_index(one: Floats | Sequence[int], other: Floats | Sequence[int]) -> float:
    """Symmetric Kullback-Leibler divergence (nats) of counts in the same bins.

    Below 0.1 is taken for no change, above 0.25 for a large one (Siddiqi, Credit Risk Scorecards, 2006). Half a row is
    added to each bin, so that an empty one does not make it infinite.
    """
    a, b = (np.asarray(counts, dtype=np.float64) + 0.5 for counts in (one, other))
    a, b = a / a.sum(), b / b.sum()
    return float(((b - a) * np.log(b / a)).sum())


def _resampled_means(values: Floats, seed: int) -> Floats:
    distinct, counts = np.unique(values, return_counts=True)
    return np.concatenate([weights @ distinct for weights in draw_resamples(counts, RESAMPLES, seed)]) / len(values)
