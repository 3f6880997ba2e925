"""Observers: what a run shows while it goes: a live line, plain lines, TensorBoard, or nothing."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from softprompt.errors import ERROR_CHARACTERS, MissingExtraError, OutputError, map_write_errors, printable
from softprompt.training.loop import Observer
from softprompt.training.validation import LOSS_ITSELF
from softprompt.utils.files import write_file
from softprompt.utils.seals import read_sealed, seal

CLOCK_FILE = "clock.json"


KEEP_EVERY = 25  # steps between two writings of the clock


class Clock:
    """An observer that passes a run on to another one, and knows the seconds at which each step was reached.

    They are kept in a file, so that a run that went on in another process has the time before too.
    """

    def __init__(self, observer: Observer, path: Path | None) -> None:
        """``path`` of the file; ``None``: the run has none, and stays in this process."""
        self._observer, self._path = observer, path
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

    def started(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        self._zero = time.perf_counter() - self.at(first_step)
        self._seconds = {step: seconds for step, seconds in self._seconds.items() if step <= first_step}
        self._observer.started(first_step, steps, learned, frozen)

    def stepped(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        self._reached(step, keep=step % KEEP_EVERY == 0)
        self._observer.stepped(step, loss, learning_rate, examples_per_second)

    def evaluated(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        self._reached(step, keep=True)
        self._observer.evaluated(step, metric, value, loss, best)

    def noted(self, text: str) -> None:
        self._observer.noted(text)

    def finished(self) -> None:
        self._observer.finished()

    def _reached(self, step: int, *, keep: bool) -> None:
        self._seconds[step] = time.perf_counter() - self._zero
        if keep and self._path is not None:
            write_file(self._path, json.dumps(seal(self._seconds)).encode())


class Silent:
    """Shows nothing."""

    def started(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        """The run begins, or goes on, behind ``first_step``."""

    def stepped(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        """One optimiser step was made."""

    def evaluated(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        """The prompt was scored on validation."""

    def noted(self, text: str) -> None:
        """Something the user should know."""

    def finished(self) -> None:
        """No more steps will come: all are made, or the run ended early, or it failed."""


def _reached(metric: str, value: float, loss: float) -> str:
    """What an evaluation gave: the metric and the loss; the loss once where it is the metric itself."""
    if metric.startswith(LOSS_ITSELF):
        return f"validation {metric.removeprefix('negative ')} {loss:.4f}"
    return f"validation {metric} {value:.4f}  loss {loss:.4f}"


class _Pace:
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


class PlainLines:
    """One line every ``every`` steps, for logs and pipes."""

    def __init__(self, stream: TextIO | None = None, every: int = 20) -> None:
        self._stream, self._every = stream or sys.stderr, every
        self._pace = _Pace()

    def started(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        self._pace = _Pace(first_step, steps)
        self.noted(f"learning {learned:,} parameters; {frozen:,} stay frozen")

    def stepped(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        pace = self._pace
        pace.update(step, loss, examples_per_second)
        if step % self._every == 0 or step == pace.steps:
            self.noted(
                f"step {step}/{pace.steps}  training loss {pace.loss:.4f}  "
                f"{pace.speed:.1f} examples/s  {pace.left()} left"
            )

    def evaluated(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        mark = "  (best so far)" if best else ""
        self.noted(f"step {step}  {_reached(metric, value, loss)}{mark}")

    def noted(self, text: str) -> None:
        print(printable(text, ERROR_CHARACTERS), file=self._stream, flush=True)

    def finished(self) -> None:
        """Nothing to take away."""


class LiveLine:
    """A rich progress bar: step, loss, last validation metric, examples a second, time left."""

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
        self._pace = _Pace()
        self._row: Any = None

    def started(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        self._pace = _Pace(first_step, steps)
        self.noted(f"learning {learned:,} parameters; {frozen:,} stay frozen")
        if self._row is not None:
            self._progress.remove_task(self._row)
        self._row = self._progress.add_task(
            "", total=steps, completed=first_step, loss="-", metric="", speed="", left="-"
        )
        self._progress.start()

    def stepped(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        self._pace.update(step, loss, examples_per_second)
        self._progress.update(
            self._row,
            completed=step,
            loss=f"{self._pace.loss:.4f}",
            speed=f"{self._pace.speed:.1f} examples/s",
            left=self._pace.left(),
        )

    def evaluated(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        mark = " (best so far)" if best else ""
        shown_now = _reached(metric, value, loss).partition("  ")[0]
        self._progress.update(self._row, metric=f"{shown_now}  ")
        self.noted(f"step {step}  {_reached(metric, value, loss)}{mark}")

    def noted(self, text: str) -> None:
        self._console.print(printable(text, ERROR_CHARACTERS), markup=False, highlight=False)

    def finished(self) -> None:
        """Take the bar away; the terminal is as it was."""
        self._progress.stop()


class TensorBoard:
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

    def started(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        """Raises OutputError if the folder cannot be made or written."""
        with map_write_errors(self._folder, "give another --tensorboard"):
            # a resumed run writes anew what came behind its checkpoint
            self._writer = self._make(str(self._folder), purge_step=first_step + 1 if first_step else None)
        self._writer.add_text("run", f"{learned} learned, {frozen} frozen parameters", first_step)
        for text in self._early:
            self._writer.add_text("notes", text)

    def stepped(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        self._writer.add_scalar("train/loss", loss, step)
        self._writer.add_scalar("train/learning_rate", learning_rate, step)
        self._writer.add_scalar("train/examples_per_second", examples_per_second, step)

    def evaluated(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        if not metric.startswith(LOSS_ITSELF):
            self._writer.add_scalar(f"validation/{metric.replace(' ', '_')}", value, step)
        self._writer.add_scalar("validation/loss", loss, step)
        self._writer.flush()

    def noted(self, text: str) -> None:
        if self._writer is None:
            self._early.append(text)
        else:
            self._writer.add_text("notes", text)

    def finished(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


class Several:
    """Passes everything on to several observers."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def started(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        for observer in self._observers:
            observer.started(first_step, steps, learned, frozen)

    def stepped(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        for observer in self._observers:
            observer.stepped(step, loss, learning_rate, examples_per_second)

    def evaluated(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        for observer in self._observers:
            observer.evaluated(step, metric, value, loss, best)

    def noted(self, text: str) -> None:
        for observer in self._observers:
            observer.noted(text)

    def finished(self) -> None:
        for observer in self._observers:
            observer.finished()
