"""Cells and tables that several pages are made of."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from softprompt.analysis.inspection.inspection_records import Slice
from softprompt.data.split_assignment import Subsample
from softprompt.metrics.formatting import (
    MISSING,
    format_count,
    format_fixed,
    format_interval,
    format_metric,
    format_percent,
)
from softprompt.metrics.registry import metric_format
from softprompt.metrics.scores import Mean, Score
from softprompt.report.render import charts
from softprompt.report.render.axes import Axis
from softprompt.report.render.document import Cell, Figure, Table

DASH = Cell(MISSING)
CLASSES_IN_A_MATRIX = 12


def make_number_cell(value: float | None, text: str) -> Cell:
    """A number as ``text``; a dash where there is none."""
    return DASH if value is None else Cell(text, value=value)


def make_mean_cell(one: Mean | Score | Slice | None, signed: bool = False) -> Cell:
    """A mean with its interval."""
    if one is None:
        return DASH
    return Cell(
        format_fixed(one.value, 3, signed),
        f"[{format_fixed(one.low, 3, signed)}, {format_fixed(one.high, 3, signed)}]",
        one.value,
    )


def make_metric_axis(metric: str, title: str) -> Axis:
    """An axis of a metric's values, within its limits."""
    known = metric_format(metric)
    return Axis(title, partial(format_fixed, digits=max(0, known.digits - 1)), limits=known.limits)


def make_share_axis(title: str) -> Axis:
    """From 0 to 1."""
    return Axis(title, partial(format_fixed, digits=2), limits=(0.0, 1.0))


def describe_items(what: str, items: Iterable[str]) -> str:
    """What a reader who cannot see a figure is told of it."""
    return f"{what}: {'; '.join(items)}."


def make_interval_figure(
    name: str,
    title: str,
    caption: str,
    what: str,
    rows: Sequence[charts.Interval],
    axis: Axis,
    *,
    page_only: bool = False,
) -> Figure:
    """A line for each row; ``what`` the values are."""
    numbers = (
        (row.name, *(make_number_cell(one, format_fixed(one, 4)) for one in (row.value, row.low, row.high)))
        for row in rows
    )
    return Figure(
        name,
        title,
        caption,
        describe_items(what, (f"{row.name} {row.text}" for row in rows)),
        partial(charts.draw_intervals, rows, axis),
        Table.of(what, ("Name", "Value", "Low", "High"), numbers),
        page_only=page_only,
    )


def format_mean(one: Mean | Score | Slice, signed: bool = False) -> str:
    """A mean with its interval, within a sentence."""
    cell = make_mean_cell(one, signed)
    return f"{cell.text} {cell.detail}"


def make_metric_cell(metric: Mapping[str, Any], name: str = "") -> Cell:
    """A saved metric with its interval; raises KeyError, TypeError or ValueError for what is none."""
    name = name or str(metric["metric"])
    value, low, high = (metric[key] for key in ("value", "low", "high"))
    return Cell(format_metric(name, value), format_interval(name, low, high), value)


def format_saved_metric(metric: Any, name: str = "") -> str:
    """A saved metric in a line; a question mark for what is none, as it may come out of somebody else's file."""
    try:
        cell = make_metric_cell(metric, name)
        return f"{cell.text} {cell.detail} n={format_count(metric['n'])}"
    except (KeyError, TypeError, ValueError):
        return "?"


def format_subsample(split: str, result: Mapping[str, Any]) -> str:
    """Of how many rows a saved result is a sample, if it is one; it may come out of somebody else's file."""
    try:
        found = result["sample"]
        return Subsample(int(found["rows"]), int(found["of"]), int(found["seed"])).describe(split)
    except (KeyError, TypeError, ValueError):
        return ""


def make_settings_table(
    caption: str, values: Mapping[str, Any], names: tuple[str, str] = ("Setting", "Value")
) -> Table:
    """Names and values."""
    return Table.of(caption, names, ((str(name), format_setting(value)) for name, value in values.items()), words=2)


def format_setting(value: Any) -> str:
    """A setting as people read it."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: MISSING}[value]
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {format_setting(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(format_setting, value))
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def make_confusion_table(
    caption: str, rare: str, gold: Sequence[str], answers: Sequence[str], counts: Mapping[tuple[str, str], int]
) -> Table:
    """Gold labels against answers, in shares of each gold label; of many classes, the most frequent confusions.

    Args:
        rare: the caption where there are many classes.
        gold: the labels, a row for each.
        answers: a column for each.
        counts: how often each answer was given for each gold label.
    """
    totals = {label: sum(n for (one, _), n in counts.items() if one == label) for label in gold}
    if len(answers) > CLASSES_IN_A_MATRIX:
        wrong = sorted(((n, a, b) for (a, b), n in counts.items() if a != b), reverse=True)[:20]
        rows = [(a, b, format_count(n), format_percent(n / totals.get(a, n))) for n, a, b in wrong]
        return Table.of(rare, ("Gold label", "Answer", "Times", "Of the class"), rows, words=2)

    def share(label: str, answer: str) -> Cell:
        n, total = counts.get((label, answer), 0), totals[label]
        return Cell(
            format_percent(n / total if total else 0.0), f"{n:,}" if n else "", heat=n / total if total else 0.0
        )

    cells = [(Cell(label, f"{totals[label]:,}"), *(share(label, answer) for answer in answers)) for label in gold]
    return Table.of(caption, ("Gold label", *answers), cells)
