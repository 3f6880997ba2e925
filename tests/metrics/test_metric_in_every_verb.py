"""``--metric`` chooses what every verb judges by: one added to the registry, or a function of the user's own."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.small_tasks import TEMPLATE, command, reviews, write_data
from helpers.tiny_models import save_tiny

from softprompt.metrics.registry import METRICS, mean_metric
from softprompt.metrics.scores import FORMATS

MODULE = """
from softprompt.metrics.user_metrics import metric_properties

@metric_properties(heading="Same start", limits=(0, 100), digits=1)
def same_start(prediction, reference):
    return 100.0 * (prediction[0] == reference[0])
"""
CPU = ["--device", "cpu", "--dtype", "float32"]
FAST = ["--steps", "4", "--batch-size", "8"]


def _score_starts(gold: Any, predicted: Any) -> list[float]:
    return [100.0 * (one[0] == other[0]) for one, other in zip(gold, predicted, strict=True)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("metrics")
    save_tiny(folder / "llama", "llama")
    write_data(folder / "reviews", reviews(train=24, validation=12, test=12))
    (folder / "my_metrics.py").write_text(MODULE)
    return folder


@pytest.fixture(params=["my_metrics:same_start", "initials"])
def metric(request: pytest.FixtureRequest, place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    new = mean_metric("initials", "classification", "Same start", _score_starts, (0.0, 100.0), digits=1)
    monkeypatch.setitem(METRICS, "initials", new)
    yield request.param
    METRICS.pop("my_metrics:same_start", None)
    sys.modules.pop("my_metrics", None)


def run(*arguments: object) -> Any:
    done = command(*arguments, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_every_verb_judges_by_it(place: Path, tmp_path: Path, metric: str) -> None:
    model = ["--model", place / "llama", "--template", TEMPLATE, "--metric", metric, *CPU]
    data, out = place / "reviews", tmp_path / "p"
    settings = [*FAST, "--length", "4", "--init", "labels"]
    trained = run("train", *model, "--data", data, "--out", out, *settings)
    assert trained["metrics"]["test"]["metric"] == metric
    assert {"accuracy", "macro_f1"} <= set(trained["metrics"]["test"]["others"])
    assert run("eval", out, "--data", data, "--metric", metric, *CPU)["metric"] == metric

    study = run(
        "compare", *model, "--data", data, "--methods", "zero-shot,tfidf", "--seeds", "1", "--out", tmp_path / "c"
    )
    assert study["metric"] == metric
    report = (tmp_path / "c" / "report.md").read_text()
    assert "Same start" in report
    found = run(
        "sweep", *model, "--data", data, "--space", "length=4,5", "--trials", "2", "--out", tmp_path / "s", *FAST
    )
    assert found["test"]["metric"] == metric

    taught = [*FAST, "--length", "4", "--no-measure", "--shots", "2"]
    distilled = run("distill", *model, "--data", data, "--out", tmp_path / "d", *taught)
    assert distilled["metric"] == metric

    store = tmp_path / "store"
    for folder in (out, tmp_path / "d"):
        run("push", folder, f"{store}#one")
    run("promote", f"{store}#one@1", "live")
    gate = command("promote", f"{store}#one@2", "live", "--data", data, "--metric", metric, *CPU, "--json")
    verdict = json.loads(gate.out)["gate"] if gate.code == 0 else None
    assert metric in gate.err if verdict is None else verdict["metric"] == metric


def test_a_result_says_how_it_is_shown_where_the_function_is_not_imported(
    place: Path, tmp_path: Path, metric: str
) -> None:
    settings = [*FAST, "--length", "4", "--init", "labels", "--metric", metric, *CPU, "--template", TEMPLATE]
    saved = run("train", "--model", place / "llama", "--data", place / "reviews", "--out", tmp_path / "p", *settings)
    assert ("format" in saved["metrics"]["test"]) == (metric != "initials")
    METRICS.pop("my_metrics:same_start", None)
    FORMATS.pop("my_metrics:same_start", None)
    shown = command("show", tmp_path / "p")
    score = saved["metrics"]["test"]
    assert f"{score['value']:.1f} [{score['low']:.1f}, {score['high']:.1f}] n=12" in shown.out
    assert "my_metrics" not in sys.modules or metric == "my_metrics:same_start"
