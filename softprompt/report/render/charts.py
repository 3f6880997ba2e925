"""Charts as SVG that takes its colours from CSS: points, lines, and intervals.

Every chart is drawn for a width in pixels at which it is shown as it is, so that text keeps its size: pages hold a wide
and a narrow drawing of each. Groups differ in colour and in the shape of their marks, and names stand beside what they
name. Coordinates are pixels from the upper left corner.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from xml.etree.ElementTree import Element, SubElement

from softprompt.report.render.axes import Axis, Scale, label_ticks, make_scale
from softprompt.report.render.document import replace_unprintable
from softprompt.report.render.label_placement import (
    Box,
    Placed,
    measure_text,
    place_labels,
    shorten_label,
    spread_labels,
)

SIZE = 12.5  # of text, in pixels
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 4")
_CIRCLE = "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z"
_SHAPES = {
    "written": "M-4.6,-4.6h9.2v9.2h-9.2z",
    "classical": "M0,-5.8L5.6,4.4H-5.6z",
    "soft-prompt": _CIRCLE,
    "adapter": "M0,-6.4L6.4,0L0,6.4L-6.4,0z",
    "full": "M-1.8,-5.6h3.6v3.8h3.8v3.6h-3.8v3.8h-3.6v-3.8h-3.8v-3.6h3.8z",
}


@dataclass(frozen=True)
class Point:
    """One mark: ``low`` to ``high`` is the interval of ``y``; a point that ``leads`` is on the front, and filled."""

    name: str
    group: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    leads: bool = True


@dataclass(frozen=True)
class Series:
    """One line through ``(xs, ys)``, with a band from ``lows`` to ``highs`` where given.

    ``dashed``: even if it is the only one of its group.
    """

    name: str
    group: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    lows: tuple[float, ...] = ()
    highs: tuple[float, ...] = ()
    dashed: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class Interval:
    """One line of a chart of intervals: a value, its interval, and the single values behind it."""

    name: str
    group: str
    value: float
    low: float | None = None
    high: float | None = None
    singles: tuple[float, ...] = ()
    text: str = ""
    strong: bool = False


def draw_scatter(points: Sequence[Point], x: Axis, y: Axis, width: int, front: bool = True) -> Element:
    """Points with their names; with ``front`` the line of those that ``lead``, from the left, in steps."""
    top = 34 + _legend_height([point.group for point in points], width)
    height = top + (300 if width > 500 else 270) + 42
    svg = _svg(width, height)
    _legend(svg, [point.group for point in points], width)
    y_values = [value for p in points for value in (p.y, p.low, p.high) if value is not None]
    down = make_scale(y, y_values, height - 42, top)
    left = _left(y, down)
    across = make_scale(x, [point.x for point in points], left, width - 12)
    _axes(svg, x, y, across, down, width)
    places = [(across.at(point.x), down.at(point.y)) for point in points]
    leading = sorted(place for point, place in zip(points, places, strict=True) if front and point.leads)
    avoid = _front(svg, leading, across.end)
    for point, (at_x, _) in zip(points, places, strict=True):
        if point.low is not None and point.high is not None:
            ends = down.at(point.low), down.at(point.high)
            _line(svg, at_x, ends[0], at_x, ends[1], f"whisker {point.group}")
            avoid.append(Box(at_x - 2, ends[1], at_x + 2, ends[0]))
    names = [shorten_label(point.name) for point in points]
    bounds = Box(left + 2, top - 8, width - 2, height - 44)
    labels = place_labels(places, [measure_text(name, SIZE) for name in names], SIZE, bounds, avoid)
    for point, (at_x, at_y) in zip(points, places, strict=True):
        mark = _mark(svg, point.group, at_x, at_y, filled=point.leads)
        SubElement(mark, "title").text = replace_unprintable(f"{point.name}: {y.show(point.y)}, {x.show(point.x)}")
    _names(svg, places, names, labels, ["name" if point.leads else "name minor" for point in points])
    return svg


def draw_lines(series: Sequence[Series], x: Axis, y: Axis, width: int, legend: bool = True) -> Element:
    """Lines with their names at the right end, bands behind them; lines of one group differ in their dashes.

    ``legend`` says what the groups are, where they are more than colours.
    """
    groups = [one.group for one in series]
    names = [shorten_label(one.name, 26 if width > 500 else 18) for one in series]
    explained = groups if legend else []
    top = 34 + _legend_height(explained, width)
    height = top + max(260, 16 * len(series)) + 42
    svg = _svg(width, height)
    _legend(svg, explained, width)
    down = make_scale(y, [value for one in series for value in (*one.ys, *one.lows, *one.highs)], height - 42, top)
    widths = [measure_text(name, SIZE) for name in names]
    left, right = _left(y, down), width - 26 - max(widths, default=0)
    across = make_scale(x, [value for one in series for value in one.xs], left, right)
    _axes(svg, x, y, across, down, width)
    for one in series:
        if one.lows:
            edge = [*zip(one.xs, one.highs, strict=True), *reversed(list(zip(one.xs, one.lows, strict=True)))]
            SubElement(svg, "polygon", {"points": _path(_pixels(edge, across, down)), "class": f"band {one.group}"})
    ends, curves = [], []
    for index, one in enumerate(series):
        curve = _pixels(list(zip(one.xs, one.ys, strict=True)), across, down)
        dash = _DASHES[(groups[:index].count(one.group) + one.dashed) % len(_DASHES)]
        style = {"points": _path(curve), "class": f"curve {one.group}", "stroke-dasharray": dash or "none"}
        SubElement(SubElement(svg, "polyline", style), "title").text = replace_unprintable(one.name)
        curves.append(curve)
        ends.append(curve[-1] if curve else (right, down.start))
    for one, end in zip(series, ends, strict=True):
        _mark(svg, one.group, *end, filled=True)
    if ends and max(ends)[0] - min(ends)[0] < 12:
        heights = spread_labels([at_y for _, at_y in ends], SIZE + 2.5, top, height - 44)
        for name, (at_x, at_y), placed in zip(names, ends, heights, strict=True):
            if abs(placed - at_y) > 2:
                _line(svg, at_x + 7, at_y, right + 14, placed, "leader")
            _text(svg, right + 17, placed + 0.35 * SIZE, name, "name")
    else:
        bounds = Box(left + 2, top - 8, width - 2, height - 44)
        labels = place_labels(ends, widths, SIZE, bounds, [box for curve in curves for box in _along(curve)])
        _names(svg, ends, names, labels, ["name"] * len(names))
    return svg


def draw_intervals(rows: Sequence[Interval], axis: Axis, width: int) -> Element:
    """A line for each row: its name, its interval with the value, the single values as small rings, its numbers."""
    wide = width > 500
    names = [shorten_label(row.name, 26 if wide else 18) for row in rows]
    texts = [row.text if wide else row.text.partition(" [")[0] for row in rows]
    left = 26 + max((measure_text(name, SIZE) for name in names), default=0)
    right = width - 18 - max((measure_text(text, SIZE) for text in texts), default=0)
    step, top = 25, 8
    height = top + step * len(rows) + 40
    svg = _svg(width, height)
    values = [value for row in rows for value in (row.value, row.low, row.high, *row.singles) if value is not None]
    across = make_scale(axis, values, left, right)
    for value, text in label_ticks(across.ticks(_ticks_on(right - left)), axis.show):
        _line(svg, across.at(value), top, across.at(value), height - 38, "grid")
        _text(svg, across.at(value), height - 22, text, "tick", "middle")
    _text(svg, left, height - 5, axis.title, "title")
    for index, (row, name, text) in enumerate(zip(rows, names, texts, strict=True)):
        at_y = top + step * (index + 0.5)
        _text(svg, left - 14, at_y + 0.35 * SIZE, name, "name strong" if row.strong else "name", "end")
        if row.low is not None and row.high is not None:
            _line(svg, across.at(row.low), at_y, across.at(row.high), at_y, f"interval {row.group}")
        for single in row.singles:
            SubElement(
                svg, "circle", {"cx": _px(across.at(single)), "cy": _px(at_y), "r": "2.6", "class": f"ring {row.group}"}
            )
        _mark(svg, row.group, across.at(row.value), at_y, filled=True)
        _text(svg, width - 2, at_y + 0.35 * SIZE, text, "tick", "end")
    return svg


def _svg(width: float, height: float) -> Element:
    return Element("svg", {"viewBox": f"0 0 {_px(width)} {_px(height)}", "class": "chart"})


def _axes(svg: Element, x: Axis, y: Axis, across: Scale, down: Scale, width: float) -> None:
    """Grid, numbers and titles; the title of ``y`` lies over it, to be read without turning the head."""
    bottom = down.start
    for value, text in label_ticks(down.ticks(6), y.show):
        _line(svg, across.start, down.at(value), across.end, down.at(value), "grid")
        _text(svg, _left(y, down) - 8, down.at(value) + 0.35 * SIZE, text, "tick", "end")
    _line(svg, _left(y, down), bottom, across.end, bottom, "axis")
    taken = -math.inf
    for value, text in label_ticks(across.ticks(_ticks_on(across.end - across.start)), x.show):
        half = measure_text(text, SIZE) / 2
        if across.at(value) - half <= taken:
            continue
        centre = min(across.at(value), width - half)
        taken = centre + half + 4
        _line(svg, across.at(value), bottom, across.at(value), bottom + 5, "axis")
        _text(svg, centre, bottom + 18, text, "tick", "middle")
    _text(svg, max(across.end, measure_text(x.title, SIZE)), bottom + 37, x.title, "title", "end")
    _text(svg, 0, down.end - 12, y.title, "title")


def _left(y: Axis, down: Scale) -> float:
    """Room for the numbers left of the axis."""
    return 12 + max(measure_text(text, SIZE) for _, text in label_ticks(down.ticks(6), y.show))


def _ticks_on(length: float) -> int:
    return max(5, int(length / 75))


def _front(svg: Element, leading: Sequence[tuple[float, float]], end: float) -> list[Box]:
    """The line in steps through points from the left; gives the boxes that it takes."""
    boxes = []
    for (x1, y1), (x2, y2) in pairwise([*leading, (end, leading[-1][1])] if leading else ()):
        SubElement(svg, "path", {"d": f"M{_px(x1)},{_px(y1)}H{_px(x2)}V{_px(y2)}", "class": "front"})
        boxes += [Box(x1, y1 - 2, x2, y1 + 2), Box(x2 - 2, min(y1, y2), x2 + 2, max(y1, y2))]
    return boxes


def _legend_rows(groups: Sequence[str], width: float) -> list[tuple[str, float, int]]:
    """Each group with its left end and row."""
    rows, at_x, row = [], 0.0, 0
    for group in sorted(set(groups), key=[*_SHAPES, *groups].index):
        needed = 18 + measure_text(group, SIZE) + 16
        if at_x and at_x + needed > width:
            at_x, row = 0.0, row + 1
        rows.append((group, at_x, row))
        at_x += needed
    return rows


def _legend_height(groups: Sequence[str], width: float) -> int:
    return 20 * max((row + 1 for _, _, row in _legend_rows(groups, width)), default=0)


def _legend(svg: Element, groups: Sequence[str], width: float) -> None:
    for group, at_x, row in _legend_rows(groups, width):
        _mark(svg, group, at_x + 6, 9 + 20 * row, filled=True)
        _text(svg, at_x + 17, 9 + 20 * row + 0.35 * SIZE, group.replace("-", " "), "tick")


def _mark(parent: Element, group: str, x: float, y: float, filled: bool) -> Element:
    """The shape of a group."""
    style = {"class": f"mark {group}" + ("" if filled else " hollow"), "transform": f"translate({_px(x)},{_px(y)})"}
    mark = SubElement(parent, "g", style)
    SubElement(mark, "path", {"d": _SHAPES.get(group, _CIRCLE)})
    return mark


def _names(
    svg: Element,
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    labels: Sequence[Placed],
    styles: Sequence[str],
) -> None:
    """Names where they were placed, with a line to their points where these are far."""
    for (at_x, at_y), name, label, style in zip(points, names, labels, styles, strict=True):
        if label.distance > 20:
            share = 7 / label.distance  # the line begins outside of the mark
            start = at_x + share * (label.x - at_x), at_y + share * (label.baseline - 0.35 * SIZE - at_y)
            _line(svg, *start, label.x, label.baseline - 0.35 * SIZE, "leader")
        _text(svg, label.x, label.baseline, name, style, label.anchor)


def _pixels(values: Sequence[tuple[float, float]], across: Scale, down: Scale) -> list[tuple[float, float]]:
    return [(across.at(x), down.at(y)) for x, y in values if math.isfinite(x) and math.isfinite(y)]


def _path(pixels: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_px(x)},{_px(y)}" for x, y in pixels)


def _along(curve: Sequence[tuple[float, float]]) -> list[Box]:
    """Small boxes along a line."""
    boxes = []
    for (x1, y1), (x2, y2) in pairwise(curve):
        parts = max(1, round(math.dist((x1, y1), (x2, y2)) / 10))
        for part in range(parts):
            x, y = x1 + (x2 - x1) * (part + 0.5) / parts, y1 + (y2 - y1) * (part + 0.5) / parts
            boxes.append(Box(x - 5, y - 2, x + 5, y + 2))
    return boxes


def _line(svg: Element, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
    SubElement(svg, "line", {"x1": _px(x1), "y1": _px(y1), "x2": _px(x2), "y2": _px(y2), "class": style})


def _text(svg: Element, x: float, y: float, text: str, style: str, anchor: str = "start") -> None:
    SubElement(
        svg, "text", {"x": _px(x), "y": _px(y), "class": style, "text-anchor": anchor}
    ).text = replace_unprintable(text)


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
