"""Every way to put a prompt in front of texts, measured against plain concatenation.

    error     the largest, over the texts, of  ||logits - reference|| / ||reference||
    gradient  ||g - reference|| / ||reference||,  g the gradient of a cross-entropy over all texts to the prompts

Shapes: ``B`` batch, ``T`` text length, ``V`` vocabulary, ``N`` positions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from softprompt.analysis.diagnostics.parity_cases import (
    STEPS,
    ParityCase,
    embed_text,
    make_case,
    original_modules,
    sum_loss,
)
from softprompt.data.encoding.batching import collate
from softprompt.data.encoding.encoder import Batch, EncodedSequence
from softprompt.errors import BaseModelError
from softprompt.models.exactness import relative_error
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.cached_prefix import CachedPrefix
from softprompt.prompts.prefix import (
    Prefix,
    check_keys_and_values,
    compute_keys_and_values,
    make_cached_prefix,
    make_concatenated_prefix,
    make_prefix,
    read_one_more,
)
from softprompt.prompts.seq2seq_prefix import Seq2SeqDecodingBatch, compute_seq2seq_keys_and_values, make_encoded_prefix
from softprompt.prompts.state import PromptState


@dataclass(frozen=True)
class ParityErrors:
    """Relative errors; ``gradient`` is ``None`` where none is taken."""

    logits: float
    gradient: float | None


def measure_rounding(base: FrozenLM, among: Sequence[ParityCase], seed: int) -> ParityErrors:
    """How far the references move when every input embedding moves by up to half a unit in its last place.

    Measured on random models of 2 to 32 layers in bfloat16 and float16: 0.8 to 2.5 times what the order of the same
    operations does.
    """
    noise = torch.Generator().manual_seed(seed)
    moved = [make_case(base, case.prompts, case.items, noise) for case in among]
    return ParityErrors(
        largest([largest_relative_error(other.logits, case.logits) for other, case in zip(moved, among, strict=True)]),
        largest([relative_error(other.gradient, case.gradient) for other, case in zip(moved, among, strict=True)]),
    )


def measure_right_padded(base: FrozenLM, case: ParityCase) -> ParityErrors:
    """Texts of different lengths, padding behind them."""
    return _measure_padded(base, case, collate(case.items, base.device))


def measure_left_padded(base: FrozenLM, case: ParityCase) -> ParityErrors:
    """The same with padding in front."""
    batch = collate(case.items, base.device)
    length = batch.mask.shape[1]
    shift = length - batch.mask.sum(dim=1)
    source = (torch.arange(length, device=base.device) - shift[:, None]) % length
    moved = replace(batch, input_ids=batch.input_ids.gather(1, source), mask=batch.mask.gather(1, source))
    return _measure_padded(base, case, moved, shift)


def _measure_padded(base: FrozenLM, case: ParityCase, batch: Batch, shift: Tensor | None = None) -> ParityErrors:
    """``shift [B]``: how far the padding moved the texts; an encoder's answers stay where they are."""
    if base.architecture == "encoder-decoder":
        return compare_with_reference(scored_logits(make_prefix(base, *case.states), batch), case)
    hidden = make_concatenated_prefix(base, *case.states).hidden(batch.input_ids, batch.mask, batch.which)
    return compare_with_reference(_logits(base, hidden, batch, shift), case)


def measure_shared_prefix(base: FrozenLM, case: ParityCase) -> ParityErrors:
    """Keys and values of the prompt computed once, whether softprompt chooses so for this model or not.

    Raises:
        BaseModelError: the model's cache holds something else.
    """
    batch = collate(case.items, base.device)
    hidden = _cached(base, case).hidden(batch.input_ids, batch.mask, batch.which)
    return compare_with_reference(_logits(base, hidden, batch), case)


def measure_mixed_prompts(base: FrozenLM, case: ParityCase) -> ParityErrors:
    """Several prompts in one batch, in the way that softprompt chooses for this model."""
    batch = collate(case.items, base.device)
    return compare_with_reference(scored_logits(make_prefix(base, *case.states), batch), case)


def measure_keys_and_values(base: FrozenLM, case: ParityCase) -> ParityErrors:
    """Keys and values in place of the embeddings they came from.

    Their gradient, carried on through the model's own pass over the prompt alone, is the gradient to the prompt.

    Raises:
        BaseModelError: the model keeps no such cache, or keys and values differ in size.
    """
    from transformers import DynamicCache

    check_keys_and_values(base)
    prompt = case.leaves[0]
    own: Any = DynamicCache()
    with original_modules(base.model):
        base.run_backbone(inputs_embeds=embed_text(base, prompt, ()), past_key_values=own, use_cache=True)
    pairs = [torch.cat([layer.keys, layer.values])[:, :, len(base.bos_ids) :].float() for layer in own.layers]
    tensors = tuple(tensor.requires_grad_() for tensor in compute_keys_and_values(base, prompt.detach()).tensors)
    batch = collate(case.items, base.device)
    prefix = make_cached_prefix(base, PromptState("key_values", tensors))
    logits = _logits(base, prefix.hidden(batch.input_ids, batch.mask, batch.which), batch)
    to_tensors = torch.autograd.grad(sum_loss(logits, case.items), tensors)
    (gradient,) = torch.autograd.grad(pairs, prompt, to_tensors)
    return ParityErrors(largest_relative_error(logits, case.logits), relative_error(gradient.flatten(), case.gradient))


@torch.no_grad()
def measure_generation(base: FrozenLM, case: ParityCase) -> ParityErrors:
    """The last tokens of each text one by one behind the cache, in batches as ``generate.complete`` forms them.

    Raises:
        BaseModelError: the model's cache holds something else than keys and values.
    """
    prefix = _cached(base, case)
    order = sorted(range(len(case.items)), key=lambda index: len(case.items[index].ids))
    longest = prefix.width + len(case.items[order[-1]].ids)
    fits = base.sliding_window is None or longest <= base.sliding_window
    groups = [order] if fits else [list(group) for _, group in groupby(order, key=lambda i: len(case.items[i].ids))]
    errors = []
    for group in groups:
        logits = _extended(base, prefix, [case.items[index] for index in group])
        errors.append(largest_relative_error(logits.unbind(1), [case.logits[index][-STEPS:] for index in group]))
    return ParityErrors(largest(errors), None)


def measure_encoder_keys_and_values(base: FrozenLM, case: ParityCase) -> ParityErrors:
    """Keys and values in the layers: what each text gets among others, against what it gets alone.

    No plain pass of the model has a prompt there, so this compares softprompt with itself;
    tests/prompts/test_seq2seq_prefix.py compares it with tokens whose keys and values are overwritten.

    Raises:
        BaseModelError: the layers take none, or one of them does not look at its own.
    """
    tensors = compute_seq2seq_keys_and_values(base, case.leaves[0].detach()).tensors
    leaves = [tensor.requires_grad_() for tensor in tensors]

    def measured(groups: Sequence[Sequence[EncodedSequence]]) -> tuple[list[Tensor], list[Tensor]]:
        prefix = make_encoded_prefix(base, PromptState("key_values", tuple(leaves)))
        logits = [rows for items in groups for rows in scored_logits(prefix, collate(items, base.device))]
        return logits, list(torch.autograd.grad(sum_loss(logits, case.items), leaves))

    logits, gradients = measured([case.items])
    alone, expected = measured([[item] for item in case.items])
    if blind := [index for index, gradient in enumerate(expected) if not gradient.any()]:
        raise BaseModelError(f"layer {blind[0]} of its encoder and decoder does not look at what is put in front")
    flat, right = (torch.cat([one.flatten() for one in several]) for several in (gradients, expected))
    return ParityErrors(largest_relative_error(logits, [rows.detach() for rows in alone]), relative_error(flat, right))


@torch.no_grad()
def measure_decoder_answers(base: FrozenLM, case: ParityCase) -> ParityErrors:
    """The last tokens of each answer one by one behind the decoder's cache; the texts are encoded once."""
    prefix, errors = make_encoded_prefix(base, *case.states), []
    by_length: dict[int, list[int]] = {}
    for index, item in enumerate(case.items):
        by_length.setdefault(len(item.decoder_ids), []).append(index)
    for group in by_length.values():
        decoding_batch = Seq2SeqDecodingBatch(prefix, collate([case.items[index] for index in group], base.device))
        first = len(base.special_tokens.decoder_start)
        for place in range(first - 1, len(case.items[group[0]].decoder_ids)):
            if place >= first:
                tokens = [case.items[index].decoder_ids[place] for index in group]
                decoding_batch.extend(torch.tensor(tokens, device=base.device))
            rows = base.logits(decoding_batch.last)
            errors.append(largest_relative_error(rows.unbind(0), [case.logits[index][place] for index in group]))
    return ParityErrors(largest(errors), None)


def _cached(base: FrozenLM, case: ParityCase) -> CachedPrefix:
    prefix = make_cached_prefix(base, case.states[0])
    kinds = {type(layer).__name__ for layer in prefix.cache.layers}
    if others := sorted(kinds - {"DynamicLayer", "DynamicSlidingWindowLayer"}):
        raise BaseModelError(f"its cache holds {', '.join(others)}, which is more than keys and values")
    return prefix


def largest(errors: Sequence[float]) -> float:
    """The largest; not a number if one of them is not."""
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _extended(base: FrozenLM, prefix: CachedPrefix, items: Sequence[EncodedSequence]) -> Tensor:
    """Logits ``[STEPS, B, V]`` behind each of the last tokens, which come one by one."""
    batch = collate([EncodedSequence(i, item.ids[:-STEPS], ()) for i, item in enumerate(items)], base.device)
    cache = prefix.expand(batch.which)
    prefix.hidden(batch.input_ids, batch.mask, batch.which, cache)
    mask = torch.cat([prefix.mask(batch.which), batch.mask], dim=1)
    positions = prefix.starts(batch.which) + batch.mask.sum(dim=1)
    logits = []
    for step in range(STEPS):
        tokens = torch.tensor([item.ids[step - STEPS] for item in items], device=base.device)
        mask = torch.cat([mask, mask.new_ones(len(items), 1)], dim=1)
        logits.append(base.logits(read_one_more(base, tokens, mask, positions + step, cache)))
    return torch.stack(logits)


def _logits(base: FrozenLM, hidden: Tensor, batch: Batch, shift: Tensor | None = None) -> tuple[Tensor, ...]:
    """Of each text, ``[N, V]`` at its positions, which ``shift [B]`` moves to the right."""
    column = batch.column if shift is None else batch.column + shift[batch.row]
    counts = torch.bincount(batch.row, minlength=len(hidden)).tolist()
    rows: tuple[Tensor, ...] = base.logits(hidden[batch.row, column]).split(counts)
    return rows


def scored_logits(prefix: Prefix, batch: Batch) -> tuple[Tensor, ...]:
    """Of each item, ``[N, V]`` at its scored positions."""
    counts = torch.bincount(batch.row, minlength=len(batch.which)).tolist()
    rows: tuple[Tensor, ...] = prefix.base.logits(prefix.scored(batch)).split(counts)
    return rows


def compare_with_reference(logits: Sequence[Tensor], case: ParityCase) -> ParityErrors:
    """Logits of each text, and their gradient to the prompts, against the references."""
    loss, gradient = sum_loss(logits, case.items), torch.zeros_like(case.gradient)
    # logits that do not depend on the prompt have a gradient too: zero
    if loss.requires_grad:
        gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, case.leaves)])
    return ParityErrors(largest_relative_error(logits, case.logits), relative_error(gradient, case.gradient))


def largest_relative_error(logits: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative error of a pair."""
    return largest([relative_error(*pair) for pair in zip(logits, expected, strict=True)])
