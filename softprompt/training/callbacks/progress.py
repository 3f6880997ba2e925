"""What a person sees of a run: plain lines, or a live line."""

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from html import escape
from importlib import import_module
from typing import Any, Literal, TextIO, TypeAlias

from softprompt.errors import ERROR_CHARACTERS, ConfigError, printable
from softprompt.training.callbacks.callback import Callback, CallbackList
from softprompt.training.validation import LOSS_ITSELF

STARTING_STEPS = 2  # that say little of the time of those to come
REMEMBERED_STEPS = 50  # the latest, whose mean time is taken for that of those to come
READING_GAP = 15.0  # seconds between two lines of a reading


def format_seconds(seconds: float) -> str:
    """As ``M:SS``."""
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"


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
        return format_seconds(a_step * (self.steps - self._made) + an_evaluation * evaluations)

    def _lap(self) -> float:
        before, self._last = self._last, time.monotonic()
        return self._last - before


class _ReadingMeter:
    """The time left of a reading of rows, whose clock starts when its first batch is done."""

    def __init__(self, first: float) -> None:
        self._first, self._began = first, time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the first batch."""
        return time.monotonic() - self._began

    def left(self, share: float) -> str:
        """As ``M:SS``; nothing behind the first batch."""
        read = share - self._first
        return format_seconds(self.seconds * (1 - share) / read) if read > 0 else "-"


class _Progress(Callback):
    """What a person is told of a run, by whatever shows messages."""

    _gap = "  "

    def __init__(self) -> None:
        self._pace = _ProgressMeter()
        self._reading: _ReadingMeter | None = None

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
        super().__init__()
        self._stream, self._every, self._told = stream or sys.stderr, every, 0.0

    def on_step_end(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        pace = self._pace
        pace.update(step, loss, examples_per_second)
        if step % self._every == 0 or step == pace.steps:
            self.on_message(
                f"step {step}/{pace.steps}  training loss {pace.loss:.4f}  "
                f"{pace.speed:.1f} examples/s  {pace.left()} left"
            )

    def on_read(self, share: float) -> None:
        if share >= 1:
            self._reading = None
        elif self._reading is None:
            self._reading, self._told = _ReadingMeter(share), 0.0
        elif (seconds := self._reading.seconds) - self._told >= READING_GAP:
            self._told = seconds
            self.on_message(f"{share:.0%} read, {self._reading.left(share)} left")

    def on_message(self, text: str) -> None:
        print(printable(text, ERROR_CHARACTERS), file=self._stream, flush=True)


class ProgressBar(_Progress):
    """A rich progress bar: step, loss, last validation metric, examples a second, time left."""

    _gap = " "

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn

        super().__init__()
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
        self._rows_read = Progress(
            TextColumn("reading"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]} left"),
            console=self._console,
            transient=True,
        )
        self._reading_row: Any = None

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

    def on_read(self, share: float) -> None:
        if share >= 1:
            if self._reading is not None:
                self._rows_read.remove_task(self._reading_row)
                self._rows_read.stop()
            self._reading = None
            return
        if self._reading is None:
            self._reading = _ReadingMeter(share)
            self._reading_row = self._rows_read.add_task("", total=1.0, left="-")
            self._rows_read.start()
        self._rows_read.update(self._reading_row, completed=share, left=self._reading.left(share))

    def on_message(self, text: str) -> None:
        self._console.print(printable(text, ERROR_CHARACTERS), markup=False, highlight=False)

    def on_train_end(self) -> None:
        """Take the bar away; the terminal is as it was."""
        self._progress.stop()


class NotebookProgress(_Progress):
    """One output of a notebook that is written anew: a bar, the figures of ``ProgressBar``, and the latest messages."""

    _gap = " "
    _LINES, _SECONDS = 8, 0.25  # messages that are shown; between two steps that are

    def __init__(self) -> None:
        super().__init__()
        self._display = import_module("IPython.display").display
        self._handle: Any = None
        self._step = self._steps = 0
        self._loss = self._metric = self._speed = ""
        self._told: list[str] = []
        self._written = -math.inf

    def on_train_begin(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        self._step, self._steps = first_step, steps
        self._loss = self._metric = self._speed = ""
        super().on_train_begin(first_step, steps, learned, frozen)

    def on_step_end(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        pace = self._pace
        pace.update(step, loss, examples_per_second)
        self._step, self._loss = step, f"training loss {pace.loss:.4f}"
        self._speed = f"{pace.speed:.1f} examples/s  {pace.left()} left"
        if time.monotonic() - self._written >= self._SECONDS or step == self._steps:
            self._write()

    def on_evaluate(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        self._metric = _describe_evaluation(metric, value, loss).partition("  ")[0]
        super().on_evaluate(step, metric, value, loss, best)

    def on_read(self, share: float) -> None:
        self._speed = ""
        if share >= 1:
            self._reading = None
        else:
            self._reading = self._reading or _ReadingMeter(share)
            self._speed = f"{share:.0%} read  {self._reading.left(share)} left"
        if share >= 1 or time.monotonic() - self._written >= self._SECONDS:
            self._write()

    def on_message(self, text: str) -> None:
        self._told.append(printable(text, ERROR_CHARACTERS))
        self._write()

    def on_train_end(self) -> None:
        """Leave the bar where it came to, without a time that is left."""
        self._speed = self._speed.partition("  ")[0]
        self._write()

    def _write(self) -> None:
        """Show what there is, in place of what was shown before."""
        figures = [f"step {self._step}/{self._steps}", self._loss, self._metric, self._speed] if self._steps else []
        told = "  ".join(filter(None, figures))
        hidden = len(self._told) - self._LINES
        lines = [*([f"… {hidden:,} lines before"] if hidden > 0 else []), *self._told[-self._LINES :]]
        bar = f'<progress value="{self._step}" max="{self._steps}"></progress> {escape(told)}' if told else ""
        messages = f'<pre style="margin: .3em 0 0; white-space: pre-wrap">{escape(chr(10).join(lines))}</pre>'
        html = f'<div style="white-space: pre-wrap; font-variant-numeric: tabular-nums">{bar}{messages}</div>'
        content = {"text/html": html, "text/plain": "\n".join(filter(None, [told, *lines]))}
        self._written = time.monotonic()
        if self._handle is None:
            self._handle = self._display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)


ProgressChoice: TypeAlias = bool | Literal["bar", "lines", "notebook"] | None


def choose_progress(choice: ProgressChoice = None) -> Callback:
    """What shows a run: in a notebook and in a terminal a bar, elsewhere lines; ``False``: nothing.

    Raises:
        ConfigError: another choice.
    """
    if choice is False:
        return Callback()
    if choice is None or choice is True:
        choice = "notebook" if is_notebook() else "bar" if sys.stderr.isatty() else "lines"
    shown: dict[str, Callable[[], Callback]] = {
        "bar": ProgressBar,
        "lines": ProgressPrinter,
        "notebook": NotebookProgress,
    }
    if not isinstance(choice, str) or choice not in shown:
        raise ConfigError(f"progress: expected True, False, {', '.join(map(repr, shown))}, got {choice!r}")
    return shown[choice]()


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config


def show_progress(callback: Callback, choice: ProgressChoice = None) -> Callback:
    """``callback``, and beside it what shows the run; by default not if it does so itself. Raises as above."""
    if choice is False or (choice is None and _shows_progress(callback)):
        return callback
    return CallbackList([choose_progress(choice), callback])


def _shows_progress(callback: Callback) -> bool:
    if isinstance(callback, CallbackList):
        return any(_shows_progress(one) for one in callback.callbacks)
    return isinstance(callback, _Progress)
