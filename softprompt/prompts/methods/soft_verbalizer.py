"""Soft verbalizer: labels as learned rows of the output layer (Hambardzumyan, Khachatrian and May 2021, "WARP").

    row of label c = init_c + unit * theta_c,   init_c the mean of the output layer's rows of c's words,
                                                theta [C, H] learned from zero

The model is asked once, at the end of the text, however many words the labels have; where these are one token each, it
is at first the usual choice among them. C * H parameters beside those of the method. Deviations from the paper: rows
start at words, not at random; ``unit`` is the standard deviation of the output layer's rows, so that the rate of the
virtual tokens serves every model family; there is no mask, and no bias of the output layer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.data.encoding.verbalizer import Verbalizer
from softprompt.data.task import TaskSpec
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.methods.reparameterization import LearnedRows

# Adam moves the rows of labels that a batch does not have as far as the others: at the rate of virtual tokens the loss
# on what was held out stays behind (docs/results/findings.md)
RATE = 0.3


def make_soft_verbalizer(base: FrozenLM, spec: TaskSpec, labels: Tensor | None = None) -> LearnedRows:
    """At first labels are what their words are, or ``labels [C, H]`` of a prompt that is learned on.

    Raises:
        DataError: two labels are the same tokens, or one has too many.
        BaseModelError: the output layer is quantized or sharded.
    """
    words = Verbalizer.of_task(spec, base.tokenizer, alone=base.architecture == "encoder-decoder").sequences
    ids = sorted({token for word in words for token in word})
    rows = base.output_rows(torch.tensor(ids, device=base.device)).float().cpu()
    start = labels if labels is not None else _average(rows, ids, words)
    return LearnedRows(start, base.output_std).to(base.device)


def _average(rows: Tensor, ids: Sequence[int], words: Sequence[Sequence[int]]) -> Tensor:
    """The mean of the rows ``[R, H]``, of tokens ``ids``, of each of ``words``: ``[C, H]``."""
    place = {token: index for index, token in enumerate(ids)}
    return torch.stack([rows[[place[token] for token in word]].mean(dim=0) for word in words])
