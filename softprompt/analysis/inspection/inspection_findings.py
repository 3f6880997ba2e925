"""Findings: what is wrong with a prompt, what that means, and what to try. Judged from what was measured, nothing else.

Each judge looks at one ``Inspection`` and gives a finding or none. The bars are written beside them;
docs/how-to/inspect.md says where they come from.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from statistics import median

from softprompt.analysis.inspection.inspection_records import SUSPECTED, Finding, Inspection, VirtualToken
from softprompt.analysis.inspection.training_findings import (
    at_initialisation,
    nothing_learned,
    overfitting,
    ranged,
    rate,
)
from softprompt.metrics.hypothesis_tests import sign_test, wilson_interval
from softprompt.metrics.registry import METRICS
from softprompt.metrics.scores import Score

_ORDER = {"problem": 0, "warning": 1, "note": 2}


def judge_inspection(found: Inspection) -> list[Finding]:
    """The most severe first."""
    made = [finding for judge in _JUDGES for finding in judge(found)]
    return sorted(made, key=lambda one: _ORDER[one.severity])


def _norms(found: Inspection) -> Iterator[Finding]:
    if found.vocabulary is None or not found.tokens:
        return
    norms = [token.norm for token in found.tokens]
    usual, highest = found.vocabulary.norm.median, found.vocabulary.norm.p95
    far = [norm for norm in norms if norm > 3 * highest]
    empty = [token for token in found.tokens if token.norm < 0.1 * found.vocabulary.norm.p5]
    if len(far) * 4 >= len(norms):
        yield Finding(
            name="norms-far",
            severity="warning",
            title="Virtual tokens lie far outside the embedding cloud",
            evidence=f"{len(far)} of {len(norms)} have a norm more than 3 times the vocabulary's 95th percentile "
            f"({highest:.3g}); the median norm is {median(norms) / usual:.1f} times that of a word",
            meaning="The model was never trained on inputs of this size. It may still work, but such prompts are "
            "brittle: quantized, in another precision, or in another engine they change more than others.",
            advice=(
                "lower --learning-rate by three to ten times",
                "set weight_decay = 0.01 in a file for --config, or stop earlier",
            ),
        )
    if empty:
        yield Finding(
            name="empty-tokens",
            severity="problem",
            title="Virtual tokens are empty",
            evidence=f"{len(empty)} of {len(norms)} have a norm below a tenth of what all but 5% of words have: "
            f"{_numbers(empty)}",
            meaning="They hold nothing that was learned: zeroed, damaged or never updated. They still take place and "
            "shift the attention of the others.",
            advice=("learn the prompt again, or find what wrote over it", "softprompt prune takes them out"),
        )


def _dead(found: Inspection) -> Iterator[Finding]:
    known = [token for token in found.tokens if token.ablation is not None]
    if len(known) < 2 or found.answers is None:
        return
    bar = max(0.002, 0.01 * found.answers.loss.value)
    dead = [
        token
        for token in known
        if token.ablation is not None
        and -bar < token.ablation.low
        and token.ablation.high < bar
        and not (token.changed or 0.0)
    ]
    if dead:
        yield Finding(
            name="dead-tokens",
            severity="warning" if 2 * len(dead) >= len(known) else "note",
            title="Virtual tokens do nothing",
            evidence=f"without any one of {len(dead)} of {len(known)} the loss moves by less than {bar:.3f} nats"
            f"{' and no answer changes' if found.kind == 'classification' else ''}: {_numbers(dead)}",
            meaning="Each one alone could go. Not all of them at once: several may do the same work for each other.",
            advice=("softprompt prune takes out what is not needed, measured step by step", "learn a shorter prompt"),
        )


def _collapse(found: Inspection) -> Iterator[Finding]:
    if found.answers is None or not found.answers.confusion:
        return
    gold: Counter[str] = Counter()
    given: Counter[str] = Counter()
    for label, answer, count in found.answers.confusion:
        gold[label] += count
        given[answer] += count
    total = sum(gold.values())
    label, count = given.most_common(1)[0]
    never = [name for name in gold if gold[name] >= max(20, 0.1 * total) and not given[name]]
    if count >= 0.95 * total and gold[label] <= 0.8 * total:
        yield Finding(
            name="label-collapse",
            severity="problem",
            title="It answers almost everything with one label",
            evidence=f"'{label}' is {count / total:.0%} of its answers and {gold[label] / total:.0%} of the labels",
            meaning="It does not look at the text: what it learned is which label to say.",
            advice=(
                "check that the labels belong to the texts, and that the template shows the text",
                "balance the training rows, or try another --init and a lower --learning-rate",
            ),
        )
    elif never:
        yield Finding(
            name="label-collapse",
            severity="warning",
            title="It never gives some labels",
            evidence=f"never answered: {', '.join(map(repr, never))}, each at least a tenth of the rows",
            meaning="These classes are lost on it, whatever its accuracy says.",
            advice=("look at the confusion matrix: what swallows them?", "more rows of these labels, or more steps"),
        )


def _worse_than_reference(found: Inspection) -> Iterator[Finding]:
    comparison = found.answers.comparison if found.answers else None
    if comparison is None or comparison.difference.high >= 0:
        return
    # the bootstrap is too sure where few answers differ
    if _is_share(comparison.before.metric) and sign_test(comparison.fixed, comparison.broken) >= 0.05:
        return
    one = comparison.difference
    yield Finding(
        name="worse-than-reference",
        severity="problem",
        title="The reference does better",
        evidence=f"{comparison.reference}: {comparison.before.value:.3f}; this prompt differs by {ranged(one)} on "
        f"the same {one.n:,} rows",
        meaning="On these data there is nothing to gain from this prompt.",
        advice=("use the reference", "see the other findings for why, and the examples that it broke"),
    )


def _truncation(found: Inspection) -> Iterator[Finding]:
    rows = found.sizes.get("train", 0)
    cut_then = int(found.training.get("truncated_texts") or 0) if found.same_data else 0
    cut_now, judged = (found.answers.truncated, found.answers.loss.n) if found.answers else (0, 0)
    shares = [cut / of for cut, of in ((cut_now, judged), (cut_then, rows)) if of]
    if not shares or max(shares) < 0.01:
        return
    yield Finding(
        name="truncation",
        severity="warning" if max(shares) >= 0.1 else "note",
        title="Texts are cut",
        evidence=f"{cut_now:,} of the {judged:,} rows looked at"
        + (f", and {cut_then:,} texts when it learned" if cut_then else "")
        + " were longer than the limit and lost their end",
        meaning="What stands at the end of long texts is never seen. The slices by length show what that costs.",
        advice=("raise --max-length in training, as far as the model's context allows", "shorten the texts yourself"),
    )


def _template(found: Inspection) -> Iterator[Finding]:
    serving = found.serving
    if serving.differences:
        cost = serving.cost
        hurts = cost is not None and cost.low > 0
        measured = "" if cost is None else f"; the loss changes by {ranged(cost)} nats when it is served so"
        yield Finding(
            name="template-mismatch",
            severity="problem" if hurts or cost is None else "warning",
            title="It is served with another template than it learned",
            evidence="; ".join(serving.differences) + measured,
            meaning="The prompt meets texts in a form that it has not seen; nothing fails, the answers get worse.",
            advice=("serve the template of prompt.json, to the blank", "or learn the prompt again on the served one"),
        )
    if serving.texts:
        yield Finding(
            name="texts-unlike-training",
            severity="warning",
            title="The texts are not as the template expects them",
            evidence="; ".join(serving.texts),
            meaning="The model reads other characters around the text than in training.",
            advice=("strip the texts, or take the template's words out of them", "give the missing columns"),
        )


def _not_reproduced(found: Inspection) -> Iterator[Finding]:
    for one in found.reproduction:
        saved, now = one.saved, one.now
        # other data may well be harder: that is no fault of the prompt
        if not one.same_data or not _differ(saved, now):
            continue
        yield Finding(
            name="not-reproduced",
            severity="problem",
            title="It does not do what its manifest says",
            evidence=f"{one.split} {saved.metric}: saved {ranged(saved)}, n={saved.n:,}; now "
            f"{ranged(now)}, n={now.n:,}, on the same data",
            meaning="Prompt, template, labels or precision are not those that it was saved with. A template changed "
            "after training looks like this, and so do virtual tokens that were written over.",
            advice=("compare with an earlier version (softprompt diff)", "learn it again with the template in use"),
        )
        return


def _differ(saved: Score, now: Score) -> bool:
    """Whether two scores on the same data, or on parts of them, are not those of one prompt."""
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


def _overconfident(found: Inspection) -> Iterator[Finding]:
    calibration = found.answers.calibration if found.answers else None
    if calibration is None or not (calibration.excess.low > 0.05 or calibration.excess.high < -0.05):
        return
    over = calibration.excess.value > 0
    yield Finding(
        name="overconfident" if over else "underconfident",
        severity="note",
        title=f"It is {'more' if over else 'less'} sure than it is right",
        evidence=f"mean confidence minus accuracy {ranged(calibration.excess)}; calibration error "
        f"{ranged(calibration.error)}",
        meaning="Its probabilities are no rates: do not set thresholds on them as they are.",
        advice=("choose thresholds on validation, not by their names", "an ensemble (--seeds 5 --ensemble) is calmer"),
    )


def _rows(found: Inspection) -> Iterator[Finding]:
    label_errors, twins = found.label_errors, found.duplicates
    # what has learned nothing cannot tell a wrong label from a right one
    blind = any(True for _ in nothing_learned(found))
    if label_errors is not None and label_errors.found >= 3 and label_errors.share >= 0.01 and not blind:
        yield Finding(
            name="mislabelled-rows",
            severity="warning" if label_errors.share >= 0.05 else "note",
            title="Training rows look mislabelled",
            evidence=f"in {label_errors.found:,} of {label_errors.looked_at:,} rows ({label_errors.share:.1%}) "
            f"{SUSPECTED[found.kind]}",
            meaning="Some are hard, some are wrong. Wrong ones cost accuracy and blur every measurement.",
            advice=(
                "read the list of suspects from the top and correct rows until they look right",
                "then learn again",
            ),
        )
    if twins is not None and twins.held_out and twins.leaked >= max(3, 0.01 * twins.held_out):
        yield Finding(
            name="leaking-duplicates",
            severity="warning",
            title="Held-out rows stand in the training data too",
            evidence=f"{twins.leaked:,} of {twins.held_out:,} validation and test rows have a near duplicate in train",
            meaning="Figures on these rows flatter every method that learns.",
            advice=("take the near duplicates out of train, or out of validation and test",),
        )
    if twins is not None and twins.conflicting:
        yield Finding(
            name="conflicting-duplicates",
            severity="note",
            title="Near duplicates have different labels",
            evidence=f"{twins.conflicting:,} of {twins.groups:,} groups of near duplicates",
            meaning="At least one label of each such group is wrong, or a small difference decides.",
            advice=("look at these groups first: they are the cheapest labels to correct",),
        )


def _memorised(found: Inspection) -> Iterator[Finding]:
    probe = found.memorization
    if probe is None or not probe.same_data or probe.difference.low <= 0:
        return
    # Mann and Whitney's test: by chance, one prompt of a thousand would be accused
    trained, other = probe.trained.n, probe.held_out.n
    if probe.auc < max(0.55, 0.5 + 3.09 * math.sqrt((trained + other + 1) / (12 * trained * other))):
        return
    yield Finding(
        name="memorised",
        severity="warning",
        title=f"Training {probe.what} are completed better than others",
        evidence=f"they gain {ranged(probe.difference)} nats a token more "
        f"than held-out ones; a training row is told from another {probe.auc:.0%} of the time (50% is a guess)",
        meaning="The prompt carries something of its training rows. Whoever has the prompt may learn about them.",
        advice=(
            "do not share this prompt if the rows are private",
            "fewer virtual tokens, fewer steps, more rows; no --init examples",
        ),
    )


def _numbers(tokens: list[VirtualToken]) -> str:
    many = len({token.member for token in tokens}) > 1
    names = [f"{token.member}.{token.index}" if many else str(token.index) for token in tokens]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


_JUDGES: tuple[Callable[[Inspection], Iterator[Finding]], ...] = (
    nothing_learned,
    at_initialisation,
    _collapse,
    _worse_than_reference,
    _not_reproduced,
    _template,
    _norms,
    rate,
    overfitting,
    _dead,
    _truncation,
    _rows,
    _memorised,
    _overconfident,
)
