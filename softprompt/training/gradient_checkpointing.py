"""Gradient checkpointing that works with a shared prefix: layers are run again in the backward pass, not remembered.

``transformers`` checkpoints only in training mode and without a cache; a frozen model is in evaluation mode and reads
its prefix from one. Here a layer is run again where its cache only gives and does not take (``prefix.py`` marks such a
cache ``read_only``): a second run then sees what the first one saw. Chen, Xu, Zhang and Guestrin 2016.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

import torch

from softprompt.errors import ConfigError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.kernels.fused_layer import checkpoint_layers
from softprompt.models.last_layer import find_layers


@contextmanager
def checkpoint_gradients(base: FrozenLM, enabled: bool = True) -> Iterator[None]:
    """Within it, forward passes with gradient remember what enters each layer and nothing within.

    Raises:
        ConfigError: the model's layers are not known.
    """
    if not enabled:
        yield
        return
    layers = _layers(base)
    originals = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = _checkpoint_layer(layer.forward)
    try:
        with checkpoint_layers():
            yield
    finally:
        for layer, original in zip(layers, originals, strict=True):
            del layer.forward
            if original is not None:
                layer.forward = original


def _layers(base: FrozenLM) -> list[Any]:
    if not (layers := find_layers(base.backbone)):
        raise ConfigError(
            f"gradient checkpointing: the layers of '{base.name}' ({type(base.model).__name__}) are not known; "
            "save memory by a smaller --micro-batch-size instead"
        )
    return layers


def _checkpoint_layer(forward: Callable[..., Any]) -> Callable[..., Any]:
    from torch.utils.checkpoint import checkpoint
    from transformers import Cache

    def run(*inputs: Any, **options: Any) -> Any:
        # families pass it by name, or as one of the inputs
        caches = [value for value in (*inputs, *options.values()) if isinstance(value, Cache)]
        if not torch.is_grad_enabled() or not all(getattr(cache, "read_only", False) for cache in caches):
            return forward(*inputs, **options)
        # the second run is to see the scored positions that the first one saw
        context = copy_context()
        return checkpoint(lambda *i, **o: context.run(forward, *i, **o), *inputs, use_reentrant=False, **options)

    return run
