"""What of a growing completion may be shown: never half a character, nor a part of a stop string."""

import re
from collections.abc import Sequence
from typing import Any

from softprompt.inference.generation import Completion
from softprompt.serving.engine.engine_types import CompletionChunk, InputUsage

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Detokenizer:
    """Cuts a completion into pieces that, joined, are its ``exact`` text."""

    def __init__(self, completion: Completion, tokenizer: Any, read: InputUsage) -> None:
        self._completion, self._tokenizer, self._read = completion, tokenizer, read
        # where decoding takes spaces away again, what comes may change the last two words
        self._cleans_up = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
        self._shown = ""
        self._tokens = 0

    def next_chunk(self) -> CompletionChunk | None:
        """What is new since the last piece; ``None`` if there is nothing to show, while it goes on."""
        completion = self._completion
        text = self._settled() if completion.finish is None else completion.exact
        if completion.finish is None and (len(text) <= len(self._shown) or not text.startswith(self._shown)):
            return None
        new, tokens = text[len(self._shown) :], len(completion.tokens) - self._tokens
        self._shown, self._tokens = text, len(completion.tokens)
        return CompletionChunk(new, tokens, self._read, completion.finish)

    def _settled(self) -> str:
        """The text so far without what a later token may change, or show to be no part of it."""
        # single bytes are decoded together with those beside them
        if _BYTE.fullmatch(str(self._tokenizer.convert_ids_to_tokens(self._completion.tokens[-1]))):
            return self._shown
        text = self._completion.decoded.rstrip("\ufffd")
        if self._cleans_up:
            text = "".join(re.split(r"(\s)", text)[:-4])
        return text[: len(text) - measure_partial_stop(text, self._completion.generation.stop)]


def measure_partial_stop(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of ``text`` that a stop string may begin with."""
    return max(
        # no more of a stop string can have begun than there is text
        (
            length
            for stop in stops
            for length in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:length])
        ),
        default=0,
    )
