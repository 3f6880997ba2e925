"""Several callbacks as one, and one that does nothing."""

from pathlib import Path

import pytest
from helpers.small_tasks import FAST, Recorder, reviews_task
from helpers.tiny_models import tiny_base
from helpers.told_runs import Terminal, told

from softprompt.errors import OutputError
from softprompt.training.callbacks.callback import Callback, CallbackList
from softprompt.training.callbacks.progress import ProgressBar
from softprompt.training.callbacks.trackers import RunTracker, parse_trackers
from softprompt.training.fit import fit


class TestCallbackList:
    def test_passes_everything_on(self) -> None:
        one, other = Recorder(), Recorder()
        both = CallbackList([one, other])
        told(both)
        both.on_train_end()
        assert vars(one) == vars(other)
        assert (one.first_step, len(one.losses), len(one.evaluations), one.notes, one.ended) == (
            0,
            20,
            1,
            ["data was split"],
            1,
        )

    def test_first_is_taken_away_when_the_second_does_not_start(self, terminal: Terminal, tmp_path: Path) -> None:
        (tmp_path / "tb").write_text("mine")
        line = ProgressBar(terminal)
        with pytest.raises(OutputError):
            fit(
                tiny_base("llama"),
                reviews_task(),
                callback=CallbackList(
                    [line, RunTracker(parse_trackers(f"tensorboard:{tmp_path / 'tb'}"), line.on_message)]
                ),
                **FAST,
            )
        assert not line._progress.live.is_started


def test_silent_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    silent = Callback()
    told(silent)
    silent.on_train_end()
    assert capsys.readouterr() == ("", "")
