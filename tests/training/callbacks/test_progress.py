"""What a run shows: plain lines, and a live line that is always taken away again."""

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from helpers.small_tasks import FAST, reviews_task
from helpers.tiny_models import tiny_base
from helpers.told_runs import Clock, Terminal, told

import softprompt.training.loop as training
from softprompt.errors import TrainingError
from softprompt.inference.reading_progress import report_progress, track
from softprompt.training.callbacks.callback import Callback
from softprompt.training.callbacks.progress import ProgressBar, ProgressPrinter
from softprompt.training.fit import fit
from softprompt.training.validation import Validation


class TestProgressPrinter:
    def test_shows_what_goes_on(self, clock: Clock) -> None:
        stream = io.StringIO()
        told(ProgressPrinter(stream), clock)
        assert stream.getvalue().splitlines() == [
            "data was split",
            "learning 2,560 parameters; 268,000,000 stay frozen",
            "step 20/40  training loss 0.5000  32.0 examples/s  0:10 left",
            "step 20  validation accuracy 0.8750  loss 0.2500  (best so far)",
        ]

    def test_last_step_is_always_shown(self) -> None:
        stream = io.StringIO()
        lines = ProgressPrinter(stream)
        lines.on_train_begin(0, 7, 1, 1)
        for step in range(1, 8):
            lines.on_step_end(step, 1.0, 0.3, 10.0)
        assert [line for line in stream.getvalue().splitlines() if line.startswith("step")] == [
            "step 7/7  training loss 1.0000  10.0 examples/s  0:00 left"
        ]

    def test_not_the_best_is_not_marked(self) -> None:
        stream = io.StringIO()
        ProgressPrinter(stream).on_evaluate(5, "accuracy", 0.5, 1.0, False)
        assert stream.getvalue() == "step 5  validation accuracy 0.5000  loss 1.0000\n"

    def test_a_loss_that_is_the_metric_is_shown_once(self) -> None:
        stream = io.StringIO()
        ProgressPrinter(stream).on_evaluate(5, "negative loss", -2.39, 2.39, True)
        ProgressPrinter(stream).on_evaluate(9, "negative loss of words", -1.5, 1.5, False)
        assert stream.getvalue() == (
            "step 5  validation loss 2.3900  (best so far)\nstep 9  validation loss of words 1.5000\n"
        )

    def test_time_left_counts_only_this_part_of_a_resumed_run(self, clock: Clock) -> None:
        stream = io.StringIO()
        told(ProgressPrinter(stream), clock, first=10, seconds=12.0)
        assert "4:00 left" in stream.getvalue()

    def test_time_left_is_right_from_the_tenth_step_on(self, clock: Clock) -> None:
        """A run of 100 steps of a second, evaluations of 8 and a slow start; the plan says 8 steps an evaluation."""
        stream = io.StringIO()
        lines = ProgressPrinter(stream, every=10)
        lines.on_train_begin(0, 100, 1, 1)
        expected, ends = [], []
        for step in range(1, 101):
            clock.now += {1: 5.0, 2: 40.0}.get(step, 1.0)
            if step == 1:
                lines.on_plan(25, 8.0)
            lines.on_step_end(step, 1.0, 0.3, 10.0)
            if step % 10 == 0:
                ends.append(clock.now)
            if step % 25 == 0:
                clock.now += 8.0
                lines.on_evaluate(step, "accuracy", 0.5, 1.0, True)
        expected = [round(clock.now - at) for at in ends]
        told_left = [int(m) * 60 + int(s) for m, s in re.findall(r"(\d+):(\d\d) left", stream.getvalue())]
        assert told_left == expected

    def test_time_left_of_several_that_are_scored_one_after_the_other(self, clock: Clock) -> None:
        stream = io.StringIO()
        lines = ProgressPrinter(stream, every=5)
        lines.on_train_begin(0, 10, 1, 1)
        for step in range(1, 6):
            clock.now += 1.0
            lines.on_step_end(step, 1.0, 0.3, 10.0)
            if step == 1:
                lines.on_plan(2, 6.0)
            if step % 2 == 0:
                for _ in range(3):
                    clock.now += 2.0
                    lines.on_evaluate(step, "accuracy", 0.5, 1.0, True)
        # five steps of a second, and the scores behind 6, 8 and 10
        assert "0:23 left" in stream.getvalue()

    def test_time_left_counts_evaluations_too(self, clock: Clock) -> None:
        stream = io.StringIO()
        lines = ProgressPrinter(stream, every=1)
        lines.on_train_begin(0, 4, 1, 1)
        clock.now += 1
        lines.on_plan(1, 3.0)
        lines.on_step_end(1, 1.0, 0.3, 10.0)
        clock.now += 9
        lines.on_evaluate(1, "accuracy", 0.5, 1.0, True)
        clock.now += 1
        lines.on_step_end(2, 1.0, 0.3, 10.0)
        # the plan's three steps an evaluation, four of them; then the nine seconds that one took, three of them
        assert re.findall(r"(\S+) left", stream.getvalue()) == ["0:15", "0:29"]

    def test_loss_is_smoothed(self) -> None:
        stream = io.StringIO()
        lines = ProgressPrinter(stream, every=1)
        lines.on_train_begin(0, 9, 1, 1)
        lines.on_step_end(1, 2.0, 0.3, 10.0)
        lines.on_step_end(2, 1.0, 0.3, 20.0)
        assert "step 1/9  training loss 2.0000  10.0 examples/s" in stream.getvalue()
        assert "step 2/9  training loss 1.9500  10.5 examples/s" in stream.getvalue()

    def test_goes_to_standard_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        ProgressPrinter().on_message("hello")
        assert capsys.readouterr() == ("", "hello\n")


def visible(stream: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())


HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"  # the cursor


class TestProgressBar:
    def test_shows_what_goes_on(self, terminal: Terminal, clock: Clock) -> None:
        line = ProgressBar(terminal)
        told(line, clock)
        line._progress.refresh()
        line.on_train_end()
        shown = visible(terminal)
        assert "data was split" in shown
        assert "learning 2,560 parameters; 268,000,000 stay frozen" in shown
        assert "step 20  validation accuracy 0.8750  loss 0.2500 (best so far)" in shown
        (last,) = [part for part in re.split(r"[\r\n]", shown) if "left" in part][-1:]
        for part in ("step 20/40", "loss 0.5000", "accuracy 0.8750", "32.0 examples/s", "0:10 left"):
            assert part in last

    def test_takes_itself_away(self, terminal: Terminal) -> None:
        line = ProgressBar(terminal)
        told(line)
        assert line._progress.live.is_started
        assert terminal.getvalue().count(SHOW) < terminal.getvalue().count(HIDE)
        line.on_train_end()
        assert not line._progress.live.is_started
        assert terminal.getvalue().count(SHOW) == terminal.getvalue().count(HIDE)

    def test_of_a_second_run_stands_alone(self, terminal: Terminal) -> None:
        line = ProgressBar(terminal)
        for _ in range(2):
            told(line)
            line.on_train_end()
        assert len(line._progress.tasks) == 1

    def test_finished_before_it_started(self, terminal: Terminal) -> None:
        ProgressBar(terminal).on_train_end()
        assert terminal.getvalue() == ""

    def test_markup_in_notes_is_text(self, terminal: Terminal) -> None:
        ProgressBar(terminal).on_message("labels [bold] and [/x]")
        assert "labels [bold] and [/x]" in visible(terminal)

    def test_of_a_whole_run(self, terminal: Terminal) -> None:
        line = ProgressBar(terminal)
        fit(tiny_base("llama"), reviews_task(), callback=line, **FAST)
        assert not line._progress.live.is_started
        assert "step 12  validation accuracy" in visible(terminal)

    def test_is_gone_after_an_early_stop(self, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
        line = ProgressBar(terminal)
        monkeypatch.setattr(Validation, "score", lambda *arguments: (0.5, 1.0))
        prompt = fit(tiny_base("llama"), reviews_task(), callback=line, patience=1, **{**FAST, "steps": 100})
        assert prompt.training["steps_made"] == 12
        assert not line._progress.live.is_started
        assert SHOW in terminal.getvalue()

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, TrainingError])
    def test_is_gone_after_an_error(
        self, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, error: Callable[[str], BaseException]
    ) -> None:
        def fail(*arguments: Any) -> float:
            raise error("no")

        line = ProgressBar(terminal)
        monkeypatch.setattr(training, "_accumulate_gradients", fail)
        with pytest.raises((KeyboardInterrupt, RuntimeError, TrainingError), match="no"):
            fit(tiny_base("llama"), reviews_task(), callback=line, **FAST)
        assert not line._progress.live.is_started
        assert SHOW in terminal.getvalue()


class TestReading:
    """Rows that are read outside of the steps."""

    def test_lines_tell_the_share_and_the_time_left_now_and_then(self, clock: Clock) -> None:
        stream = io.StringIO()
        lines = ProgressPrinter(stream)
        for share in (0.1, 0.2, 0.3, 0.4, 1.0, 0.5, 1.0):
            lines.on_read(share)
            clock.now += 10.0
        # behind the first batch a tenth took ten seconds; the second reading is done before there is much to tell
        assert stream.getvalue().splitlines() == ["30% read, 1:10 left"]

    def test_what_is_read_at_once_is_not_told(self, clock: Clock) -> None:
        stream = io.StringIO()
        ProgressPrinter(stream).on_read(1.0)
        ProgressBar(stream).on_read(1.0)
        assert stream.getvalue() == ""

    def test_a_bar_goes_on_and_is_taken_away(self) -> None:
        stream = Terminal()
        bar = ProgressBar(stream)
        for share in (0.25, 0.5, 0.75):
            bar.on_read(share)
        bar.on_read(1.0)
        shown = stream.getvalue()
        assert "reading" in shown
        assert "\x1b[?25h" in shown[shown.rindex("reading") :], "the cursor is back"

    def test_a_bar_is_taken_away_when_reading_fails(self) -> None:
        stream = Terminal()
        bar = ProgressBar(stream)
        with pytest.raises(ZeroDivisionError), report_progress(bar.on_read):
            [1 / part for part in track([1, 1, 0], lambda size: 1)]
        assert "\x1b[?25h" in stream.getvalue()

    def test_fit_tells_how_much_of_the_end_is_read(self) -> None:
        shares: list[float] = []

        class Reader(Callback):
            def on_read(self, share: float) -> None:
                shares.append(share)

        fit(tiny_base("llama"), reviews_task(), callback=Reader(), **FAST)
        assert shares[-1] == 1.0
        assert all(0 < share <= 1 for share in shares)
