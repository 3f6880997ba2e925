"""Log-probabilities in OpenAI's two forms: of completions, and of chats."""

import codecs
from collections.abc import Sequence
from typing import Any

from softprompt.serving.engine.completion_chunks import TokenLogprob

LEAST = -9999.0  # what stands for what JSON has no number for


class CompletionLogprobs:
    """Those of one completion: offsets into its text go on from piece to piece.

    The token that ended it stands last, as with vLLM: harnesses count on one for each token that was chosen.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def describe(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The next tokens."""
        offsets = []
        for one in tokens:
            offsets.append(self._offset)
            if not (one.mark or one.end):
                self._offset += len(self._decoder.decode(one.token))
        return {
            "tokens": [name_token(one.token) for one in tokens],
            "token_logprobs": [_bound(one.logprob) for one in tokens],
            "top_logprobs": [_describe_top(one) for one in tokens],
            "text_offset": offsets,
        }


def describe_chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Those of an answer, or of a piece of one; the token that ended it is none of it."""
    return {
        "content": [
            {
                **_describe_alternative(one.token, one.logprob),
                "top_logprobs": [_describe_alternative(*other) for other in one.top],
            }
            for one in tokens
            if not one.end
        ],
        "refusal": None,
    }


def name_token(token: bytes) -> str:
    """What a token spells; one that is no whole letter by its bytes, as OpenAI has it."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _describe_top(token: TokenLogprob) -> dict[str, float] | None:
    """The likeliest ones, the likeliest first, and the token itself, wherever it stands."""
    if token.logprob is None:
        return None
    found: dict[str, float] = {}
    for spelled, value in (*token.top, (token.token, token.logprob)):
        found.setdefault(name_token(spelled), max(value, LEAST))
    return found


def _describe_alternative(token: bytes, logprob: float | None) -> dict[str, Any]:
    return {"token": name_token(token), "logprob": _bound(logprob), "bytes": list(token)}


def _bound(value: float | None) -> float | None:
    return None if value is None else max(value, LEAST)
