"""A distillation: how near the student is to its teacher, what it saves, and when the learning is paid for."""

from collections.abc import Mapping
from pathlib import Path

from softprompt.inference.speed_drift import find_speed_drift, make_comparable
from softprompt.metrics.formatting import MISSING, format_count
from softprompt.metrics.scores import Speed
from softprompt.report.pages.cells import DASH, make_metric_cell
from softprompt.report.render.document import Block, Cell, Document, Section, Table, Text
from softprompt.training.distillation.distillation_records import BreakEven, DistillationReport, Fidelity

# of requests that come one by one
_PAYS = ("Pays after, teacher read", "Teacher cached")


def make_distillation_document(reports: Mapping[str, DistillationReport], out: Path) -> Document:
    """One student at length, or several in a table, a row for each."""
    first = next(iter(reports.values()))
    alone = len(reports) == 1
    title = f"A student of {first.length} virtual tokens" if alone else f"{len(reports)} students of several lengths"
    return Document(
        "Distillation",
        title,
        (f"the teacher ({first.teacher}) answered in {first.teacher_seconds:.1f} s",),
        (
            Section("fidelity", "How near it is", _one(first) if alone else _several(reports)),
            Section("cost", "What it costs", _cost(first, alone=alone)),
        ),
        closing=(f"saved in {out}; the report is beside it: distillation.html, distillation.md",),
    )


def _one(report: DistillationReport) -> tuple[Block, ...]:
    rows = [
        (split, name, metric, format_count(near.n))
        for split, near in report.held_out.items()
        for name, metric in _figures(report, near).items()
    ]
    tokens = report.tokens
    return (
        Table.of("", ("Split", "Measure", "Value [95% interval]", "n"), rows, words=2),
        Text(
            f"tokens in front of an input: {tokens.teacher:,} before, {tokens.student:,} after; of a request, with "
            f"{tokens.text:.1f} of the input: {tokens.before:.1f} before, {tokens.after:.1f} after, "
            f"{tokens.times_fewer:.1f} times fewer"
        ),
    )


def _several(reports: Mapping[str, DistillationReport]) -> tuple[Block, ...]:
    """Fidelity against length."""
    first = next(iter(reports.values()))
    split = next(reversed(first.held_out))
    named = [_figures(one, one.held_out[split]) for one in reports.values()]
    teachers = f"{first.metric} of the teacher"
    shown = [name for name in named[0] if name != teachers]
    rows = []
    speeds = make_comparable([one.student_speed for one in reports.values()])
    for one, figures, speed in zip(reports.values(), named, speeds, strict=True):
        times = (MISSING, MISSING) if speed is None else (f"{speed.p50_ms:.1f}", f"{speed.examples_per_second:.1f}")
        requests = (f"{one.tokens.after:.1f}", f"{one.tokens.times_fewer:.1f}")
        paid = tuple(_paid(after)[0] for after in (one.against_read, one.against_cached))
        rows.append((str(one.length), *(figures.get(name, DASH) for name in shown), *requests, *times, *paid))
    near = first.held_out[split]
    teacher = f"; {teachers} {named[0][teachers].text} {named[0][teachers].detail}" if near.teacher is not None else ""
    return (
        Text(f"on {near.n:,} {split} inputs; tokens a request of the teacher: {first.tokens.before:.1f}{teacher}"),
        Table.of(
            "",
            ("Length", *shown, "Tokens a request", "Times fewer", "ms", "Requests/s", *_PAYS),
            rows,
            words=0,
        ),
    )


def _figures(report: DistillationReport, near: Fidelity) -> dict[str, Cell]:
    """Each figure of a split by what it is."""
    named = {
        "agreement with the teacher": near.agreement,
        "token agreement": near.token_agreement,
        "KL (nats)": near.kl,
        f"{report.metric} of the teacher": near.teacher,
        f"{report.metric}": near.student,
        "student / teacher": near.kept,
    }
    return {name: make_metric_cell(one.model_dump()) for name, one in named.items() if one is not None}


def _cost(report: DistillationReport, *, alone: bool) -> tuple[Block, ...]:
    """Seconds spent; where they were measured, latency and throughput, and when the seconds are won back."""
    spent = f"learning took {report.training_seconds:.1f} s" + (
        "" if alone else " for each of those that learned together"
    )
    measured = [report.student_speed, report.teacher_speed, report.read_speed]
    student, cached, read = make_comparable(measured)
    if student is None or cached is None:
        return (Text(spent),)
    rows = []
    if read is not None:
        rows.append(("teacher, read with every request", *_times(read), *_paid(report.against_read)))
    rows.append(("teacher, its prefix cached", *_times(cached), *_paid(report.against_cached)))
    rows.append((f"student of {report.length}, its prefix cached", *_times(student), "", ""))
    if changed := find_speed_drift(measured):
        least, most = changed
        spent = (
            f"the machine's speed changed meanwhile (the student's request took {least:.1f} to {most:.1f} ms): times "
            f"are told as they would be at its mean; {spent}"
        )
    blocks = [Text(text) for text in (_describe_savings(report), spent) if text]
    columns = ("Measured here", "Median ms", "95% ms", "Requests/s in batches", "Pays after, one by one", "In batches")
    return (Table.of("", columns, rows), *blocks)


def _describe_savings(report: DistillationReport) -> str:
    """Seconds that a request takes less than each teacher's."""
    named = {"read with every request": report.against_read, "its prefix cached": report.against_cached}
    parts = [
        f"{1000 * one.single_seconds:,.1f} ms one by one and {1000 * one.batched_seconds:,.1f} ms in batches ({how})"
        for how, one in named.items()
        if one is not None and one.single_seconds is not None and one.batched_seconds is not None
    ]
    return f"saved a request against the teacher: {'; '.join(parts)}" if parts else ""


def _times(speed: Speed) -> tuple[str, str, str]:
    return f"{speed.p50_ms:.1f}", f"{speed.p95_ms:.1f}", f"{speed.examples_per_second:.1f}"


def _paid(after: BreakEven | None) -> tuple[str, str]:
    if after is None:
        return MISSING, MISSING
    one, batched = ("never" if count is None else f"{count:,} requests" for count in (after.single, after.batched))
    return one, batched
