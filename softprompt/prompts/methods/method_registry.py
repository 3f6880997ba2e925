"""Methods: how a prompt is parametrised while learning. One file a method; each folds into a PromptState."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from softprompt.data.encoding.placement import Placement
from softprompt.errors import ConfigError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.methods import p_tuning, prefix_tuning, prompt_tuning, residual_prompt_tuning
from softprompt.prompts.methods.reparameterization import LearnedRows
from softprompt.prompts.state import PromptState


class Method(Protocol):
    """What the training loop asks of a method, beside being an ``nn.Module``."""

    placement: Placement
    """What stands around the prompt, as it did around the one it started from."""
    verbalizer: LearnedRows | None
    """Labels that are learned with the prompt, if they are."""

    def state(self) -> PromptState:
        """The prompt as it stands, float32, with gradient to the method's parameters (see ``read_state``)."""

    def rate_factors(self) -> Mapping[str, float]:
        """What the learning rate is multiplied by, for parameters whose names begin so; 1 for all others."""


@dataclass(frozen=True)
class MethodDefinition:
    """A method by its name.

    Attributes:
        build: start (of its kind), unit, seed and options to the module.
        options: what can be set beside the settings that all methods share.
        kind: of the state it folds into.
        prepare: base model and what it is to start from to a start of its kind.
    """

    build: Callable[[PromptState, float, int, Any], nn.Module]
    options: type[BaseModel]
    kind: Literal["embeddings", "key_values"]
    prepare: Callable[[FrozenLM, PromptState], PromptState]


def define_method(module: Any, kind: Literal["embeddings", "key_values"]) -> MethodDefinition:
    """The method of a module that has ``build`` and ``Options``, and ``prepare`` if it does not start from words."""
    return MethodDefinition(module.build, module.Options, kind, getattr(module, "prepare", lambda base, start: start))


METHODS = {
    "prompt-tuning": define_method(prompt_tuning, "embeddings"),
    "p-tuning": define_method(p_tuning, "embeddings"),
    "residual": define_method(residual_prompt_tuning, "embeddings"),
    "prefix-tuning": define_method(prefix_tuning, "key_values"),
}


def check_method(name: str, options: Mapping[str, Any] | None = None) -> BaseModel:
    """The options of method ``name``, defaults filled in.

    Raises:
        ConfigError: there is no such method, or it has no such option.
    """
    if name not in METHODS:
        raise ConfigError(f"unknown method '{name}': expected one of {', '.join(sorted(METHODS))}")
    model = METHODS[name].options
    if unknown := sorted(set(options or {}) - set(model.model_fields)):
        known = (
            f"expected one of {', '.join(model.model_fields)}" if model.model_fields else "it has none, leave it out"
        )
        raise ConfigError(f"method '{name}' has no option '{unknown[0]}': {known}")
    try:
        return model.model_validate(dict(options or {}))
    except ValidationError as error:
        problem = error.errors()[0]
        option, what = ".".join(map(str, problem["loc"])), problem["msg"]
        what = what[0].lower() + what[1:]
        raise ConfigError(f"option '{option}' of method '{name}': {what}, got {problem['input']!r}") from error


def make_method(
    name: str, options: Mapping[str, Any], base: FrozenLM, start: PromptState, unit: float, seed: int
) -> Any:
    """The module that learns, on the base model's device; at first it gives ``start``.

    Args:
        unit: what a learned value of 1 is worth in virtual tokens.

    Raises:
        ConfigError: no such method or option, or a start that it cannot use.
        BaseModelError: the base model cannot take this kind of prompt.
    """
    chosen = check_method(name, options)
    if start.kind == "key_values" and METHODS[name].kind != "key_values":
        able = ", ".join(sorted(other for other, entry in METHODS.items() if entry.kind == "key_values"))
        raise ConfigError(f"the prompt to start from holds keys and values, which only {able} can learn on, not {name}")
    ready = METHODS[name].prepare(base, start)
    method: Any = METHODS[name].build(ready, unit, seed, chosen).to(base.device)
    method.placement, method.verbalizer = start.placement, None
    return method


def read_state(method: Method) -> PromptState:
    """The prompt as it stands, where it stands, with gradient to the method's parameters, and its learned labels."""
    verbalizer = method.verbalizer
    rows = None if verbalizer is None else verbalizer.rows()
    return replace(method.state(), placement=method.placement, label_rows=rows)


def fold_method(method: Method) -> PromptState:
    """What remains after learning: the state, free of the parametrisation."""
    with torch.no_grad():
        return read_state(method).detached()
