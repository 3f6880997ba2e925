"""What the tools of others are given of a run, read back as they wrote it down."""

import json
import shutil
import struct
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.small_tasks import FAST, Recorder, reviews_task
from helpers.tiny_models import tiny_base

import softprompt.training.loop as training
from softprompt.errors import ConfigError, MissingExtraError, OutputError
from softprompt.experiments.comparison.compare import compare
from softprompt.experiments.comparison.comparison_run import ComparisonSettings
from softprompt.experiments.sweep.search import sweep
from softprompt.training.callbacks.tracker_tools import TOOLS, MlflowTracker
from softprompt.training.callbacks.trackers import RunTracker, parse_trackers
from softprompt.training.fit import fit

SCALARS = {
    "train/loss",
    "train/learning_rate",
    "train/examples_per_second",
    "validation/accuracy",
    "validation/loss",
}
FINAL = {
    f"final_{split}/{name}"
    for split in ("validation", "test")
    for name in ("n", *(f"{one}{end}" for one in ("accuracy", "macro_f1") for end in ("", "_low", "_high")))
}


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No tool goes to the network, and none writes outside of the test's folder."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's own, with nothing in it: making one takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tool's own
        pytest.importorskip("mlflow").MlflowClient(f"sqlite:///{path}")
    return path


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> None:
    shutil.copy(empty_database, tmp_path / "mlflow.db")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def board(folder: Path) -> RunTracker:
    return RunTracker(parse_trackers(f"tensorboard:{folder}"), lambda text: None)


class TestTensorBoard:
    def test_writes_what_its_own_reader_reads(self, tmp_path: Path) -> None:
        seen = Recorder()
        prompt = fit(tiny_base("llama"), reviews_task(), callback=seen, track=f"tensorboard:{tmp_path / 'tb'}", **FAST)
        found = scalars(tmp_path / "tb")
        assert set(found) >= SCALARS | FINAL
        steps = list(range(1, 13))
        assert [step for step, _ in found["train/loss"]] == steps
        assert [value for _, value in found["train/loss"]] == pytest.approx(seen.losses)
        assert [value for _, value in found["train/learning_rate"]] == pytest.approx(seen.rates)
        assert found["validation/accuracy"] == [
            (step, pytest.approx(value)) for step, _, value, _, _ in seen.evaluations
        ]
        test = prompt.metrics["test"]
        assert found["final_test/accuracy"] == [(12, pytest.approx(test["value"]))]
        assert found["final_test/accuracy_low"] == [(12, pytest.approx(test["low"]))]

    def test_resumed_run_replaces_what_came_behind_its_checkpoint(self, tmp_path: Path) -> None:
        for first, loss in ((0, 1.0), (5, 2.0)):
            with board(tmp_path) as tracker:
                tracker.on_train_begin(first, 10, 1, 1)
                for step in range(first + 1, 11):
                    tracker.on_step_end(step, loss, 0.3, 1.0)
                tracker.on_train_end()
        assert scalars(tmp_path)["train/loss"] == [(step, 1.0 if step <= 5 else 2.0) for step in range(1, 11)]

    def test_makes_no_folder_before_the_run_starts(self, tmp_path: Path) -> None:
        with board(tmp_path / "tb") as tracker:
            tracker.on_message("data was split")
            tracker.on_train_end()
        assert list(tmp_path.iterdir()) == []

    def test_place_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "tb").write_text("mine")
        with pytest.raises(OutputError, match=r"cannot write '.*tb'.*give another place, --track tensorboard:FOLDER"):
            fit(tiny_base("llama"), reviews_task(), track=f"tensorboard:{tmp_path / 'tb'}", **FAST)

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(
            MissingExtraError, match=r"'tensorboard', which is not installed: pip install 'softprompt\[t"
        ):
            parse_trackers("tensorboard")


def read_wandb(folder: Path) -> Iterator[Any]:
    """Records of the one offline run in ``folder``: blocks of 32 KiB, each record with checksum, size and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    content, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        if 32768 - at % 32768 < 7 or kind == 0:
            at += 32768 - at % 32768
            continue
        whole, at = whole + content[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):
            yield Record.FromString(whole)
            whole = b""


def items(some: Any) -> dict[str, Any]:
    return {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in some}


@pytest.mark.filterwarnings("ignore")  # of the tools' own
class TestWandb:
    def test_offline_run_holds_settings_figures_and_result(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        wandb = pytest.importorskip("wandb")
        monkeypatch.setenv("WANDB_PROJECT", "films")
        seen = Recorder()
        prompt = fit(tiny_base("llama"), reviews_task(), out=tmp_path / "p", callback=seen, track="wandb", **FAST)
        wandb.teardown()  # its process writes the rest
        records = list(read_wandb(tmp_path))
        run = next(one.run for one in records if one.WhichOneof("record_type") == "run")
        assert (run.project, run.display_name) == ("films", "p")
        settings = items(run.config.update)
        assert (settings["steps"], settings["model"], settings["data.kind"]) == (12, "tiny llama", "classification")
        rows = [items(one.history.item) for one in records if one.WhichOneof("record_type") == "history"]
        assert [row["train/loss"] for row in rows if "train/loss" in row] == pytest.approx(seen.losses)
        assert [row["_step"] for row in rows] == list(range(1, 13))
        summary: dict[str, Any] = {}
        for one in records:
            summary |= items(one.summary.update)
        assert set(summary) >= FINAL
        assert summary["final_test/accuracy"] == prompt.metrics["test"]["value"]
        assert [note for note in seen.notes if note.startswith("wandb: offline in '")]
        assert capsys.readouterr().out == ""


@pytest.mark.filterwarnings("ignore")  # of the tools' own
@pytest.mark.usefixtures("database")
class TestMlflow:
    def runs(self) -> list[Any]:
        from mlflow import MlflowClient

        client = MlflowClient()
        experiment = client.get_experiment_by_name("softprompt")
        return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))

    def steps(self, run: Any, name: str) -> list[int]:
        from mlflow import MlflowClient

        return [one.step for one in MlflowClient().get_metric_history(run.info.run_id, name)]

    def test_killed_run_goes_on_in_the_same_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        learn = training._accumulate_gradients
        calls: list[int] = []

        def killed(*arguments: Any) -> list[float]:
            calls.append(1)
            if len(calls) == 9:
                raise KeyboardInterrupt
            return learn(*arguments)

        settings = {**FAST, "checkpoint_every": 4}
        monkeypatch.setattr(training, "_accumulate_gradients", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(tiny_base("llama"), reviews_task(), out=tmp_path / "p", track=["mlflow"], **settings)
        monkeypatch.setattr(training, "_accumulate_gradients", learn)
        (broken,) = self.runs()
        assert broken.info.status == "FAILED"
        prompt = fit(tiny_base("llama"), reviews_task(), out=tmp_path / "p", track="mlflow", resume=True, **settings)
        (run,) = self.runs()
        assert (run.info.run_id, run.info.status, run.info.run_name) == (broken.info.run_id, "FINISHED", "p")
        assert self.steps(run, "train/loss") == list(range(1, 13))
        assert run.data.params["learning_rate"] == "0.3"
        assert run.data.metrics["final_test/accuracy_high"] == prompt.metrics["test"]["high"]
        assert not (tmp_path / "p" / "tracked.json").exists()

    def test_comparison_and_sweep_are_groups_of_runs(self, tmp_path: Path) -> None:
        base, task = tiny_base("llama"), reviews_task()
        terms = ComparisonSettings(seeds=1, steps=4)
        for _ in range(2):  # a second call goes on, and has nothing to tell
            compare(base, task, "zero-shot,prompt-tuning:length=3", tmp_path / "study", terms, track="mlflow")
        assert {run.info.run_name: run.data.tags["group"] for run in self.runs()} == {
            "zero-shot, seed 0": "study",
            "prompt-tuning:length=3, seed 0": "study",
        }
        assert all("final_test/accuracy" in run.data.metrics for run in self.runs())
        pytest.importorskip("optuna")
        space = "learning-rate=0.1,0.3"
        _, trials = sweep(base, task, space, tmp_path / "search", trials=2, track="mlflow", fixed=None)
        runs = [run for run in self.runs() if run.data.tags["group"] == "search"]
        assert {run.info.run_name for run in runs} == {"trial 0", "trial 1"}
        assert {run.data.params["learning_rate"] for run in runs} == {"0.1", "0.3"}
        for run in runs:
            assert len(self.steps(run, "validation/value")) == len(trials[0].curve)

    def test_a_tool_that_fails_ends_no_run_and_is_told_of_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*arguments: Any) -> None:
            raise ConnectionError("the server is gone")

        monkeypatch.setattr(MlflowTracker, "log", fail)
        seen = Recorder()
        fit(tiny_base("llama"), reviews_task(), callback=seen, track=f"mlflow,tensorboard:{tmp_path / 'tb'}", **FAST)
        (told,) = [note for note in seen.notes if "does not track" in note]
        assert told == (
            "mlflow does not track this run any further, which goes on: ConnectionError: the server is gone"
        )
        assert len(scalars(tmp_path / "tb")["train/loss"]) == 12


class TestTrackio:
    def test_local_run(self, tmp_path: Path) -> None:
        trackio = pytest.importorskip("trackio", reason="its pin of pillow is not that of constraints.txt")
        seen = Recorder()
        fit(tiny_base("llama"), reviews_task(), out=tmp_path / "p", callback=seen, track="trackio", **FAST)
        (run,) = trackio.Api().runs("softprompt")
        assert (run.name, run.config["steps"]) == ("p", 12)
        from trackio.sqlite_storage import SQLiteStorage

        rows = [row for row in SQLiteStorage.get_logs("softprompt", "p") if "train/loss" in row]
        assert [row["train/loss"] for row in rows] == pytest.approx(seen.losses)


class TestNames:
    @pytest.mark.parametrize("track", ["weights", "wandb:folder", "", ["mlflow", "comet"]])
    def test_unknown_ones_are_refused(self, track: Any) -> None:
        with pytest.raises(ConfigError, match=r"unknown tracker '.*': expected mlflow, tensorboard, trackio, wandb"):
            parse_trackers(track)

    @pytest.mark.parametrize("name", sorted(TOOLS))
    def test_what_is_not_installed_says_how(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, TOOLS[name][1], None)
        with pytest.raises(MissingExtraError, match=rf"pip install 'softprompt\[{name}\]'"):
            fit(tiny_base("llama"), reviews_task(), track=name, **FAST)
