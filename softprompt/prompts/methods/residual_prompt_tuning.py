"""Residual prompt tuning (Razdaibiedina, Mao, Khabsa, Lewis, Hou, Ba and Almahairi 2023).

    tokens         = init / unit + theta
    virtual tokens = unit * (tokens + LayerNorm(W_up ReLU(W_down tokens)))

A network with a bottleneck, the same for every virtual token, and a skip connection around it; both are folded away.

Deviations from the paper: ``LayerNorm``'s gain starts at zero, so learning starts at ``init`` exactly, where the
paper starts at the sum of both; no dropout; ``theta`` in units of the embeddings' standard deviation.
"""

from collections.abc import Mapping

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from softprompt.prompts.methods.reparameterization import NETWORK_RATE, draw_weights
from softprompt.prompts.state import PromptState


class Options(BaseModel):
    """Beside the settings of every method."""

    bottleneck: int = Field(128, ge=1, le=65536, description="hidden units of the network")


class ResidualPromptTuning(nn.Module):
    """Virtual tokens and a network over them."""

    init: Tensor

    def __init__(self, init: Tensor, unit: float, seed: int, bottleneck: int) -> None:
        """``init``: ``[P, H]``, in the scale of the embedded text; ``unit``: what one step of ``theta`` is worth."""
        super().__init__()
        self.unit = unit
        size = init.shape[1]
        self.register_buffer("init", init.detach().float().clone(), persistent=True)
        self.theta = nn.Parameter(torch.zeros_like(self.init))
        self.network = nn.Sequential(nn.Linear(size, bottleneck), nn.ReLU(), nn.Linear(bottleneck, size))
        self.norm = nn.LayerNorm(size)
        draw_weights(self.network, seed)
        nn.init.zeros_(self.norm.weight)

    def state(self) -> PromptState:
        """``[P, H]`` float32, with gradient to all of it."""
        tokens = self.init / self.unit + self.theta
        return PromptState.of_embeddings(self.unit * (tokens + self.norm(self.network(tokens))))

    def rate_factors(self) -> Mapping[str, float]:
        """The network's weights learn in smaller steps than the virtual tokens it reads."""
        return {"network": NETWORK_RATE, "norm": NETWORK_RATE}


def build(start: PromptState, unit: float, seed: int, options: Options) -> ResidualPromptTuning:
    """From virtual tokens to learn on."""
    return ResidualPromptTuning(start.tensor, unit, seed, options.bottleneck)
