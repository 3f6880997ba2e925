"""A comparison whose machine slowed down in the middle tells what one on a steady machine tells, and says so."""

import re
from pathlib import Path

import pytest
from helpers.planted_study import planted_study
from helpers.told import told_lines

from softprompt.experiments.comparison.recommendation import Evidence, recommend
from softprompt.experiments.comparison.study_records import Row, Study, collect_speeds
from softprompt.inference.speed_drift import find_speed_drift, normalize_speeds
from softprompt.report.pages.comparison_page import make_comparison_document
from softprompt.report.render.html import render_html
from softprompt.report.report_files import write_report

SLOWED = ("prompt-tuning", "lora")  # measured while something else ran
TIMES = 4.0
WARNING = "The machine's speed changed while this was measured"


def slower(row: Row) -> Row:
    """As it is measured on a machine that is ``TIMES`` slower at that moment."""
    assert row.speed is not None
    assert row.speed.reference_ms is not None
    speed = row.speed.model_copy(
        update={
            "p50_ms": TIMES * row.speed.p50_ms,
            "p95_ms": TIMES * row.speed.p95_ms,
            "reference_ms": TIMES * row.speed.reference_ms,
            "examples_per_second": row.speed.examples_per_second / TIMES,
        }
    )
    return row.model_copy(update={"speed": speed})


def advised(study: Study) -> Study:
    evidence = Evidence(study.rows, study.metric, len(study.gold), 0.3, study.current, study.price_per_hour)
    return study.model_copy(update={"recommendation": recommend(evidence)})


@pytest.fixture(scope="module")
def steady() -> Study:
    return advised(planted_study(n=120))


@pytest.fixture(scope="module")
def slowed(steady: Study) -> Study:
    rows = tuple(slower(row) if row.method in SLOWED else row for row in steady.rows)
    return advised(steady.model_copy(update={"rows": rows}))


def test_ratios_and_relations_are_those_of_the_steady_machine(steady: Study, slowed: Study) -> None:
    assert find_speed_drift(collect_speeds(steady.rows)) is None
    assert find_speed_drift(collect_speeds(slowed.rows)) == (20.0, 80.0)
    was, found = normalize_speeds(collect_speeds(steady.rows)), normalize_speeds(collect_speeds(slowed.rows))
    for one, other in zip(was, found, strict=True):
        assert one is not None
        assert other is not None
        assert other.times_reference == pytest.approx(one.p50_ms / 20)
    assert was[0] is not None
    assert found[0] is not None
    for one, other in zip(was, found, strict=True):
        assert one is not None
        assert other is not None
        assert other.p95_ms / found[0].p95_ms == pytest.approx(one.p95_ms / was[0].p95_ms)
        rate = one.examples_per_second / was[0].examples_per_second
        assert other.examples_per_second / found[0].examples_per_second == pytest.approx(rate)


def test_the_same_is_recommended(steady: Study, slowed: Study) -> None:
    assert slowed.recommendation.deploy == steady.recommendation.deploy
    assert slowed.recommendation.candidates == steady.recommendation.candidates


def test_no_form_tells_milliseconds_that_do_not_compare(slowed: Study, tmp_path: Path) -> None:
    write_report(slowed, tmp_path, figures=True)
    forms = {
        "text": "\n".join(told_lines(make_comparison_document(slowed))),
        "markdown": (tmp_path / "report.md").read_text(),
        "html": render_html(make_comparison_document(slowed)),
        "chart": (tmp_path / "figures" / "latency.svg").read_text(),
    }
    row = next(row for row in slowed.rows if row.method == SLOWED[0])
    assert row.speed is not None
    ratio = f"{row.speed.p50_ms / 80:.2f}"
    for name, form in forms.items():
        # the warning has the reference's own milliseconds
        told = re.sub(rf"{WARNING}.*?ms", "", form.replace("&#39;", "'"))
        assert not re.search(r"\d ms\b", told), name
        assert f"{row.speed.p50_ms:.0f}" not in re.findall(
            r"[\d.]+", re.sub(r'(x|y|d|x1|cx|cy|width)="[^"]*"', "", told)
        )
    for name in ("text", "markdown", "html"):
        assert ratio in forms[name]
        assert forms[name].replace("&#39;", "'").count(WARNING) >= (2 if name == "text" else 3), name


def test_the_warning_stands_where_the_figures_are(slowed: Study) -> None:
    found = make_comparison_document(slowed)
    sections = {section.name: section for section in found.sections}
    (statement, *_) = sections["recommendation"].blocks
    assert any(fact.name == "Latency p50, in bare requests" for fact in statement.facts)  # type: ignore[union-attr]
    assert any(WARNING in reason for reason in statement.reasons)  # type: ignore[union-attr]
    blocks = [block for section in found.sections for block in section.blocks]
    request = next(block for block in blocks if getattr(block, "caption", "") == "What a request takes")
    assert WARNING in request.note  # type: ignore[union-attr]
    learn = next(block for block in blocks if getattr(block, "caption", "") == "What it takes to learn and to keep")
    assert "seconds of different methods do not compare" in learn.note  # type: ignore[union-attr]
    chart = next(block for block in blocks if getattr(block, "name", "") == "latency")
    assert WARNING in chart.caption  # type: ignore[union-attr]


def test_a_steady_machine_is_told_in_milliseconds_without_a_word(steady: Study, tmp_path: Path) -> None:
    html = render_html(make_comparison_document(steady))
    assert "speed changed" not in html
    assert "Latency p50, ms" in html
    assert "Latency p50, ms" in "\n".join(told_lines(make_comparison_document(steady)))
