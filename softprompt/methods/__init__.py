"""Methods: how a prompt is parametrised while learning. One file a method; each folds into a PromptState."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from softprompt.errors import ConfigError
from softprompt.methods.prompt_tuning import PromptTuning
from softprompt.prefix import PromptState


class Method(Protocol):
    """What the training loop asks of a method: an ``nn.Module`` with these two."""

    def virtual_tokens(self) -> Tensor:
        """``[P, H]`` float32, with gradient to the method's parameters."""

    def fold(self) -> PromptState:
        """What remains after learning."""


METHODS: dict[str, Callable[[Tensor, float], nn.Module]] = {"prompt-tuning": PromptTuning}


def check_method(name: str) -> None:
    """Raises ConfigError if there is no method ``name``; suggests the nearest."""
    if name not in METHODS:
        raise ConfigError(f"unknown method '{name}': expected one of {', '.join(sorted(METHODS))}")


__all__ = ["METHODS", "Method", "check_method"]
