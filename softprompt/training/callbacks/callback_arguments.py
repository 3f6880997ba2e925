"""What a user gives to be told of a run: one or several, of ours, of ``transformers``, or any with some methods."""

import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

from softprompt.errors import ConfigError
from softprompt.training.callbacks.callback import Callback, CallbackList
from softprompt.training.callbacks.progress import ProgressChoice, show_progress
from softprompt.training.callbacks.trainer_callback import TrainerCallbackAdapter
from softprompt.utils.arguments import class_names, describe_argument

AnyCallback: TypeAlias = Callback | object | Sequence[Callback | object]

EVENTS = tuple(name for name in vars(Callback) if name.startswith("on_"))
# what the end, a step and an evaluation are called elsewhere
_ELSEWHERE = {
    "finished": "on_train_end",
    "on_epoch_end": "on_evaluate",
    "on_epoch_ends": "on_evaluate",
    "on_log": "on_step_end",
    "on_batch_end": "on_step_end",
    "on_train_batch_end": "on_step_end",
    "on_validation_end": "on_evaluate",
    "on_fit_end": "on_train_end",
}


class PartialCallback(Callback):
    """An object with some of the methods; each is given what its arguments are named after."""

    def __init__(self, told: Any) -> None:
        """Raises ConfigError for a method that is called nearly so, or wants what a run does not tell."""
        _check_names(told)
        self._told = told
        self._wanted = {name: _list_wanted(name, getattr(told, name)) for name in EVENTS if hasattr(told, name)}

    @property
    def should_stop(self) -> bool:
        return bool(getattr(self._told, "should_stop", False))

    def on_train_begin(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        self._pass_on("on_train_begin", first_step=first_step, steps=steps, learned=learned, frozen=frozen)

    def on_plan(self, eval_every: int, evaluation_cost: float) -> None:
        self._pass_on("on_plan", eval_every=eval_every, evaluation_cost=evaluation_cost)

    def on_step_end(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        facts = {"learning_rate": learning_rate, "examples_per_second": examples_per_second}
        self._pass_on("on_step_end", step=step, loss=loss, **facts)

    def on_evaluate(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        self._pass_on("on_evaluate", step=step, metric=metric, value=value, loss=loss, best=best)

    def on_read(self, share: float) -> None:
        self._pass_on("on_read", share=share)

    def on_message(self, text: str) -> None:
        self._pass_on("on_message", text=text)

    def on_train_end(self) -> None:
        self._pass_on("on_train_end")

    def _pass_on(self, event: str, **facts: Any) -> None:
        if (wanted := self._wanted.get(event)) is None:
            return
        method = getattr(self._told, event)
        if wanted == "in order":
            method(*facts.values())
        else:
            method(**{name: facts[name] for name in wanted})


def resolve_callback(
    callback: AnyCallback | None, callbacks: AnyCallback | None = None, progress: ProgressChoice = False
) -> Callback:
    """All that are given, one or several by either name, as one, and what shows the run beside them.

    Raises:
        ConfigError: an object that has none of the methods, or one that is called nearly so; no choice of progress.
    """
    given = [
        one
        for some in (callback, callbacks)
        if some is not None
        for one in (some if isinstance(some, list | tuple) else (some,))
    ]
    found = [_resolve_one(one) for one in given]
    told = found[0] if len(found) == 1 else CallbackList(found) if found else Callback()
    return show_progress(told, progress)


def _resolve_one(callback: Any) -> Callback:
    if "TrainerCallback" in class_names(callback):
        return TrainerCallbackAdapter(callback)
    if isinstance(callback, Callback):
        _check_names(callback)
        return callback
    return PartialCallback(callback)


def _check_names(callback: Any) -> None:
    """Raise ConfigError for an object without any of the methods, or with one that is called nearly so."""
    expected = f"expected an object with some of {', '.join(EVENTS)}"
    if isinstance(callback, type) or inspect.isroutine(callback) or type(callback).__module__ == "builtins":
        raise ConfigError(f"callback: {expected}, got {describe_argument(callback)}: give an object")
    methods = [name for name in dir(callback) if not name.startswith("_") and callable(getattr(callback, name, None))]
    known = [name for name in methods if name in EVENTS]
    wrong = [name for name in methods if name not in EVENTS and (name.startswith("on_") or not known)]
    if wrong:
        near = [_ELSEWHERE[wrong[0]]] if wrong[0] in _ELSEWHERE else difflib.get_close_matches(wrong[0], EVENTS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the methods are {', '.join(EVENTS)}"
        raise ConfigError(f"callback {type(callback).__name__}: nothing calls its method '{wrong[0]}': {hint}")
    if not known:
        raise ConfigError(f"callback: {expected}, got {describe_argument(callback)}: give it one of these methods")


def _list_wanted(event: str, method: Callable[..., None]) -> Literal["in order"] | tuple[str, ...]:
    """What a method of the user's is given, by name; raises ConfigError for what a run does not tell."""
    told = [name for name in inspect.signature(getattr(Callback, event)).parameters if name != "self"]
    parameters = inspect.signature(method).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    lacking = [name for name, one in parameters.items() if one.default is one.empty and name not in told]
    if inspect.Parameter.VAR_POSITIONAL in kinds or inspect.Parameter.POSITIONAL_ONLY in kinds:
        return "in order"
    if lacking and inspect.Parameter.VAR_KEYWORD not in kinds:
        gives = ", ".join(told) or "nothing"
        raise ConfigError(f"callback: {event} wants '{lacking[0]}', which is not told: its arguments are {gives}")
    return tuple(name for name in told if inspect.Parameter.VAR_KEYWORD in kinds or name in parameters)
