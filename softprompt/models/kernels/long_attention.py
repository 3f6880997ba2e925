"""Attention over long texts by PyTorch's own kernel, which never holds the scores of all pairs of tokens.

``decoder_blocks.attend`` holds them, which is faster for short texts; what it holds grows with the square of a text's
length, 2.8 GB in all layers of Qwen2.5 0.5B at 2,048 tokens. Here a text and its prefix are attended to one after the
other, and put together by the weight of each, as in Hydragen (Juravsky et al. 2024). The gradient needs nothing else:
given what was found in both, and its weight, the kernel's backward pass over one of them is right for that one.

Shapes: as in fused_layer.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from softprompt.models.kernels.decoder_blocks import Pair, Texts, Triple, pack, pad

LONG = 512  # tokens of a text, from which on it is read so

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class LongAttentionCache(NamedTuple):
    """What the gradient of ``attend_long`` needs.

    Attributes:
        query, key, value: of the texts ``[B, K * G, T, D]``, keys and values once for each query head.
        found: what the queries found, ``[B, K * G, T, D]``.
        weight: the logarithm of the sum of the exponentials of their scores ``[B, K * G, T]``, float32.
        heads: ``K``.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    found: Tensor
    weight: Tensor
    heads: int


def attend_long(own: Triple, prefix: Pair | None, texts: Texts) -> tuple[Tensor, LongAttentionCache]:
    """As ``decoder_blocks.attend``, of texts in which every token sees those before it."""
    heads, group = own[1].shape[1] // texts.size, own[0].shape[1] // own[1].shape[1]
    # no token of a text sees padding, which stands behind them all
    query, key, value = (_pad_heads(each, heads, texts) for each in own)
    key, value = (each.repeat_interleave(group, dim=1) for each in (key, value))
    found, weight = _flash(query, key, value, 0.0, True, scale=texts.scaling)
    if prefix is not None:
        keys, values = (each[None] for each in prefix)
        seen, its_weight = _flash(_join(query, heads, keys), keys, values, 0.0, False, scale=texts.scaling)
        seen, its_weight = _part(seen, heads, query), _part(its_weight[..., None], heads, query)[..., 0]
        both = torch.logaddexp(weight, its_weight)
        of_text, of_prefix = ((each - both).exp()[..., None] for each in (weight, its_weight))
        found, weight = (found * of_text + seen * of_prefix).to(query.dtype), both
    return pack(found.transpose(1, 2), texts), LongAttentionCache(query, key, value, found, weight, heads)


def attend_long_backward(
    gradient: Tensor, attended: LongAttentionCache, prefix: Pair | None, texts: Texts
) -> tuple[Triple, Pair | None]:
    """As ``decoder_blocks.attend_backward``."""
    query, key, value, found, weight, heads = attended
    coming = _pad_heads(gradient, heads, texts)
    of_query, *of_text = _flash_backward(coming, query, key, value, found, weight, 0.0, True, scale=texts.scaling)
    of_prefix = None
    if prefix is not None:
        keys, values = (each[None] for each in prefix)
        coming, query, found = (_join(each, heads, keys) for each in (coming, query, found))
        weight = _join(weight[..., None], heads, keys)[..., 0]
        more, of_keys, of_values = _flash_backward(
            coming, query, keys, values, found, weight, 0.0, False, scale=texts.scaling
        )
        of_query, of_prefix = of_query + _part(more, heads, of_query), (of_keys[0], of_values[0])
    of_key, of_value = (each.unflatten(1, (heads, -1)).sum(dim=2) for each in of_text)
    packed_query, packed_key, packed_value = (
        pack(each.transpose(1, 2), texts) for each in (of_query, of_key, of_value)
    )
    return (packed_query, packed_key, packed_value), of_prefix


def _pad_heads(packed: Tensor, heads: int, texts: Texts) -> Tensor:
    """``[M, heads * D]`` to ``[B, heads, T, D]``."""
    return pad(packed, heads, texts).flatten(2, 3).transpose(1, 2)


def _join(queries: Tensor, heads: int, keys: Tensor) -> Tensor:
    """``[B, K * G, T, D]`` as one long text to each row of ``keys [1, R, P, D]``: ``[1, R, Q, D]``."""
    grouped: Tensor = queries.unflatten(1, (heads, -1)).transpose(0, 1)
    return grouped.reshape(1, keys.shape[1], -1, queries.shape[-1])


def _part(joined: Tensor, heads: int, queries: Tensor) -> Tensor:
    """The way back to the places of ``queries [B, K * G, T, D]``."""
    count, every, length, _ = queries.shape
    parts: Tensor = joined.reshape(heads, count, every // heads, length, -1).transpose(0, 1)
    return parts.reshape(count, every, length, -1)
