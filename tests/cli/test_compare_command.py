"""A comparison of every method there is, on a tiny model, through the command line."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.killed_runs import DYING
from helpers.planted_candidates import without_times
from helpers.small_tasks import TEMPLATE, Ended, command, reviews, write_data
from helpers.tiny_models import save_tiny

from softprompt.experiments.comparison.candidates import CANDIDATE_KINDS
from softprompt.experiments.comparison.study_records import Study
from softprompt.inference.neutral_text import PASSAGES
from softprompt.store.prompt_loading import load_prompt

OPTIONS = ["--template", TEMPLATE, "--device", "cpu", "--dtype", "float32", "--batch-size", "8"]
EVERY = ",".join([*(name for name in CANDIDATE_KINDS if name != "few-shot"), "few-shot:2"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models and data."""
    folder = tmp_path_factory.mktemp("compare")
    save_tiny(folder / "llama", "llama")
    save_tiny(folder / "gpt2", "gpt2")
    write_data(folder / "data", reviews(test=60))
    write_data(folder / "shifted", reviews(train=0, validation=0, test=30, seed=7))
    (folder / "dying").mkdir()
    (folder / "dying" / "sitecustomize.py").write_text(DYING)
    return folder


def arguments(place: Path, out: Path, *more: object) -> list[str]:
    given = ["compare", "--model", place / "llama", "--data", place / "data", "--out", out, *OPTIONS, *more]
    return list(map(str, given))


@pytest.fixture(scope="module")
def whole(place: Path) -> tuple[Ended, Path]:
    """How a study of all methods ended, and its folder."""
    out = place / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("softprompt.inference.benchmark.REQUESTS", 5)
        patch.setattr("softprompt.inference.benchmark.BATCHES", 1)
        patch.setattr("softprompt.inference.benchmark.PASSAGES", PASSAGES[:1])
        more = ["--methods", EVERY, "--seeds", 2, "--steps", 12, "--price-per-hour", 0.5, "--current", "zero-shot"]
        done = command(*arguments(place, out, *more, "--shift-data", place / "shifted", "--keep", "--json"))
    assert done.code == 0, done.err
    return done, out


@pytest.fixture(scope="module")
def study(whole: tuple[Ended, Path]) -> Study:
    return Study.model_validate_json((whole[1] / "report.json").read_bytes())


class TestEveryMethod:
    def test_gives_results(self, study: Study) -> None:
        assert [row.method for row in study.rows] == EVERY.split(",")
        assert [row.error for row in study.rows] == [None] * len(CANDIDATE_KINDS)
        for row in study.rows:
            assert row.mean is not None
            assert row.shift is not None
            assert row.calibration_error is not None
            assert row.speed is not None
            assert row.cost is not None
            assert row.cost.stored_bytes > 0
            assert row.cost.memory_for(1000) > row.cost.memory_for(1)

    def test_is_scored_on_the_same_examples(self, study: Study) -> None:
        assert {len(result.predictions) for result in study.results} == {60}
        assert {result.test.n for result in study.results if result.test} == {60}
        assert {result.shift.n for result in study.results if result.shift} == {30}

    def test_makes_the_same_steps(self, study: Study) -> None:
        learned = [result for result in study.results if result.curve]
        assert {result.method for result in learned} == {
            "prompt-tuning",
            "p-tuning",
            "residual",
            "prefix-tuning",
            "lora",
            "full",
        }
        assert {tuple(point.step for point in result.curve) for result in learned} == {(4, 8, 12)}
        assert all(point.seconds > 0 for result in learned for point in result.curve)

    def test_only_changed_weights_forget(self, study: Study) -> None:
        changed = {row.method for row in study.rows if row.forgetting and row.forgetting.after != row.forgetting.before}
        assert changed == {"lora", "full"}

    def test_memory_is_of_one_base_and_many_tasks_but_for_full_fine_tuning(self, study: Study) -> None:
        costs = {row.method: row.cost for row in study.rows if row.cost is not None}
        whole = costs["zero-shot"].base_bytes
        assert costs["full"].memory_for(100) == 100 * whole
        assert costs["prompt-tuning"].memory_for(100) == whole + 100 * costs["prompt-tuning"].task_bytes
        assert costs["tfidf"].base_bytes == 0

    def test_leaves_what_can_be_deployed(self, whole: tuple[Ended, Path]) -> None:
        kept = whole[1] / "artifacts"
        assert {path.name for path in kept.iterdir()} == {name.replace(":", "_") for name in EVERY.split(",")}
        assert load_prompt(kept / "prompt-tuning").method == "prompt-tuning"
        assert (kept / "lora" / "adapter_model.safetensors").is_file()
        assert (kept / "full" / "config.json").is_file()

    def test_is_summed_up_as_one_json_object(self, whole: tuple[Ended, Path], study: Study) -> None:
        printed = json.loads(whole[0].out)
        assert printed["recommendation"] == study.recommendation.model_dump(mode="json")
        assert [row["method"] for row in printed["rows"]] == EVERY.split(",")
        assert printed["out"] == str(whole[1])
        assert "results" not in printed

    def test_is_told_as_text_by_a_second_run(self, place: Path, whole: tuple[Ended, Path], study: Study) -> None:
        more = ["--methods", EVERY, "--seeds", 2, "--steps", 12, "--price-per-hour", 0.5, "--current", "zero-shot"]
        done = command(*arguments(place, whole[1], *more, "--shift-data", place / "shifted"))
        assert done.code == 0
        assert "learning" not in done.err
        assert study.recommendation.sentence in done.out
        assert all(reason in done.out for reason in study.recommendation.reasons)
        for heading in ("Against the one in use", "ECE", "Other domain", "Cost of a million", "1,000 tasks"):
            assert heading in done.out
        assert " + tasks \N{MULTIPLICATION SIGN} " in done.out


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--methods", "zero-shot,promt-tuning"], "unknown method 'promt-tuning': did you mean 'prompt-tuning'"),
            (["--methods", "zero-shot"], "expected at least two methods to compare, got zero-shot"),
            (["--methods", "zero-shot,full", "--current", "lora"], "--current 'lora' is not among the methods"),
            (["--steps", 5, "--budget", "5m"], "--steps and --budget exclude each other"),
            (["--budget", "soon"], "--budget 'soon': expected a time such as 90s, 10m or 1.5h"),
            (["--budget", "0m"], "--budget '0m': expected a time"),
            (["--data", "nowhere.csv"], "nowhere.csv"),
        ],
    )
    def test_are_told_before_the_model_is_loaded(
        self, place: Path, tmp_path: Path, options: list[Any], words: str
    ) -> None:
        done = command(*arguments(place, tmp_path / "out", *options))
        assert done.code == 2
        assert words in done.error
        assert "loading" not in done.err
        assert not (tmp_path / "out").exists()

    def test_missing_extra(self, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        done = command(*arguments(place, tmp_path / "out", "--methods", "zero-shot,lora"))
        assert (done.code, "pip install 'softprompt[peft]'" in done.error) == (2, True)
        assert "loading" not in done.err

    def test_other_settings_for_the_same_folder(self, place: Path, whole: tuple[Ended, Path]) -> None:
        done = command(*arguments(place, whole[1], "--methods", "zero-shot,tfidf", "--steps", 13))
        assert done.code == 2
        assert "holds results of another comparison (" in done.error
        assert "steps was 12, is 13" in done.error


@pytest.mark.slow
class TestKilled:
    """Dead by SIGKILL within a search over rates, and between two seeds that learned together."""

    more = ("--methods", "zero-shot,prompt-tuning:length=4,full", "--seeds", 2, "--steps", 30, "--rates", 2)

    def process(self, place: Path, out: Path, dies: Path | None = None) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        if dies is not None:
            environment |= {"DIE_ONCE_THERE": str(dies), "PYTHONPATH": str(place / "dying")}
        done = subprocess.run(
            [sys.executable, "-m", "softprompt", *arguments(place, out, *self.more)],
            cwd=Path(__file__).parents[2],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == (0 if dies is None else -signal.SIGKILL), done.stderr

    def test_ends_with_the_results_of_an_unbroken_run(self, place: Path, tmp_path: Path) -> None:
        out, name = tmp_path / "killed", "prompt-tuning_length=4"
        self.process(place, out, out / "learning" / name / "trials" / "prompts.run" / "checkpoint.safetensors")
        assert [path.name for path in (out / "results").iterdir()] == ["zero-shot-0.json"]
        self.process(place, out, out / "results" / f"{name}-0.json")
        assert not (out / "results" / f"{name}-1.json").exists()
        self.process(place, out)
        self.process(place, tmp_path / "unbroken")
        killed, unbroken = (
            Study.model_validate_json((folder / "report.json").read_bytes()) for folder in (out, tmp_path / "unbroken")
        )
        assert len(unbroken.results) == 5
        assert without_times(killed) == without_times(unbroken)
        assert list((out / "learning").glob("*/")) == []


class TestScale:
    def test_follows_the_gap_over_two_models(self, place: Path, tmp_path: Path) -> None:
        given = ["--models", f"{place / 'llama'},{place / 'gpt2'}", "--data", place / "data", "--out", tmp_path / "out"]
        more = ["--methods", "prompt-tuning:length=4,full", "--steps", 6, "--seeds", 1]
        done = command("scale", *given, *OPTIONS, *more, "--json")
        assert done.code == 0, done.err
        printed = json.loads(done.out)
        assert printed["methods"] == ["prompt-tuning:length=4", "full"]
        sizes = [point["parameters"] for point in printed["points"]]
        assert sizes == sorted(sizes)
        for point in printed["points"]:
            study = Study.model_validate_json((tmp_path / "out" / point["folder"] / "report.json").read_bytes())
            prompt, full = (row.mean for row in study.rows)
            assert point["gaps"]["full"]["difference"] == pytest.approx((prompt or 0) - (full or 0))
        assert {"scale.html", "scale.json", "scale.md"} <= {path.name for path in (tmp_path / "out").iterdir()}

        again = command("scale", *given, *OPTIONS, *more)
        assert "learning" not in again.err
        assert "prompt-tuning:length=4 minus each other method" in again.out
        assert "minus full" in again.out
        assert printed["sentence"] in again.out

    @pytest.mark.parametrize(
        ("models", "words"), [("llama", "expected two models or more"), ("a,a", "expected each model once")]
    )
    def test_needs_two_models(self, place: Path, tmp_path: Path, models: str, words: str) -> None:
        done = command("scale", "--models", models, "--data", place / "data", "--out", tmp_path / "out")
        assert done.code == 2
        assert words in done.error
