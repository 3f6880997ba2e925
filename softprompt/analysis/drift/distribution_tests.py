"""Are two samples of the same distribution, and how far are they apart?"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from softprompt.store.input_profile import Distribution, Floats, Rate, just_above

BINS = 10
_FEWEST = 5.0  # expected in each cell of a table, for the chi-square distribution to hold (Cochran 1954)


@dataclass(frozen=True)
class Tested:
    """A statistic and the probability of one as large by chance."""

    statistic: float
    p_value: float


def kolmogorov_smirnov(trained: Distribution, live: Floats) -> Tested:
    """Two samples, one of them known at some points.

    The largest difference between the shares at or below a point, looked for at the known points only, which makes it
    smaller, never larger; with ties the p-value is too large, never too small. Its asymptotic form is Stephens' (1970).
    """
    gap = float(np.abs(np.asarray(trained.upto) - shares_upto(trained, live)).max())
    root = math.sqrt(trained.n * len(live) / (trained.n + len(live)))
    return Tested(gap, kolmogorov_tail((root + 0.12 + 0.11 / root) * gap))


def kolmogorov_tail(value: float) -> float:
    """P(K > value) of Kolmogorov's distribution."""
    if value < 0.2:  # 1 but for less than 1e-12, and the series converges slowly
        return 1.0
    terms: Iterator[float] = ((-1.0) ** (k - 1) * math.exp(-2 * (k * value) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, 2 * sum(terms)))


def shares_upto(trained: Distribution, live: Floats) -> Floats:
    """Shares of ``live`` at or below each known point."""
    found: Floats = np.searchsorted(np.sort(live), just_above(trained.points), side="right") / len(live)
    return found


def two_rates(trained: Rate, live: Rate) -> Tested:
    """Are two rates the same? Each with its standard error over texts, the difference taken for normal."""
    difference, error = live.value - trained.value, math.hypot(trained.error, live.error)
    if error == 0:
        return Tested(difference, float(difference == 0))
    return Tested(difference / error, math.erfc(abs(difference) / error / math.sqrt(2)))


def cohens_h(trained: Rate, live: Rate) -> float:
    """How far two rates are apart, on a scale where 0.2 is small and 0.5 medium, wherever they lie (Cohen 1988)."""
    return 2 * abs(math.asin(math.sqrt(live.value)) - math.asin(math.sqrt(trained.value)))


def chi_square(trained: Sequence[int], live: Sequence[int]) -> Tested:
    """Are the counts of two groups of the same shares (Pearson 1900)? Rare kinds are counted as one."""
    table = np.array([trained, live], dtype=np.float64)
    total = table.sum()
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / total
    rare = expected.min(axis=0) < _FEWEST
    table = np.concatenate([table[:, ~rare], table[:, rare].sum(axis=1, keepdims=True)], axis=1)
    table = table[:, table.sum(axis=0) > 0]
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / total
    value = float(((table - expected) ** 2 / expected).sum())
    return Tested(value, chi_square_tail(value, table.shape[1] - 1))


def chi_square_tail(value: float, freedom: int) -> float:
    """P(X > value) of the chi-square distribution with a whole number of degrees of freedom, in closed form."""
    if freedom < 1 or value <= 0:
        return 1.0
    half, odd = value / 2, freedom % 2
    total = math.erfc(math.sqrt(half)) if odd else 0.0
    for index in range((freedom - odd) // 2):
        power = index + odd / 2
        total += math.exp(power * math.log(half) - half - math.lgamma(power + 1))
    return min(1.0, total)


def cuts(trained: Distribution) -> Floats:
    """Where bins of about a tenth of the trained values each end, the least and the greatest value among them."""
    inner = [trained.quantile(share / BINS) for share in range(1, BINS)]
    return np.unique(just_above([*inner, trained.points[-1]]))


def in_bins(trained: Distribution, live: Floats) -> tuple[Floats, Floats, np.ndarray]:
    """Counts of trained and live values in each bin, one of them above all that was trained on; each live one's bin."""
    edges = cuts(trained)
    upto = np.interp(edges, just_above(trained.points), trained.upto)
    before = np.diff(np.concatenate([[0.0], upto, [1.0]])).clip(min=0) * trained.n
    place = np.searchsorted(edges, live, side="left")
    return before, np.bincount(place, minlength=len(edges) + 1).astype(np.float64), place


def stability(trained: Floats | Sequence[int], live: Floats | Sequence[int]) -> float:
    """Population stability index of counts in the same bins: the symmetric Kullback-Leibler divergence (nats).

    Below 0.1 is taken for no change, above 0.25 for a large one (Siddiqi, Credit Risk Scorecards, 2006). Half a row is
    added to each bin, so that an empty one does not make it infinite.
    """
    a, b = (np.asarray(one, dtype=np.float64) + 0.5 for one in (trained, live))
    a, b = a / a.sum(), b / b.sum()
    return float(((b - a) * np.log(b / a)).sum())
