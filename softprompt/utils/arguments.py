"""Arguments of public functions: what a value is called in messages, and calls that no signature takes.

What comes from other libraries is told by the names of its classes, so that none of these has to be loaded.
"""

import difflib
import functools
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from softprompt.errors import ConfigError, printable

Function = TypeVar("Function", bound=Callable[..., Any])

_KINDS = {
    "PeftModel": "a PEFT model",
    "PreTrainedModel": "a transformers model",
    "PreTrainedTokenizerBase": "a tokenizer",
    "Pipeline": "a transformers pipeline",
    "Trainer": "a transformers Trainer",
    "Module": "a torch module",
    "Tensor": "a torch tensor",
    "ndarray": "a numpy array",
    "DataFrame": "a DataFrame",
    "Series": "a Series",
    "IterableDatasetDict": "streamed data sets",
    "IterableDataset": "a streamed data set",
    "DatasetDict": "a DatasetDict",
    "Dataset": "a Dataset",
    "FrozenLM": "a base model (FrozenLM)",
}
_PLAIN = {type(None): "None", bool: "a boolean", dict: "a mapping", list: "a list", tuple: "a tuple", set: "a set"}
_SIMPLE = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a string",
    Path: "a path",
    type(None): "None",
}
_MOST_SHOWN = 60  # characters of a value


def class_names(value: Any) -> tuple[str, ...]:
    """The names of the classes that a value is of, the nearest first."""
    return tuple(kind.__name__ for kind in type(value).__mro__)


def describe_argument(value: Any) -> str:
    """What messages call an argument: its kind, and its value where that is short."""
    if isinstance(value, type):
        return f"the class {value.__name__}: an object of it may be meant"
    if isinstance(value, types.ModuleType):
        return f"the module {value.__name__}"
    if isinstance(value, str):
        return printable(repr(value), _MOST_SHOWN)
    if isinstance(value, os.PathLike):
        return f"the path {printable(repr(os.fspath(value)), _MOST_SHOWN)}"
    if type(value) in _PLAIN:
        within = f" of {describe_kind(value[0])}" if isinstance(value, list | tuple) and value else ""
        return _PLAIN[type(value)] + within
    if isinstance(value, numbers.Number):
        return f"the number {printable(value, _MOST_SHOWN)}"
    if inspect.isroutine(value):
        return f"the function {value.__name__}"
    return describe_kind(value)


def describe_kind(value: Any) -> str:
    """What messages call a value of this kind."""
    own = type(value).__name__
    for name in class_names(value):
        if name in _KINDS:
            return _KINDS[name] if name == own or "(" in _KINDS[name] else f"{_KINDS[name]} ({own})"
    if type(value) in (str, int, float):
        return {str: "strings", int: "numbers", float: "numbers"}[type(value)]
    return _PLAIN.get(type(value), f"{'an' if own[:1] in 'AEIOUaeiou' else 'a'} {own}")


def refuse_argument(name: str, expected: str, value: Any, advice: Mapping[str, str]) -> ConfigError:
    """The error for an argument of a wrong kind.

    Args:
        name: of the argument.
        expected: what it may be.
        advice: what to do, by the name of a class that ``value`` is of; ``""`` for all others.
    """
    do = next((advice[kind] for kind in class_names(value) if kind in advice), advice.get("", ""))
    return ConfigError(f"{name}: expected {expected}, got {describe_argument(value)}{f': {do}' if do else ''}")


def suggest_name(name: str, known: Iterable[str]) -> str:
    """A hint at the name that may have been meant, or at all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(names)}"


def check_arguments(function: Function) -> Function:
    """``function``, which raises ConfigError of one line for a call that its signature or plain annotations forbid.

    Plain annotations are booleans, numbers, strings, paths, ``None`` and choices of these; all else the function looks
    at itself.
    """
    signature = inspect.signature(function)
    name = function.__qualname__

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        try:
            bound = signature.bind(*given, **named)
        except TypeError as error:
            raise ConfigError(_describe_misfit(name, signature, given, named, str(error))) from None
        hints = _plain_hints(function)
        for argument, value in bound.arguments.items():
            if argument in hints and not _fits(value, hints[argument]):
                expected = " or ".join(dict.fromkeys(map(_describe_choice, hints[argument])))
                raise ConfigError(f"{name}({argument}=...): expected {expected}, got {describe_argument(value)}")
        return function(*given, **named)

    return typing.cast("Function", call)


def _describe_misfit(
    name: str, signature: inspect.Signature, given: Sequence[Any], named: Mapping[str, Any], reason: str
) -> str:
    """What is wrong with a call, and how the function is called."""
    parameters = {key: one for key, one in signature.parameters.items() if key not in ("self", "cls")}
    keyed = [key for key, one in parameters.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    ordered = [key for key, one in parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD]
    owned = len(signature.parameters) - len(parameters)
    how = f"{name}({', '.join(ordered)})"
    if unknown := [key for key in named if key not in keyed]:
        return f"{name} has no argument '{unknown[0]}': {suggest_name(unknown[0], keyed)}"
    if len(given) - owned > len(ordered):
        rest = [key for key in keyed if key not in ordered]
        by_name = f", the others by name ({', '.join(rest)})" if rest else ""
        return (
            f"{how}: expected at most {len(ordered)} arguments without a name{by_name}, got {len(given) - owned}: "
            f"the last is {describe_argument(given[-1])}"
        )
    taken = set(ordered[: len(given) - owned])
    if twice := [key for key in named if key in taken]:
        return f"{how}: '{twice[0]}' is given twice: leave one of them out"
    lacking = [
        key
        for key, one in parameters.items()
        if one.default is one.empty and key in keyed and key not in taken and key not in named
    ]
    return f"{how}: expected {' and '.join(lacking)} too, got none" if lacking else f"{how}: {reason}"


@functools.cache
def _plain_hints(function: Callable[..., Any]) -> dict[str, tuple[Any, ...]]:
    """Of the parameters with plain annotations, what they may be: types, or values to choose from."""
    found: dict[str, tuple[Any, ...]] = {}
    parameters = inspect.signature(function).parameters
    for name, hint in typing.get_type_hints(function).items():
        choices = tuple(_list_choices(hint))
        variadic = name in parameters and parameters[name].kind in (
            inspect.Parameter.VAR_KEYWORD,
            inspect.Parameter.VAR_POSITIONAL,
        )
        if name != "return" and not variadic and all(one in _SIMPLE or not isinstance(one, type) for one in choices):
            found[name] = choices
    return found


def _list_choices(hint: Any) -> Iterable[Any]:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        for one in typing.get_args(hint):
            yield from _list_choices(one)
    elif origin is Literal:
        yield from typing.get_args(hint)
    else:
        # what is no plain type is told by a class that is not among them
        yield hint if isinstance(hint, type) and origin is None else object


def _fits(value: Any, choices: Sequence[Any]) -> bool:
    for one in choices:
        if not isinstance(one, type):
            if value == one:
                return True
        elif one is Path:
            if isinstance(value, os.PathLike):
                return True
        elif one in (int, float):
            kind = numbers.Integral if one is int else numbers.Real
            if isinstance(value, kind) and not isinstance(value, bool):
                return True
        elif isinstance(value, one):
            return True
    return False


def _describe_choice(choice: Any) -> str:
    return _SIMPLE[choice] if isinstance(choice, type) else repr(choice)
