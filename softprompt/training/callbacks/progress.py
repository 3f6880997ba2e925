"""What a person sees of a run: plain lines, or a live line."""

import sys
import time
from typing import Any, TextIO

from softprompt.errors import ERROR_CHARACTERS, printable
from softprompt.training.callbacks.callback import Callback
from softprompt.training.validation import LOSS_ITSELF


def _describe_evaluation(metric: str, value: float, loss: float) -> str:
    """What an evaluation gave: the metric and the loss; the loss once where it is the metric itself."""
    if metric.startswith(LOSS_ITSELF):
        return f"validation {metric.removeprefix('negative ')} {loss:.4f}"
    return f"validation {metric} {value:.4f}  loss {loss:.4f}"


class _ProgressMeter:
    """Smoothed loss and speed, and the time left; the clock starts when it is made."""

    def __init__(self, first_step: int = 0, steps: int = 0) -> None:
        self.loss = self.speed = 0.0
        self._first, self.steps, self._made = first_step, steps, first_step
        self._began = time.monotonic()

    def update(self, step: int, loss: float, examples_per_second: float) -> None:
        keep = 0.0 if self._made == self._first else 0.95
        self.loss = keep * self.loss + (1 - keep) * loss
        self.speed = keep * self.speed + (1 - keep) * examples_per_second
        self._made = step

    def left(self) -> str:
        """The mean time of a step so far, evaluations included, times the steps that are left."""
        a_step = (time.monotonic() - self._began) / max(1, self._made - self._first)
        seconds = round(a_step * (self.steps - self._made))
        return f"{seconds // 60}:{seconds % 60:02d}"


class _Progress(Callback):
    """What a person is told of a run, by whatever shows messages."""

    _pace, _gap = _ProgressMeter(), "  "

    def on_train_begin(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        self._pace = _ProgressMeter(first_step, steps)
        self.on_message(f"learning {learned:,} parameters; {frozen:,} stay frozen")

    def on_evaluate(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        mark = f"{self._gap}(best so far)" if best else ""
        self.on_message(f"step {step}  {_describe_evaluation(metric, value, loss)}{mark}")


class ProgressPrinter(_Progress):
    """One line every ``every`` steps, for logs and pipes."""

    def __init__(self, stream: TextIO | None = None, every: int = 20) -> None:
        self._stream, self._every = stream or sys.stderr, every

    def on_step_end(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        pace = self._pace
        pace.update(step, loss, examples_per_second)
        if step % self._every == 0 or step == pace.steps:
            self.on_message(
                f"step {step}/{pace.steps}  training loss {pace.loss:.4f}  "
                f"{pace.speed:.1f} examples/s  {pace.left()} left"
            )

    def on_message(self, text: str) -> None:
        print(printable(text, ERROR_CHARACTERS), file=self._stream, flush=True)


class ProgressBar(_Progress):
    """A rich progress bar: step, loss, last validation metric, examples a second, time left."""

    _gap = " "

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._console = Console(file=stream or sys.stderr)
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn(
                "training loss {task.fields[loss]}  {task.fields[metric]}{task.fields[speed]}  {task.fields[left]} left"
            ),
            console=self._console,
            transient=True,
        )
        self._row: Any = None

    def on_train_begin(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        super().on_train_begin(first_step, steps, learned, frozen)
        if self._row is not None:
            self._progress.remove_task(self._row)
        self._row = self._progress.add_task(
            "", total=steps, completed=first_step, loss="-", metric="", speed="", left="-"
        )
        self._progress.start()

    def on_step_end(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        self._pace.update(step, loss, examples_per_second)
        self._progress.update(
            self._row,
            completed=step,
            loss=f"{self._pace.loss:.4f}",
            speed=f"{self._pace.speed:.1f} examples/s",
            left=self._pace.left(),
        )

    def on_evaluate(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        shown_now = _describe_evaluation(metric, value, loss).partition("  ")[0]
        self._progress.update(self._row, metric=f"{shown_now}  ")
        super().on_evaluate(step, metric, value, loss, best)

    def on_message(self, text: str) -> None:
        self._console.print(printable(text, ERROR_CHARACTERS), markup=False, highlight=False)

    def on_train_end(self) -> None:
        """Take the bar away; the terminal is as it was."""
        self._progress.stop()
