"""An inspection as lines of plain text: findings first, then what they rest on, the rest being on the page."""

from collections.abc import Iterator
from pathlib import Path

from softprompt.analysis.inspection.inspection_records import Answers, Change, Inspection
from softprompt.analysis.inspection.pruning import Pruning
from softprompt.errors import shorten
from softprompt.metrics.scores import Mean
from softprompt.report.pages.training_text import figure, table

WIDEST = 72  # characters of a text of the user's
SHOWN = 5  # rows of a list
SHOWN_TOKENS = 24


def inspection_lines(found: Inspection) -> list[str]:
    """What a terminal shows."""
    lines = [f"{found.place}: {_what(found)}", ""]
    lines += _findings(found)
    for title, part in (
        ("answers", _answers(found.answers)),
        ("virtual tokens", _tokens(found)),
        ("attention", _attention(found)),
        ("behind the prompt alone", _continuation(found)),
        ("training rows", _rows(found)),
        ("memorisation", _memorisation(found)),
        ("other prompts", _neighbourhood(found)),
        ("left out", found.notes),
    ):
        if shown := list(part):
            lines += ["", f"== {title}", *shown]
    return lines


def pruning_lines(report: Pruning, before: int, out: Path) -> list[str]:
    """What was taken out, and what that costs."""
    rows = [(report.metric, "before", "after", "difference [95% interval]")]
    rows.append(("validation", f"{report.before:.4f}", f"{report.after:.4f}", _mean(report.difference, signed=True)))
    if report.test_difference is not None and report.test_before is not None and report.test_after is not None:
        after = _mean(report.test_difference, signed=True)
        rows.append(("test", f"{report.test_before:.4f}", f"{report.test_after:.4f}", after))
    return [
        f"{before} virtual tokens, {report.length} stay: {', '.join(map(str, report.kept))}",
        "",
        *table(rows),
        "",
        f"chosen on validation with a tolerance of {report.tolerance:g}, so its figure flatters; test took no part",
        f"saved in {out}",
    ]


def _what(found: Inspection) -> str:
    several = f"{found.members} times " if found.members > 1 else ""
    return (
        f"{several}{found.length} virtual tokens on {found.base}, {found.kind}; data {found.data} "
        f"({', '.join(f'{size:,} {name}' for name, size in found.sizes.items())})"
    )


def _findings(found: Inspection) -> Iterator[str]:
    if not found.findings:
        yield "no findings: nothing that was looked at seems wrong"
    for one in found.findings:
        yield f"[{one.severity}] {one.title}"
        yield f"    seen:  {one.evidence}"
        yield f"    means: {one.meaning}"
        yield from (f"    try:   {advice}" for advice in one.advice)


def _answers(answers: Answers | None) -> Iterator[str]:
    if answers is None:
        return
    metric = answers.metric
    value = figure(metric.model_dump())
    yield f"{metric.metric} on {answers.split}: {value} n={metric.n:,}, loss {_mean(answers.loss)}"
    if (one := answers.comparison) is not None:
        yield f"against {one.reference}: {one.before.value:.3f}; difference {_mean(one.difference, signed=True)}"
        yield f"fixed {one.fixed:,}, broke {one.broken:,}; for example:"
        for what, examples in (("fixed", one.fixed_examples), ("broke", one.broken_examples)):
            yield from (f"  {what}: {_change(change)}" for change in examples[:SHOWN])
    if answers.calibration is not None:
        error = answers.calibration.error
        yield f"calibration error {error.value:.3f} [{error.low:.3f}, {error.high:.3f}]"
    if answers.confusion:
        yield ""
        yield from _confusion(answers)
    if answers.slices:
        rows = [("worst slices", "n", "value [95% interval]", "elsewhere", "p, adjusted")]
        rows += [
            (
                _cut(f"{one.by}: {one.name}"),
                f"{one.n:,}",
                f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]",
                f"{one.rest:.3f}",
                f"{one.adjusted:.3f}",
            )
            for one in answers.slices[:SHOWN]
        ]
        yield from ("", *table(rows))
        yield (
            f"adjusted for the {len(answers.slices)} slices looked at; above 0.05 a slice may be bad by chance"
            + (f"; {answers.small_slices} have fewer than {answers.least_slice} rows" if answers.small_slices else "")
        )


def _confusion(answers: Answers) -> Iterator[str]:
    gold = sorted({one for one, _, _ in answers.confusion})
    given = sorted({one for _, one, _ in answers.confusion} | set(gold))
    counts = {(a, b): n for a, b, n in answers.confusion}
    if len(given) <= 12:
        rows = [("gold \\ answer", *map(_cut, given))]
        yield from table([*rows, *((_cut(a), *(f"{counts.get((a, b), 0):,}" for b in given)) for a in gold)])
        return
    wrong = sorted(((n, a, b) for (a, b), n in counts.items() if a != b), reverse=True)[:SHOWN]
    yield from table([("gold", "answer", "times"), *((_cut(a), _cut(b), f"{n:,}") for n, a, b in wrong)])


def _tokens(found: Inspection) -> Iterator[str]:
    if not found.tokens:
        return
    rows: list[tuple[str, ...]] = [
        ("token", "nearest by cosine", "nearer words", "nearest by distance", "norm", "of words", "moved", "without it")
    ]
    shown = sorted(found.tokens, key=lambda one: -abs(one.removal.value if one.removal else 0.0))[:SHOWN_TOKENS]
    for one in sorted(shown, key=lambda one: (one.member, one.index)):
        near, close = one.by_cosine[:1], one.by_distance[:1]
        rows.append(
            (
                f"{one.member}.{one.index}" if found.members > 1 else str(one.index),
                f"{near[0].token!r} {near[0].value:.2f}" if near else "-",
                _share(one.nearer_by_cosine),
                f"{close[0].token!r} {close[0].value:.2f}" if close else "-",
                f"{one.norm:.3g}",
                _share(one.norm_share),
                "-" if one.moved is None else f"{one.moved:.2f}",
                "-" if one.removal is None else _mean(one.removal, signed=True),
            )
        )
    yield from table(rows)
    if len(found.tokens) > SHOWN_TOKENS:
        yield f"the {SHOWN_TOKENS} of {len(found.tokens)} with the largest effect"
    if (scale := found.vocabulary) is not None:
        yield (
            f"scale: an ordinary word has its nearest other word at cosine {scale.cosine.median:.2f} "
            f"({scale.cosine.p5:.2f} to {scale.cosine.p95:.2f}) and distance {scale.distance.median:.3g} "
            f"({scale.distance.p5:.3g} to {scale.distance.p95:.3g}); norm {scale.norm.median:.3g}"
        )
        yield "nearer words: share of ordinary words with a nearer neighbour; near 100%, the virtual token is no word"
    unit = (
        "in standard deviations of the embeddings"
        if found.state_kind == "embeddings"
        else "as a share of the start's norm"
    )
    yield f"moved: from the start, {unit}; without it: change of the loss, in nats"


def _attention(found: Inspection) -> Iterator[str]:
    if (one := found.attention) is None:
        return
    rows: list[tuple[str, ...]] = [("layer", "BOS", "prompt", "text")]
    shares = zip(one.bos, one.prompt, one.text, strict=True)
    rows += [(str(layer), *(f"{share:.2f}" for share in layer_shares)) for layer, layer_shares in enumerate(shares, 1)]
    yield from table(rows)
    yield f"spread evenly, the prompt would get {one.even:.2f}"


def _continuation(found: Inspection) -> Iterator[str]:
    if (one := found.continuation) is None:
        return
    yield f"prompt:  {_cut(one.text) or '(nothing)'}"
    yield f"without: {_cut(one.without) or '(nothing)'}"


def _rows(found: Inspection) -> Iterator[str]:
    if (fit := found.fit) is not None:
        yield f"loss {_mean(fit.train_loss)} on training rows, {_mean(fit.validation_loss)} on validation"
    if (twins := found.duplicates) is not None:
        yield (
            f"near duplicates: {twins.groups:,} groups; {twins.redundant:,} training rows are redundant, "
            f"{twins.leaked:,} of {twins.held_out:,} held-out rows stand in train too, {twins.conflicting:,} groups "
            "disagree on the label"
        )
    if (one := found.suspects) is not None:
        yield f"{one.found:,} of {one.looked_at:,} training rows look mislabelled" + (":" if one.listed else "")
        yield from (f"  row {row.index + 1}: {row.reason}: {_cut(row.text)}" for row in one.listed[:SHOWN])


def _memorisation(found: Inspection) -> Iterator[str]:
    if (one := found.memorisation) is None:
        return
    yield (
        f"training {one.what} gain {_mean(one.trained, signed=True)} nats a token behind the prompt, held-out ones "
        f"{_mean(one.held_out, signed=True)}"
    )
    yield f"difference {_mean(one.difference, signed=True)}: above 0, training {one.what} are known; area {one.auc:.2f}"
    if not one.same_data:
        yield "these are not the rows that it was learned on, so this says nothing about them"


def _neighbourhood(found: Inspection) -> Iterator[str]:
    if (one := found.neighbourhood) is None:
        return
    rows = [("start", "similarity", "loss here as it is")]
    rows += [
        (_cut(start.place), f"{start.average_tokens:.3f}", "-" if start.loss is None else _mean(start.loss))
        for start in one.starts[:SHOWN]
    ]
    yield from table(rows)
    if one.own_loss is not None:
        yield f"this prompt has {_mean(one.own_loss)}"


def _change(change: Change) -> str:
    return f"{change.before} -> {change.now} (gold {_cut(change.gold)}): {_cut(change.text)}"


def _mean(found: Mean, signed: bool = False) -> str:
    value, low, high = (f"{one:+.3f}" if signed else f"{one:.3f}" for one in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _cut(text: str) -> str:
    return shorten(text, WIDEST)
