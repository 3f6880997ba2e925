"""Prompts that learn, read in the same pass as the texts behind them.

A step needs each prompt once. Read on its own, its few rows take every weight of the model through the processor twice
more, forward and backward; with the texts they are some rows more of matrix products that are made anyway.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from softprompt.data.encoding.encoder import Batch
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.kernels.fused_decoder import find_fused_decoder
from softprompt.prompts.prefix import make_concatenated_prefix, make_prefix, shares_prefix
from softprompt.prompts.state import PromptState


class ScoringPrefix(Protocol):
    """What a loss asks of prompts."""

    def scored(self, batch: Batch) -> Tensor:
        """Hidden states ``[N, H]`` at the batch's scored positions."""


@dataclass(frozen=True)
class InlinePrompts:
    """Virtual tokens in front of one batch."""

    base: FrozenLM
    states: tuple[PromptState, ...]

    def scored(self, batch: Batch) -> Tensor:
        """Hidden states ``[N, H]`` at the batch's scored positions; gradient flows to the states."""
        prompts = make_concatenated_prefix(self.base, *self.states).embeddings
        decoder = find_fused_decoder(self.base)
        if decoder is None or not decoder.fits(max(map(len, prompts)) + batch.input_ids.shape[1]):
            return make_prefix(self.base, *self.states).scored(batch)
        texts = self.base.embed(batch.input_ids)
        places = batch.row, batch.column, batch.which
        return decoder.read(texts, batch.mask, *places, prompts=prompts, seen=batch.seen)


def make_learning_prefix(base: FrozenLM, *states: PromptState) -> ScoringPrefix:
    """Prompts for the loss of one batch, the fastest exact way for this model; raises as ``make_prefix`` does."""
    with_texts = all(state.kind == "embeddings" for state in states) and find_fused_decoder(base) is not None
    return InlinePrompts(base, states) if with_texts and shares_prefix(base) else make_prefix(base, *states)
