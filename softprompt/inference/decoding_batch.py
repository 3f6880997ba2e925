"""Texts that grow token by token in one batch, which others may join and which they leave when they end.

Where keys and values are cached, each row's stand at the right end, without a gap:

    columns   [padding, prefix, text, what has grown so far]   all rows end in the same column

so neither positions nor sliding windows shift, whatever lengths stand together; a row that joins is padded on the left.
A model without such a cache reads whole texts again. A decoder of an encoder-decoder model counts from the start of
its answers, so there only answers of one length grow together.

Shapes: ``B`` rows, ``S`` columns, ``H`` hidden size.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from softprompt.data.encoding.batching import collate
from softprompt.data.encoding.encoder import Batch, EncodedSequence
from softprompt.models import fast_attention
from softprompt.prompts.cached_prefix import CachedPrefix, stack_prefixes
from softprompt.prompts.kv_cache import align_right, keep_all_columns, pad_left, resize_cache, stack_rows
from softprompt.prompts.prefix import ConcatenatedPrefix, Prefix, read_one_more
from softprompt.prompts.seq2seq_prefix import EncodedPrefix, Seq2SeqDecodingBatch
from softprompt.prompts.shared_prefix_attention import RowPrefixes, SharedPrefixes


class DecodingBatch(Protocol):
    """Rows of one batch.

    Attributes:
        last: hidden states ``[B, H]`` behind what each row has so far.
        texts: those of the texts ``[B, T, H]``, padded on the right, until somebody lets go of them; ``None`` where no
            text goes on.
    """

    last: Tensor
    texts: Tensor | None

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        ...

    def extend(self, tokens: Tensor) -> None:
        """One more token ``[B]`` each."""
        ...


def start_decoding(
    prefix: Prefix | SharedPrefixes, items: Sequence[EncodedSequence], longest: int | None = None
) -> DecodingBatch:
    """Read texts behind their prompts, to go on from.

    Args:
        longest: tokens that a sequence may come to, its prompt counted; whatever the model can hold, if not given.
    """
    batch = collate(items, prefix.base.device)
    if isinstance(prefix, EncodedPrefix):
        return Seq2SeqDecodingBatch(prefix, batch)
    if isinstance(prefix, ConcatenatedPrefix):
        return UncachedDecodingBatch(prefix, items)
    if isinstance(prefix, SharedPrefixes) and not prefix.can_read(batch, longest):
        prefix = stack_prefixes(prefix.prefixes)
    return CachedDecodingBatch(prefix, batch)


def join_batches(rows: DecodingBatch, others: DecodingBatch) -> bool:
    """Take the rows of ``others`` in, behind those of ``rows``; whether they can grow together."""
    match rows, others:
        case CachedDecodingBatch(), CachedDecodingBatch():
            return rows.join(others)
        case UncachedDecodingBatch(), UncachedDecodingBatch():
            return rows.join(others)
    return False


class CachedDecodingBatch:
    """With cached keys and values, in a ``transformers`` cache; prompts stand in it too, or apart from it."""

    def __init__(self, prefix: CachedPrefix | SharedPrefixes, batch: Batch) -> None:
        from transformers import DynamicCache

        lengths = batch.mask.sum(dim=1)
        self._base = prefix.base
        self._fronts: RowPrefixes | None = None
        if isinstance(prefix, CachedPrefix):
            cache = keep_all_columns(prefix.expand(batch.which))
            hidden = prefix.hidden(batch.input_ids, batch.mask, batch.which, cache)
            self._sizes = prefix.starts(batch.which) + lengths
        else:
            self._fronts = prefix.rows(batch.which.tolist())
            cache = keep_all_columns(DynamicCache(config=self._base.model.config))
            hidden = self._fronts.hidden(batch.input_ids, batch.mask, cache)
            self._sizes = lengths
        self._width = int(self._sizes.max())
        self._cache = align_right(cache, batch.mask.shape[1] - lengths, self._width)
        self.last = hidden[torch.arange(len(lengths), device=lengths.device), lengths - 1]
        self.texts: Tensor | None = hidden

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self._sizes, self.last = self._sizes[rows], self.last[rows]
        self._width = int(self._sizes.max())
        self._cache = resize_cache(self._cache, self._width, lambda kept, width: kept[rows.to(kept.device), :, -width:])
        if self._fronts is not None:
            self._fronts = RowPrefixes([self._fronts.prefixes[row] for row in rows.tolist()])

    def extend(self, tokens: Tensor) -> None:
        """One more token ``[B]`` each."""
        self._width += 1
        column = torch.arange(self._width, device=tokens.device)
        mask = (column >= self._width - 1 - self._sizes[:, None]).long()
        positions = self._sizes if self._fronts is None else self._fronts.lengths + self._sizes
        with fast_attention.attend_to(self._fronts):
            self.last = read_one_more(self._base, tokens, mask, positions, self._cache)
        self._sizes = self._sizes + 1

    def join(self, other: "CachedDecodingBatch") -> bool:
        """Take the rows of ``other`` in, behind those that are here; not if prompts stand apart in one of them only."""
        if (self._fronts is None) != (other._fronts is None):
            return False
        width = max(self._width, other._width)
        cache = stack_rows([pad_left(one._cache, width) for one in (self, other)])
        sizes, last = torch.cat([self._sizes, other._sizes]), torch.cat([self.last, other.last])
        # nothing has changed here if one of these fails for lack of memory
        if self._fronts is not None and other._fronts is not None:
            self._fronts = RowPrefixes([*self._fronts.prefixes, *other._fronts.prefixes])
        self._cache, self._width, self._sizes, self.last = cache, width, sizes, last
        return True


class UncachedDecodingBatch:
    """Without a cache: the whole sequence again for every token."""

    def __init__(self, prefix: ConcatenatedPrefix, items: Sequence[EncodedSequence]) -> None:
        self._base = prefix.base
        self._fronts = [prefix.embeddings[item.prompt] for item in items]
        self._ids = [item.ids for item in items]
        self.texts: Tensor | None = None
        self.last = self._read()

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        kept = rows.tolist()
        self._fronts, self._ids = [self._fronts[row] for row in kept], [self._ids[row] for row in kept]
        self.last = self.last[rows]

    def extend(self, tokens: Tensor) -> None:
        """One more token ``[B]`` each."""
        self._ids = [(*ids, token) for ids, token in zip(self._ids, tokens.tolist(), strict=True)]
        self.last = self._read()

    def join(self, other: "UncachedDecodingBatch") -> bool:
        """Take the rows of ``other`` in, behind those that are here."""
        self._fronts, self._ids = self._fronts + other._fronts, self._ids + other._ids
        self.last = torch.cat([self.last, other.last])
        return True

    def _read(self) -> Tensor:
        items = [EncodedSequence(row, ids, (), prompt=row) for row, ids in enumerate(self._ids)]
        batch, prefix = collate(items, self._base.device), ConcatenatedPrefix(self._base, tuple(self._fronts))
        hidden = self.texts = prefix.hidden(batch.input_ids, batch.mask, batch.which)
        return hidden[torch.arange(len(items), device=hidden.device), batch.mask.sum(dim=1) - 1]
