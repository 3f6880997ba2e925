"""A comparison over model sizes as a document: the curves, the gap, and both as tables."""

from collections.abc import Sequence
from functools import partial

from softprompt.experiments.comparison.study_records import Row, SizePoint, SizeStudy
from softprompt.metrics.formatting import MISSING, format_count, format_interval, format_metric, metric_heading
from softprompt.metrics.registry import metric_format
from softprompt.report.pages import comparison_tables
from softprompt.report.render import charts
from softprompt.report.render.axes import Axis
from softprompt.report.render.document import Cell, Document, Figure, Section, Statement, Table

_SIZES = Axis("Parameters of the base model, log scale", format_count, log=True)


def make_model_sizes_document(study: SizeStudy, closing: tuple[str, ...] = ()) -> Document:
    """Everything that was found over sizes; ``closing``: where it lies."""
    smallest, largest = study.points[0], study.points[-1]
    return Document(
        kind="Comparison over model sizes",
        title=f"{study.methods[0]} against {', '.join(study.methods[1:])}",
        facts=(
            f"{study.data}, judged by {metric_heading(study.metric)}",
            f"{len(study.points)} models of {format_count(smallest.parameters)} to {format_count(largest.parameters)} "
            "parameters",
        ),
        sections=(
            Section("answer", "What it says", (Statement(study.sentence),)),
            Section("gap", "The gap", _present(_gap(study), _gap_numbers(study))),
            Section("methods", "The methods", _present(_quality(study), _numbers(study))),
            Section("models", "The models", (_folders(study.points),)),
        ),
        created=study.created,
        closing=closing,
    )


def _present(figure: Figure | None, numbers: Table) -> tuple[Figure | Table, ...]:
    """The figure, which has its numbers with it, or these alone."""
    return (numbers,) if figure is None else (figure,)


def _quality(study: SizeStudy) -> Figure | None:
    series = []
    for method in study.methods:
        known = [(point.parameters, row) for point in study.points if (row := point.rows[method]).mean is not None]
        if known:
            series.append(_series(method, [size for size, _ in known], [row for _, row in known]))
    if not any(len(one.xs) > 1 for one in series):
        return None
    name = metric_heading(study.metric)
    axis = Axis(f"{name} on test", partial(format_metric, study.metric), limits=metric_format(study.metric).limits)
    return Figure(
        "quality-by-size",
        f"{name} by model size",
        "Bands are 95% intervals over examples and seeds.",
        "; ".join(f"{one.name}: {format_metric(study.metric, one.ys[-1])} on the largest model" for one in series),
        partial(charts.draw_lines, series, _SIZES, axis),
        _numbers(study),
    )


def _series(method: str, sizes: Sequence[int], rows: Sequence[Row]) -> charts.Series:
    columns = [
        [value or 0.0 for value in column] for column in zip(*((r.mean, r.low, r.high) for r in rows), strict=True)
    ]
    means, lows, highs = map(tuple, columns)
    return charts.Series(
        method, comparison_tables.name_group(rows[0].family), tuple(map(float, sizes)), means, lows, highs
    )


def _gap(study: SizeStudy) -> Figure | None:
    series = []
    for method in study.methods[1:]:
        known = [(float(point.parameters), point.gaps[method]) for point in study.points if method in point.gaps]
        if len(known) > 1:
            xs = tuple(size for size, _ in known)
            ys, lows, highs = (tuple(float(gap[key]) for _, gap in known) for key in ("difference", "low", "high"))
            family = comparison_tables.name_group(study.points[0].rows[method].family)
            series.append(charts.Series(f"minus {method}", family, xs, ys, lows, highs))
    if not series:
        return None
    axis = Axis(f"Difference in {metric_heading(study.metric)}", partial(format_metric, study.metric, signed=True))
    return Figure(
        "gap-by-size",
        f"{study.methods[0]} minus each other method, by model size",
        "At zero both are level; below it the other method is better. Bands are 95% intervals, paired over examples.",
        study.sentence,
        partial(charts.draw_lines, series, _SIZES, axis),
        _gap_numbers(study),
    )


def _numbers(study: SizeStudy) -> Table:
    def cell(row: Row) -> Cell:
        shown = format_metric(study.metric, row.mean)
        return Cell(shown, format_interval(study.metric, row.low, row.high), row.mean)

    return Table.of(
        f"{metric_heading(study.metric)} on test, mean over seeds with its 95% interval",
        ("Model", "Parameters", *study.methods),
        ((*_model(point), *(cell(point.rows[method]) for method in study.methods)) for point in study.points),
    )


def _gap_numbers(study: SizeStudy) -> Table:
    def cell(point: SizePoint, method: str) -> Cell:
        gap = point.gaps.get(method)
        if gap is None:
            return Cell(MISSING)
        shown = format_metric(study.metric, gap["difference"], signed=True)
        return Cell(shown, format_interval(study.metric, gap["low"], gap["high"], signed=True), gap["difference"])

    others = study.methods[1:]
    return Table.of(
        f"{study.methods[0]} minus each other method, on the same test examples",
        ("Model", "Parameters", *(f"minus {method}" for method in others)),
        ((*_model(point), *(cell(point, method) for method in others)) for point in study.points),
    )


def _model(point: SizePoint) -> tuple[Cell, Cell]:
    return Cell(point.model), Cell(format_count(point.parameters), value=float(point.parameters))


def _folders(points: Sequence[SizePoint]) -> Table:
    rows = ((point.model, point.folder) for point in points)
    return Table.of("Where each model's report is", ("Model", "Folder"), rows, words=2)
