"""The time at which each step of a run was reached, also of a run that went on in another process."""

import json
import time
from pathlib import Path

from softprompt.errors import OutputError
from softprompt.training.callbacks.callback import Callback, CallbackList
from softprompt.utils.files import write_file
from softprompt.utils.seals import read_sealed, seal

CLOCK_FILE = "clock.json"
KEEP_EVERY = 25  # steps between two writings of the clock


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
