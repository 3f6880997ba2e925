"""Steps that fit into a given time: seen in a pilot run of a few steps."""

import re
import statistics
import time
from collections.abc import Callable

from softprompt.errors import ConfigError, TrainingError
from softprompt.training.callbacks.callback import Callback

_UNITS = {"s": 1, "m": 60, "h": 3600}


class StepTimes(Callback):
    """Keeps how long steps and evaluations take."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.evaluations: list[float] = []
        self._last = time.perf_counter()

    def on_train_begin(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        self._last = time.perf_counter()

    def on_step_end(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        self.steps.append(self._take_time())

    def on_evaluate(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        self.evaluations.append(self._take_time())

    def _take_time(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


def fit_steps(seconds: float, times: StepTimes, eval_every: Callable[[int], int]) -> int:
    """The most steps, one at least, that with their evaluations take ``seconds`` or less.

    The mean of all steps but the first two counts, which are slower: for once-only work, and for compiling between
    them. Texts differ in length.

    Raises:
        TrainingError: the pilot made no step.
    """
    if not times.steps:
        raise TrainingError("a pilot run of a few steps made none: expected its pace, to fit the time budget")
    a_step = statistics.mean(times.steps[2:] or times.steps[1:] or times.steps)
    an_evaluation = statistics.mean(times.evaluations) if times.evaluations else 0.0

    def needed(steps: int) -> float:
        return steps * a_step + -(-steps // eval_every(steps)) * an_evaluation

    low, high = 1, max(2, int(seconds / a_step) + 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needed(middle) <= seconds else (low, middle)
    return low


def parse_seconds(text: str) -> float:
    """``90s``, ``10m``, ``1.5h`` or plain seconds.

    Raises:
        ConfigError: it is none of these, or not more than nothing.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not found or float(found[1]) == 0:
        raise ConfigError(f"--budget '{text}': expected a time such as 90s, 10m or 1.5h")
    return float(found[1]) * _UNITS[found[2] or "s"]
