"""Monitoring as a page: which prompt drifts, then each prompt with its distributions and the texts that show it."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element

from softprompt.analysis.drift.drift_records import DriftReport, PromptDrift, Signal
from softprompt.metrics.formatting import MISSING, format_count, format_fixed, format_percent, format_short
from softprompt.report.pages.cells import DASH, describe_items, make_share_axis
from softprompt.report.pages.inspection_page import make_finding_fold
from softprompt.report.render import charts
from softprompt.report.render.axes import Axis
from softprompt.report.render.document import (
    Block,
    Cell,
    Column,
    Document,
    Fact,
    Figure,
    Points,
    Section,
    Statement,
    Table,
    Text,
)

_TRAINED, _LIVE = "written", "soft-prompt"  # colours and marks
_VERDICTS = {"drift": "drift", "small": "little", "none": "none", "too few": "too few"}
_SAID = {
    "drift": "Drift",
    "small": "Differs, but little",
    "none": "No drift seen",
    "too few": "Too few samples to tell",
}
MOST_LABELS = 20  # of a figure: of more, those that moved most


def make_drift_document(found: DriftReport) -> Document:
    """Everything that monitoring found."""
    when = f" since {found.since} UTC" if found.since else ""
    return Document(
        kind="Live traffic beside validation",
        title=Path(found.samples).name,
        facts=(f"{found.read:,} samples in {found.samples}{when}; prompts compared: {len(found.prompts)}",),
        sections=(
            Section("recommendation", "Does it drift?", tuple(_summary(found))),
            *(
                Section(f"prompt-{number}", one.prompt, tuple(_prompt(one, number)))
                for number, one in enumerate(found.prompts, start=1)
            ),
            Section("measured", "How this was measured", tuple(_measured(found))),
        ),
        created=found.created,
    )


def _summary(found: DriftReport) -> list[Block]:
    drifting = found.drifting
    facts = (
        Fact("Prompts that drift", f"{len(drifting)} of {len(found.prompts)}"),
        Fact("Samples", format_count(found.read)),
        Fact("Too few to tell", format_count(sum(one.verdict == "too few" for one in found.prompts)), "prompts"),
    )
    reasons = tuple(
        f"{one.prompt}: {each.title[0].lower()}{each.title[1:]} ({each.evidence})."
        for one in drifting
        for each in one.findings
    )
    blocks: list[Block] = [Statement(_sentence(found), facts, reasons)]
    return [*blocks, _overview(found.prompts)] if found.prompts else blocks


def _sentence(found: DriftReport) -> str:
    if not found.prompts:
        return "There is nothing to compare."
    if found.drifting:
        names = ", ".join(one.prompt for one in found.drifting[:4])
        more = f" and {len(found.drifting) - 4} more" if len(found.drifting) > 4 else ""
        return f"{names}{more}: live texts are not as those that the prompt was measured on."
    if all(one.verdict == "too few" for one in found.prompts):
        return f"Too few samples to tell: each prompt needs {found.least}."
    return "No drift was seen."


def _overview(prompts: Sequence[PromptDrift]) -> Table:
    names = {signal.name: signal.title for one in prompts for signal in one.signals}
    rows = []
    for one in prompts:
        by_name = {signal.name: signal for signal in one.signals}
        cells = [_verdict_cell(by_name.get(name)) for name in names]
        tags = ("drifts",) if one.verdict == "drift" else ()
        rows.append((Cell(one.prompt, tags=tags), Cell(format_count(one.samples), value=one.samples), *cells))
    return Table.of(
        "What differs from validation",
        ("Prompt", "Samples", *(title.capitalize() for title in names.values())),
        rows,
        "The number is the size of the difference: the population stability index (PSI; from 0.1 on it counts, above "
        "0.25 it is large), of rare tokens Cohen's h (from 0.2 on it counts, above 0.5 it is large). Drift: it counts, "
        "and is surely not by chance.",
        sortable=True,
    )


def _verdict_cell(signal: Signal | None) -> Cell:
    if signal is None:
        return DASH
    if signal.effect is None:
        return Cell("too few", f"n={signal.live_n:,}")
    heat = min(1.0, signal.effect / (2 * signal.large)) if signal.verdict == "drift" else None
    return Cell(_VERDICTS[signal.verdict], format_fixed(signal.effect, 2), signal.effect, heat=heat)


def _prompt(one: PromptDrift, number: int) -> list[Block]:
    blocks: list[Block] = [
        Text(
            f"{_SAID[one.verdict]}: {one.samples:,} samples from {one.first} to {one.last} UTC, median "
            f"{format_short(one.milliseconds)} ms; texts were kept of {one.texts:,}."
        )
    ]
    blocks += map(make_finding_fold, one.findings)
    blocks.append(_signals(one.signals))
    blocks += [figure for signal in one.signals if (figure := _figure(signal, one.prompt, number)) is not None]
    if one.examples:
        blocks.append(_shown_examples(one))
    notes = [f"What it saw: a profile {one.profile}."]
    if one.errors:
        notes.append(f"Ended in an error: {', '.join(f'{code} {count:,}' for code, count in one.errors.items())}.")
    notes += [f"{note[0].upper()}{note[1:]}." for note in one.notes]
    return [*blocks, Points(tuple(notes))]


def _signals(signals: Sequence[Signal]) -> Table:
    rows = (
        (
            Cell(one.title, one.unit),
            *_values(one),
            Cell(format_count(one.live_n), f"{one.trained_n:,} validation"),
            DASH if one.effect is None else Cell(format_fixed(one.effect, 2), one.measure, one.effect),
            DASH if one.adjusted is None else Cell(_sure(one.adjusted), one.test, one.adjusted),
            _SAID[one.verdict].lower(),
        )
        for one in signals
    )
    columns = ("What", "Validation", "Live", "Live rows", "Size", "p, adjusted", Column("Verdict", False))
    return Table.of(
        "Validation and live traffic",
        columns,
        rows,
        "Medians; of rare tokens rates, of answers the label that moved most. p: how probable so large a difference is "
        "by chance, adjusted for everything that was looked at (Holm).",
    )


def _values(signal: Signal) -> tuple[Cell, Cell]:
    """Both sides; of answers, the label that moved most."""
    if signal.moved is not None:
        label, before, now = signal.moved
        return Cell(_rate(before), label), Cell(_rate(now))
    return _value(signal, signal.trained), _value(signal, signal.live)


def _value(signal: Signal, value: float | None) -> Cell:
    if value is None:
        return DASH
    if signal.name == "rare":
        return Cell(_rate(value), value=value)
    return Cell(format_count(value) if signal.name == "length" else format_fixed(value, 3), value=value)


def _sure(value: float) -> str:
    return "<0.0001" if value < 1e-4 else format_fixed(value, 4)


def _figure(signal: Signal, prompt: str, number: int) -> Figure | None:
    drawn = (_draw_labels if signal.labels else _draw_rates if signal.ranges else _draw_curves)(signal)
    return drawn and Figure(f"{signal.name}-{number}", f"{prompt}: {signal.title}", *drawn, page_only=True)


_Drawn = tuple[str, str, Callable[[int], Element], Table] | None  # caption, description, drawing, numbers


def _draw_curves(signal: Signal) -> _Drawn:
    curve = signal.curve
    if curve is None or len(curve.points) < 2:
        return None
    series = [
        charts.Series("validation", _TRAINED, curve.points, curve.trained, dashed=True),
        charts.Series("live", _LIVE, curve.points, curve.live),
    ]
    rows = list(zip(curve.points, curve.trained, curve.live, strict=True))
    at, trained, live = max(rows, key=lambda row: abs(row[1] - row[2]))
    title = signal.unit.capitalize()
    return (
        "Share of rows up to each value, live (solid) and on validation (dashed): where the live line lies lower, live "
        f"values are larger. At {format_short(at)} the two are farthest apart: {format_percent(trained)} of the "
        f"validation rows and {format_percent(live)} of the live ones are at or below it.",
        f"Cumulative shares of {signal.title} on validation and in live traffic.",
        partial(
            charts.draw_lines,
            series,
            Axis(title, format_short),
            make_share_axis("Share of rows up to it"),
            legend=False,
        ),
        Table.of(
            signal.title.capitalize(),
            (title, "Validation rows up to it", "Live rows up to it"),
            ((format_short(point), *(format_fixed(share, 3) for share in shares)) for point, *shares in rows),
            words=0,
        ),
    )


def _draw_rates(signal: Signal) -> _Drawn:
    sides = (("validation", _TRAINED, signal.trained or 0.0), ("live", _LIVE, signal.live or 0.0))
    rows = [
        charts.Interval(name, group, value, low, high, (), _rate(value))
        for (name, group, value), (low, high) in zip(sides, signal.ranges, strict=True)
    ]
    return (
        "Share of the tokens that are not among the 1,000 most frequent of the training texts, with 95% intervals.",
        describe_items("Rare tokens", (f"{one.name} {one.text}" for one in rows)),
        partial(charts.draw_intervals, rows, make_share_axis("Share of the tokens")),
        Table.of(
            signal.title.capitalize(),
            ("Where", "Share", "Low", "High"),
            ((one.name, *(_rate(value or 0.0) for value in (one.value, one.low, one.high))) for one in rows),
        ),
    )


def _draw_labels(signal: Signal) -> _Drawn:
    if signal.effect is None:
        return None
    shares = [(one, one.trained / signal.trained_n, one.live / signal.live_n) for one in signal.labels]
    shown = sorted(shares, key=lambda one: -abs(one[2] - one[1]))[:MOST_LABELS]
    rows = [
        charts.Interval(one.label, _LIVE, b, singles=(a,), text=f"{format_percent(a)} → {format_percent(b)}")
        for one, a, b in shares
        if any(one is each[0] for each in shown)
    ]
    fewer = f" Shown are the {MOST_LABELS} of {len(shares)} that moved most." if len(shown) < len(shares) else ""
    counts = (
        (one.label, *(Cell(format_percent(share), format_count(n)) for share, n in ((a, one.trained), (b, one.live))))
        for one, a, b in shares
    )
    return (
        f"How often each label was answered: marks are live, rings validation.{fewer}",
        describe_items(
            "Shares of the answers", (f"{one.label} {format_percent(a)} and {format_percent(b)}" for one, a, b in shown)
        ),
        partial(charts.draw_intervals, rows, make_share_axis("Share of the answers")),
        Table.of("Answers", ("Label", "Validation", "Live"), counts),
    )


def _rate(value: float) -> str:
    return f"{100 * value:.1f}%"


def _shown_examples(one: PromptDrift) -> Table:
    found, titles = one.examples, {signal.name: signal.title for signal in one.signals}
    rows = (
        (
            Cell(one.why, titles[one.signal]),
            f"request {one.request}" if one.text is None else one.text,
            Cell(one.answer or MISSING, "" if one.confidence is None else format_fixed(one.confidence, 2)),
            one.time,
        )
        for one in found
    )
    kept = all(one.text is not None for one in found)
    columns = ("Why", Column("Text", False, data=True), "Answer", "Time, UTC")
    note = "" if kept else "Texts were not kept: softprompt serve --sample-text keeps them."
    return Table.of("Samples that show it most", columns, rows, note, words=4)


def _measured(found: DriftReport) -> list[Block]:
    told = (
        "Each prompt is saved with a profile of its validation rows: lengths, frequent tokens, answers, confidence, "
        "and the centre of the hidden states where the answer begins. Samples of live requests are compared with it.",
        "Rare tokens are those not among the 1,000 most frequent of the training texts. Their rates are "
        "compared with standard errors over texts, and by Cohen's h. Answers: chi-square test; all else: "
        "Kolmogorov-Smirnov test. PSI: population stability index, in tenths of the validation rows or by label.",
        f"Below {found.least} samples or {found.least_trained} validation rows nothing is said. A difference is sure "
        f"if its adjusted p-value is below {found.significance:g}; it is drift if it is large, too. Drift does not say "
        "that answers are wrong: only labelled samples do.",
    )
    notes = list(found.notes)
    if found.damaged:
        notes.append(f"{found.damaged:,} rows of the file are no samples")
    if found.left_out:
        notes.append(f"{found.left_out:,} older samples were not read")
    blocks: list[Block] = [Points(told)]
    return [*blocks, Text("Left out, and why:"), Points(tuple(notes))] if notes else blocks
