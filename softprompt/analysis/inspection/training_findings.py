"""Findings about how a prompt learned: not at all, too fast, or its own rows only."""

import math
from collections.abc import Iterator
from itertools import pairwise
from statistics import median

from softprompt.analysis.inspection.inspection_records import Finding, Inspection
from softprompt.metrics.scores import Mean, Score


def at_initialisation(found: Inspection) -> Iterator[Finding]:
    moves = _moves(found)
    if moves and max(moves) < 0.02:
        yield Finding(
            name="at-initialisation",
            severity="problem",
            title="The prompt is still at its initialisation",
            evidence=f"its virtual tokens moved at most {max(moves):.2g} {unit_of(found)}; 0.1 and more is usual",
            meaning="Training changed next to nothing: what you measure is the words it began with.",
            advice=(
                "look at history.jsonl: was the best step the first evaluation?",
                "raise --learning-rate (it is in standard deviations of the embeddings, 0.1 is the default) or --steps",
            ),
        )


def overfitting(found: Inspection) -> Iterator[Finding]:
    fit = found.fit
    if fit is None or fit.gap.low <= 0 or fit.validation_loss.value < 1.5 * fit.train_loss.value + 0.05:
        return
    yield Finding(
        name="overfitting",
        severity="warning",
        title="It knows its training rows better than others",
        evidence=f"loss {fit.train_loss.value:.3f} on training rows, {fit.validation_loss.value:.3f} on validation "
        f"(difference {ranged(fit.gap)})",
        meaning="Part of what it learned holds for these rows only. What counts is the validation figure.",
        advice=(
            "more training rows",
            "fewer virtual tokens (--length) or steps",
            "weight_decay = 0.01 in a file for --config",
        ),
    )


def nothing_learned(found: Inspection) -> Iterator[Finding]:
    if found.prior_loss is None or found.fit is None:
        return
    loss = found.fit.validation_loss
    if loss.value < 0.95 * found.prior_loss:
        return
    alarmed = " (training gave the same alarm)" if found.training.get("alarmed") else ""
    yield Finding(
        name="nothing-learned",
        severity="problem",
        title="It knows no more than how frequent each label is",
        evidence=f"validation loss {ranged(loss)}; knowing only the label frequencies gives "
        f"{found.prior_loss:.3f}{alarmed}",
        meaning="There was nothing to learn from these rows, or it was not learned. Labels that do not belong to their "
        "texts (a shuffled column, a wrong join) look exactly like this."
        if found.same_data
        else "It was learned on other rows than these: they differ too much from them, or it had learned nothing there "
        "either. Inspect it with the data that it was learned on.",
        advice=(
            "read twenty training rows: is each label right?",
            "if they are, train longer, with --init text and a --learning-rate of 0.03 to 0.3",
        ),
    )


def rate(found: Inspection) -> Iterator[Finding]:
    history = [one for one in found.history if {"train_loss", "validation_loss"} <= one.keys()]
    if len(history) < 2:
        return
    trained, validated = ([one[name] for one in history] for name in ("train_loss", "validation_loss"))
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
    moves = _moves(found)
    far = bool(moves) and found.state_kind == "embeddings" and median(moves) > 4
    # a start may be worse than the labels' frequencies, and what a distilled prompt loses is no loss of labels
    risen = max(trained) > 1.05 * trained[0] or far
    prior = None if "teacher" in found.training else found.prior_loss
    if prior is not None and risen and max(trained) > 1.3 * prior:
        signs.append(
            f"the mean training loss was {max(trained):.2f}, more than that of knowing only label frequencies "
            f"({prior:.2f})"
        )
    if not all(map(math.isfinite, [*trained, *validated])):
        signs.append("a loss was no number")
    severe = bool(signs)
    if far:
        signs.append(
            f"the virtual tokens moved {median(moves):.1f} standard deviations of the embeddings; 1 or 2 is usual"
        )
    if not signs:
        return
    given = found.training.get("learning_rate")
    lower = f" (--learning-rate {given / 3:.2g} or {given / 10:.2g})" if isinstance(given, int | float) else ""
    yield Finding(
        name="rate-too-high",
        severity="warning" if severe else "note",
        title="The learning rate looks too high",
        evidence="; ".join(signs) + (f"; the rate was {given:g}" if lower else ""),
        meaning="Steps went past what they aimed at. The best evaluation was kept, but it was met by luck, and a lower "
        "rate usually ends better."
        if severe
        else "The losses do not suffer, but the prompt was thrown far from where words lie, further than it had to be.",
        advice=(f"a rate three to ten times lower{lower}", "a larger --batch-size"),
    )


def _moves(found: Inspection) -> list[float]:
    return [token.moved for token in found.tokens if token.moved is not None]


def unit_of(found: Inspection) -> str:
    return "standard deviations of the embeddings" if found.state_kind == "embeddings" else "times the start's norm"


def ranged(one: Mean | Score) -> str:
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"
