"""Callbacks of transformers: those that it brings, told of a run of ours with the Trainer's own state."""

from typing import Any

import pytest
from helpers.small_tasks import reviews_task
from helpers.tiny_models import tiny_base
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from softprompt.training.fit import fit

SHORT: dict[str, Any] = {"steps": 6, "eval_every": 2, "length": 2, "batch_size": 4, "evaluate_test": False}


class Recorder(TrainerCallback):  # type: ignore[misc]
    def __init__(self, stop_at: int | None = None) -> None:
        self.events: list[tuple[str, int]] = []
        self.logs: list[dict[str, float]] = []
        self.metrics: list[dict[str, float]] = []
        self.kinds: set[tuple[type, ...]] = set()
        self._stop_at = stop_at

    def _note(self, event: str, args: Any, state: Any, control: Any) -> None:
        self.events.append((event, state.global_step))
        self.kinds.add((type(args), type(state), type(control)))

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self._note("begin", args, state, control)
        self.steps = args.max_steps, state.max_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> Any:
        self._note("step", args, state, control)
        if state.global_step == self._stop_at:
            control.should_training_stop = True
            return control
        return None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        self.logs.append(logs)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **more: Any) -> None:
        self._note("evaluate", args, state, control)
        self.metrics.append(metrics)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self._note("end", args, state, control)
        self.history = list(state.log_history)


def test_is_told_with_the_trainers_own_state() -> None:
    told = Recorder()
    fit(tiny_base("llama"), reviews_task(), callback=told, **SHORT)
    steps = [("step", step) for step in range(1, 7)]
    for after, step in ((2, 2), (5, 4), (8, 6)):
        steps.insert(after, ("evaluate", step))
    assert told.events == [("begin", 0), *steps, ("end", 6)]
    assert told.kinds == {(TrainingArguments, TrainerState, TrainerControl)}
    assert told.steps == (6, 6)
    assert told.metrics[0].keys() == {"eval_loss", "eval_score", "eval_accuracy"}
    assert [one["step"] for one in told.history if "loss" in one] == [1, 2, 3, 4, 5, 6]


def test_its_wish_to_stop_is_honoured() -> None:
    told = Recorder(stop_at=3)
    prompt = fit(tiny_base("llama"), reviews_task(), callbacks=[told], **SHORT)
    assert told.events[-2:] == [("evaluate", 3), ("end", 3)]
    assert prompt.metrics["validation"]


def test_early_stopping_of_transformers() -> None:
    told = Recorder()
    fit(
        tiny_base("llama"),
        reviews_task(),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=2.0), told],
        **SHORT,
    )
    # nothing is better by 2 than an accuracy before, so that the second evaluation is the last
    assert told.events[-1] == ("end", 4)


@pytest.mark.filterwarnings("ignore")
def test_those_that_print(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import PrinterCallback

    fit(tiny_base("llama"), reviews_task(), callbacks=PrinterCallback(), **SHORT)
    assert "'eval_accuracy'" in capsys.readouterr().out
