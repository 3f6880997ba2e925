"""What is compared of one prompt's traffic: lengths, rare tokens, answers, confidence, hidden states; each by its test.

A difference counts as drift if it is sure, its p-value being adjusted for all that was looked at, and large: with many
samples every difference becomes sure.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from softprompt.drift import Curve, LabelShare, Signal, SignalName, Verdict
from softprompt.monitor import statistics
from softprompt.monitor.statistics import Tested
from softprompt.profile import Distribution, Floats, Profile
from softprompt.samples import Sample

LEAST = 100  # rows on each side below which nothing is said
SIGNIFICANCE = 0.01  # adjusted p-value below which a difference is sure
STABILITY, LARGE_STABILITY = 0.1, 0.25  # population stability index
APART, LARGE_APART = 0.2, 0.5  # pooled standard deviations

TITLES: dict[SignalName, tuple[str, str]] = {
    "length": ("input length", "tokens of template and text"),
    "rare": ("rare tokens", "share of a text's tokens"),
    "labels": ("answers", "share of the answers"),
    "confidence": ("confidence", "probability of the answer"),
    "hidden": ("hidden states", "distance from the centre"),
}


@dataclass(frozen=True)
class Compared:
    """A signal with how much each row shows of it.

    Attributes:
        rows: indices of the samples that it was taken of.
        values: of these; of labels none.
        weights: of these; the highest show most of the difference, none above 0 shows any.
    """

    signal: Signal
    rows: tuple[int, ...]
    values: tuple[float, ...]
    weights: Floats


def compare(profile: Profile, samples: Sequence[Sample], distances: dict[int, float]) -> list[Compared]:
    """Every signal that there are values of on both sides.

    Args:
        distances: of hidden states, by the index of the sample.
    """
    found = [_numeric("length", profile.lengths, _known([one.tokens for one in samples]))]
    found.append(_numeric("rare", profile.rare, _known([_share(one) for one in samples])))
    if profile.labels:
        found.append(_labels(profile, samples))
    if profile.confidence is not None:
        found.append(_numeric("confidence", profile.confidence, _known([one.confidence for one in samples])))
    if profile.hidden is not None and distances:
        found.append(_numeric("hidden", profile.hidden.distances, distances))
    return found


def judged(signal: Signal, adjusted: float | None) -> Signal:
    """A signal with its verdict."""
    verdict: Verdict = "too few"
    if adjusted is not None and signal.effect is not None:
        sure = adjusted < SIGNIFICANCE
        verdict = "none" if not sure else "drift" if abs(signal.effect) >= signal.bar else "small"
    return signal.model_copy(update={"adjusted": adjusted, "verdict": verdict})


def _known(values: Sequence[float | None]) -> dict[int, float]:
    return {index: float(value) for index, value in enumerate(values) if value is not None}


def _share(sample: Sample) -> float | None:
    return None if sample.rare is None or not sample.tokens else sample.rare / sample.tokens


def _numeric(name: SignalName, trained: Distribution, values: dict[int, float]) -> Compared:
    live = np.array(list(values.values()))
    title, unit = TITLES[name]
    by_means = name == "rare"
    measure, bar, large = (
        ("standardised difference", APART, LARGE_APART) if by_means else ("PSI", STABILITY, LARGE_STABILITY)
    )
    signal = Signal(
        name=name,
        title=title,
        unit=unit,
        trained=trained.mean if by_means else trained.quantile(0.5),
        live=None if not len(live) else float(live.mean() if by_means else np.median(live)),
        trained_n=trained.n,
        live_n=len(live),
        measure=measure,
        bar=bar,
        large=large,
    )
    if min(trained.n, len(live)) < LEAST:
        return Compared(signal, tuple(values), tuple(values.values()), np.zeros(len(live)))
    before, now, place = statistics.in_bins(trained, live)
    if by_means:
        tested, effect = statistics.welch(trained, live), statistics.standardised(trained, live)
    else:
        tested, effect = statistics.kolmogorov_smirnov(trained, live), statistics.stability(before, now)
    # the farther a text is out, the better it shows that; of length and confidence, any part can have grown
    weights = _excess(before, now)[place]
    if name in ("rare", "hidden"):
        weights = (live - trained.mean) * (np.sign(effect) if by_means else 1.0)
    curve = Curve(
        points=trained.points,
        trained=trained.upto,
        live=tuple(np.round(statistics.shares_upto(trained, live), 5).tolist()),
    )
    test = "Welch" if by_means else "Kolmogorov-Smirnov"
    return Compared(_tested(signal, test, tested, effect, curve=curve), tuple(values), tuple(values.values()), weights)


def _labels(profile: Profile, samples: Sequence[Sample]) -> Compared:
    rows = tuple(index for index, one in enumerate(samples) if one.probabilities and one.answer in profile.labels)
    answers = [str(samples[index].answer) for index in rows]
    counts = Counter(answers)
    shares = tuple(LabelShare(label=one, trained=n, live=counts[one]) for one, n in profile.labels.items())
    before, now = [one.trained for one in shares], [one.live for one in shares]
    title, unit = TITLES["labels"]
    signal = Signal(
        name="labels",
        title=title,
        unit=unit,
        trained_n=sum(before),
        live_n=len(rows),
        measure="PSI",
        bar=STABILITY,
        large=LARGE_STABILITY,
        labels=shares,
    )
    if min(sum(before), len(rows)) < LEAST:
        return Compared(signal, rows, (), np.zeros(len(rows)))
    tested, effect = statistics.chi_square(before, now), statistics.stability(before, now)
    place = {one.label: index for index, one in enumerate(shares)}
    weights = _excess(np.array(before, dtype=np.float64), np.array(now, dtype=np.float64))
    return Compared(_tested(signal, "chi-square", tested, effect), rows, (), weights[[place[one] for one in answers]])


def _excess(before: Floats, now: Floats) -> Floats:
    """How much each bin has grown, in nats; 0 where it has not."""
    a, b = (before + 0.5) / (before + 0.5).sum(), (now + 0.5) / (now + 0.5).sum()
    grown: Floats = np.where(b > a, np.log(b / a), 0.0)
    return grown


def _tested(
    signal: Signal,
    test: str,
    tested: Tested,
    effect: float,
    curve: Curve | None = None,
) -> Signal:
    # what JSON has no word for: a mean that moved where nothing ever varied
    finite = {"statistic": tested.statistic, "effect": effect}
    values = {name: float(np.clip(value, -1e9, 1e9)) for name, value in finite.items()}
    return signal.model_copy(update={"test": test, "p_value": tested.p_value, "curve": curve, **values})
