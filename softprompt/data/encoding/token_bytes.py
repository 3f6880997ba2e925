"""What single tokens spell, in bytes: a letter may be several tokens, and a token less than a letter."""

import json
import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary, proxy

from softprompt.data.encoding.tokenization import safe_tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BLANK = "\u2581"  # what stands for a blank in a vocabulary of pieces

_known: WeakKeyDictionary[Any, tuple["TokenBytes", int]] = WeakKeyDictionary()


class TokenBytes:
    """The tokens of one tokenizer.

    Attributes:
        marks: those that are no text.
    """

    def __init__(self, tokenizer: Any) -> None:
        # whoever spells tokens has it; kept from here, none would ever be let go
        self._tokenizer = proxy(tokenizer)
        self.marks = frozenset(safe_tokenizer(tokenizer).marks.values())
        self._added = {token_id: str(token) for token_id, token in tokenizer.added_tokens_decoder.items()}

    def spell(self, token: int) -> bytes:
        """What ``token`` stands for; of a mark, its name; nothing for rows of the model without a token."""
        if (added := self._added.get(token)) is not None and not _BYTE.fullmatch(added):
            return added.encode()
        piece = self._tokenizer.convert_ids_to_tokens(token) if token < len(self._tokenizer) else None
        if piece is None:
            return b""
        if self._bytes_of_signs:
            return bytes(self._bytes_of_signs[sign] for sign in piece if sign in self._bytes_of_signs)
        if (byte := _BYTE.fullmatch(piece)) is not None:
            return bytes([int(byte[1], 16)])
        return str(piece).replace(_BLANK, " ").encode()

    def write(self, tokens: Iterable[int]) -> str:
        """The text of ``tokens``, marks left out."""
        return b"".join(self.spell(one) for one in tokens if one not in self.marks).decode(errors="replace")

    @cached_property
    def _bytes_of_signs(self) -> dict[str, int]:
        """In a vocabulary of bytes, which byte each sign stands for; empty for others."""
        decoder = getattr(getattr(self._tokenizer, "backend_tokenizer", None), "decoder", None)
        # how the tokenizer decodes, as its file says
        settings = {} if decoder is None else json.loads(decoder.__getstate__())
        parts = [settings, *settings.get("decoders", ())]
        if not any(part.get("type") == "ByteLevel" for part in parts) and not hasattr(self._tokenizer, "byte_decoder"):
            return {}
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        return {sign: byte for byte, sign in bytes_to_unicode().items()}


def token_bytes(tokenizer: Any) -> TokenBytes:
    """The same for every call with this tokenizer, until it gets more tokens."""
    known = _known.get(tokenizer)
    if known is None or known[1] != len(tokenizer):
        known = _known[tokenizer] = (TokenBytes(tokenizer), len(tokenizer))
    return known[0]
