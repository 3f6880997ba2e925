"""P-tuning (Liu, Zheng, Du, Ding, Qian, Yang and Tang 2021, "GPT Understands, Too").

    virtual tokens = init + unit * encoder(inputs),   inputs [P, H] and the encoder learned
    encoder        = MLP, or MLP behind a bidirectional LSTM over the P virtual tokens

The encoder ties the virtual tokens to each other while they learn and is folded away afterwards.

Deviations from the paper: virtual tokens all stand in front of the text instead of within a template; the encoder's
last layer starts at zero and its output is added to ``init``, so learning starts at words that mean something; the
inputs start as the initial virtual tokens in units of the embeddings' standard deviation.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, Field
from torch import Tensor, nn

from softprompt.prompts.methods.reparameterization import NETWORK_RATE, draw_weights, initialize_to_zero
from softprompt.prompts.state import PromptState


class Options(BaseModel):
    """Beside the settings of every method."""

    encoder: Literal["mlp", "lstm"] = Field("mlp", description="network over the virtual tokens")
    width: int = Field(256, ge=1, le=65536, description="hidden units of the encoder, in each direction of the LSTM")


class PTuning(nn.Module):
    """Virtual tokens out of a prompt encoder."""

    init: Tensor

    def __init__(self, init: Tensor, unit: float, seed: int, encoder: Literal["mlp", "lstm"], width: int) -> None:
        """``init``: ``[P, H]``, in the scale of the embedded text; ``unit``: what one unit of output is worth."""
        super().__init__()
        self.unit = unit
        size = init.shape[1]
        self.register_buffer("init", init.detach().float().clone(), persistent=True)
        self.inputs = nn.Parameter(self.init / unit)
        inner = 2 * width if encoder == "lstm" else size
        self.lstm = nn.LSTM(size, width, bidirectional=True, batch_first=True) if encoder == "lstm" else None
        last = nn.Linear(width, size)
        self.mlp = nn.Sequential(nn.Linear(inner, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), last)
        if self.lstm is not None:
            draw_weights(self.lstm, seed)
        draw_weights(self.mlp, seed + 1)
        initialize_to_zero(last)

    def state(self) -> PromptState:
        """``[P, H]`` float32, with gradient to inputs and encoder."""
        encoded = self.inputs if self.lstm is None else self.lstm(self.inputs[None])[0][0]
        return PromptState.of_embeddings(self.init + self.unit * self.mlp(encoded))

    def rate_factors(self) -> Mapping[str, float]:
        """The encoder's weights learn in smaller steps than the virtual tokens it reads."""
        return {"mlp": NETWORK_RATE, "lstm": NETWORK_RATE}


def build(start: PromptState, unit: float, seed: int, options: Options) -> PTuning:
    """From virtual tokens to learn on."""
    return PTuning(start.tensor, unit, seed, options.encoder, options.width)
