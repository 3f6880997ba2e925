"""What several methods share: rows that learn from where they start, and small networks whose output starts at zero."""

import torch
from torch import Tensor, nn

# networks take Adam steps of about a hundredth of what suits values counted in standard deviations
NETWORK_RATE = 0.01


class LearnedRows(nn.Module):
    """``init + unit * theta``, ``theta`` learned from zero."""

    init: Tensor

    def __init__(self, init: Tensor, unit: float) -> None:
        """``init``: ``[R, H]``; ``unit``: what one step of ``theta`` is worth in its scale."""
        super().__init__()
        self.unit = unit
        self.register_buffer("init", init.detach().float().clone(), persistent=True)
        self.theta = nn.Parameter(torch.zeros_like(self.init))

    def rows(self) -> Tensor:
        """``[R, H]`` float32, with gradient to ``theta``."""
        return self.init + self.unit * self.theta


def draw_weights(module: nn.Module, seed: int) -> None:
    """Draw all weights anew: uniform with variance ``1 / (3 * inputs)``, biases zero; norms are left as they are."""
    generator = torch.Generator().manual_seed(seed)
    norms = {id(p) for part in module.modules() if isinstance(part, nn.LayerNorm) for p in part.parameters()}
    with torch.no_grad():
        for parameter in module.parameters():
            if id(parameter) in norms:
                continue
            if parameter.ndim < 2:
                parameter.zero_()
            else:
                bound = parameter.shape[-1] ** -0.5
                parameter.copy_(torch.rand(parameter.shape, generator=generator) * 2 * bound - bound)


def initialize_to_zero(layer: nn.Linear) -> None:
    """Make ``layer`` give zeros until it has learned."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
