"""A profile's distribution against live values: the Kolmogorov-Smirnov test, and counts in the same bins."""

import numpy as np

from softprompt.metrics.bootstrap import Floats
from softprompt.metrics.hypothesis_tests import Significance, kolmogorov_smirnov_p_value
from softprompt.store.input_profile import Distribution, just_above

BINS = 10


def kolmogorov_smirnov(trained: Distribution, live: Floats) -> Significance:
    """Two samples, one of them known at some points.

    The largest difference between the shares at or below a point, looked for at the known points only, which makes it
    smaller, never larger; with ties the p-value is too large, never too small.
    """
    gap = float(np.abs(np.asarray(trained.upto) - shares_upto(trained, live)).max())
    return Significance(gap, kolmogorov_smirnov_p_value(gap, trained.n, len(live)))


def shares_upto(trained: Distribution, live: Floats) -> Floats:
    """Shares of ``live`` at or below each known point."""
    found: Floats = np.searchsorted(np.sort(live), just_above(trained.points), side="right") / len(live)
    return found


def bin_edges(trained: Distribution) -> Floats:
    """Where bins of about a tenth of the trained values each end, the least and the greatest value among them."""
    inner = [trained.quantile(share / BINS) for share in range(1, BINS)]
    return np.unique(just_above([*inner, trained.points[-1]]))


def count_in_bins(trained: Distribution, live: Floats) -> tuple[Floats, Floats, np.ndarray]:
    """Counts of trained and live values in each bin, one of them above all that was trained on; each live one's bin."""
    edges = bin_edges(trained)
    upto = np.interp(edges, just_above(trained.points), trained.upto)
    before = np.diff(np.concatenate([[0.0], upto, [1.0]])).clip(min=0) * trained.n
    place = np.searchsorted(edges, live, side="left")
    return before, np.bincount(place, minlength=len(edges) + 1).astype(np.float64), place
