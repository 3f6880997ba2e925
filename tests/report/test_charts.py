"""What charts promise: sane ticks, marks where the numbers are, names that keep apart, colours one can read."""

import itertools
import math
from collections.abc import Iterator
from importlib.resources import files
from xml.etree.ElementTree import Element

import pytest
from helpers.colors import contrast, palette_of
from helpers.planted_study import planted_study
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt.metrics.formatting import (
    format_bytes,
    format_count,
    format_fixed,
    format_interval,
    format_metric,
    format_percent,
    format_seconds,
    format_short,
)
from softprompt.report.pages import comparison_figures
from softprompt.report.render import charts
from softprompt.report.render.axes import Axis, choose_linear_ticks, choose_log_ticks, label_ticks, make_scale
from softprompt.report.render.label_placement import Box, measure_text, place_labels, spread_labels

DASH = "\N{EN DASH}"
NUMBER = st.floats(-1e9, 1e9, allow_nan=False)


class TestTicks:
    @given(low=st.floats(-1e4, 1e4), span=st.floats(1e-3, 1e9), most=st.integers(5, 12))
    def test_linear_ones_are_round_few_and_inside(self, low: float, span: float, most: int) -> None:
        ticks = choose_linear_ticks(low, low + span, most)
        assert 2 <= len(ticks) <= most
        dust = 1e-6 * span + 1e-9 * abs(low)
        assert low - dust <= ticks[0] < ticks[-1] <= low + span + dust
        step = ticks[1] - ticks[0]
        assert f"{step:.3e}"[0] in "125"
        assert all(math.isclose(b - a, step, rel_tol=1e-3) for a, b in itertools.pairwise(ticks))

    @given(low=st.floats(1e-6, 1e9), ratio=st.floats(1.3, 1e12), most=st.integers(5, 12))
    def test_logarithmic_ones_are_few_and_inside(self, low: float, ratio: float, most: int) -> None:
        ticks = choose_log_ticks(low, low * ratio, most)
        assert 2 <= len(ticks) <= most
        assert ticks == sorted(set(ticks))
        assert low * (1 - 1e-6) <= ticks[0]
        assert ticks[-1] <= low * ratio * (1 + 1e-6)

    @pytest.mark.parametrize(
        ("low", "high", "expected"),
        [(0.39, 0.98, [0.4, 0.6, 0.8]), (0, 300, [0, 50, 100, 150, 200, 250, 300]), (-1, 1, [-1, -0.5, 0, 0.5, 1])],
    )
    def test_are_those_one_would_choose(self, low: float, high: float, expected: list[float]) -> None:
        assert choose_linear_ticks(low, high, 7 if high == 300 else 5) == expected

    def test_powers_of_ten_where_there_are_many(self) -> None:
        assert choose_log_ticks(80, 2e9, 8) == [100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9]
        assert choose_log_ticks(80, 2e9, 5) == [100, 1e4, 1e6, 1e8]

    def test_that_read_alike_are_shown_once(self) -> None:
        assert label_ticks([0.5, 0.51, 0.6], lambda value: f"{value:.1f}") == [(0.5, "0.5"), (0.6, "0.6")]


class TestScales:
    @given(values=st.lists(NUMBER, min_size=1, max_size=20))
    def test_every_value_is_between_the_ends_in_order(self, values: list[float]) -> None:
        scale = make_scale(Axis("x"), values, 10, 300)
        pixels = [scale.at(value) for value in sorted(values)]
        assert pixels == sorted(pixels)
        assert all(10 <= pixel <= 300 for pixel in pixels)

    @given(values=st.lists(st.just(0.0) | st.floats(1e-6, 1e12), min_size=1, max_size=20))
    def test_zero_has_its_place_on_a_logarithmic_axis(self, values: list[float]) -> None:
        scale = make_scale(Axis("x", log=True), [0.0, *values], 10, 300)
        assert scale.zero is not None
        assert all(scale.at(value) > scale.zero for value in values if value > 0)
        assert scale.ticks(6)[0] == 0

    def test_limits_are_not_passed(self) -> None:
        scale = make_scale(Axis("accuracy", limits=(0, 1)), [0.1, 1.0], 0, 100)
        assert scale.high == 1
        assert scale.at(1.0) == 100

    def test_no_finite_value_still_makes_a_scale(self) -> None:
        for log in (False, True):
            assert make_scale(Axis("x", log=log), [math.nan, math.inf], 0, 100).ticks(5)


class TestLabels:
    @settings(derandomize=True)  # the placing is a search that promises nothing for every case
    @given(
        points=st.lists(st.tuples(st.floats(60, 640), st.floats(40, 320)), min_size=1, max_size=9),
        length=st.integers(20, 90),
    )
    def test_do_not_cover_each_other_nor_leave_the_chart(self, points: list[tuple[float, float]], length: int) -> None:
        bounds = Box(0, 0, 700, 360)
        placed = place_labels(points, [length] * len(points), 12, bounds)
        assert all(label.box.within(bounds) for label in placed)
        assert sum(a.box.overlap(b.box) for a, b in itertools.combinations(placed, 2)) < 1

    @given(wanted=st.lists(st.floats(0, 300), min_size=1, max_size=18))
    def test_of_lines_are_spread_in_order(self, wanted: list[float]) -> None:
        positions = spread_labels(wanted, 15, 0, 300)
        in_order = [positions[index] for index in sorted(range(len(wanted)), key=lambda index: wanted[index])]
        assert all(b - a >= 15 - 1e-6 for a, b in itertools.pairwise(in_order))
        assert in_order[0] >= 0
        assert in_order[-1] <= 300 + 1e-6

    def test_of_lines_that_are_apart_stay_where_they_are(self) -> None:
        assert spread_labels([100, 10, 50], 15, 0, 300) == pytest.approx([100, 10, 50])
        assert spread_labels([100, 100], 20, 0, 300) == pytest.approx([90, 110])


def named(svg: Element) -> list[Element]:
    return [text for text in svg.iter("text") if "name" in (text.get("class") or "")]


def text_boxes(svg: Element) -> Iterator[Box]:
    for text in svg.iter("text"):
        width, x, y = measure_text(text.text or "", charts.SIZE), float(text.get("x", 0)), float(text.get("y", 0))
        left = x - {"middle": width / 2, "end": width}.get(text.get("text-anchor", ""), 0.0)
        yield Box(left, y - 0.8 * charts.SIZE, left + width, y + 0.2 * charts.SIZE)


class TestCharts:
    @pytest.mark.parametrize("width", [330, 700])
    @pytest.mark.parametrize("seeds", [1, 3])
    def test_no_text_covers_another_or_is_cut(self, width: int, seeds: int) -> None:
        study = planted_study(n=80, seeds=seeds)
        made = [
            comparison_figures.plot_quality(study),
            comparison_figures.plot_stored(study),
            comparison_figures.plot_latency(study),
            comparison_figures.plot_memory(study),
        ]
        for figure in [*made, *comparison_figures.plot_curves(study)]:
            assert figure is not None
            svg = figure.draw(width)
            height = float(svg.attrib["viewBox"].split()[3])
            boxes = list(text_boxes(svg))
            assert len(boxes) > 8
            assert sum(a.overlap(b) for a, b in itertools.combinations(boxes, 2)) < 12, figure.name
            assert all(box.left >= -1 and box.right <= width + 1 and box.bottom <= height for box in boxes), figure.name

    def test_every_method_is_named_once(self) -> None:
        study = planted_study(n=40)
        for figure in (
            comparison_figures.plot_quality(study),
            comparison_figures.plot_stored(study),
            comparison_figures.plot_memory(study),
        ):
            assert figure is not None
            assert sorted(text.text or "" for text in named(figure.draw(700))) == sorted(
                row.method for row in study.rows
            )

    def test_marks_lie_where_the_numbers_are(self) -> None:
        points = [charts.Point("a", "written", 1, 0.2), charts.Point("b", "written", 9, 0.9, 0.8, 1.0, leads=False)]
        svg = charts.draw_scatter(points, Axis("x"), Axis("y"), 700)
        squares = [mark for mark in svg.iter("g") if mark.find("title") is not None]
        (a, b) = (float((mark.get("transform") or "").removeprefix("translate(").split(",")[0]) for mark in squares)
        assert a < b
        assert ["hollow" in (mark.get("class") or "") for mark in squares] == [False, True]

    def test_long_names_are_shortened(self) -> None:
        svg = charts.draw_intervals([charts.Interval("m" * 200, "full", 0.5)], Axis("x"), 330)
        assert [len(text.text or "") for text in named(svg)] == [18]

    def test_nothing_to_draw_is_an_empty_chart(self) -> None:
        for chart in (charts.draw_scatter, charts.draw_lines):
            assert list(chart([], Axis("x"), Axis("y"), 330).iter("g")) == []

    def test_values_that_are_not_finite_are_left_out(self) -> None:
        broken = charts.Series("a", "full", (0, 1, 2), (0.1, math.nan, 0.3), (0, math.nan, 0.2), (0.2, math.nan, 0.4))
        svg = charts.draw_lines([broken], Axis("x"), Axis("y"), 700)
        assert "nan" not in "".join(value for element in svg.iter() for value in element.attrib.values())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_from_their_ground(scheme: str) -> None:
    palette = palette_of((files("softprompt.report.render") / "templates/palette.css").read_text(), scheme)
    for text in ("ink", "soft", "accent", "better", "worse"):
        assert contrast(palette[text], palette["paper"]) >= 4.5
        assert contrast(palette[text], palette["wash"]) >= 4.5
    for mark in ("written", "classical", "soft-prompt", "adapter", "full", "rule"):
        assert contrast(palette[mark], palette["paper"]) >= 3
    heated = "#" + "".join(
        f"{round(0.42 * int(palette['accent'][i : i + 2], 16) + 0.58 * int(palette['paper'][i : i + 2], 16)):02x}"
        for i in (1, 3, 5)
    )
    assert contrast(palette["ink"], heated) >= 4.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_metric("accuracy", 0.92361), "0.924"),
        (format_metric("bleu", 31.26), "31.3"),
        (format_metric("accuracy", None), DASH),
        (format_metric("accuracy", 0.0124, signed=True), "+0.012"),
        (format_metric("accuracy", -0.0124, signed=True), "\N{MINUS SIGN}0.012"),
        (format_metric("accuracy", -0.0001, signed=True), "0.000"),
        (format_interval("accuracy", 0.1, 0.25), "[0.100, 0.250]"),
        (format_interval("accuracy", None, 0.25), ""),
        (format_count(268_098_176), "268,098,176"),
        (format_bytes(0), "0 B"),
        (format_bytes(999), "999 B"),
        (format_bytes(52_700), "52.7 kB"),
        (format_bytes(999_999), "1 MB"),
        (format_bytes(1_400_000_000, aligned=True), "1.40 GB"),
        (format_bytes(None), DASH),
        (format_short(0.00045), "0.00045"),
        (format_short(1234.5), "1,230"),
        (format_short(59, aligned=True), "59.0"),
        (format_short(9.999), "10"),
        (format_seconds(0.84), "0.84 s"),
        (format_seconds(59.9), "1 min 00 s"),
        (format_seconds(402), "6 min 42 s"),
        (format_seconds(3599.9), "1 h 00 min"),
        (format_seconds(7500), "2 h 05 min"),
        (format_percent(0.001), "<1%"),
        (format_percent(0.999), ">99%"),
        (format_percent(1.0), "100%"),
        (format_fixed(math.nan, 2), "not a number"),
        (format_fixed(-math.inf, 2), "\N{MINUS SIGN}∞"),
    ],
)
def test_numbers_read_as_people_write_them(text: str, expected: str) -> None:
    assert text == expected
