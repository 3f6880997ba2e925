"""Callbacks: what is told of a run while it goes."""

from collections.abc import Sequence


class Callback:
    """Is told of a run; every method does nothing, a subclass defines those it needs."""

    @property
    def should_stop(self) -> bool:
        """Whether the run is to end: it is asked behind each step, evaluates once more, and keeps the best so far."""
        return False

    def on_train_begin(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        """The run begins, or goes on, behind ``first_step``; ``learned`` and ``frozen`` count parameters."""

    def on_plan(self, eval_every: int, evaluation_cost: float) -> None:
        """Once, in the first step: validation will be scored every ``eval_every`` steps and behind the last.

        Each time takes about as long as ``evaluation_cost`` steps, by the tokens that are read.
        """

    def on_step_end(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        """One optimiser step was made, on a mean ``loss`` (nats)."""

    def on_evaluate(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        """The prompt was scored on validation."""

    def on_read(self, share: float) -> None:
        """Of rows that are read outside of the steps, for the figures of the end, so much (0 to 1) is done."""

    def on_message(self, text: str) -> None:
        """Something the user should know."""

    def on_train_end(self) -> None:
        """No more steps will come: all are made, or the run ended early, or it failed. Always called."""


class CallbackList(Callback):
    """Passes everything on to several callbacks."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = tuple(callbacks)

    @property
    def should_stop(self) -> bool:
        return any(callback.should_stop for callback in self.callbacks)

    def on_train_begin(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        for callback in self.callbacks:
            callback.on_train_begin(first_step, steps, learned, frozen)

    def on_plan(self, eval_every: int, evaluation_cost: float) -> None:
        for callback in self.callbacks:
            callback.on_plan(eval_every, evaluation_cost)

    def on_step_end(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        for callback in self.callbacks:
            callback.on_step_end(step, loss, learning_rate, examples_per_second)

    def on_evaluate(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        for callback in self.callbacks:
            callback.on_evaluate(step, metric, value, loss, best)

    def on_read(self, share: float) -> None:
        for callback in self.callbacks:
            callback.on_read(share)

    def on_message(self, text: str) -> None:
        for callback in self.callbacks:
            callback.on_message(text)

    def on_train_end(self) -> None:
        for callback in self.callbacks:
            callback.on_train_end()
