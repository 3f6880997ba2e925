"""Completions: greedy or sampled, in batches, behind a prefix that is cached once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from softprompt.data.encoding.batching import batch_by_token_budget
from softprompt.data.encoding.encoder import EncodedSequence
from softprompt.data.encoding.tokenization import safe_tokenizer
from softprompt.data.encoding.verbalizer import encode_answer, end_token_id
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.errors import ConfigError, GrammarError, NotFiniteError
from softprompt.inference.decoding_batch import start_decoding
from softprompt.inference.grammar import Grammar, GrammarCompiler, GrammarState, mask_logits
from softprompt.inference.reading_progress import track
from softprompt.inference.scoring import check_finite
from softprompt.models.exactness import OncePerModel
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import Prefix
from softprompt.utils.summaries import summarize_fields

# of every token: the texts that get one, as indices; logits [texts, V] as the model gives them; the tokens chosen
TokenObserver: TypeAlias = Callable[[list[int], Tensor, list[int]], None]

ANSWER_ROOM = 128  # tokens of a completion, where nothing asks for more

# of a completion: the index of its text, what it says, and whether it was cut at the limit of tokens
Completed: TypeAlias = tuple[int, str, bool]

_BLOCK = 512  # logits


class DecodingModel(Protocol):
    """What turns tokens into text, and knows which ones end it: a ``FrozenLM``, or what a client knows of one."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def generation_config(self) -> Any: ...
    @property
    def architecture(self) -> str: ...


@dataclass(frozen=True)
class GenerationConfig:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: tokens to generate, at most.
        temperature: 0 is greedy; otherwise logits are divided by it and the token is sampled.
        top_p: sample among the likeliest tokens that together have this probability.
        top_k: sample among this many likeliest tokens (0: all).
        stop: strings that end a completion; they are not part of it.
        seed: of sampling.
        grammar: what a completion may say; any text if not given.
        shown_marks: marks, as ``<tool_call>``, that stay in the text of a completion; others are left out.
        ends: token ids that end a completion, beside those that the model names: the end of an assistant's turn.
        answer_mark: the token whose last one the answer stands behind, where a completion has it: thoughts go before.
    """

    max_new_tokens: int = ANSWER_ROOM
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int = 0
    grammar: Grammar | None = None
    shown_marks: tuple[str, ...] = ()
    ends: tuple[int, ...] = ()
    answer_mark: int | None = None

    def __repr__(self) -> str:
        return summarize_fields(self, only_changed=True)

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < inf:
            raise ConfigError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.top_k < 0:
            raise ConfigError(f"top_k must be 0 (all) or more, got {self.top_k}")
        if "" in self.stop:
            raise ConfigError("a stop string must not be empty")

    @cached_property
    def warpers(self) -> tuple[Any, ...]:
        """What changes logits ``[B, V]`` before a token is sampled; none if the likeliest is taken."""
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        # divided by less than this, logits overflow; greedy is the limit
        if self.temperature <= 1e-6:
            return ()
        warpers: list[Any] = [TemperatureLogitsWarper(self.temperature)]
        if self.top_k:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            warpers.append(TopPLogitsWarper(self.top_p))
        return tuple(warpers)


class Completion:
    """One completion while it grows.

    Attributes:
        tokens: so far, without the one that ends it.
        finish: why it ended: a stop string or end of text, or the limit of tokens; ``None`` while it goes on.
        grammar: where it stands in what it may say.
        shown: ids of the marks that stay in its text.
    """

    def __init__(
        self,
        base: DecodingModel,
        generation: GenerationConfig,
        index: int = 0,
        grammar: GrammarState | None = None,
    ) -> None:
        """Begin without a token.

        Args:
            index: of its text; completions of other texts by the same seed are other samples.
            grammar: that of ``generation`` at its beginning, if it is there already.
        """
        self._tokenizer = base.tokenizer
        self._goes_on = base.architecture == "decoder-only"
        self._ends = end_token_ids(base) | frozenset(generation.ends)
        self.generation = generation
        # one generator for each text: what it samples does not depend on its neighbours
        self._generator = torch.Generator().manual_seed((generation.seed * 1_000_003 + index) % 2**63)
        self.tokens: list[int] = []
        self.finish: Literal["stop", "length"] | None = None
        self._decoded = (0, "")
        self._cut: int | None = None
        marks = safe_tokenizer(base.tokenizer).marks
        self.shown = frozenset(marks[name] for name in generation.shown_marks if name in marks)
        self.grammar = grammar
        if grammar is None and generation.grammar is not None:
            self.grammar = start_grammar(base, generation)

    def sampled(self, logits: Tensor) -> int:
        """A token by its own generator, from ``logits [V]``."""
        row = logits[None]
        for warper in self.generation.warpers:
            row = warper(None, row)
        return int(torch.multinomial(row[0].softmax(-1).cpu(), 1, generator=self._generator))

    def add(self, token: int) -> bool:
        """Take the next token; whether the completion goes on."""
        if token in self._ends:
            self.finish = "stop"
            return False
        self.tokens.append(token)
        if self.grammar is not None:
            self.grammar.accept(token)
        if self.generation.stop:
            text = self.decoded
            self._cut = min((at for stop in self.generation.stop if (at := text.find(stop)) >= 0), default=None)
        if self._cut is not None or (self.grammar is not None and self.grammar.ended):
            self.finish = "stop"
        elif len(self.tokens) >= self.generation.max_new_tokens:
            self.finish = "length"
        return self.finish is None

    @property
    def decoded(self) -> str:
        """The text of all tokens so far, a stop string included."""
        if self._decoded[0] != len(self.tokens):
            tokens = self._answer_tokens()
            # some tokenizers leave out a blank at the very beginning, which is none where a text goes on
            before = self._before
            text = self._decode_tokens([*before, *tokens])
            front = self._decode_tokens(before)
            whole = text[len(front) :] if text.startswith(front) else self._decode_tokens(tokens)
            self._decoded = len(self.tokens), whole
        return self._decoded[1]

    def _answer_tokens(self) -> list[int]:
        """Those behind the last ``answer_mark``."""
        mark = self.generation.answer_mark
        if mark is None or mark not in self.tokens:
            return self.tokens
        return self.tokens[len(self.tokens) - self.tokens[::-1].index(mark) :]

    @cached_property
    def _before(self) -> list[int]:
        """The tokens of a word to decode together with what comes behind it."""
        return list(self._tokenizer("a", add_special_tokens=False)["input_ids"]) if self._goes_on else []

    def _decode_tokens(self, tokens: Sequence[int]) -> str:
        return safe_tokenizer(self._tokenizer).decode(tokens, self.shown)

    @property
    def exact(self) -> str:
        """The completion, with the white space that stands between it and the text before it."""
        return self.decoded[: self._cut]

    @property
    def text(self) -> str:
        """The completion, without the white space around it."""
        return self.exact.strip()


def choose_max_new_tokens(base: FrozenLM, spec: TaskSpec, examples: Sequence[Example] = ()) -> int:
    """Tokens that completions are given: the task's own number, or ``ANSWER_ROOM``; more where a reference of
    ``examples`` is longer, to half of the model's context."""
    room = spec.max_new_tokens or ANSWER_ROOM
    references = {one for example in examples for one in example.references}
    # each token has a byte at least
    long = [one for one in references if len(one.encode()) >= room]
    needed = max((len(encode_answer(base.tokenizer, spec, one)) + 1 for one in long), default=0)
    return max(room, needed if base.context_length is None else min(needed, base.context_length // 2))


def end_token_ids(base: DecodingModel) -> frozenset[int]:
    """The tokens that end a completion: the tokenizer's end of sequence, and those of the model's own settings."""
    ends = getattr(base.generation_config, "eos_token_id", None)
    return frozenset((end_token_id(base.tokenizer), *([ends] if isinstance(ends, int) else ends or ())))


@OncePerModel
def _make_compiler(base: FrozenLM) -> GrammarCompiler:
    return GrammarCompiler(base.tokenizer, base.vocabulary_size, end_token_ids(base))


def start_grammar(base: DecodingModel, generation: GenerationConfig) -> GrammarState:
    """What a completion may say, at its beginning; compiled, where it is not among the last ones.

    Raises:
        GrammarError: it cannot be compiled.
        MissingExtraError: llguidance is not installed.
    """
    assert generation.grammar is not None
    if not isinstance(base, FrozenLM):
        raise GrammarError("grammars are followed where the model runs, which is elsewhere")
    return _make_compiler(base).start(generation.grammar, generation.shown_marks, generation.ends)


def next_tokens(logits: Tensor, completions: Sequence[Completion]) -> list[int]:
    """The next token of each completion, from ``logits [B, V]``; NotFiniteError names a row that has no numbers.

    Raises:
        GrammarError: what a completion may say takes too much work.
    """
    logits = mask_logits(logits, [completion.grammar for completion in completions])
    largest = first_largest(logits)
    check_finite(logits.gather(1, largest[:, None]))
    likeliest = largest.tolist()
    return [
        completion.sampled(row) if completion.generation.warpers else token
        for row, token, completion in zip(logits, likeliest, completions, strict=True)
    ]


def first_largest(logits: Tensor) -> Tensor:
    """Where each row of ``logits [B, V]`` is largest ``[B]``, for the first time.

    On a CPU maxima of blocks are several times faster than ``argmax`` of rows as long as a vocabulary.
    """
    size = logits.shape[1]
    whole = size // _BLOCK * _BLOCK
    if logits.device.type != "cpu" or whole < 2 * _BLOCK:
        return logits.argmax(-1)
    largest = logits[:, :whole].unflatten(1, (-1, _BLOCK)).amax(-1)
    if whole < size:
        largest = torch.cat([largest, logits[:, whole:].amax(-1, keepdim=True)], dim=1)
    # the last block may be short: what is looked at of the one before it is smaller
    start: Tensor = (largest.argmax(-1) * _BLOCK).clamp(max=size - _BLOCK)
    return start + logits.gather(1, start[:, None] + torch.arange(_BLOCK)).argmax(-1)


@torch.no_grad()
def complete(
    base: FrozenLM,
    prefix: Prefix,
    texts: Sequence[Sequence[int]],
    generation: GenerationConfig,
    token_budget: int,
    observe: TokenObserver | None = None,
) -> Iterator[Completed]:
    """Complete token sequences; batch by batch, in the order they finish.

    Args:
        texts: token ids without BOS (``Encoder.encode_inputs``).
        token_budget: padded tokens of a batch, its completions counted.
        watch: is shown every choice of a token, that which ends a completion too.

    Raises:
        NotFiniteError: the model has no numbers for a text.
    """
    items = [EncodedSequence(i, tuple(ids), ()) for i, ids in enumerate(texts)]
    room = max((len(item.ids) for item in items), default=0) + generation.max_new_tokens
    chunks = list(batch_by_token_budget(items, token_budget, most=max(1, token_budget // max(room, 1))))
    for chunk in track(chunks, len):
        completions = [Completion(base, generation, item.example) for item in chunk]
        decoding_batch, going, indices = start_decoding(prefix, chunk), completions, [item.example for item in chunk]
        while True:
            logits = base.logits(decoding_batch.last)
            try:
                tokens = next_tokens(logits, going)
            except NotFiniteError as error:
                raise NotFiniteError(indices[error.row]) from error
            if observe is not None:
                observe(indices, logits, tokens)
            goes_on = [one.add(token) for one, token in zip(going, tokens, strict=True)]
            kept = torch.tensor([row for row, goes in enumerate(goes_on) if goes], device=base.device)
            indices = [index for index, goes in zip(indices, goes_on, strict=True) if goes]
            going = [one for one in going if one.finish is None]
            if not going:
                break
            if len(going) < len(goes_on):
                decoding_batch.keep(kept)
            decoding_batch.extend(torch.tensor(tokens, device=base.device)[kept])
        for item, one in zip(chunk, completions, strict=True):
            yield item.example, one.text, one.finish == "length"
