"""A comparison over model sizes as a document: the curves, the gap, and both as tables."""

from collections.abc import Sequence
from functools import partial

from softprompt.experiments.comparison.study_records import Row, SizePoint, SizeStudy
from softprompt.metrics.formatting import MISSING, count_text, interval_text, metric_limits, metric_name, metric_text
from softprompt.report.pages import comparison_tables
from softprompt.report.render import charts
from softprompt.report.render.axes import Axis
from softprompt.report.render.document import Cell, Column, Document, Figure, Section, Statement, Table

_SIZES = Axis("Parameters of the base model, log scale", count_text, log=True)


def document(scale: SizeStudy) -> Document:
    """Everything that was found over sizes."""
    smallest, largest = scale.points[0], scale.points[-1]
    return Document(
        kind="Comparison over model sizes",
        title=f"{scale.methods[0]} against {', '.join(scale.methods[1:])}",
        facts=(
            f"{scale.data}, judged by {metric_name(scale.metric)}",
            f"{len(scale.points)} models of {count_text(smallest.parameters)} to {count_text(largest.parameters)} "
            "parameters",
        ),
        sections=(
            Section("answer", "What it says", (Statement(scale.sentence),)),
            Section("gap", "The gap", _present(_gap(scale), _gap_numbers(scale))),
            Section("methods", "The methods", _present(_quality(scale), _numbers(scale))),
            Section(
                "models",
                "The models",
                (_folders(scale.points),),
            ),
        ),
        created=scale.created,
    )


def _present(figure: Figure | None, numbers: Table) -> tuple[Figure | Table, ...]:
    """The figure, which has its numbers with it, or these alone."""
    return (numbers,) if figure is None else (figure,)


def _quality(scale: SizeStudy) -> Figure | None:
    series = []
    for method in scale.methods:
        known = [(point.parameters, row) for point in scale.points if (row := point.rows[method]).mean is not None]
        if known:
            series.append(_series(method, [size for size, _ in known], [row for _, row in known]))
    if not any(len(one.xs) > 1 for one in series):
        return None
    name = metric_name(scale.metric)
    axis = Axis(f"{name} on test", partial(metric_text, scale.metric), limits=metric_limits(scale.metric))
    return Figure(
        "quality-by-size",
        f"{name} by model size",
        "Bands are 95% intervals over examples and seeds.",
        "; ".join(f"{one.name}: {metric_text(scale.metric, one.ys[-1])} on the largest model" for one in series),
        partial(charts.lines, series, _SIZES, axis),
        _numbers(scale),
    )


def _series(method: str, sizes: Sequence[int], rows: Sequence[Row]) -> charts.Series:
    columns = [
        [value or 0.0 for value in column] for column in zip(*((r.mean, r.low, r.high) for r in rows), strict=True)
    ]
    means, lows, highs = map(tuple, columns)
    return charts.Series(
        method, comparison_tables.group_of(rows[0].family), tuple(map(float, sizes)), means, lows, highs
    )


def _gap(scale: SizeStudy) -> Figure | None:
    series = []
    for method in scale.methods[1:]:
        known = [(float(point.parameters), point.gaps[method]) for point in scale.points if method in point.gaps]
        if len(known) > 1:
            xs = tuple(size for size, _ in known)
            ys, lows, highs = (tuple(float(gap[key]) for _, gap in known) for key in ("difference", "low", "high"))
            family = comparison_tables.group_of(scale.points[0].rows[method].family)
            series.append(charts.Series(f"minus {method}", family, xs, ys, lows, highs))
    if not series:
        return None
    axis = Axis(f"Difference in {metric_name(scale.metric)}", partial(metric_text, scale.metric, signed=True))
    return Figure(
        "gap-by-size",
        f"{scale.methods[0]} minus each other method, by model size",
        "At zero both are level; below it the other method is better. Bands are 95% intervals, paired over examples.",
        scale.sentence,
        partial(charts.lines, series, _SIZES, axis),
        _gap_numbers(scale),
    )


def _numbers(scale: SizeStudy) -> Table:
    def cell(row: Row) -> Cell:
        shown = metric_text(scale.metric, row.mean)
        return Cell(shown, interval_text(scale.metric, row.low, row.high), row.mean)

    return Table(
        f"{metric_name(scale.metric)} on test, mean over seeds with its 95% interval",
        (Column("Model", number=False), Column("Parameters"), *map(Column, scale.methods)),
        tuple((*_model(point), *(cell(point.rows[method]) for method in scale.methods)) for point in scale.points),
    )


def _gap_numbers(scale: SizeStudy) -> Table:
    def cell(point: SizePoint, method: str) -> Cell:
        gap = point.gaps.get(method)
        if gap is None:
            return Cell(MISSING)
        shown = metric_text(scale.metric, gap["difference"], signed=True)
        return Cell(shown, interval_text(scale.metric, gap["low"], gap["high"], signed=True), gap["difference"])

    others = scale.methods[1:]
    return Table(
        f"{scale.methods[0]} minus each other method, on the same test examples",
        (Column("Model", number=False), Column("Parameters"), *(Column(f"minus {method}") for method in others)),
        tuple((*_model(point), *(cell(point, method) for method in others)) for point in scale.points),
    )


def _model(point: SizePoint) -> tuple[Cell, Cell]:
    return Cell(point.model), Cell(count_text(point.parameters), value=float(point.parameters))


def _folders(points: Sequence[SizePoint]) -> Table:
    return Table(
        "Where each model's report is",
        (Column("Model", number=False), Column("Folder", number=False)),
        tuple((Cell(point.model), Cell(point.folder)) for point in points),
    )
