"""The ways to put a prompt in front of texts in an encoder-decoder model, measured as in parity.py."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from softprompt.analysis.diagnostics.parity import (
    ParityCase,
    ParityErrors,
    compare_with_reference,
    largest,
    largest_relative_error,
    scored_logits,
    sum_loss,
)
from softprompt.data.encoding.batching import collate
from softprompt.data.encoding.encoder import EncodedSequence
from softprompt.errors import BaseModelError
from softprompt.models.exactness import relative_error
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.seq2seq_prefix import Seq2SeqDecodingBatch, compute_seq2seq_keys_and_values, make_encoded_prefix
from softprompt.prompts.state import PromptState


def measure_right_padded(base: FrozenLM, case: ParityCase) -> ParityErrors:
    """Texts and answers of different lengths, padding behind them; of one prompt, or of several in one batch."""
    return compare_with_reference(
        scored_logits(make_encoded_prefix(base, *case.states), collate(case.items, base.device)), case
    )


def measure_left_padded(base: FrozenLM, case: ParityCase) -> ParityErrors:
    """The same with padding in front of the texts."""
    batch = collate(case.items, base.device)
    length = batch.mask.shape[1]
    source = (torch.arange(length, device=base.device) - length + batch.mask.sum(dim=1, keepdim=True)) % length
    moved = replace(batch, input_ids=batch.input_ids.gather(1, source), mask=batch.mask.gather(1, source))
    return compare_with_reference(scored_logits(make_encoded_prefix(base, *case.states), moved), case)


def measure_keys_and_values(base: FrozenLM, case: ParityCase) -> ParityErrors:
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
def measure_generation(base: FrozenLM, case: ParityCase) -> ParityErrors:
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
