"""What a person sees of a run: plain lines, or a live line."""

import sys
import time
from collections import deque
from typing import Any, TextIO

from softprompt.errors import ERROR_CHARACTERS, printable
from softprompt.training.callbacks.callback import Callback
from softprompt.training.validation import LOSS_ITSELF

STARTING_STEPS = 2  # that say little of the time of those to come
REMEMBERED_STEPS = 50  # the latest, whose mean time is taken for that of those to come


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
        self._eval_every, self._cost = max(1, steps), 0.0
        self._step_seconds: deque[float] = deque(maxlen=REMEMBERED_STEPS)
        self._evaluation_seconds: dict[int, float] = {}  # by the step behind which it was
        self._last = time.monotonic()

    def plan(self, eval_every: int, evaluation_cost: float) -> None:
        """What ``Callback.on_plan`` is told."""
        self._eval_every, self._cost = eval_every, evaluation_cost

    def update(self, step: int, loss: float, examples_per_second: float) -> None:
        keep = 0.0 if self._made == self._first else 0.95
        self.loss = keep * self.loss + (1 - keep) * loss
        self.speed = keep * self.speed + (1 - keep) * examples_per_second
        if step - self._first <= STARTING_STEPS + 1:
            # steps that warm up, and may wait for a compiler, say little of those to come
            self._step_seconds.clear()
        self._step_seconds.append(self._lap())
        self._made = step

    def count_evaluation(self, step: int) -> None:
        """Validation was scored, by one learner or several: the time since the step was for that."""
        self._evaluation_seconds[step] = self._evaluation_seconds.get(step, 0.0) + self._lap()

    def left(self) -> str:
        """The mean time of the latest steps times those that are left, and the evaluations that will come."""
        a_step = sum(self._step_seconds) / max(1, len(self._step_seconds))
        scored = self._evaluation_seconds
        an_evaluation = sum(scored.values()) / len(scored) if scored else self._cost * a_step
        evaluations = -(-self.steps // self._eval_every) - self._first // self._eval_every
        evaluations -= sum(step > self._first for step in scored)
        seconds = round(a_step * (self.steps - self._made) + an_evaluation * evaluations)
        return f"{seconds // 60}:{seconds % 60:02d}"

    def _lap(self) -> float:
        before, self._last = self._last, time.monotonic()
        return self._last - before


class _Progress(Callback):
    """What a person is told of a run, by whatever shows messages."""

    _pace, _gap = _ProgressMeter(), "  "

    def on_train_begin(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        self._pace = _ProgressMeter(first_step, steps)
        self.on_message(f"learning {learned:,} parameters; {frozen:,} stay frozen")

    def on_plan(self, eval_every: int, evaluation_cost: float) -> None:
        self._pace.plan(eval_every, evaluation_cost)

    def on_evaluate(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        self._pace.count_evaluation(step)
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
