"""PromptState, and the exact shared-prefix forward pass.

In a causal model the prefix (BOS and prompt) never sees the text behind it, so its keys and values are the same for
every example. They are computed once, with gradient, and expanded over the batch:

    prefix  [1, P', H]  --backbone-->  keys, values of every layer  [1, heads, P', head_dim]
    text    [B, T, H]   --backbone, with those expanded to B-->     hidden states  [B, T, H]

``P'`` counts BOS too. Positions of the text start at ``P'``. The text is padded on the right, so padding stands
behind everything that looks at it and neither positions nor sliding windows shift.
"""

import copy
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from softprompt.base import FrozenLM

_shares: WeakKeyDictionary[FrozenLM, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class PromptState:
    """What a method leaves behind after learning, and all that evaluation, store and export see of it.

    Attributes:
        kind: ``embeddings``, virtual tokens at the model's input, after BOS and before the text.
        tensor: ``[P, H]`` float32, in the scale in which the first layer sees token embeddings.
    """

    kind: Literal["embeddings"]
    tensor: Tensor

    @property
    def length(self) -> int:
        """Virtual tokens ``P``."""
        return self.tensor.shape[0]


@dataclass(frozen=True)
class CachedPrefix:
    """Keys and values of BOS and prompt in every layer, batch 1, in a ``transformers`` cache.

    Attributes:
        cache: the cache, or ``None`` where the prefix is empty.
        length: tokens in it, BOS counted.
    """

    base: FrozenLM
    cache: Any
    length: int

    def expand(self, batch: int) -> Any:
        """A cache for ``batch`` examples that reads the same memory; using it leaves this prefix as it is."""
        from transformers import DynamicCache

        if self.cache is None:
            return DynamicCache(config=self.base.model.config)
        expanded = copy.copy(self.cache)
        expanded.layers = []
        for layer in self.cache.layers:
            view = copy.copy(layer)
            if view.keys is not None:
                view.keys = view.keys.expand(batch, -1, -1, -1)
                view.values = view.values.expand(batch, -1, -1, -1)
            expanded.layers.append(view)
        return expanded

    def hidden(self, input_ids: Tensor, mask: Tensor, cache: Any = None) -> Tensor:
        """Hidden states ``[B, T, H]`` of texts ``[B, T]`` behind this prefix.

        ``mask [B, T]`` is 1 on text and 0 on padding, which must stand on the right. A ``cache`` from ``expand``
        is filled with the texts' keys and values, for generation to go on from.
        """
        batch, length = input_ids.shape
        positions = torch.arange(self.length, self.length + length, device=input_ids.device)
        full_mask = torch.cat([mask.new_ones(batch, self.length), mask], dim=1)
        hidden: Tensor = self.base.run_backbone(
            inputs_embeds=self.base.embed(input_ids),
            attention_mask=full_mask,
            position_ids=positions.expand(batch, -1),
            past_key_values=self.expand(batch) if cache is None else cache,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def extend(self, token_ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Hidden states ``[B, H]`` of one more token each, ``[B]``, behind what ``cache`` holds.

        ``mask [B, P' + T + 1]`` counts prefix, text and the new token; ``positions [B]`` are counted without padding.
        """
        hidden: Tensor = self.base.run_backbone(
            inputs_embeds=self.base.embed(token_ids[:, None]),
            attention_mask=mask,
            position_ids=positions[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden[:, -1]


@dataclass(frozen=True)
class ConcatenatedPrefix:
    """BOS and prompt put in front of every text anew: the reference, and the way for models without such a cache."""

    base: FrozenLM
    embeddings: Tensor

    def hidden(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states ``[B, T, H]`` of texts ``[B, T]``; ``mask [B, T]`` may pad on either side."""
        prefix_length, (batch, length) = self.embeddings.shape[0], input_ids.shape
        embeddings = torch.cat([self.embeddings.expand(batch, -1, -1), self.base.embed(input_ids)], dim=1)
        # padding on the left has to stand in front of the prefix, not between prefix and text
        left = (mask.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)
        column = torch.arange(prefix_length + length, device=mask.device).expand(batch, -1)
        source = torch.where(column < left, prefix_length + column, column)
        source = torch.where((column >= left) & (column < left + prefix_length), column - left, source)
        embeddings = embeddings.gather(1, source[..., None].expand(-1, -1, embeddings.shape[-1]))
        full_mask = torch.cat([mask.new_ones(batch, prefix_length), mask], dim=1).gather(1, source)
        hidden: Tensor = self.base.run_backbone(
            inputs_embeds=embeddings,
            attention_mask=full_mask,
            position_ids=(column - left).clamp(min=0),
            use_cache=False,
        ).last_hidden_state
        return hidden[:, prefix_length:]


def concatenated_prefix(base: FrozenLM, virtual_tokens: Tensor | None) -> ConcatenatedPrefix:
    """BOS followed by the virtual tokens ``[P, H]``, in the model's dtype."""
    bos = base.embed(torch.tensor(base.bos_ids, dtype=torch.long, device=base.device))
    if virtual_tokens is None:
        return ConcatenatedPrefix(base, bos)
    return ConcatenatedPrefix(base, torch.cat([bos, virtual_tokens.to(base.device, base.dtype)]))


def cached_prefix(base: FrozenLM, virtual_tokens: Tensor | None) -> CachedPrefix:
    """Run BOS and virtual tokens ``[P, H]`` through the model once; gradient flows to ``virtual_tokens``."""
    embeddings = concatenated_prefix(base, virtual_tokens).embeddings
    length = embeddings.shape[0]
    if length == 0:
        return CachedPrefix(base, None, 0)
    from transformers import DynamicCache

    cache = DynamicCache(config=base.model.config)
    base.run_backbone(
        inputs_embeds=embeddings[None],
        position_ids=torch.arange(length, device=base.device)[None],
        past_key_values=cache,
        use_cache=True,
    )
    return CachedPrefix(base, cache, length)


Prefix = CachedPrefix | ConcatenatedPrefix


def make_prefix(base: FrozenLM, virtual_tokens: Tensor | None) -> Prefix:
    """BOS and ``virtual_tokens [P, H]`` as a prefix for right-padded texts, the fastest exact way for this model."""
    return (cached_prefix if shares_prefix(base) else concatenated_prefix)(base, virtual_tokens)


def shares_prefix(base: FrozenLM) -> bool:
    """Whether a prefix computed once may stand in for it in every example: measured once a model, not assumed."""
    if base not in _shares:
        _shares[base] = _sharing_is_exact(base)
    return _shares[base]


@torch.no_grad()
def _sharing_is_exact(base: FrozenLM) -> bool:
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    virtual_tokens = base.embed(torch.arange(1, 4, device=base.device))
    # the same texts, once whole and once with their last token generated behind the padding
    whole = torch.tensor([[1, 2, 3, 6], [4, 5, 6, 0]], device=base.device)
    texts, mask = whole[:, :3], torch.tensor([[1, 1, 1], [1, 1, 0]], device=base.device)
    one = mask.new_ones(2, 1)
    full = concatenated_prefix(base, virtual_tokens).hidden(whole, torch.cat([one, mask], dim=1))
    last = mask.sum(dim=1)
    expected = torch.cat([full[:, :3][mask.bool()], full[torch.arange(2, device=base.device), last]])
    try:
        prefix = cached_prefix(base, virtual_tokens)
        # hybrid layers hold more than keys and values, which expand() would leave at batch 1
        if not all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in prefix.cache.layers):
            return False
        cache = prefix.expand(2)
        of_texts = prefix.hidden(texts, mask, cache)[mask.bool()]
        seen = torch.cat([mask.new_ones(2, prefix.length), mask, one], dim=1)
        actual = torch.cat([of_texts, prefix.extend(texts.new_full((2,), 6), seen, prefix.length + last, cache)])
    except (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError, IndexError):
        return False
    tolerance = 1e-3 if base.dtype == torch.float32 else 1e-1
    error = (actual - expected).float().norm() / expected.float().norm()
    return bool(error < tolerance)
