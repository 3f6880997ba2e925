"""A run as callbacks are told of it, the clock it goes by, and a terminal to show it on."""

import io

import pytest

from softprompt.training.callbacks import progress
from softprompt.training.callbacks.callback import Callback


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Replaces the clock by one that goes when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def told(callback: Callback, clock: Clock | None = None, steps: int = 40, first: int = 0, seconds: float = 0.5) -> None:
    """Go half of the way."""
    callback.on_message("data was split")
    if clock is not None:
        clock.now += 60.0
    callback.on_train_begin(first, steps, 2560, 268_000_000)
    for step in range(first + 1, steps // 2 + 1):
        if clock is not None:
            clock.now += seconds
        callback.on_step_end(step, 0.5, 0.3, 32.0)
    callback.on_evaluate(steps // 2, "accuracy", 0.875, 0.25, True)
