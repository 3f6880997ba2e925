"""What a completion may say: a JSON schema, a regular expression, a grammar, by llguidance (the extra ``serve``).

At each step a mask leaves the tokens with which some text of the grammar goes on; those that end a completion are among
them only where a text may end. A schema comes from whoever asks: its size, the work of compiling it and that of each
step are bounded. Shapes: ``B`` rows, ``V`` vocabulary.
"""

import json
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from softprompt.data.encoding.tokenization import safe_tokenizer
from softprompt.errors import GrammarError, MissingExtraError
from softprompt.utils.summaries import summarize_fields

MAX_SOURCE = 2**18  # characters of a grammar
_KEPT = 64  # compiled grammars of a model
_SPACE = r" |\n[ \t]{0,24}"  # between the parts of a JSON text; without an end some models write nothing else
_GRAMMAR_SIZE = 100_000  # symbols
_LEXER_STATES = 20_000  # 2 kB each
_REASON = 400  # characters of the library's own words


@dataclass(frozen=True)
class Mark:
    """A token by what is written for it, as ``<tool_call>``, which text cannot spell."""

    name: str


GrammarPart: TypeAlias = str | Mark | Mapping[str, Any]  # words, a mark, or JSON by a schema


@dataclass(frozen=True)
class Grammar:
    """What a completion may say.

    Attributes:
        kind: how ``source`` is written; sequences are lists of their parts in JSON.
        source: the schema, the regular expression, the grammar in llguidance's form of Lark, or the lists.
    """

    kind: Literal["json_schema", "regex", "lark", "sequences"]
    source: str

    def __repr__(self) -> str:
        return summarize_fields(self)

    def __post_init__(self) -> None:
        if len(self.source) > MAX_SOURCE:
            raise GrammarError(
                f"a grammar or schema of {len(self.source):,} characters: expected at most {MAX_SOURCE:,}"
            )

    @classmethod
    def of_json_schema(cls, schema: Mapping[str, Any]) -> Self:
        """JSON that is valid by ``schema``."""
        return cls("json_schema", json.dumps(schema, ensure_ascii=False))

    @classmethod
    def of_json_object(cls) -> Self:
        """Any JSON object."""
        return cls.of_json_schema({"type": "object"})

    @classmethod
    def of_regex(cls, pattern: str) -> Self:
        """Text that a regular expression, in the syntax of Rust's ``regex``, matches as a whole."""
        return cls("regex", pattern)

    @classmethod
    def of_lark(cls, text: str) -> Self:
        """Text of a grammar; it begins with the rule ``start``."""
        return cls("lark", text)

    @classmethod
    def of_sequence(cls, *parts: GrammarPart) -> Self:
        """Words, marks and JSON by schemas behind each other, as a tool's call has them."""
        return cls.of_alternatives(parts)

    @classmethod
    def of_alternatives(cls, *sequences: Sequence[GrammarPart], repeated: bool = False) -> Self:
        """One of several sequences, as the calls of several tools; ``repeated``: one or more of them."""
        written = [[_write_part(part) for part in sequence] for sequence in sequences]
        return cls("sequences", json.dumps({"any": written, "repeated": repeated}, ensure_ascii=False))

    def to_lark(self, marks: Mapping[str, int]) -> str:
        """The same in llguidance's form of Lark; ``marks`` are ids of marks by what is written for them.

        Raises:
            GrammarError: it names a mark that the tokenizer does not have.
        """
        if self.kind == "regex":
            raise TypeError("a regular expression is compiled as it is")
        if self.kind == "lark":
            return self.source
        if self.kind == "json_schema":
            # an answer may stand apart from its text by a blank, as those that were learned
            return f"start: APART? value\nAPART: /[ \\n]/\nvalue: %json {_write_schema(json.loads(self.source))}\n"
        given = json.loads(self.source)
        lines = [f"start: one{'+' * given['repeated']}"]
        lines.append(f"one: {' | '.join(f'sequence{number}' for number in range(len(given['any'])))}")
        for number, parts in enumerate(given["any"]):
            names = []
            for place, part in enumerate(parts):
                if "schema" in part:
                    names.append(f"value{number}x{place}")
                    lines.append(f"{names[-1]}: %json {_write_schema(part['schema'])}")
                elif "text" in part:
                    names.append(json.dumps(part["text"]))
                elif part["mark"] in marks:
                    names.append(f"<[{marks[part['mark']]}]>")
                else:
                    raise GrammarError(f"the tokenizer has no token {part['mark']!r}: expected one that it has")
            lines.append(f"sequence{number}: {' '.join(names)}")
        return "\n".join(lines) + "\n"


class GrammarState:
    """A grammar at one place of a completion.

    Attributes:
        ended: nothing can follow.
    """

    def __init__(self, matcher: Any, never: np.ndarray[Any, Any], end: int, ends: Sequence[int]) -> None:
        """Begin.

        Args:
            never: tokens ``[V]`` that no text has.
            end: one that the matcher knows to end a text.
            ends: others that do.
        """
        self._matcher, self._never, self._end, self._ends = matcher, never, end, list(ends)
        self._allowed: Tensor | None = None
        self.ended = False

    def find_allowed(self) -> Tensor:
        """Which tokens may come next ``[V]``.

        Raises:
            GrammarError: to find them takes more work than a step may.
        """
        if self._allowed is None:
            self._check()
            bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            self._check()
            allowed = np.unpackbits(bits, bitorder="little")[: len(self._never)].astype(bool) & ~self._never
            allowed[self._ends] = allowed[self._end]
            self._allowed = torch.from_numpy(allowed)
        return self._allowed

    def accept(self, token: int) -> None:
        """Go on behind ``token``."""
        self._matcher.consume_token(token)
        self._allowed, self.ended = None, bool(self._matcher.is_stopped() and not self._matcher.is_error())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"a grammar or schema that is too much work: {_read_reason(self._matcher)}")


class GrammarCompiler:
    """Grammars for the tokenizer of one model; the last ones are kept compiled."""

    def __init__(self, tokenizer: Any, rows: int, ends: Collection[int]) -> None:
        """Read the vocabulary, which takes a second.

        Args:
            rows: logits of the model.
            ends: tokens that end a completion.

        Raises:
            MissingExtraError: llguidance is not installed.
            GrammarError: the tokenizer is one that it cannot read.
        """
        try:
            from llguidance import LLMatcher, LLParserLimits
            from llguidance.hf import from_tokenizer
        except ImportError as error:
            raise MissingExtraError("llguidance", "serve") from error
        self._make, self._limits = (
            LLMatcher,
            LLParserLimits(max_grammar_size=_GRAMMAR_SIZE, max_lexer_states=_LEXER_STATES, verbose_errors=False),
        )
        self._marks = safe_tokenizer(tokenizer).marks
        self._rows = max(rows, len(tokenizer))
        self._ends = sorted(one for one in ends if one < self._rows)
        try:
            self._tokenizer = from_tokenizer(tokenizer, n_vocab=self._rows, eos_token=self._ends)
        except ValueError as error:
            raise GrammarError(
                f"grammars and schemas need a fast tokenizer, this model's is another: {error}"
            ) from error
        # marks that are words to the tokenizer would be left out of the text again; rows beyond it have no words
        self._no_text = np.zeros(rows, dtype=bool)
        self._no_text[len(tokenizer) :] = True
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()
        self._using = Lock()

    def start(self, grammar: Grammar, shown_marks: Collection[str] = (), ends: Collection[int] = ()) -> GrammarState:
        """The grammar at its beginning.

        Args:
            shown_marks: those that are part of a text.
            ends: further tokens that end one.

        Raises:
            GrammarError: it cannot be compiled, or takes too much work.
        """
        with self._using:
            matcher = self._compiled.get(grammar)
            if matcher is None:
                matcher = self._compiled[grammar] = self._compile(grammar)
            self._compiled.move_to_end(grammar)
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
            copied = matcher.deep_copy()
        never = self._no_text.copy()
        ends = {one for one in (*self._ends, *ends) if one < len(never)}
        hidden = [one for name, one in self._marks.items() if name not in shown_marks and one not in ends]
        never[[one for one in hidden if one < len(never)]] = True
        return GrammarState(copied, never, self._ends[0], sorted(ends))

    def _compile(self, grammar: Grammar) -> Any:
        try:
            if grammar.kind == "regex":
                source = self._make.grammar_from_regex(grammar.source)
            else:
                source = self._make.grammar_from_lark(grammar.to_lark(self._marks))
            matcher = self._make(self._tokenizer, source, log_level=0, limits=self._limits)
        except (ValueError, RecursionError) as error:
            raise GrammarError(f"expected {_WORDS[grammar.kind]} that can be followed: {error}") from error
        if matcher.is_error():
            if grammar.kind == "json_schema":
                # by itself it is told of without what stands around it here
                source = self._make.grammar_from_json_schema(grammar.source)
                alone = self._make(self._tokenizer, source, log_level=0, limits=self._limits)
                matcher = alone if alone.is_error() else matcher
            raise GrammarError(f"expected {_WORDS[grammar.kind]} that can be followed: {_read_reason(matcher)}")
        return matcher


_WORDS = {
    "json_schema": "a JSON schema",
    "regex": "a regular expression",
    "lark": "a grammar",
    "sequences": "JSON schemas",
}


def mask_logits(logits: Tensor, states: Sequence[GrammarState | None]) -> Tensor:
    """``logits [B, V]`` without the tokens that the grammars of some rows do not allow; those of others as they are.

    Raises:
        GrammarError: see ``GrammarState.find_allowed``.
    """
    rows = [row for row, state in enumerate(states) if state is not None]
    if not rows:
        return logits
    allowed = torch.stack([state.find_allowed() for state in states if state is not None]).to(logits.device)
    masked = logits.clone()
    masked[rows] = logits[rows].masked_fill(~allowed[:, : logits.shape[1]], -torch.inf)
    return masked


def _write_part(part: GrammarPart) -> dict[str, Any]:
    if isinstance(part, Mapping):
        return {"schema": dict(part)}
    return {"text": part} if isinstance(part, str) else {"mark": part.name}


def _write_schema(schema: Mapping[str, Any]) -> str:
    return json.dumps({**schema, "x-guidance": {"whitespace_pattern": _SPACE}}, ensure_ascii=False)


def _read_reason(matcher: Any) -> str:
    return " ".join(str(matcher.get_error()).replace("<non-verbose/>", "").split())[:_REASON]
