"""Copies of a frozen model that may be changed, while the caller's own stays as it is to the byte."""

import copy
from typing import Any

from softprompt.models.frozen_lm import FrozenLM


def copy_sharing_weights(base: FrozenLM) -> Any:
    """The ``transformers`` model with modules of its own and the same weights in them: it takes no memory.

    Layers can be put around its modules; its weights must not be written to.
    """
    model = base.model
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return _remove_patches(copy.deepcopy(model, weights))


def copy_weights(base: FrozenLM) -> Any:
    """The ``transformers`` model with weights of its own."""
    return _remove_patches(copy.deepcopy(base.model))


def _remove_patches(model: Any) -> Any:
    """``model`` without the parts that FrozenLM exchanged: copied as they are, they belong to the original."""
    for module in model.modules():
        vars(module).pop("forward", None)
    return model
