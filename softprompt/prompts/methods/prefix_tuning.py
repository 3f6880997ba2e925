"""Prefix tuning (Li and Liang 2021) and P-tuning v2 (Liu, Ji, Fu, Tam, Du, Yang and Tang 2022).

    keys, values of layer l = init_l + unit_l * theta_l,    theta_l [2, kv_heads, P, head_dim] learned from zero
    with an MLP:              init_l + unit_l * MLP(inputs)_l,   inputs [P, width] and the MLP learned

What every layer's attention sees of the prompt is learned, not only the input of the first; the MLP is the
reparameterization of Li and Liang, which P-tuning v2 leaves out, and is folded away.

Deviations from the papers: learning starts at the keys and values that the frozen model computes for the words of
``init``, so at first the prompt does exactly what these words do; keys are learned as attention sees them, rotary
positions applied; ``unit_l`` is the standard deviation of the layer's initial keys, and of its values, so one learning
rate serves every layer and family; BOS stands in front.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.methods.reparameterization import NETWORK_RATE, draw_weights, initialize_to_zero
from softprompt.prompts.prefix import check_keys_and_values, compute_keys_and_values
from softprompt.prompts.state import PromptState

# many more of them: at the rate that suits virtual tokens the loss goes up first (docs/results/findings.md)
RATE = 0.2


class Options(BaseModel):
    """Beside the settings of every method."""

    reparameterization: Literal["none", "mlp"] = Field("none", description="learn through an MLP (Li and Liang 2021)")
    width: int = Field(256, ge=1, le=65536, description="hidden units of the MLP")


class PrefixTuning(nn.Module):
    """Keys and values of every layer."""

    def __init__(self, init: tuple[Tensor, ...], seed: int, mlp_width: int | None = None) -> None:
        """``init``: one ``[2, kv_heads, P, head_dim]`` a layer; layers may differ in heads and sizes."""
        super().__init__()
        self.layers = len(init)
        for index, tensor in enumerate(init):
            unit = tensor.float().flatten(1).std(dim=1, correction=0).clamp(min=1e-6).view(2, 1, 1, 1)
            self.register_buffer(f"init_{index}", tensor.detach().float().clone(), persistent=True)
            self.register_buffer(f"unit_{index}", unit.detach().clone(), persistent=True)
        self.theta: nn.ParameterList | None = None
        self.mlp: nn.Sequential | None = None
        if mlp_width is None:
            self.theta = nn.ParameterList([torch.zeros_like(tensor, dtype=torch.float32) for tensor in init])
            return
        length, values = init[0].shape[2], sum(tensor.numel() for tensor in init)
        last = nn.Linear(mlp_width, values // length)
        self.mlp = nn.Sequential(nn.Linear(mlp_width, mlp_width), nn.Tanh(), last)
        generator = torch.Generator().manual_seed(seed)
        self.inputs = nn.Parameter(torch.randn(length, mlp_width, generator=generator))
        draw_weights(self.mlp, seed)
        initialize_to_zero(last)

    def state(self) -> PromptState:
        """Keys and values of each layer, float32, with gradient to the parameters."""
        inits = [self.get_buffer(f"init_{index}") for index in range(self.layers)]
        units = [self.get_buffer(f"unit_{index}") for index in range(self.layers)]
        changes = list(self.theta) if self.theta is not None else self._from_mlp(inits)
        tensors = (init + unit * change for init, unit, change in zip(inits, units, changes, strict=True))
        return PromptState("key_values", tuple(tensors))

    def _from_mlp(self, inits: list[Tensor]) -> list[Tensor]:
        assert self.mlp is not None
        flat = self.mlp(self.inputs).split([tensor.numel() // tensor.shape[2] for tensor in inits], dim=1)
        changes = []
        for part, init in zip(flat, inits, strict=True):
            two, heads, length, size = init.shape
            # [P, 2 * kv_heads * head_dim] to [2, kv_heads, P, head_dim]
            changes.append(part.view(length, two, heads, size).permute(1, 2, 0, 3))
        return changes

    def rate_factors(self) -> Mapping[str, float]:
        """Keys and values learn in smaller steps than virtual tokens do, the MLP's weights in smaller ones still."""
        return {"theta": RATE, "mlp": NETWORK_RATE}


def prepare(base: FrozenLM, start: PromptState) -> PromptState:
    """Keys and values to start from: those of virtual tokens, or as they are.

    Raises:
        BaseModelError: the model cannot take a prompt of keys and values.
    """
    if start.kind == "embeddings":
        return compute_keys_and_values(base, start.tensor, start.placement)
    check_keys_and_values(base)
    return start


def build(start: PromptState, unit: float, seed: int, options: Options) -> PrefixTuning:
    """From keys and values to learn on."""
    return PrefixTuning(start.tensors, seed, options.width if options.reparameterization == "mlp" else None)
