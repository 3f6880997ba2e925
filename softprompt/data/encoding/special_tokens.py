"""The special tokens that stand around a prompt and a text."""

from dataclasses import dataclass
from typing import Any

from softprompt.errors import BaseModelError


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens that are neither prompt nor text nor answer.

    Attributes:
        bos: in front of the prompt.
        back: behind each text; empty for decoder-only models, where the answer stands there.
        start: what the decoder is given before an answer; empty for decoder-only models.
    """

    bos: tuple[int, ...]
    back: tuple[int, ...] = ()
    start: tuple[int, ...] = ()

    @classmethod
    def of(cls, model: Any, tokenizer: Any, name: str) -> "SpecialTokens":
        """What the tokenizer adds to a text, and what the model's configuration starts answers with.

        Raises:
            BaseModelError: an encoder-decoder model that does not say what an answer starts with.
        """
        bos, back = _around(tokenizer)
        if not is_encoder_decoder(model.config):
            return cls(bos)
        start = getattr(model.config, "decoder_start_token_id", None)
        if start is None:
            start = getattr(getattr(model, "generation_config", None), "decoder_start_token_id", None)
        if not isinstance(start, int):
            raise BaseModelError(
                f"'{name}' is an encoder-decoder model whose config.json has no decoder_start_token_id: expected the "
                "token that answers start with, add it"
            )
        # what stands in front of a text stands in front of an answer too: BART's are start, <s>, answer
        return cls(bos, back, (start, *bos))


def is_encoder_decoder(config: Any) -> bool:
    """Whether a ``transformers`` configuration is that of a model with an encoder and a decoder."""
    return bool(getattr(config, "is_encoder_decoder", False))


def _around(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids that the tokenizer puts before and behind every text."""
    whole = list(tokenizer("a").input_ids)
    plain = list(tokenizer("a", add_special_tokens=False).input_ids)
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start]), tuple(whole[start + len(plain) :])
    return (), ()
