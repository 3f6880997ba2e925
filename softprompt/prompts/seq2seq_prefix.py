"""Prompts in an encoder-decoder model (T5, BART and their kin).

    encoder   [P', H] BOS and virtual tokens, [T, H] text, padding behind  -->  [P'+T, H]
    decoder   start and answer, looking at all of that                     -->  hidden states

An encoder sees both ways, so its prompt is not the same for every text and there is nothing to share: virtual tokens
are put in front of each text anew. Rows are padded behind, where neither T5's distances nor BART's positions shift.
Every text is encoded once, however many answers to it are scored, or tokens generated.

Keys and values (prefix tuning, Li and Liang 2021) stand in front of what self-attention sees in every layer of encoder
and decoder. Deviations from the paper: cross-attention gets none of its own, for what it looks at changes with the
encoder's prefix anyway, a third set would grow the prompt by half, and PEFT has none there either; positions of text
and answer stay where they are without a prompt, where PEFT's cache moves those of BART's decoder by ``P`` (in T5, which
knows only distances, both are the same).

Shapes: ``B`` items, ``S`` different texts, ``T`` text length, ``U`` answer length, ``P`` prompt length, ``H`` hidden
size, ``N`` scored positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softprompt.data.encoding.encoder import Batch
from softprompt.models.architecture import decode, encode
from softprompt.models.exactness import relative_error
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.attention_prefix import AttentionRecorder, LayerPrefixes, find_prompted_layers
from softprompt.prompts.state import PromptState, concatenate_prefixes


@dataclass(frozen=True)
class EncodedPrefix:
    """Prompts in front of what an encoder reads, or in the layers of encoder and decoder.

    Attributes:
        embeddings: of each prompt, ``[P', H]`` in the model's dtype: BOS, and the virtual tokens if it has any.
        encoder, decoder: keys and values of each prompt, if there are any.
    """

    base: FrozenLM
    embeddings: tuple[Tensor, ...]
    encoder: LayerPrefixes | None = None
    decoder: LayerPrefixes | None = None

    def scored(self, batch: Batch) -> Tensor:
        """Hidden states ``[N, H]`` of the decoder at the batch's scored positions."""
        encoded, mask = self.encoded(batch)
        options = _prompt_options(self.decoder, batch.which)
        hidden = decode(self.base.model, encoded, mask, input_ids=batch.decoder_ids, **options)
        return hidden[batch.row, batch.column]

    def encoded(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the decoder looks at for each item, ``[B, P'+T, H]``, and where that is no padding, ``[B, P'+T]``."""
        which = batch.which.new_zeros(len(batch.input_ids)).index_copy(0, batch.reads, batch.which)
        rows, ends = concatenate_prefixes(self.embeddings, self.base.embed(batch.input_ids), batch.mask, which)
        mask = (torch.arange(rows.shape[1], device=rows.device) < ends).long()
        states = encode(self.base.model, rows, mask, **_prompt_options(self.encoder, which))
        return states[batch.reads], mask[batch.reads]


class Seq2SeqDecodingBatch:
    """Answers of one batch, token by token, all of them of one length.

    Attributes:
        last: hidden states ``[B, H]`` behind what each answer has so far.
        texts: none, for what the encoder reads does not go on.
    """

    texts: Tensor | None = None

    def __init__(self, prefix: EncodedPrefix, batch: Batch) -> None:
        """Encode the texts and give the decoder what answers start with."""
        from transformers import DynamicCache, EncoderDecoderCache

        self._prefix, self._which = prefix, batch.which
        self._encoded, self._mask = prefix.encoded(batch)
        self._cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())
        start = torch.tensor(prefix.base.special_tokens.decoder_start, device=prefix.base.device)
        self.last = self._read(start.expand(len(batch.which), -1))

    def keep(self, rows: Tensor) -> None:
        """Go on with these answers only."""
        self._cache.batch_select_indices(rows)
        self.last = self.last[rows]
        self._encoded, self._mask, self._which = self._encoded[rows], self._mask[rows], self._which[rows]

    def extend(self, tokens: Tensor) -> None:
        """One more token ``[B]`` each."""
        self.last = self._read(tokens[:, None])

    def _read(self, ids: Tensor) -> Tensor:
        prefix = self._prefix
        options = _prompt_options(prefix.decoder, self._which)
        hidden = decode(prefix.base.model, self._encoded, self._mask, self._cache, input_ids=ids, **options)
        return hidden[:, -1]


def make_encoded_prefix(base: FrozenLM, *states: PromptState | None) -> EncodedPrefix:
    """Prompts for the texts of an encoder-decoder model; gradient flows to them. ``None`` is BOS alone.

    Raises:
        BaseModelError: keys and values for a model whose layers take none.
    """
    bos = base.embed(torch.tensor(base.bos_ids, dtype=torch.long, device=base.device))
    embeddings: list[Tensor] = []
    layers: list[tuple[Tensor, ...]] = []
    for state in states:
        tensors = () if state is None else tuple(tensor.to(base.device, base.dtype) for tensor in state.tensors)
        in_layers = state is not None and state.kind == "key_values"
        front = bos if state is None or state.behind_bos else bos[:0]
        embeddings.append(front if in_layers else torch.cat([front, *tensors]))
        layers.append(tensors if in_layers else ())
    if not any(layers):
        return EncodedPrefix(base, tuple(embeddings))
    modules, split = find_prompted_layers(base), len(find_prompted_layers(base).encoder)
    no_rows = torch.zeros(0, dtype=torch.long, device=base.device)
    return EncodedPrefix(
        base,
        tuple(embeddings),
        LayerPrefixes.of(modules.encoder, [tensors[:split] for tensors in layers], no_rows),
        LayerPrefixes.of(modules.decoder, [tensors[split:] for tensors in layers], no_rows),
    )


def stack_encoded_prefixes(prefixes: Sequence[EncodedPrefix]) -> EncodedPrefix:
    """Several prompts as one prefix, for batches that mix them."""

    def stacked(parts: Sequence[LayerPrefixes | None]) -> LayerPrefixes | None:
        full = next((part for part in parts if part is not None), None)
        if full is None:
            return None
        prompts: list[list[Tensor]] = []
        for prefix, part in zip(prefixes, parts, strict=True):
            for row in range(len(prefix.embeddings)):
                width = 0 if part is None else int(part.mask[row].sum())
                own = [] if part is None else [tensor[row] for tensor in part.tensors]
                prompts.append([tensor[:, :, tensor.shape[2] - width :] for tensor in own] if width else [])
        return LayerPrefixes.of(full.modules, prompts, full.which)

    return EncodedPrefix(
        prefixes[0].base,
        tuple(rows for prefix in prefixes for rows in prefix.embeddings),
        stacked([prefix.encoder for prefix in prefixes]),
        stacked([prefix.decoder for prefix in prefixes]),
    )


@torch.no_grad()
def compute_seq2seq_keys_and_values(base: FrozenLM, virtual_tokens: Tensor) -> PromptState:
    """What self-attention sees of virtual tokens ``[P, H]``, in every layer of encoder and decoder.

    In the encoder they stand where a prompt does, in front of an empty text. In the decoder they are an answer to that:
    there the prefix is something that was said before.

    Raises:
        BaseModelError: the model's layers take no keys and values.
    """
    modules, frame = find_prompted_layers(base), base.special_tokens
    tokens = virtual_tokens.to(base.device, base.dtype)

    def embedded(*ids: int) -> Tensor:
        return base.embed(torch.tensor(ids, dtype=torch.long, device=base.device))

    in_encoder, in_decoder = AttentionRecorder(), AttentionRecorder()
    empty = torch.cat([embedded(*frame.bos), tokens, embedded(*frame.suffix)])
    encoded = encode(base.model, empty[None], prompt=in_encoder)
    answer = torch.cat([embedded(*frame.decoder_start), tokens])[None]
    # some decoders scale the embeddings that they are given
    as_ids, as_given = (
        decode(base.model, encoded, None, **start)
        for start in (
            {"input_ids": torch.tensor([frame.decoder_start], device=base.device)},
            {"inputs_embeds": embedded(*frame.decoder_start)[None]},
        )
    )
    if relative_error(as_given, as_ids) > 1e-2:
        answer = answer / base.embedding_scale
    decode(base.model, encoded, None, inputs_embeds=answer, prompt=in_decoder)
    seen = [(one, len(frame.bos)) for one in in_encoder.seen_by(modules.encoder)]
    seen += [(one, len(frame.decoder_start)) for one in in_decoder.seen_by(modules.decoder)]
    pairs = [torch.cat([one.key, one.value])[:, :, first : first + len(tokens)] for one, first in seen]
    return PromptState("key_values", tuple(pair.float().clone() for pair in pairs))


def _prompt_options(layers: LayerPrefixes | None, which: Tensor) -> dict[str, Any]:
    """What an encoder or decoder is called with, for rows behind prompts ``which [B]``."""
    return {} if layers is None else {"prompt": layers.rows(which)}
