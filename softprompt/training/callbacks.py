"""Callbacks: what is told of a run while it goes: a live line, plain lines, TensorBoard, the time of each step."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from softprompt.errors import ERROR_CHARACTERS, MissingExtraError, OutputError, map_write_errors, printable
from softprompt.training.validation import LOSS_ITSELF
from softprompt.utils.files import write_file
from softprompt.utils.seals import read_sealed, seal

CLOCK_FILE = "clock.json"
KEEP_EVERY = 25  # steps between two writings of the clock


class Callback:
    """Is told of a run; every method does nothing, a subclass defines those it needs."""

    def on_train_begin(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        """The run begins, or goes on, behind ``first_step``; ``learned`` and ``frozen`` count parameters."""

    def on_step_end(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        """One optimiser step was made, on a mean ``loss`` (nats)."""

    def on_evaluate(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        """The prompt was scored on validation."""

    def on_message(self, text: str) -> None:
        """Something the user should know."""

    def on_train_end(self) -> None:
        """No more steps will come: all are made, or the run ended early, or it failed. Always called."""


class CallbackList(Callback):
    """Passes everything on to several callbacks."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = tuple(callbacks)

    def on_train_begin(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        for callback in self._callbacks:
            callback.on_train_begin(first_step, steps, learned, frozen)

    def on_step_end(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        for callback in self._callbacks:
            callback.on_step_end(step, loss, learning_rate, examples_per_second)

    def on_evaluate(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        for callback in self._callbacks:
            callback.on_evaluate(step, metric, value, loss, best)

    def on_message(self, text: str) -> None:
        for callback in self._callbacks:
            callback.on_message(text)

    def on_train_end(self) -> None:
        for callback in self._callbacks:
            callback.on_train_end()


class StepTimer(CallbackList):
    """Passes a run on to another callback, and knows the seconds at which each step was reached.

    They are kept in a file, so that a run that went on in another process has the time before too.
    """

    def __init__(self, callback: Callback, path: Path | None) -> None:
        """``path`` of the file; ``None``: the run has none, and stays in this process."""
        super().__init__([callback])
        self._path = path
        self._seconds: dict[int, float] = {0: 0.0}
        if path is not None and path.exists():
            try:
                kept = read_sealed(path)
            except (OSError, ValueError) as error:
                raise OutputError(
                    f"'{path}' is damaged: {error}; remove '{path.parent}', and it begins anew"
                ) from error
            self._seconds |= {int(step): seconds for step, seconds in kept.items()}
        self._zero = time.perf_counter()

    def at(self, step: int) -> float:
        """Seconds from the beginning to the end of ``step``, as far as they are known."""
        return self._seconds[max(known for known in self._seconds if known <= step)]

    def on_train_begin(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        self._zero = time.perf_counter() - self.at(first_step)
        self._seconds = {step: seconds for step, seconds in self._seconds.items() if step <= first_step}
        super().on_train_begin(first_step, steps, learned, frozen)

    def on_step_end(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        self._record_seconds(step, keep=step % KEEP_EVERY == 0)
        super().on_step_end(step, loss, learning_rate, examples_per_second)

    def on_evaluate(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        self._record_seconds(step, keep=True)
        super().on_evaluate(step, metric, value, loss, best)

    def _record_seconds(self, step: int, *, keep: bool) -> None:
        self._seconds[step] = time.perf_counter() - self._zero
        if keep and self._path is not None:
            write_file(self._path, json.dumps(seal(self._seconds)).encode())


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


class TensorBoardLogger(Callback):
    """Scalars for TensorBoard in a folder, which is made when the run starts."""

    def __init__(self, folder: str | Path) -> None:
        """Raises MissingExtraError if TensorBoard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tensorboard", "tensorboard") from error
        self._make, self._folder = SummaryWriter, Path(folder)
        self._writer: Any = None
        self._early: list[str] = []

    def on_train_begin(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        """Raises OutputError if the folder cannot be made or written."""
        with map_write_errors(self._folder, "give another --tensorboard"):
            # a resumed run writes anew what came behind its checkpoint
            self._writer = self._make(str(self._folder), purge_step=first_step + 1 if first_step else None)
        self._writer.add_text("run", f"{learned} learned, {frozen} frozen parameters", first_step)
        for text in self._early:
            self._writer.add_text("notes", text)

    def on_step_end(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        self._writer.add_scalar("train/loss", loss, step)
        self._writer.add_scalar("train/learning_rate", learning_rate, step)
        self._writer.add_scalar("train/examples_per_second", examples_per_second, step)

    def on_evaluate(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        if not metric.startswith(LOSS_ITSELF):
            self._writer.add_scalar(f"validation/{metric.replace(' ', '_')}", value, step)
        self._writer.add_scalar("validation/loss", loss, step)
        self._writer.flush()

    def on_message(self, text: str) -> None:
        if self._writer is None:
            self._early.append(text)
        else:
            self._writer.add_text("notes", text)

    def on_train_end(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
