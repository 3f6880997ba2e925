"""The special tokens that stand around a prompt and a text."""

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens that are neither prompt nor text nor answer.

    Attributes:
        bos: in front of the prompt.
        suffix: behind each text; empty for decoder-only models, where the answer stands there.
        decoder_start: what the decoder is given before an answer; empty for decoder-only models.
    """

    bos: tuple[int, ...]
    suffix: tuple[int, ...] = ()
    decoder_start: tuple[int, ...] = ()


class TokenizingModel(Protocol):
    """What is asked of a base model to give it texts as tokens: a ``FrozenLM``, or what a client knows of one."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def architecture(self) -> str: ...
    @property
    def special_tokens(self) -> SpecialTokens: ...
    @property
    def context_length(self) -> int | None: ...
