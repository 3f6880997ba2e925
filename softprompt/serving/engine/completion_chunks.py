"""Completions in pieces: tokens to text that may be shown, and their log-probabilities to what they spell."""

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from softprompt.data.chats.answer_reading import measure_partial
from softprompt.data.chats.conversation import ToolCall
from softprompt.data.encoding.token_bytes import TokenBytes, token_bytes
from softprompt.inference.generation import Completion
from softprompt.inference.token_logprobs import ScoredToken


@dataclass(frozen=True)
class InputUsage:
    """What an engine reads of an example.

    Attributes:
        tokens: of virtual tokens, template and text.
        cut: the text is longer than what is read of it.
    """

    tokens: int
    cut: bool


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer, and what the model gave it before temperature, limits and grammars.

    Attributes:
        token: what it spells; of a mark, its name.
        mark: it is none of the text.
        logprob: in nats; ``None`` for the first one of a text that is echoed.
        top: the likeliest tokens in its place, the likeliest first, with theirs.
        end: it ended the completion, and is no part of it.
    """

    token: bytes
    mark: bool
    logprob: float | None
    top: tuple[tuple[bytes, float], ...] = ()
    end: bool = False


@dataclass(frozen=True)
class CompletionChunk:
    """A piece of a completion.

    Attributes:
        text: what is new of the text; pieces joined are the completion.
        tokens: how many tokens it took.
        read: for the completion, the same in every piece.
        finish: in the last piece, why it is the last: a stop string or end of text, the limit of tokens, or calls.
        logprobs: of the tokens that begin in ``text``, where they were asked for.
        reasoning: what is new of its thoughts, where they are told apart.
        calls: of tools, where they are told apart.
    """

    text: str
    tokens: int
    read: InputUsage
    finish: Literal["stop", "length", "tool_calls"] | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()


def spell_token(spelling: TokenBytes, scored: ScoredToken) -> TokenLogprob:
    """The same with words."""
    top = tuple((spelling.spell(token), value) for token, value in scored.top)
    return TokenLogprob(spelling.spell(scored.token), scored.token in spelling.marks, scored.logprob, top)


def spell_echo(spelling: TokenBytes, words: str, scored: Sequence[ScoredToken]) -> tuple[TokenLogprob, ...]:
    """The tokens of a text; a blank that the tokenizer puts in front of it is none of it."""
    found = [spell_token(spelling, one) for one in scored]
    first = next((index for index, one in enumerate(found) if not one.mark), None)
    if first is not None and not words.startswith(" "):
        found[first] = replace(found[first], token=found[first].token.removeprefix(b" "))
    return tuple(found)


_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Detokenizer:
    """Cuts a completion into pieces that, joined, are its ``exact`` text."""

    def __init__(
        self, completion: Completion, tokenizer: Any, read: InputUsage, scored: Sequence[ScoredToken] = ()
    ) -> None:
        """``scored``: grows with the completion, where log-probabilities of its tokens are told."""
        self._completion, self._tokenizer, self._read = completion, tokenizer, read
        self._scored = scored
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._told = self._characters = 0  # tokens of ``scored``, and what they spell
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
        whole = completion.finish is not None and len(text) == len(completion.decoded)
        return CompletionChunk(new, tokens, self._read, completion.finish, self._take_logprobs(whole=whole))

    def _take_logprobs(self, *, whole: bool) -> tuple[TokenLogprob, ...]:
        """Of the tokens that begin in what is shown, or of all that are left."""
        found = []
        while self._told < len(self._scored) and (whole or self._characters < len(self._shown)):
            one = spell_token(token_bytes(self._tokenizer), self._scored[self._told])
            if self._scored[self._told].token in self._completion.shown:
                one = replace(one, mark=False)
            if self._told == len(self._completion.tokens):
                one = replace(one, end=True)
            self._told += 1
            if not one.mark:
                self._characters += len(self._decoder.decode(one.token))
            found.append(one)
        return tuple(found)

    def _settled(self) -> str:
        """The text so far without what a later token may change, or show to be no part of it."""
        # single bytes are decoded together with those beside them
        if _BYTE.fullmatch(str(self._tokenizer.convert_ids_to_tokens(self._completion.tokens[-1]))):
            return self._shown
        text = self._completion.decoded.rstrip("\ufffd")
        if self._cleans_up:
            text = "".join(re.split(r"(\s)", text)[:-4])
        return text[: len(text) - measure_partial(text, self._completion.generation.stop)]
