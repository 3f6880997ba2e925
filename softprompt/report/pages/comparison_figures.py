"""A study's figures, each with what to read out of it and its numbers as a table."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from xml.etree.ElementTree import Element

from softprompt.experiments.comparison.study_records import (
    CurvePoint,
    Result,
    Row,
    Study,
    collect_speeds,
    warn_of_seconds,
)
from softprompt.inference.speed_drift import describe_drift, find_speed_drift
from softprompt.metrics.formatting import (
    MISSING,
    choose_step_metric,
    format_bytes,
    format_count,
    format_fixed,
    format_interval,
    format_metric,
    format_short,
    metric_heading,
)
from softprompt.report.pages import comparison_tables
from softprompt.report.pages.cells import describe_items, make_metric_axis
from softprompt.report.render import charts
from softprompt.report.render.axes import Axis
from softprompt.report.render.document import Cell, Column, Figure, Table

RATIO_FOR_LOG = 12.0
_UNITS = (("Hours", 3600), ("Minutes", 60), ("Seconds", 1))


def find_pareto_front(points: Sequence[tuple[float, float]]) -> set[int]:
    """Indices of the ``(cost, quality)`` points that no other beats: none costs less and is as good, or better at most
    the same cost."""
    return {
        index
        for index, (cost, quality) in enumerate(points)
        if not any(a <= cost and b >= quality and (a, b) != (cost, quality) for a, b in points)
    }


def plot_quality(study: Study) -> Figure | None:
    """The test metric of every method with its interval."""
    rows = _measured(study)
    if not rows:
        return None
    singles = {row.method: _seed_values(study, row.method) for row in rows}
    drawn = [
        charts.Interval(
            row.method,
            comparison_tables.name_group(row.family),
            row.mean or 0.0,
            row.low,
            row.high,
            singles[row.method] if len(singles[row.method]) > 1 else (),
            f"{format_metric(study.metric, row.mean)} {format_interval(study.metric, row.low, row.high)}".strip(),
            row.method == study.recommendation.deploy,
        )
        for row in rows
    ]
    numbers = Table.of(
        f"{metric_heading(study.metric)} on test",
        ("Method", "Mean", "Low", "High", Column("Single seeds", False)),
        (
            (
                comparison_tables.make_name_cell(study, row),
                *(Cell(format_metric(study.metric, value), value=value) for value in (row.mean, row.low, row.high)),
                ", ".join(format_metric(study.metric, value) for value in singles[row.method]) or MISSING,
            )
            for row in rows
        ),
    )
    return Figure(
        "quality",
        f"{metric_heading(study.metric)} on test, best first",
        "Marks are means over seeds, lines their 95% intervals over seeds and examples, rings the single seeds. Where "
        "two lines overlap widely, more test examples or seeds are needed to part the methods.",
        describe_items("Test metric by method", [f"{one.name} {one.text}" for one in drawn]),
        partial(
            charts.draw_intervals, drawn, make_metric_axis(study.metric, f"{metric_heading(study.metric)} on test")
        ),
        numbers,
        page_only=True,
    )


def plot_stored(study: Study) -> Figure | None:
    """Quality against the bytes that a task needs on disk."""
    return _against(
        study,
        "stored",
        "Quality against storage",
        "Stored bytes of a task",
        "Up and to the left is better. The stepped line is the Pareto front: the best that can be had for so many "
        "bytes; hollow marks lie below it, some other method is as good and smaller. Vertical lines are 95% intervals.",
        lambda row: None if row.cost is None else float(row.cost.stored_bytes),
        format_bytes,
    )


def plot_latency(study: Study) -> Figure | None:
    """Quality against the median latency of a request, as a multiple of the bare request where the machine changed."""
    caption = (
        "Up and to the left is better. Methods on the stepped line are the best that can be had within so {}; "
        "differences of a few per cent in latency are within what a second measurement would change."
    )
    if changed := find_speed_drift(collect_speeds(study.rows)):
        return _against(
            study,
            "latency",
            "Quality against latency, in bare requests",
            "Median latency of a request, times that with the bare template",
            f"{describe_drift(changed)} {caption.format('many times the bare request')}",
            lambda row: None if row.speed is None else row.speed.times_reference,
            lambda times: f"{comparison_tables.TIMES}{times:.2f}",
        )
    return _against(
        study,
        "latency",
        "Quality against latency",
        "Median latency of a request, ms",
        caption.format("many milliseconds"),
        lambda row: None if row.speed is None else row.speed.p50_ms,
        format_short,
    )


def plot_memory(study: Study) -> Figure | None:
    """Memory on one machine by number of tasks."""
    tasks = [float(10 ** (power / 2)) for power in range(7)]
    series = []
    for row in comparison_tables.rank_rows(study):
        if row.cost is not None:
            ys = tuple(float(row.cost.memory_for(round(count))) for count in tasks)
            series.append(charts.Series(row.method, comparison_tables.name_group(row.family), tuple(tasks), ys))
    if not series:
        return None
    x = Axis("Tasks on one machine, log scale", format_count, log=True)
    y = Axis("Memory, log scale", format_bytes, log=True)
    return Figure(
        "memory",
        "Memory on one machine, by number of tasks",
        "Flat lines are methods whose tasks share one copy of the base model; a line "
        "that rises from the start holds a whole model for each task.",
        describe_items("Memory for 1,000 tasks", [f"{one.name} {format_bytes(one.ys[-1])}" for one in series]),
        partial(charts.draw_lines, series, x, y),
        comparison_tables.tabulate_memory(study),
    )


def plot_curves(study: Study) -> list[Figure]:
    """Validation metric while learning, by step and by time."""
    learned = {row.method: (row, _curve(study, row.method)) for row in comparison_tables.rank_rows(study)}
    learned = {method: (row, curve) for method, (row, curve) in learned.items() if len(curve) > 1}
    if not learned:
        return []
    longest = max(point.seconds for _, curve in learned.values() for point in curve)
    unit, length = next(one for one in _UNITS if longest >= 2 * one[1] or one[1] == 1)
    by_step = _learning(study, learned, "Step", lambda point: float(point.step), format_count)
    by_time = _learning(
        study,
        learned,
        f"{unit} of learning on the machine of the study",
        lambda point: point.seconds / length,
        format_short,
    )
    bands = "Lines are means over the seeds that were still learning, bands reach from the least to the most of them."
    return [
        Figure(
            "learning-by-step",
            "Learning by step",
            f"{bands} A line that still rises at its end would gain from more steps.",
            *by_step,
        ),
        Figure(
            "learning-by-time",
            "Learning by time",
            f"{warn_of_seconds(study.rows)}The same evaluations against the time they took, evaluations included: what "
            "counts where time is short.",
            *by_time,
        ),
    ]


def _learning(
    study: Study,
    learned: Mapping[str, tuple[Row, Sequence["_Evaluated"]]],
    title: str,
    at: Callable[["_Evaluated"], float],
    show: Callable[[float], str],
) -> tuple[str, Callable[[int], Element], Table]:
    """Description, drawing and numbers of a figure of learning curves."""
    metric = choose_step_metric(study.kind, study.metric)
    name = f"{metric_heading(metric)} on validation"
    series = [
        charts.Series(
            method,
            comparison_tables.name_group(row.family),
            tuple(at(point) for point in curve),
            tuple(fmean(point.values) for point in curve),
            tuple(min(point.values) for point in curve),
            tuple(max(point.values) for point in curve),
        )
        for method, (row, curve) in learned.items()
    ]
    numbers = Table.of(
        name,
        ("Method", title, "Seeds", "Mean", "Least", "Most", "Loss"),
        (
            (
                method,
                show(at(point)),
                format_count(len(point.values)),
                *(format_metric(metric, f(point.values)) for f in (fmean, min, max)),
                format_fixed(point.loss, 3),
            )
            for method, (_, curve) in learned.items()
            for point in curve
        ),
    )
    last = [f"{one.name} {format_metric(metric, one.ys[-1])}" for one in series]
    draw = partial(charts.draw_lines, series, Axis(title, show), make_metric_axis(metric, name))
    return describe_items(f"{name} at the end", last), draw, numbers


def _against(
    study: Study,
    name: str,
    title: str,
    cost_name: str,
    caption: str,
    cost_of: Callable[[Row], float | None],
    show: Callable[[float], str],
) -> Figure | None:
    pairs = [(row, cost) for row in _measured(study) if (cost := cost_of(row)) is not None and math.isfinite(cost)]
    if not pairs:
        return None
    front = find_pareto_front([(cost, row.mean or 0.0) for row, cost in pairs])
    points = [
        charts.Point(
            row.method,
            comparison_tables.name_group(row.family),
            cost,
            row.mean or 0.0,
            row.low,
            row.high,
            index in front,
        )
        for index, (row, cost) in enumerate(pairs)
    ]
    positive = [cost for _, cost in pairs if cost > 0]
    log = bool(positive) and max(positive) / min(positive) > RATIO_FOR_LOG
    numbers = Table.of(
        title,
        ("Method", cost_name, metric_heading(study.metric), Column("On the front", False)),
        (
            (
                comparison_tables.make_name_cell(study, row),
                Cell(show(cost), value=cost),
                Cell(format_metric(study.metric, row.mean), format_interval(study.metric, row.low, row.high), row.mean),
                "yes" if index in front else "no",
            )
            for index, (row, cost) in enumerate(pairs)
        ),
        sortable=True,
    )
    x = Axis(f"{cost_name}{', log scale' if log else ''}", show, log, (0.0, math.inf))
    on_front = [f"{row.method} ({show(cost)}, {format_metric(study.metric, row.mean)})" for row, cost in pairs]
    return Figure(
        name,
        title,
        caption,
        describe_items("On the Pareto front", [text for index, text in enumerate(on_front) if index in front]),
        partial(
            charts.draw_scatter, points, x, make_metric_axis(study.metric, f"{metric_heading(study.metric)} on test")
        ),
        numbers,
    )


def _measured(study: Study) -> list[Row]:
    return [row for row in comparison_tables.rank_rows(study) if row.mean is not None and math.isfinite(row.mean)]


def _seed_values(study: Study, method: str) -> tuple[float, ...]:
    return tuple(result.test.value for result in _ended(study, method) if result.test is not None)


def _ended(study: Study, method: str) -> list[Result]:
    return [result for result in study.results if result.method == method and result.status == "ok"]


@dataclass(frozen=True)
class _Evaluated:
    """One step of a method: the validation metric of the seeds that evaluated there, mean seconds and loss."""

    step: int
    seconds: float
    values: tuple[float, ...]
    loss: float


def _curve(study: Study, method: str) -> list[_Evaluated]:
    by_step: dict[int, list[CurvePoint]] = {}
    for result in _ended(study, method):
        for point in result.curve:
            if math.isfinite(point.value):
                by_step.setdefault(point.step, []).append(point)
    return [
        _Evaluated(
            step,
            fmean(point.seconds for point in found),
            tuple(point.value for point in found),
            fmean(point.loss for point in found),
        )
        for step, found in sorted(by_step.items())
    ]
