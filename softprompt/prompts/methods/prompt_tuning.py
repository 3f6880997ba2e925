"""Prompt tuning (Lester, Al-Rfou and Constant 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning").

    virtual tokens = init + unit * theta,   theta [P, H] learned from zero

Deviations from the paper: the virtual tokens stand behind BOS, not in front of it; ``unit`` is the standard deviation
of the base model's token embeddings, so that one learning rate serves every model family (``unit = 1`` with
``init`` as start is the paper's own form). P * H parameters.
"""

from collections.abc import Mapping

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from softprompt.prompts.state import PromptState


class Options(BaseModel):
    """None beside the settings of every method."""


class PromptTuning(nn.Module):
    """Virtual tokens learned directly."""

    init: Tensor

    def __init__(self, init: Tensor, unit: float) -> None:
        """``init``: ``[P, H]``, in the scale of the embedded text; ``unit``: what one step of ``theta`` is worth."""
        super().__init__()
        self.unit = unit
        self.register_buffer("init", init.detach().float().clone(), persistent=True)
        self.theta = nn.Parameter(torch.zeros_like(self.init))

    def state(self) -> PromptState:
        """``[P, H]`` float32, with gradient to ``theta``."""
        return PromptState.of_embeddings(self.init + self.unit * self.theta)

    def rate_factors(self) -> Mapping[str, float]:
        """The learning rate is made for ``theta``."""
        return {}


def build(start: PromptState, unit: float, seed: int, options: Options) -> PromptTuning:
    """From virtual tokens to learn on."""
    return PromptTuning(start.tensor, unit)
