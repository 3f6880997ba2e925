"""Copies of a ``transformers`` cache with other keys and values, or that take what they are given in another way.

A cache has a layer for each of the model's; keys and values are ``[B, heads, S, D]``: rows, columns, size of a head.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def map_tensors(cache: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy whose keys and values went through ``change``."""
    changed = copy.copy(cache)
    changed.layers = []
    for layer in cache.layers:
        view = copy.copy(layer)
        # what keep_all_columns and read_only set is on the object, not on its class
        vars(view).pop("update", None)
        if view.keys is not None:
            view.keys, view.values = change(view.keys), change(view.values)
        changed.layers.append(view)
    return changed


def resize_cache(cache: Any, width: int, change: Callable[[Tensor, int], Tensor]) -> Any:
    """A copy of ``width`` columns; ``change`` gives a layer the number that it keeps, the last ones of a window."""

    changed = map_tensors(cache, lambda tensor: tensor)
    for layer in changed.layers:
        window = getattr(layer, "sliding_window", None)
        kept = width if window is None else min(width, window - 1)
        if layer.keys is not None:
            layer.keys, layer.values = change(layer.keys, kept), change(layer.values, kept)
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = width
    return changed


def align_right(cache: Any, padding: Tensor, width: int) -> Any:
    """A copy of ``width`` columns with all rows at their right end, where they have ``padding [B]`` behind them."""

    def shifted(tensor: Tensor, kept: int) -> Tensor:
        source = tensor.shape[2] - padding[:, None] + torch.arange(-kept, 0, device=padding.device)
        # what stands before a row's first column is never looked at
        source = source.to(tensor.device)
        return tensor.gather(2, source.clamp(min=0)[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3]))

    return resize_cache(cache, width, shifted)


def pad_left(cache: Any, width: int) -> Any:
    """A copy of ``width`` columns, padded on the left."""
    return resize_cache(
        cache, width, lambda tensor, kept: torch.nn.functional.pad(tensor, (0, 0, kept - tensor.shape[2], 0))
    )


def stack_rows(caches: Sequence[Any]) -> Any:
    """One cache with the rows of all, which have as many columns."""
    stacked = map_tensors(caches[0], lambda tensor: tensor)
    for layer, *others in zip(stacked.layers, *(cache.layers for cache in caches[1:]), strict=True):
        if layer.keys is not None:
            layer.keys = torch.cat([layer.keys, *(other.keys for other in others)])
            layer.values = torch.cat([layer.values, *(other.values for other in others)])
    return stacked


def keep_all_columns(cache: Any) -> Any:
    """``cache``, from now on keeping what falls out of sliding windows too; for one pass over texts."""
    from transformers.cache_utils import DynamicLayer

    def kept(layer: Any) -> Any:
        return lambda keys, values, *_, **__: DynamicLayer.update(layer, keys, values)

    for layer in cache.layers:
        layer.update = kept(layer)
    return cache


def read_only(cache: Any) -> Any:
    """``cache``, from now on giving what it holds and taking nothing, so that a layer can be run twice with it."""

    def joined(layer: Any) -> Any:
        def update(keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            if layer.keys is None or not layer.keys.numel():
                return keys, values
            return torch.cat([layer.keys, keys], dim=-2), torch.cat([layer.values, values], dim=-2)

        return update

    for layer in cache.layers:
        layer.update = joined(layer)
    cache.read_only = True
    return cache
