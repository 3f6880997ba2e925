"""Findings from what was measured: each bar from both sides, and the most severe first."""

import re
from typing import Any

import pytest
from helpers.planted_inspections import (
    about,
    answers,
    calibration,
    comparison,
    fit,
    inspection,
    losses,
    memorization,
    reproduction,
    token,
    twins,
)

from softprompt.analysis.inspection.inspection_findings import judge_inspection
from softprompt.analysis.inspection.inspection_records import (
    Inspection,
    LabelErrors,
)
from softprompt.cli.verbs.lazy_verbs import cli
from softprompt.config import TrainConfig


def names(found: Inspection) -> list[str]:
    return [one.name for one in judge_inspection(found)]


def test_a_sound_prompt_has_no_findings() -> None:
    history = losses((0.7, 0.6), (0.5, 0.4), (0.3, 0.3))
    assert names(inspection(history=history, reproduction=reproduction(0.9), duplicates=twins())) == []


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("at-initialisation", {"tokens": tuple(token(i, moved=0.01) for i in range(4))}),
        ("norms-far", {"tokens": (token(0, norm=40.0), *(token(i) for i in (1, 2, 3)))}),
        ("empty-tokens", {"tokens": (token(0, norm=0.5), *(token(i) for i in (1, 2, 3)))}),
        ("dead-tokens", {"tokens": (token(0, ablation=about(0, 0.001), changed=0.0), token(1))}),
        ("overfitting", {"fit": fit(0.1, 0.5)}),
        ("label-collapse", {"answers": answers(confusion=(("a", "a", 100), ("b", "a", 98), ("b", "b", 2)))}),
        ("label-collapse", {"answers": answers(confusion=(("a", "a", 90), ("b", "b", 85), ("c", "b", 25)))}),
        ("nothing-learned", {"fit": fit(0.68, 0.68)}),
        ("worse-than-reference", {"answers": answers(comparison=comparison(-0.05))}),
        ("truncation", {"answers": answers(truncated=4)}),
        ("truncation", {"training": {"truncated_texts": 200}}),
        ("not-reproduced", {"reproduction": reproduction(0.88)}),
        ("not-reproduced", {"reproduction": reproduction(0.7, n=100)}),
        ("rate-too-high", {"history": losses((0.7, 0.6), (0.5, 0.4), (0.8, 0.5))}),
        ("rate-too-high", {"history": losses((0.7, 0.4), (0.7, 0.9))}),
        ("rate-too-high", {"history": losses((0.9, 0.6), (1.0, 0.4))}),
        (
            "rate-too-high",
            {"history": losses((1.2, 0.6), (0.5, 0.4)), "tokens": tuple(token(i, moved=9.0) for i in range(4))},
        ),
        ("mislabelled-rows", {"label_errors": LabelErrors(looked_at=100, found=5, listed=())}),
        ("leaking-duplicates", {"duplicates": twins(leaked=5, groups=5)}),
        ("conflicting-duplicates", {"duplicates": twins(conflicting=1, groups=1)}),
        ("memorised", {"memorization": memorization(0.1, 0.7)}),
        ("overconfident", {"answers": answers(calibration=calibration(0.1))}),
        ("underconfident", {"answers": answers(calibration=calibration(-0.1))}),
    ],
)
def test_is_found(name: str, fields: dict[str, Any]) -> None:
    assert names(inspection(**fields)) == [name]
    (finding,) = judge_inspection(inspection(**fields))
    assert finding.evidence
    assert finding.meaning
    assert finding.advice


@pytest.mark.parametrize(
    "fields",
    [
        {"tokens": (token(0, moved=0.01), token(1))},
        {"tokens": (token(0, ablation=about(0, 0.001), changed=0.5), token(1))},
        {"tokens": (token(0, ablation=about(0, 0.1), changed=0.0), token(1))},
        {"fit": fit(0.3, 0.4)},
        # one label, where the data have little else
        {"answers": answers(confusion=(("a", "a", 190), ("b", "a", 10)))},
        {"answers": answers(comparison=comparison(-0.01))},
        {"answers": answers(truncated=1)},
        # on other data another figure is no fault
        {"reproduction": reproduction(0.5, same=False)},
        {"reproduction": reproduction(0.88, n=100)},
        # overfitting: validation rises while the training loss falls
        {"history": losses((0.7, 0.3), (0.3, 0.3), (0.1, 0.5))},
        {"label_errors": LabelErrors(looked_at=1000, found=2, listed=())},
        {"duplicates": twins(redundant=50, groups=50)},
        {"memorization": memorization(0.01, 0.7)},
        {"memorization": memorization(0.1, 0.7, same=False)},
        {"answers": answers(calibration=calibration(0.06))},
        # surely worse by the bootstrap, but few answers differ
        {"answers": answers(comparison=comparison(-0.05, broken=7))},
        # ten of ten right, where 0.9 of all are
        {"reproduction": reproduction(1.0, n=10)},
        {"reproduction": reproduction(0.92, n=100, saved=100)},
        # begun worse than the labels' frequencies
        {"history": losses((1.2, 0.6), (0.5, 0.4))},
        {"history": losses((1.2, 0.6), (1.2, 0.6))},
        # a divergence is no loss of labels
        {"history": losses((0.9, 0.6), (1.0, 0.4)), "training": {"teacher": "a text"}},
    ],
)
def test_is_not_found(fields: dict[str, Any]) -> None:
    assert names(inspection(**fields)) == []


def test_the_most_severe_come_first() -> None:
    found = judge_inspection(inspection(fit=fit(0.68, 0.68), answers=answers(truncated=4), duplicates=twins(leaked=9)))
    assert [one.severity for one in found] == ["problem", "warning", "note"]


def test_what_learned_nothing_accuses_no_rows() -> None:
    fields = {"fit": fit(0.68, 0.68), "label_errors": LabelErrors(looked_at=100, found=40, listed=())}
    assert names(inspection(**fields)) == ["nothing-learned"]


def test_other_data_are_not_called_unlearnable() -> None:
    (same,), (other,) = (judge_inspection(inspection(fit=fit(0.68, 0.68), same_data=known)) for known in (True, False))
    assert "nothing to learn from these rows" in same.meaning
    assert "learned on other rows" in other.meaning


def test_of_generation_no_answers_are_told() -> None:
    dead = (token(0, ablation=about(0, 0.001), changed=None), token(1))
    label_errors = LabelErrors(looked_at=100, found=5, listed=())
    found = judge_inspection(inspection(kind="generation", tokens=dead, label_errors=label_errors))
    assert {one.name for one in found} == {"mislabelled-rows", "dead-tokens"}
    assert "answer" not in found[0].evidence + found[1].evidence


def test_advice_names_settings_that_there_are() -> None:
    made = [
        *judge_inspection(inspection(fit=fit(0.1, 0.5))),
        *judge_inspection(inspection(tokens=tuple(token(i, norm=40.0) for i in range(4)))),
    ]
    known = {name for command in cli.commands.values() for option in command.params for name in option.opts}
    told = " ".join(advice for one in made for advice in one.advice)
    assert set(re.findall(r"--[a-z-]+", told)) <= known
    assert "weight_decay" in told
    assert "weight_decay" in TrainConfig.model_fields


def test_movement_alone_is_a_note() -> None:
    found = inspection(history=losses((0.7, 0.6), (0.5, 0.4)), tokens=tuple(token(i, moved=14.0) for i in range(4)))
    (finding,) = judge_inspection(found)
    assert (finding.name, finding.severity) == ("rate-too-high", "note")


def test_nothing_measured_gives_no_findings() -> None:
    assert names(inspection(tokens=(), answers=None, fit=None, vocabulary=None, prior_loss=None)) == []
