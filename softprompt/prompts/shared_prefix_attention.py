"""Prompts that stay where they are: attention looks at each one's keys and values once for all rows behind it.

A prefix copied into every row costs memory and time that grow with rows and prompts. Where a layer's attention is ours
(faster.py), the part of it that looks at the prefix is one product for all rows behind one prompt, and is put together
with the part that looks at the texts by the weight of each, as in Hydragen (Juravsky et al. 2024): exact, and nothing
is copied. It serves without gradient, and where no window is outgrown; whether a model gives the same numbers is
measured. Texts that are only scored go through our own layers where the model has them (fused.py): there a prefix is
copied once for all rows behind it, and what is saved besides is worth more.

Shapes: ``B`` rows, ``T`` text length, ``P`` prefix length, ``H`` hidden size, ``D`` size of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from softprompt.data.encoding.batching import collate
from softprompt.data.encoding.encoder import Batch, EncodedSequence
from softprompt.models import fast_attention
from softprompt.models.exactness import OncePerModel, is_exact
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.kernels.fused_decoder import find_fused_decoder
from softprompt.models.last_layer import limit_last_layer
from softprompt.prompts.attention_prefix import strip_prompt_suffix
from softprompt.prompts.cached_prefix import CachedPrefix, stack_prefixes
from softprompt.prompts.prefix import make_cached_prefix, shares_prefix
from softprompt.prompts.state import PromptState


class RowPrefixes:
    """What stands before each row of a batch, for attention to look at.

    Attributes:
        of_rows: the prefix of each row, ``[B]``.
        lengths: tokens of each, ``[B]``, BOS counted.
    """

    def __init__(self, prefixes: Sequence[CachedPrefix]) -> None:
        self.prefixes = tuple(prefixes)
        device = self.prefixes[0].base.device
        self.lengths = torch.tensor([prefix.width for prefix in self.prefixes], device=device)
        rows: dict[int, list[int]] = {}
        for row, prefix in enumerate(self.prefixes):
            if prefix.cache is not None:
                rows.setdefault(id(prefix), []).append(row)
        self._places = [(self.prefixes[same[0]].cache.layers, _make_index(same, device)) for same in rows.values()]

    def attend(self, module: Any, query: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        """What queries ``[B, heads, T, D]`` find there, and the logarithm of its weight ``[B, heads, T]``; float32."""
        found = torch.zeros_like(query, dtype=torch.float32)
        weights = found.new_full(found.shape[:3], -torch.inf)
        for layers, place in self._places:
            layer, own = layers[module.layer_idx], query[place]
            count, heads, length, size = own.shape
            kv_heads = layer.keys.shape[1]
            # query heads that share a key head, and all rows, are one long text to it
            joined = own.view(count, kv_heads, -1, length, size).transpose(0, 1).reshape(1, kv_heads, -1, size)
            mixed, weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                joined, layer.keys, layer.values, 0.0, False, attn_mask=None, scale=scaling
            )
            mixed = mixed.reshape(kv_heads, count, -1, length, size).transpose(0, 1)
            found[place] = mixed.reshape(count, heads, length, size).float()
            weight = weight.reshape(kv_heads, count, -1, length).transpose(0, 1)
            weights[place] = weight.reshape(count, heads, length)
        return found, weights

    def hidden(self, input_ids: Tensor, mask: Tensor, cache: Any = None) -> Tensor:
        """Hidden states ``[B, T, H]`` of texts ``[B, T]``, padded on the right.

        Args:
            cache: it is filled with the texts' keys and values.
        """
        base = self.prefixes[0].base
        with fast_attention.attend_to(self):
            hidden: Tensor = base.run_backbone(
                inputs_embeds=base.embed(input_ids),
                attention_mask=mask,
                position_ids=self.lengths[:, None] + mask.cumsum(dim=1) - 1,
                past_key_values=cache,
                use_cache=cache is not None,
            ).last_hidden_state
        return hidden


@dataclass(frozen=True)
class SharedPrefixes:
    """Several prompts, none of them copied.

    Attributes:
        prefixes: one for each prompt.
    """

    base: FrozenLM
    prefixes: tuple[CachedPrefix, ...]

    def rows(self, which: Sequence[int]) -> RowPrefixes:
        """For rows behind the prompts ``which [B]``."""
        return RowPrefixes([self.prefixes[one] for one in which])

    def can_read(self, batch: Batch, longest: int | None) -> bool:
        """Whether texts can be read so that are to come to ``longest`` tokens (``None``: any number), prompts counted.

        Not where a window is outgrown, nor where texts are so long that our attention leaves them to the kernel.
        """
        rows, length = batch.input_ids.shape
        window = self.base.sliding_window
        short = rows * self.base.config.num_attention_heads * length**2 <= fast_attention.SHORT_ATTENTION
        return short and (window is None or (longest is not None and longest <= window))

    def scored(self, batch: Batch) -> Tensor:
        """Hidden states ``[N, H]`` at the batch's scored positions."""
        longest = max(prefix.width for prefix in self.prefixes) + batch.input_ids.shape[1]
        if batch.seen is None and find_fused_decoder(self.base) is None and self.can_read(batch, longest):
            return self.scored_without_copies(batch)
        used, which = batch.which.unique(return_inverse=True)
        return stack_prefixes([self.prefixes[one] for one in used.tolist()]).scored(replace(batch, which=which))

    def scored_without_copies(self, batch: Batch) -> Tensor:
        """The same, where ``can_read`` says so, without any copy."""
        fronts = self.rows(batch.which.tolist())
        with limit_last_layer(batch.row * batch.input_ids.shape[1] + batch.column):
            return fronts.hidden(batch.input_ids, batch.mask)[batch.row, batch.column]


@OncePerModel
@torch.no_grad()
def supports_shared_attention(base: FrozenLM) -> bool:
    """Whether prefixes that stay where they are give the same numbers: measured once a model, not assumed."""
    ours = strip_prompt_suffix(str(getattr(base.model.config, "_attn_implementation", None))) == fast_attention.NAME
    if not ours or not shares_prefix(base) or not hasattr(base.config, "num_attention_heads"):
        return False
    known = min(base.vocabulary_size - 1, 31)
    states = [PromptState.of_embeddings(base.embed(torch.arange(1, 1 + length) % known)) for length in (3, 2)]
    apart = SharedPrefixes(base, tuple(make_cached_prefix(base, state) for state in (*states, None)))
    # rows of one prompt together, and not
    asked = (((1, 2, 3), 0), ((3,), 0), ((2, 5), 1), ((4, 1), 2), ((5, 1), 0))
    items = [EncodedSequence(row, text, (len(text) - 1,), prompt=prompt) for row, (text, prompt) in enumerate(asked)]
    batch = collate(items, base.device)
    if not apart.can_read(batch, apart.prefixes[0].width + batch.input_ids.shape[1]):
        return False
    together = stack_prefixes(apart.prefixes)
    # with a cache of its own it is the model's layers that read, not ours
    hidden = together.hidden(batch.input_ids, batch.mask, batch.which, together.expand(batch.which))
    expected = hidden[batch.row, batch.column]
    return is_exact(lambda: apart.scored_without_copies(batch), expected, base.dtype)


def _make_index(rows: list[int], device: torch.device) -> Any:
    """An index for ``rows``: a slice where they stand together, which copies nothing."""
    if rows == list(range(rows[0], rows[-1] + 1)):
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows, device=device)
