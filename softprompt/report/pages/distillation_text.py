"""A distillation as lines of plain text."""

from collections.abc import Mapping
from pathlib import Path

from softprompt.inference.speed_drift import comparable, drift
from softprompt.metrics.scores import Speed
from softprompt.report.pages.training_text import figure, table
from softprompt.training.distillation.distillation_records import BreakEven, Distilled, Fidelity


def distill_lines(reports: Mapping[str, Distilled], out: Path) -> list[str]:
    """One student at length, or several in a table, a row for each."""
    first = next(iter(reports.values()))
    alone = len(reports) == 1
    return ["", *(_one(first) if alone else _several(reports)), "", *_cost(first, alone=alone), f"saved in {out}"]


def _one(report: Distilled) -> list[str]:
    rows = [("split", "", "value [95% interval]", "n")]
    for split, near in report.held_out.items():
        for name, metric in _figures(report, near).items():
            rows.append((split, name, metric, f"{near.n:,}"))
    tokens = report.tokens
    return [
        *table(rows),
        "",
        f"tokens in front of an input: {tokens.teacher:,} before, {tokens.student:,} after; of a request, with "
        f"{tokens.text:.1f} of the input: {tokens.before:.1f} before, {tokens.after:.1f} after, "
        f"{tokens.times_fewer:.1f} times fewer",
    ]


def _several(reports: Mapping[str, Distilled]) -> list[str]:
    """Fidelity against length."""
    first = next(iter(reports.values()))
    split = next(reversed(first.held_out))
    named = [_figures(one, one.held_out[split]) for one in reports.values()]
    shown = [name for name in named[0] if name != f"{first.metric} of the teacher"]
    rows = [("length", *shown, "tokens a request", "times fewer", "ms", "requests/s")]
    speeds = comparable([one.student_speed for one in reports.values()])
    for one, figures, speed in zip(reports.values(), named, speeds, strict=True):
        times = ("-", "-") if speed is None else (f"{speed.p50_ms:.1f}", f"{speed.examples_per_second:.1f}")
        tokens = one.tokens
        cells = (figures.get(name, "-") for name in shown)
        rows.append((str(one.length), *cells, f"{tokens.after:.1f}", f"{tokens.times_fewer:.1f}", *times))
    near = first.held_out[split]
    of_teacher = "" if near.teacher is None else figure(near.teacher.model_dump())
    teacher = f"; {first.metric} of the teacher {of_teacher}" if of_teacher else ""
    return [
        f"on {near.n:,} {split} inputs; tokens a request of the teacher: {first.tokens.before:.1f}{teacher}",
        "",
        *table(rows),
    ]


def _figures(report: Distilled, near: Fidelity) -> dict[str, str]:
    """Each figure of a split by what it is."""
    named = {
        "agreement with the teacher": near.agreement,
        "token agreement": near.token_agreement,
        "KL (nats)": near.kl,
        f"{report.metric} of the teacher": near.teacher,
        f"{report.metric}": near.student,
        "student / teacher": near.kept,
    }
    return {name: figure(one.model_dump()) for name, one in named.items() if one is not None}


def _cost(report: Distilled, *, alone: bool) -> list[str]:
    """Seconds spent; where they were measured, latency and throughput, and when the seconds are won back."""
    spent = (
        f"the teacher ({report.teacher}) answered in {report.teacher_seconds:.1f} s; "
        f"learning took {report.training_seconds:.1f} s" + ("" if alone else " for each of those that learned together")
    )
    measured = [report.student_speed, report.teacher_speed, report.read_speed]
    student, cached, read = comparable(measured)
    if student is None or cached is None:
        return [spent]
    rows = [("measured here", "median ms", "95% ms", "requests/s in batches", "pays after, one by one", "in batches")]
    if read is not None:
        rows.append(("teacher, read with every request", *_times(read), *_paid(report.against_read)))
    rows.append(("teacher, its prefix cached", *_times(cached), *_paid(report.against_cached)))
    rows.append((f"student of {report.length}, its prefix cached", *_times(student), "", ""))
    if changed := drift(measured):
        least, most = changed
        spent = (
            f"the machine's speed changed meanwhile (the student's request took {least:.1f} to {most:.1f} ms): times "
            f"are told as they would be at its mean; {spent}"
        )
    return [*table(rows), "", spent]


def _times(speed: Speed) -> tuple[str, str, str]:
    return f"{speed.p50_ms:.1f}", f"{speed.p95_ms:.1f}", f"{speed.examples_per_second:.1f}"


def _paid(after: BreakEven | None) -> tuple[str, str]:
    if after is None:
        return "-", "-"
    one, batched = ("never" if count is None else f"{count:,} requests" for count in (after.single, after.batched))
    return one, batched
