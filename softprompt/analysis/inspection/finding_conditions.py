"""The condition of each finding about a prompt, on what was measured; the words are in inspection_findings.py.

The bars are written here; docs/how-to/inspect.md says where they come from.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any, TypeAlias

from softprompt.analysis.inspection.inspection_records import SUSPECTED, Inspection, Reproduction, VirtualToken
from softprompt.metrics.hypothesis_tests import sign_test, wilson_interval
from softprompt.metrics.registry import METRICS
from softprompt.metrics.scores import Mean, Score

Seen: TypeAlias = str | Mapping[str, Any] | None  # evidence, with what else is to be said; or all is well


_THROWN = "the virtual tokens moved {:.1f} standard deviations of the embeddings; 1 or 2 is usual"


def knows_frequencies_only(found: Inspection) -> Seen:
    if found.prior_loss is None or found.fit is None:
        return None
    loss = found.fit.validation_loss
    if loss.value < 0.95 * found.prior_loss:
        return None
    alarmed = " (training gave the same alarm)" if found.training.get("alarmed") else ""
    seen = {
        "evidence": f"validation loss {_ranged(loss)}; knowing only the label frequencies gives "
        f"{found.prior_loss:.3f}{alarmed}"
    }
    elsewhere = (
        "It was learned on other rows than these: they differ too much from them, or it had learned nothing there "
        "either. Inspect it with the data that it was learned on."
    )
    return seen if found.same_data else {**seen, "meaning": elsewhere}


def is_unmoved(found: Inspection) -> Seen:
    moves = _moves(found)
    if not moves or max(moves) >= 0.02:
        return None
    embedded = found.state_kind == "embeddings"
    unit = "standard deviations of the embeddings" if embedded else "times the start's norm"
    return f"its virtual tokens moved at most {max(moves):.2g} {unit}; 0.1 and more is usual"


def answers_with_one(found: Inspection) -> Seen:
    gold, given, total = _label_counts(found)
    if not total:
        return None
    label, count = given.most_common(1)[0]
    if count < 0.95 * total or gold[label] > 0.8 * total:
        return None
    return f"'{label}' is {count / total:.0%} of its answers and {gold[label] / total:.0%} of the labels"


def never_answers(found: Inspection) -> Seen:
    gold, given, total = _label_counts(found)
    never = [name for name in gold if gold[name] >= max(20, 0.1 * total) and not given[name]]
    if not never or answers_with_one(found):
        return None
    return f"never answered: {', '.join(map(repr, never))}, each at least a tenth of the rows"


def _label_counts(found: Inspection) -> tuple[Counter[str], Counter[str], int]:
    """How often each label stands in the data, and is answered; and of how many."""
    gold: Counter[str] = Counter()
    given: Counter[str] = Counter()
    for label, answer, count in found.answers.confusion if found.answers else ():
        gold[label] += count
        given[answer] += count
    return gold, given, gold.total()


def is_worse(found: Inspection) -> Seen:
    comparison = found.answers.comparison if found.answers else None
    if comparison is None or comparison.difference.high >= 0:
        return None
    # the bootstrap is too sure where few answers differ
    if _is_share(comparison.before.metric) and sign_test(comparison.fixed, comparison.broken) >= 0.05:
        return None
    one = comparison.difference
    return (
        f"{comparison.reference}: {comparison.before.value:.3f}; this prompt differs by {_ranged(one)} on the same "
        f"{one.n:,} rows"
    )


def is_not_reproduced(found: Inspection) -> Seen:
    # other data may well be harder: that is no fault of the prompt
    for one in found.reproduction:
        if one.same_data and _differ(one):
            saved, now = one.saved, one.now
            return (
                f"{one.split} {saved.metric}: saved {_ranged(saved)}, n={saved.n:,}; now {_ranged(now)}, n={now.n:,}, "
                "on the same data"
            )
    return None


def _differ(one: Reproduction) -> bool:
    """Whether two scores on the same data, or on parts of them, are not those of one prompt."""
    saved, now = one.saved, one.now
    if not _is_share(now.metric):
        return now.high < saved.low or now.low > saved.high
    if saved.n == now.n:
        # in other arithmetic a row or two may fall on the other side
        return abs(now.value - saved.value) > max(0.01, 2.5 / now.n)
    before, after = (wilson_interval(figure.value * figure.n, figure.n) for figure in (saved, now))
    return after[1] < before[0] or after[0] > before[1]


def _is_share(name: str) -> bool:
    """Whether a metric is the share of right answers."""
    return (known := METRICS.get(name)) is not None and known.is_binary and known.is_mean


def is_served_otherwise(found: Inspection) -> Seen:
    serving, cost = found.serving, found.serving.cost
    if not serving.differences:
        return None
    measured = "" if cost is None else f"; the loss changes by {_ranged(cost)} nats when it is served so"
    hurts = cost is None or cost.low > 0
    return {"evidence": "; ".join(serving.differences) + measured, "severity": "problem" if hurts else "warning"}


def has_far_norms(found: Inspection) -> Seen:
    if found.vocabulary is None or not found.tokens:
        return None
    norms = [token.norm for token in found.tokens]
    usual, highest = found.vocabulary.norm.median, found.vocabulary.norm.p95
    far = [norm for norm in norms if norm > 3 * highest]
    if len(far) * 4 < len(norms):
        return None
    return (
        f"{len(far)} of {len(norms)} have a norm more than 3 times the vocabulary's 95th percentile ({highest:.3g}); "
        f"the median norm is {median(norms) / usual:.1f} times that of a word"
    )


def has_empty_tokens(found: Inspection) -> Seen:
    if found.vocabulary is None:
        return None
    empty = [token for token in found.tokens if token.norm < 0.1 * found.vocabulary.norm.p5]
    if not empty:
        return None
    return (
        f"{len(empty)} of {len(found.tokens)} have a norm below a tenth of what all but 5% of words have: "
        f"{_numbers(empty)}"
    )


def had_high_rate(found: Inspection) -> Seen:
    history = [one for one in found.history if {"train_loss", "validation_loss"} <= one.keys()]
    if len(history) < 2:
        return None
    trained, validated = ([one[name] for one in history] for name in ("train_loss", "validation_loss"))
    moves = _moves(found)
    far = bool(moves) and found.state_kind == "embeddings" and median(moves) > 4
    # a start may be worse than the labels' frequencies, and what a distilled prompt loses is no loss of labels
    risen = max(trained) > 1.05 * trained[0] or far
    prior = None if "teacher" in found.training or not risen else found.prior_loss
    signs = _loss_signs(trained, validated, prior)
    if not signs and not far:
        return None
    given = found.training.get("learning_rate")
    seen: dict[str, Any] = {"evidence": "; ".join([*signs, *([_THROWN.format(median(moves))] if far else [])])}
    if isinstance(given, int | float):
        seen["evidence"] += f"; the rate was {given:g}"
        lower = f"a rate three to ten times lower (--learning-rate {given / 3:.2g} or {given / 10:.2g})"
        seen["advice"] = (lower, "a larger --batch-size")
    harmless = (
        "The losses do not suffer, but the prompt was thrown far from where words lie, further than it had to be."
    )
    return seen if signs else {**seen, "severity": "note", "meaning": harmless}


def _loss_signs(trained: Sequence[float], validated: Sequence[float], prior: float | None) -> list[str]:
    """What in the losses tells of steps that went too far; ``prior``: the loss of the label frequencies."""
    signs = []
    rise, least = max((later - min(trained[: i + 1]), i) for i, later in enumerate(trained[1:]))
    if rise > max(0.1, 0.2 * min(trained[: least + 1])):
        signs.append(f"the training loss rose by {rise:.2f} from {min(trained[: least + 1]):.2f}")
    jump = max(later - earlier for earlier, later in pairwise(validated))
    best = min(validated)
    # rising while the training loss falls is overfitting, not a rate
    falling = trained[-1] < 0.8 * trained[0] and trained[-1] <= min(trained) * 1.05
    if jump > max(0.15, 0.5 * best) and not falling:
        signs.append(f"the validation loss jumped up by {jump:.2f} from one evaluation to the next (best {best:.2f})")
    if prior is not None and max(trained) > 1.3 * prior:
        signs.append(
            f"the mean training loss was {max(trained):.2f}, more than that of knowing only label frequencies "
            f"({prior:.2f})"
        )
    if not all(map(math.isfinite, [*trained, *validated])):
        signs.append("a loss was no number")
    return signs


def is_overfitted(found: Inspection) -> Seen:
    fit = found.fit
    if fit is None or fit.gap.low <= 0 or fit.validation_loss.value < 1.5 * fit.train_loss.value + 0.05:
        return None
    return (
        f"loss {fit.train_loss.value:.3f} on training rows, {fit.validation_loss.value:.3f} on validation "
        f"(difference {_ranged(fit.gap)})"
    )


def has_dead_tokens(found: Inspection) -> Seen:
    known = [(token, token.ablation) for token in found.tokens if token.ablation is not None]
    if len(known) < 2 or found.answers is None:
        return None
    bar = max(0.002, 0.01 * found.answers.loss.value)
    dead = [token for token, effect in known if -bar < effect.low and effect.high < bar and not token.changed]
    if not dead:
        return None
    unchanged = " and no answer changes" if found.kind == "classification" else ""
    return {
        "evidence": f"without any one of {len(dead)} of {len(known)} the loss moves by less than {bar:.3f} nats"
        f"{unchanged}: {_numbers(dead)}",
        "severity": "warning" if 2 * len(dead) >= len(known) else "note",
    }


def cuts_texts(found: Inspection) -> Seen:
    cut_then = int(found.training.get("truncated_texts") or 0) if found.same_data else 0
    cut_now, judged = (found.answers.truncated, found.answers.loss.n) if found.answers else (0, 0)
    pairs = ((cut_now, judged), (cut_then, found.sizes.get("train", 0)))
    share = max((cut / of for cut, of in pairs if of), default=0.0)
    if share < 0.01:
        return None
    then = f", and {cut_then:,} texts when it learned" if cut_then else ""
    return {
        "evidence": f"{cut_now:,} of the {judged:,} rows looked at{then} were longer than the limit and lost their end",
        "severity": "warning" if share >= 0.1 else "note",
    }


def has_label_errors(found: Inspection) -> Seen:
    errors = found.label_errors
    # what has learned nothing cannot tell a wrong label from a right one
    if errors is None or errors.found < 3 or errors.share < 0.01 or knows_frequencies_only(found):
        return None
    return {
        "evidence": f"in {errors.found:,} of {errors.looked_at:,} rows ({errors.share:.1%}) {SUSPECTED[found.kind]}",
        "severity": "warning" if errors.share >= 0.05 else "note",
    }


def leaks(found: Inspection) -> Seen:
    twins = found.duplicates
    if twins is None or not twins.held_out or twins.leaked < max(3, 0.01 * twins.held_out):
        return None
    return f"{twins.leaked:,} of {twins.held_out:,} validation and test rows have a near duplicate in train"


def conflicts(found: Inspection) -> Seen:
    twins = found.duplicates
    if twins is None or not twins.conflicting:
        return None
    return f"{twins.conflicting:,} of {twins.groups:,} groups of near duplicates"


def has_memorized(found: Inspection) -> Seen:
    probe = found.memorization
    if probe is None or not probe.same_data or probe.difference.low <= 0:
        return None
    # Mann and Whitney's test: by chance, one prompt of a thousand would be accused
    trained, other = probe.trained.n, probe.held_out.n
    if probe.auc < max(0.55, 0.5 + 3.09 * math.sqrt((trained + other + 1) / (12 * trained * other))):
        return None
    return {
        "evidence": f"they gain {_ranged(probe.difference)} nats a token more than held-out ones; a training row is "
        f"told from another {probe.auc:.0%} of the time (50% is a guess)",
        "title": f"Training {probe.what} are completed better than others",
    }


def is_miscalibrated(found: Inspection) -> Seen:
    calibration = found.answers.calibration if found.answers else None
    if calibration is None or not (calibration.excess.low > 0.05 or calibration.excess.high < -0.05):
        return None
    seen = {
        "evidence": f"mean confidence minus accuracy {_ranged(calibration.excess)}; calibration error "
        f"{_ranged(calibration.error)}"
    }
    under = {"name": "underconfident", "title": "It is less sure than it is right"}
    return seen if calibration.excess.value > 0 else seen | under


def _moves(found: Inspection) -> list[float]:
    return [token.moved for token in found.tokens if token.moved is not None]


def _numbers(tokens: Sequence[VirtualToken]) -> str:
    many = len({token.member for token in tokens}) > 1
    names = [f"{token.member}.{token.index}" if many else str(token.index) for token in tokens]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _ranged(one: Mean | Score) -> str:
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"
