"""What is compared of one prompt's traffic: lengths, rare tokens, answers, confidence, hidden states; each by its test.

A difference counts as drift if it is sure, its p-value being adjusted for all that was looked at, and large: with many
samples every difference becomes sure.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from softprompt.analysis.drift import distribution_tests
from softprompt.analysis.drift.drift_records import Curve, LabelShare, Signal, SignalName, Verdict
from softprompt.metrics.bootstrap import Floats
from softprompt.metrics.hypothesis_tests import Significance, chi_square, cohens_h, population_stability_index, z_test
from softprompt.serving.request_log.request_records import RequestRecord
from softprompt.store.input_profile import Distribution, InputProfile, TokenShare

LEAST, LEAST_TRAINED = 100, 50  # live samples, and validation rows, below which nothing is said
SIGNIFICANCE = 0.01  # adjusted p-value below which a difference is sure
STABILITY, LARGE_STABILITY = 0.1, 0.25  # population stability index
APART, LARGE_APART = 0.2, 0.5  # Cohen's h

TITLES: dict[SignalName, tuple[str, str]] = {
    "length": ("input length", "tokens of template and text"),
    "rare": ("rare tokens", "share of the tokens"),
    "labels": ("answers", "share of the answers"),
    "confidence": ("confidence", "probability of the answer"),
    "hidden": ("hidden states", "distance from the centre"),
}


@dataclass(frozen=True)
class ComparedSignal:
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


def compare_signals(
    profile: InputProfile, samples: Sequence[RequestRecord], distances: dict[int, float]
) -> list[ComparedSignal]:
    """Every signal that there are values of on both sides.

    Args:
        distances: of hidden states, by the index of the sample.
    """
    found = [_numeric("length", profile.lengths, _known([one.tokens for one in samples]))]
    found.append(_rare(profile.rare, samples))
    if profile.labels:
        found.append(_labels(profile, samples))
    if profile.confidence is not None:
        found.append(_numeric("confidence", profile.confidence, _known([one.confidence for one in samples])))
    if profile.hidden is not None and distances:
        found.append(_numeric("hidden", profile.hidden.distances, distances))
    return found


def judge_signal(signal: Signal, adjusted: float | None) -> Signal:
    """A signal with its verdict."""
    verdict: Verdict = "too few"
    if adjusted is not None and signal.effect is not None:
        sure = adjusted < SIGNIFICANCE
        verdict = "none" if not sure else "drift" if signal.effect >= signal.bar else "small"
    return signal.model_copy(update={"adjusted": adjusted, "verdict": verdict})


def _known(values: Sequence[float | None]) -> dict[int, float]:
    return {index: float(value) for index, value in enumerate(values) if value is not None}


def _too_few(signal: Signal) -> bool:
    return signal.live_n < LEAST or signal.trained_n < LEAST_TRAINED


def _signal(name: SignalName, trained_n: int, live_n: int, **facts: Any) -> Signal:
    title, unit = TITLES[name]
    measure, bar, large = ("h", APART, LARGE_APART) if name == "rare" else ("PSI", STABILITY, LARGE_STABILITY)
    return Signal(
        name=name,
        title=title,
        unit=unit,
        trained_n=trained_n,
        live_n=live_n,
        measure=measure,
        bar=bar,
        large=large,
        **facts,
    )


def _numeric(name: SignalName, trained: Distribution, values: dict[int, float]) -> ComparedSignal:
    live = np.array(list(values.values()))
    median = float(np.median(live)) if len(live) else None
    signal = _signal(name, trained.n, len(live), trained=trained.quantile(0.5), live=median)
    rows, known = tuple(values), tuple(values.values())
    if _too_few(signal):
        return ComparedSignal(signal, rows, known, np.zeros(len(live)))
    before, now, place = distribution_tests.count_in_bins(trained, live)
    tested = distribution_tests.kolmogorov_smirnov(trained, live)
    effect = population_stability_index(before, now)
    # the farther out a state is, the better it shows that; of length and confidence, any part can have grown
    weights = live - trained.mean if name == "hidden" else _excess(before, now)[place]
    curve = Curve(
        points=trained.points,
        trained=trained.upto,
        live=tuple(np.round(distribution_tests.shares_upto(trained, live), 5).tolist()),
    )
    return ComparedSignal(_tested(signal, "Kolmogorov-Smirnov", tested, effect, curve), rows, known, weights)


def _rare(trained: TokenShare, samples: Sequence[RequestRecord]) -> ComparedSignal:
    counted = {
        index: (one.rare, one.tokens) for index, one in enumerate(samples) if one.rare is not None and one.tokens
    }
    pairs = list(counted.values())
    live = TokenShare.of([rare for rare, _ in pairs], [tokens for _, tokens in pairs]) if pairs else None
    signal = _signal("rare", trained.n, len(pairs), trained=trained.value, live=None if live is None else live.value)
    shares = np.array([rare / tokens for rare, tokens in pairs])
    rows, known = tuple(counted), tuple(shares.tolist())
    if live is None or _too_few(signal):
        return ComparedSignal(signal, rows, known, np.zeros(len(pairs)))
    tested = z_test(live.value - trained.value, math.hypot(trained.error, live.error))
    effect = cohens_h(trained.value, live.value)
    weights = (shares - trained.value) * (1.0 if live.value > trained.value else -1.0)
    signal = signal.model_copy(update={"ranges": (_range(trained), _range(live))})
    return ComparedSignal(_tested(signal, "two rates", tested, effect), rows, known, weights)


def _range(one: TokenShare) -> tuple[float, float]:
    return max(0.0, one.value - 1.96 * one.error), min(1.0, one.value + 1.96 * one.error)


def _labels(profile: InputProfile, samples: Sequence[RequestRecord]) -> ComparedSignal:
    rows = tuple(index for index, one in enumerate(samples) if one.probabilities and one.answer in profile.labels)
    answers = [str(samples[index].answer) for index in rows]
    counts = Counter(answers)
    shares = tuple(LabelShare(label=one, trained=n, live=counts[one]) for one, n in profile.labels.items())
    before, now = [one.trained for one in shares], [one.live for one in shares]
    signal = _signal("labels", sum(before), len(rows), labels=shares)
    if _too_few(signal):
        return ComparedSignal(signal, rows, (), np.zeros(len(rows)))
    tested, effect = chi_square(before, now), population_stability_index(before, now)
    place = {one.label: index for index, one in enumerate(shares)}
    weights = _excess(np.array(before, dtype=np.float64), np.array(now, dtype=np.float64))
    return ComparedSignal(
        _tested(signal, "chi-square", tested, effect), rows, (), weights[[place[one] for one in answers]]
    )


def _excess(before: Floats, now: Floats) -> Floats:
    """How much each bin has grown, in nats; 0 where it has not."""
    a, b = (before + 0.5) / (before + 0.5).sum(), (now + 0.5) / (now + 0.5).sum()
    grown: Floats = np.where(b > a, np.log(b / a), 0.0)
    return grown


def _tested(signal: Signal, test: str, tested: Significance, effect: float, curve: Curve | None = None) -> Signal:
    found = {"test": test, "statistic": tested.statistic, "p_value": tested.p_value, "effect": effect, "curve": curve}
    return signal.model_copy(update=found)
