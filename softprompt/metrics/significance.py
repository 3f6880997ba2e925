"""Means with intervals, differences of two groups, and corrected tests: what every question of a probe needs."""

import math
from collections.abc import Sequence

import numpy as np

from softprompt.metrics import QUANTILES, Floats, paired_bootstrap
from softprompt.metrics.measured import Mean

RESAMPLES = 2000


def bootstrap_mean(values: Sequence[float] | Floats, seed: int = 0) -> Mean:
    """Mean of ``values`` with its bootstrap interval."""
    array = np.asarray(values, dtype=np.float64)
    low, high = np.quantile(_resampled(array, seed), QUANTILES)
    return Mean(value=float(array.mean()), low=float(low), high=float(high), n=len(array))


def paired_mean_difference(a: Sequence[float] | Floats, b: Sequence[float] | Floats) -> tuple[Mean, float]:
    """Mean of ``a`` minus ``b`` on the same examples, and the two-sided p-value."""
    found = paired_bootstrap(np.asarray(a).tolist(), np.asarray(b).tolist(), resamples=RESAMPLES)
    return Mean(value=found.difference, low=found.low, high=found.high, n=found.n), found.p_value


def mean_difference(a: Sequence[float] | Floats, b: Sequence[float] | Floats, seed: int = 0) -> Mean:
    """Mean of ``a`` minus mean of ``b``, two groups of their own; ``n`` is the size of both together."""
    one, other = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    low, high = np.quantile(_resampled(one, seed) - _resampled(other, seed + 1), QUANTILES)
    return Mean(value=float(one.mean() - other.mean()), low=float(low), high=float(high), n=len(one) + len(other))


def wilson_interval(right: float, n: int) -> tuple[float, float]:
    """Interval of a share of ``n`` (Wilson 1927): unlike the bootstrap's it has a width at 0 and 1."""
    z = 1.959964
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def hypergeometric_p_value(right: int, n: int, all_right: int, total: int) -> float:
    """P(at most ``right``) of ``n`` drawn from ``total`` examples of which ``all_right`` are right (Fisher's exact)."""
    log_all = _log_choose(total, n)
    return min(
        1.0,
        sum(
            math.exp(_log_choose(all_right, k) + _log_choose(total - all_right, n - k) - log_all)
            for k in range(max(0, n - (total - all_right)), right + 1)
        ),
    )


def sign_test(one: int, other: int) -> float:
    """Two-sided p-value of ``one`` against ``other`` where both are as likely, as McNemar's exact test has it."""
    total = one + other
    tail = sum(math.exp(_log_choose(total, k) - total * math.log(2)) for k in range(min(one, other) + 1))
    return min(1.0, 2 * tail)


def subset_mean_p_value(values: Floats, inside: Floats) -> float:
    """P(a random part of ``values`` of that size has so low a mean), by its normal approximation."""
    total, n = len(values), int(inside.sum())
    spread = float(values.std()) * math.sqrt((total - n) / max(1, total - 1) / n)
    if spread == 0:
        return 1.0
    return 0.5 * math.erfc((float(values.mean()) - float(values[inside.astype(bool)].mean())) / spread / math.sqrt(2))


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
    below = np.searchsorted(np.sort(b), a, side="left")
    upto = np.searchsorted(np.sort(b), a, side="right")
    return float((below + upto).mean() / (2 * len(b)))


def _resampled(values: Floats, seed: int) -> Floats:
    """Means of ``RESAMPLES`` resamples."""
    generator = np.random.default_rng(seed)
    chunk = max(1, 2**22 // len(values))
    parts = [
        values[generator.integers(len(values), size=(min(chunk, RESAMPLES - start), len(values)))].mean(axis=1)
        for start in range(0, RESAMPLES, chunk)
    ]
    whole: Floats = np.concatenate(parts)
    return whole


def _log_choose(n: int, k: int) -> float:
    if not 0 <= k <= n:
        return -math.inf
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
