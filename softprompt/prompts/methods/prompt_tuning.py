"""Prompt tuning (Lester, Al-Rfou and Constant 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning").

    virtual tokens = init + unit * theta,   theta [P, H] learned from zero

Deviations from the paper: the virtual tokens stand behind BOS, not in front of it; ``unit`` is the standard deviation
of the base model's token embeddings, so that one learning rate serves every model family (``unit = 1`` with
``init`` as start is the paper's own form). P * H parameters.
"""

from collections.abc import Mapping

from pydantic import BaseModel

from softprompt.prompts.methods.reparameterization import LearnedRows
from softprompt.prompts.state import PromptState


class Options(BaseModel):
    """None beside the settings of every method."""


class PromptTuning(LearnedRows):
    """Virtual tokens learned directly: rows in the scale of the embedded text."""

    def state(self) -> PromptState:
        """``[P, H]`` float32, with gradient to ``theta``."""
        return PromptState.of_embeddings(self.rows())

    def rate_factors(self) -> Mapping[str, float]:
        """The learning rate is made for ``theta``."""
        return {}


def build(start: PromptState, unit: float, seed: int, options: Options) -> PromptTuning:
    """From virtual tokens to learn on."""
    return PromptTuning(start.tensor, unit)
