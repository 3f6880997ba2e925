"""The report over model sizes: figures where there are two models to join, the same numbers as tables."""

import json
from pathlib import Path

from softprompt.experiments.comparison.study_records import Row, SizePoint, SizeStudy
from softprompt.report.report_files import write_report


def row(method: str, family: str, mean: float | None) -> Row:
    low, high = (None, None) if mean is None else (mean - 0.02, mean + 0.02)
    return Row(
        method=method,
        family=family,
        seeds=(0,),
        failed=int(mean is None),
        error=None,
        mean=mean,
        deviation=None,
        low=low,
        high=high,
    )


def study(*means: tuple[float | None, float | None]) -> SizeStudy:
    """Prompt tuning and full fine-tuning on models of 1, 10, 100, ... million parameters."""
    points = []
    for place, (prompt, full) in enumerate(means):
        gap = None if prompt is None or full is None else prompt - full
        told = {} if gap is None else {"difference": gap, "low": gap - 0.03, "high": gap + 0.03, "p_value": 0.1, "n": 9}
        points.append(
            SizePoint(
                model=f"model-{place}",
                parameters=10 ** (6 + place),
                folder=f"folder-{place}",
                rows={"prompt": row("prompt", "soft prompt", prompt), "full": row("full", "full", full)},
                gaps={"full": told} if told else {},
            )
        )
    return SizeStudy(
        methods=("prompt", "full"),
        metric="accuracy",
        data="reviews",
        points=tuple(points),
        sentence="The gap closes as models grow.",
        created="2026-01-01T00:00:00+00:00",
    )


def test_holds_the_curves_and_their_numbers(tmp_path: Path) -> None:
    given = study((0.7, 0.9), (0.85, 0.92), (0.95, 0.95))
    write_report(given, tmp_path, figures=True)
    page, text = (tmp_path / "scale.html").read_text(), (tmp_path / "scale.md").read_text()
    text = text.replace("\\[", "[").replace("\\]", "]")
    for told in (given.sentence, "model-1", "0.850", "[0.830, 0.870]", "\N{MINUS SIGN}0.200", "folder-2", "10,000,000"):
        assert told in text
        assert told in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"gap-by-size.svg", "quality-by-size.svg"}
    assert SizeStudy.model_validate(json.loads((tmp_path / "scale.json").read_text())) == given


def test_failed_method_is_a_gap_in_the_table(tmp_path: Path) -> None:
    write_report(study((0.7, 0.9), (0.85, None), (0.95, 0.95)), tmp_path, figures=True)
    text = (tmp_path / "scale.md").read_text()
    assert "\N{EN DASH}" in next(line for line in text.splitlines() if "model-1" in line)


def test_without_two_results_to_join_there_are_only_tables(tmp_path: Path) -> None:
    write_report(study((0.7, None), (None, 0.9)), tmp_path, figures=True)
    assert "0.700" in (tmp_path / "scale.md").read_text()
    assert not (tmp_path / "figures").exists()
