"""Callbacks that were written for ``transformers.Trainer``, told of a run of ours in its words."""

import tempfile
from typing import Any

from softprompt.training.callbacks.callback import Callback


class TrainerCallbackAdapter(Callback):
    """Passes a run on to a ``transformers.TrainerCallback``, with real arguments, state and control of the Trainer.

    The callback is told ``on_init_end``, ``on_train_begin``, for each step ``on_step_end`` and ``on_log`` (``loss``,
    ``learning_rate``, ``examples_per_second``), for each evaluation ``on_evaluate`` (``eval_loss``, ``eval_score`` and
    the metric by its name) and ``on_train_end``. There is one epoch, the run. ``control.should_training_stop`` ends it;
    its other wishes are left alone, as are the model and the optimizer, which it is not given.
    """

    def __init__(self, callback: Any) -> None:
        from transformers import TrainerControl, TrainerState

        self._callback = callback
        self._state, self._control, self._arguments = TrainerState(), TrainerControl(), None

    @property
    def should_stop(self) -> bool:
        return bool(self._control.should_training_stop)

    def on_train_begin(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        self._arguments = _make_arguments(steps)
        state = self._state
        state.global_step, state.max_steps, state.num_train_epochs = first_step, steps, 1
        state.epoch, state.logging_steps, state.eval_steps = first_step / steps, 1, 1
        self._tell("on_init_end")
        self._tell("on_train_begin")

    def on_step_end(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        self._state.global_step, self._state.epoch = step, step / self._state.max_steps
        self._tell("on_step_end")
        self._log({"loss": loss, "learning_rate": learning_rate, "examples_per_second": examples_per_second})

    def on_evaluate(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        name = metric.replace(" ", "_")
        found = {"eval_loss": loss, "eval_score": value, f"eval_{name}": value}
        self._log(found)
        self._tell("on_evaluate", metrics=found)
        if best:
            self._state.best_metric, self._state.best_global_step = value, step

    def on_train_end(self) -> None:
        if self._arguments is not None:
            self._tell("on_train_end")

    def _log(self, logs: dict[str, float]) -> None:
        step, epoch = self._state.global_step, self._state.epoch
        self._state.log_history.append({**logs, "epoch": epoch, "step": step})
        self._tell("on_log", logs=dict(logs))

    def _tell(self, event: str, **more: Any) -> None:
        answer = getattr(self._callback, event)(self._arguments, self._state, self._control, model=None, **more)
        self._control = answer if answer is not None else self._control


def _make_arguments(steps: int) -> Any:
    """What a Trainer of so many steps would be given, as far as callbacks ask: it evaluates, the best is kept."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=tempfile.gettempdir(),
        max_steps=steps,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_score",
        greater_is_better=True,
        report_to=[],
        disable_tqdm=True,
    )
