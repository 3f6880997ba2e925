"""What trackers are given, read back by their own readers."""

import sys
from pathlib import Path

import pytest
from helpers.small_tasks import FAST, Recorder, reviews_task
from helpers.tiny_models import tiny_base

from softprompt.errors import MissingExtraError, OutputError
from softprompt.training.callbacks.callback import CallbackList
from softprompt.training.callbacks.trackers import TensorBoardLogger
from softprompt.training.fit import fit


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


class TestTensorBoard:
    def test_writes_what_its_own_reader_reads(self, tmp_path: Path) -> None:
        seen = Recorder()
        fit(
            tiny_base("llama"),
            reviews_task(),
            callback=CallbackList([TensorBoardLogger(tmp_path / "tb"), seen]),
            **FAST,
        )
        found = scalars(tmp_path / "tb")
        assert set(found) == {
            "train/loss",
            "train/learning_rate",
            "train/examples_per_second",
            "validation/accuracy",
            "validation/loss",
        }
        steps = list(range(1, 13))
        assert [step for step, _ in found["train/loss"]] == steps
        assert [value for _, value in found["train/loss"]] == pytest.approx(seen.losses)
        assert [value for _, value in found["train/learning_rate"]] == pytest.approx(seen.rates)
        assert found["validation/accuracy"] == [
            (step, pytest.approx(value)) for step, _, value, _, _ in seen.evaluations
        ]

    def test_resumed_run_replaces_what_came_behind_its_checkpoint(self, tmp_path: Path) -> None:
        for first, loss in ((0, 1.0), (5, 2.0)):
            board = TensorBoardLogger(tmp_path)
            board.on_train_begin(first, 10, 1, 1)
            for step in range(first + 1, 11):
                board.on_step_end(step, loss, 0.3, 1.0)
            board.on_train_end()
        assert scalars(tmp_path)["train/loss"] == [(step, 1.0 if step <= 5 else 2.0) for step in range(1, 11)]

    def test_makes_no_folder_before_the_run_starts(self, tmp_path: Path) -> None:
        board = TensorBoardLogger(tmp_path / "tb")
        board.on_message("data was split")
        board.on_train_end()
        assert list(tmp_path.iterdir()) == []

    def test_place_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "tb").write_text("mine")
        with pytest.raises(OutputError, match=r"cannot write '.*tb'.*give another --tensorboard"):
            fit(tiny_base("llama"), reviews_task(), callback=TensorBoardLogger(tmp_path / "tb"), **FAST)

    def test_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(
            MissingExtraError, match=r"'tensorboard', which is not installed: pip install 'softprompt\[t"
        ):
            TensorBoardLogger(tmp_path)
