"""BOS and prompt as keys and values that are computed once, in front of right-padded texts of any number.

Where a text has branches (``Batch.seen``), each token looks at those that it follows only: by our own layers, or by
the model's with a mask of our making where that gives its numbers, which is measured; else every branch is read as a
plain text.

Shapes: as in prefix.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from softprompt.data.encoding.batching import collate
from softprompt.data.encoding.branches import read_separately
from softprompt.data.encoding.encoder import Batch, EncodedSequence
from softprompt.models.exactness import OncePerModel, is_exact
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.kernels.fused_decoder import FusedDecoder, find_fused_decoder
from softprompt.models.last_layer import limit_last_layer
from softprompt.models.sharding import gather_before_backward
from softprompt.prompts.kv_cache import map_tensors, pad_left, read_only, stack_rows


@dataclass(frozen=True)
class CachedPrefix:
    """Keys and values of BOS and prompt in every layer, in a ``transformers`` cache with a row for each prompt.

    Attributes:
        cache: the cache, or ``None`` where every prefix is empty.
        lengths: tokens of each prefix, BOS counted; rows are padded on the left to the longest.
    """

    base: FrozenLM
    cache: Any
    lengths: tuple[int, ...]

    @property
    def width(self) -> int:
        """Tokens of the longest prefix."""
        return max(self.lengths)

    @cached_property
    def _lengths(self) -> Tensor:
        return torch.tensor(self.lengths, device=self.base.device)

    def starts(self, which: Tensor) -> Tensor:
        """Position of the first text token ``[B]`` behind prompts ``which [B]``."""
        return self._lengths[which]

    def mask(self, which: Tensor) -> Tensor:
        """``[B, width]``: 1 on the prefix of prompt ``which [B]``, 0 on the padding before it."""
        column = torch.arange(self.width, device=self.base.device)
        return (column >= self.width - self.starts(which)[:, None]).long()

    def expand(self, which: Tensor) -> Any:
        """A cache for rows behind prompts ``which [B]``; one prompt is not copied. This one stays as it is."""
        from transformers import DynamicCache

        if self.cache is None:
            return DynamicCache(config=self.base.model.config)
        if len(self.lengths) == 1:
            return map_tensors(self.cache, lambda tensor: tensor.expand(len(which), -1, -1, -1))
        return map_tensors(self.cache, lambda tensor: tensor.index_select(0, which.to(tensor.device)))

    def hidden(
        self,
        input_ids: Tensor,
        mask: Tensor,
        which: Tensor | None = None,
        cache: Any = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """Hidden states ``[B, T, H]`` of texts ``[B, T]``, each behind its prompt.

        Args:
            mask: ``[B, T]``, 1 on text and 0 on padding, which must stand on the right.
            which: ``[B]``, the prompt of each row; the first one if not given.
            cache: from ``expand``; it is filled with the texts' keys and values, for generation to go on from.
            seen: as ``Batch.seen``, where ``reads_branches`` says that the model can.
        """
        which = input_ids.new_zeros(len(input_ids)) if which is None else which
        if cache is None and (decoder := self._find_decoder(input_ids)) is not None:
            places = mask.nonzero(as_tuple=True)
            read = self._read(decoder, input_ids, mask, *places, which, seen=seen)
            return read.new_zeros(*input_ids.shape, read.shape[-1]).index_put(places, read)
        # padding keeps its text's last position: beside longer texts it could leave the model's context
        offsets = mask.cumsum(dim=1) - 1
        looked_at = torch.cat([self.mask(which), mask], dim=1)
        if seen is not None:
            offsets = seen.sum(dim=2) - 1
            front = self.mask(which)[:, None].expand(-1, seen.shape[1], -1).bool()
            hidden_from = torch.cat([front, seen], dim=2)[:, None].logical_not()
            looked_at = torch.zeros(hidden_from.shape, dtype=self.base.dtype, device=seen.device)
            looked_at = looked_at.masked_fill(hidden_from, torch.finfo(self.base.dtype).min)
        hidden: Tensor = self.base.run_backbone(
            inputs_embeds=self.base.embed(input_ids),
            attention_mask=looked_at,
            position_ids=self.starts(which)[:, None] + offsets,
            past_key_values=read_only(self.expand(which)) if cache is None else cache,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def scored(self, batch: Batch) -> Tensor:
        """Hidden states ``[N, H]`` at the batch's scored positions, and the last layer's work for these only."""
        if (decoder := self._find_decoder(batch.input_ids)) is not None:
            return self._read(
                decoder, batch.input_ids, batch.mask, batch.row, batch.column, batch.which, seen=batch.seen
            )
        if batch.seen is not None and not self._reads_branches(batch):
            return read_separately(self.scored, batch)
        return self.scored_by_model(batch)

    def scored_by_model(self, batch: Batch) -> Tensor:
        """The same by the model's own layers, branches too, whether or not they can."""
        with limit_last_layer(batch.row * batch.input_ids.shape[1] + batch.column):
            hidden = self.hidden(batch.input_ids, batch.mask, batch.which, seen=batch.seen)
        return hidden[batch.row, batch.column]

    def _reads_branches(self, batch: Batch) -> bool:
        """Whether the model's own layers do; where a window is outgrown no mask of ours says what it hides."""
        window = self.base.sliding_window
        return (window is None or self.width + batch.input_ids.shape[1] <= window) and reads_branches(self.base)

    def _find_decoder(self, input_ids: Tensor) -> FusedDecoder | None:
        """Our own layers, where they can read texts ``[B, T]``."""
        decoder = find_fused_decoder(self.base)
        return decoder if decoder is not None and decoder.fits(self.width + input_ids.shape[1]) else None

    def _read(
        self, decoder: FusedDecoder, input_ids: Tensor, mask: Tensor, *places: Tensor, seen: Tensor | None = None
    ) -> Tensor:
        """Hidden states ``[N, H]`` at ``row [N], column [N]`` of texts behind prompts ``which [B]``."""
        prefix = None if self.cache is None else [(layer.keys, layer.values) for layer in self.cache.layers]
        return decoder.read(self.base.embed(input_ids), mask, *places, prefix=prefix, lengths=self.lengths, seen=seen)


def stack_prefixes(prefixes: Sequence[CachedPrefix]) -> CachedPrefix:
    """Several prompts as one prefix, for batches that mix them."""
    if len(prefixes) == 1:
        return prefixes[0]
    lengths = tuple(length for prefix in prefixes for length in prefix.lengths)
    base, longest = prefixes[0].base, max(prefixes, key=lambda prefix: prefix.width)
    if longest.cache is None:
        return CachedPrefix(base, None, lengths)

    empty = map_tensors(longest.cache, lambda tensor: torch.zeros_like(tensor[:1]))
    caches = [empty if prefix.cache is None else pad_left(prefix.cache, longest.width) for prefix in prefixes]
    return CachedPrefix(base, stack_rows(caches), lengths)


def compute_cache(base: FrozenLM, embeddings: Tensor, cache: Any = None) -> Any:
    """The cache after a pass over ``embeddings [P', H]``; ``None`` if there are none."""
    from transformers import DynamicCache

    if len(embeddings) == 0:
        return None
    cache = DynamicCache(config=base.model.config) if cache is None else cache
    if (decoder := find_fused_decoder(base)) is not None and decoder.fits(len(embeddings)):
        for index, pair in enumerate(decoder.compute_keys_and_values(embeddings[None])):
            cache.update(*pair, index)
        return cache
    base.run_backbone(
        inputs_embeds=embeddings[None],
        position_ids=torch.arange(len(embeddings), device=base.device)[None],
        past_key_values=cache,
        use_cache=True,
    )
    if base.processes.in_lockstep:
        gather_before_backward(base.backbone, cache)
    return cache


@OncePerModel
@torch.no_grad()
def reads_branches(base: FrozenLM) -> bool:
    """Whether the model's own layers read branches by a mask: measured once a model, not assumed."""
    known = min(base.vocabulary_size - 1, 31)
    front = base.embed(1 + torch.arange(3, device=base.device) % known)
    prefix = CachedPrefix(base, compute_cache(base, front), (3,))
    tokens = [1 + token % known for token in range(3, 14)]
    # two texts of four and two tokens, behind each a tree, whose tokens look at neighbours if the mask does not count
    items = [
        EncodedSequence(0, tuple(tokens[:9]), (3, 5, 8, 6, 7), parents=(3, 4, 3, 6, 6)),
        EncodedSequence(1, tuple(tokens[5:10]), (1, 3, 4), parents=(1, 1, 2)),
    ]
    batch = collate(items, base.device)

    def read(plain: Batch) -> Tensor:
        return prefix.hidden(plain.input_ids, plain.mask, plain.which, prefix.expand(plain.which))[
            plain.row, plain.column
        ]

    expected = read_separately(read, batch)
    return is_exact(lambda: prefix.scored_by_model(batch), expected, base.dtype, float32=1e-4, rounded=6e-2)
