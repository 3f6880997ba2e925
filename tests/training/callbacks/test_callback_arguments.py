"""Whatever is given to be told of a run: any subset of the methods, several at once, and what is nearly a method."""

from typing import Any

import pytest
from helpers.small_tasks import reviews_task
from helpers.tiny_models import tiny_base

from softprompt.errors import ConfigError
from softprompt.training.callbacks.callback import Callback, CallbackList
from softprompt.training.callbacks.callback_arguments import EVENTS, resolve_callback
from softprompt.training.fit import fit

SHORT: dict[str, Any] = {"steps": 6, "eval_every": 2, "length": 2, "batch_size": 4, "evaluate_test": False}


class Steps:
    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def on_step_end(self, loss: float, step: int) -> None:
        self.seen.append((step, loss))


class Everything:
    """Every event as it is told, in order."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        if name not in EVENTS:
            raise AttributeError(name)
        return lambda *told: self.seen.append((name, told))

    def __dir__(self) -> list[str]:
        return [*EVENTS, "seen"]


class Keywords:
    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_evaluate(self, step: int, **told: Any) -> None:
        self.seen.append({"step": step, **told})


class Stopping(Callback):
    def __init__(self, at: int) -> None:
        self.at, self.step, self.evaluated, self.said = at, 0, list[int](), list[str]()

    @property
    def should_stop(self) -> bool:
        return self.step >= self.at

    def on_step_end(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        self.step = step

    def on_evaluate(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        self.evaluated.append(step)

    def on_message(self, text: str) -> None:
        self.said.append(text)


def test_one_method_is_enough() -> None:
    told = Steps()
    fit(tiny_base("llama"), reviews_task(), callback=told, **SHORT)
    assert [step for step, _ in told.seen] == [1, 2, 3, 4, 5, 6]
    assert all(isinstance(loss, float) for _, loss in told.seen)


def test_several_by_either_name_are_told_the_same() -> None:
    told, one, other = Everything(), Everything(), Steps()
    fit(tiny_base("llama"), reviews_task(), callbacks=[told, other], callback=one, **SHORT)
    assert told.seen == one.seen
    events = [name for name, _ in told.seen if name != "on_message"]
    steps = [name for name in events if name != "on_read"]
    assert (steps[0], steps[-1]) == ("on_train_begin", "on_train_end")
    assert events[-1] == "on_read", "rows are read for the figures of the end"
    assert {*events} == set(EVENTS) - {"on_message"}
    assert len(other.seen) == 6


def test_keywords_are_given_by_name() -> None:
    told = Keywords()
    fit(tiny_base("llama"), reviews_task(), callbacks=told, **SHORT)
    assert [one["step"] for one in told.seen] == [2, 4, 6]
    assert told.seen[0].keys() == {"step", "metric", "value", "loss", "best"}


def test_what_is_ours_is_left_alone() -> None:
    one = Callback()
    assert resolve_callback(one) is one
    assert type(resolve_callback(None)) is Callback
    assert isinstance(resolve_callback([one, one]), CallbackList)
    assert isinstance(resolve_callback([]), Callback)


def test_stops_where_it_is_asked_to() -> None:
    told = Stopping(3)
    prompt = fit(tiny_base("llama"), reviews_task(), callback=told, **SHORT)
    assert (told.step, told.evaluated) == (3, [2, 3])
    assert "stopped at step 3: a callback asked for it" in told.said
    assert prompt.length == 2


def test_numbers_are_those_of_a_run_without_it() -> None:
    whole = fit(tiny_base("llama"), reviews_task(), callback=Stopping(100), **SHORT)
    alone = fit(tiny_base("llama"), reviews_task(), **SHORT)
    assert whole.digest == alone.digest


def with_method(name: str, method: Any = lambda self: None) -> object:
    return type("Told", (), {name: method})()


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (with_method("on_epoch_ends"), r"callback Told: nothing calls its method 'on_epoch_ends': did you mean"),
        (with_method("finished"), "'finished': did you mean on_train_end"),
        (with_method("on_log"), "'on_log': did you mean on_step_end"),
        (with_method("on_step_ends"), "'on_step_ends': did you mean on_step_end"),
        (with_method("step"), "'step': the methods are on_train_begin, on_plan, on_step_end"),
        (type("Told", (Callback,), {"on_evaluation": print})(), "'on_evaluation': did you mean on_evaluate"),
        (
            with_method("on_step_end", lambda self, logs: None),
            "on_step_end wants 'logs', .*: its arguments are step",
        ),
        (
            with_method("on_train_end", lambda self, step: None),
            "wants 'step', .*: its arguments are nothing",
        ),
        (object(), "expected an object with some of on_train_begin"),
        (Steps, "got the class Steps: an object of it may be meant"),
        (print, "got the function print"),
        ("wandb", "got 'wandb'"),
        (3, "got the number 3"),
    ],
    ids=range(13),
)
def test_what_would_never_be_called_is_told(callback: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve_callback([Steps(), callback])
