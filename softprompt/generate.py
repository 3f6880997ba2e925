"""Completions: greedy or sampled, in batches, behind a prefix that is cached once.

Texts are padded on the right, so generated tokens stand behind a gap that the mask hides; positions are counted
without it. Only a sliding window counts the gap as distance: where a sequence could outgrow the window, texts of
one length go together, and no gap arises.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

import torch
from torch import Tensor

from softprompt.base import FrozenLM
from softprompt.batch import Item, budgeted, collate
from softprompt.errors import ConfigError
from softprompt.prefix import CachedPrefix, ConcatenatedPrefix, EncodedPrefix, Prefix
from softprompt.seq2seq import GrowingAnswers
from softprompt.verbalizer import end_of_answer

# of every token: the texts that get one, as indices; logits [texts, V] as the model gives them; the tokens chosen
Watch: TypeAlias = Callable[[list[int], Tensor, list[int]], None]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: tokens to generate, at most.
        temperature: 0 is greedy; otherwise logits are divided by it and the token is sampled.
        top_p: sample among the likeliest tokens that together have this probability.
        top_k: sample among this many likeliest tokens (0: all).
        stop: strings that end a completion; they are not part of it.
        seed: of sampling.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.top_k < 0:
            raise ConfigError(f"top_k must be 0 (all) or more, got {self.top_k}")
        if "" in self.stop:
            raise ConfigError("a stop string must not be empty")


@torch.no_grad()
def complete(
    base: FrozenLM,
    prefix: Prefix,
    texts: Sequence[Sequence[int]],
    sampling: Sampling,
    token_budget: int,
    watch: Watch | None = None,
) -> Iterator[tuple[int, str]]:
    """Complete token sequences; yields ``(index, completion)`` batch by batch, in the order they finish.

    Args:
        texts: token ids without BOS (``Encoder.inputs``).
        token_budget: padded tokens of a batch, its completions counted.
        watch: is shown every choice of a token, that which ends a completion too.
    """
    items = [Item(i, tuple(ids), ()) for i, ids in enumerate(texts)]
    long: list[Item] = []
    if isinstance(prefix, CachedPrefix) and (window := base.sliding_window) is not None:
        most = window - prefix.width - sampling.max_new_tokens
        long = sorted((item for item in items if len(item.ids) > most), key=lambda item: len(item.ids))
        items = [item for item in items if len(item.ids) <= most]
    groups = [items, *(list(group) for _, group in groupby(long, key=lambda item: len(item.ids)))]
    for group in groups:
        room = max((len(item.ids) for item in group), default=0) + sampling.max_new_tokens
        for chunk in budgeted(group, token_budget, most=max(1, token_budget // max(room, 1))):
            answers = _Answers(base, chunk, sampling, watch)
            if isinstance(prefix, EncodedPrefix):
                _decode_apart(base, prefix, chunk, answers)
            elif isinstance(prefix, CachedPrefix):
                _decode_cached(base, prefix, chunk, answers)
            else:
                _decode_plainly(base, prefix, chunk, answers)
            yield from answers.finished()


def end_ids(base: FrozenLM) -> set[int]:
    """The tokens that end a completion."""
    generation = getattr(base.model, "generation_config", None)
    ends = getattr(generation, "eos_token_id", None)
    return {end_of_answer(base.tokenizer), *([ends] if isinstance(ends, int) else ends or ())}


class _Answers:
    """The completions of one batch while they grow."""

    def __init__(self, base: FrozenLM, chunk: list[Item], sampling: Sampling, watch: Watch | None) -> None:
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        self._tokenizer = base.tokenizer
        self._examples = [item.example for item in chunk]
        self._sampling, self._watch = sampling, watch
        self._ends = end_ids(base)
        self._warpers: list[Any] = []
        # divided by less than this, logits overflow; greedy is the limit
        if sampling.temperature > 1e-6:
            self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                self._warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._warpers.append(TopPLogitsWarper(sampling.top_p))
        # one generator for each text: what it samples does not depend on its neighbours
        seeds = [(sampling.seed * 1_000_003 + i) % 2**63 for i in self._examples]
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._tokens: list[list[int]] = [[] for _ in chunk]
        self._texts: list[str | None] = [None] * len(chunk)
        self.open = list(range(len(chunk)))

    def take(self, logits: Tensor) -> tuple[list[int], list[int]]:
        """Choose the next token of every open completion from ``logits [open, V]``.

        Returns the places, within the open ones, of those that go on, and their tokens.
        """
        seen = logits
        for warper in self._warpers:
            logits = warper(None, logits)
        places, tokens, chosen = [], [], []
        for place, row in enumerate(self.open):
            if self._warpers:
                probabilities = logits[place].softmax(-1).cpu()
                token = int(torch.multinomial(probabilities, 1, generator=self._generators[row]))
            else:
                token = int(logits[place].argmax())
            chosen.append(token)
            if not self._ended(row, token):
                places.append(place)
                tokens.append(token)
        if self._watch is not None:
            self._watch([self._examples[row] for row in self.open], seen, chosen)
        self.open = [self.open[place] for place in places]
        return places, tokens

    def _ended(self, row: int, token: int) -> bool:
        if token not in self._ends:
            self._tokens[row].append(token)
        ended = token in self._ends or len(self._tokens[row]) >= self._sampling.max_new_tokens
        if not ended and not self._sampling.stop:
            return False
        text = self._decode(row)
        cut = min((at for stop in self._sampling.stop if (at := text.find(stop)) >= 0), default=None)
        if ended or cut is not None:
            self._texts[row] = text[:cut]
        return ended or cut is not None

    def _decode(self, row: int) -> str:
        return str(self._tokenizer.decode(self._tokens[row], skip_special_tokens=True))

    def finished(self) -> Iterator[tuple[int, str]]:
        """Index of example and completion, without the white space around it."""
        for example, text in zip(self._examples, self._texts, strict=True):
            yield example, (text or "").strip()


def _decode_cached(base: FrozenLM, prefix: CachedPrefix, chunk: list[Item], answers: _Answers) -> None:
    batch = collate(chunk, base.device)
    lengths = batch.mask.sum(dim=1)
    cache = prefix.expand(batch.which)
    hidden = prefix.hidden(batch.input_ids, batch.mask, batch.which, cache)
    last = hidden[torch.arange(len(chunk), device=base.device), lengths - 1]
    mask = torch.cat([prefix.mask(batch.which), batch.mask], dim=1)
    positions = prefix.starts(batch.which) + lengths
    while True:
        places, tokens = answers.take(base.logits(last))
        if not places:
            return
        if len(places) < len(mask):
            kept = torch.tensor(places, device=base.device)
            cache.batch_select_indices(kept)
            mask, positions = mask[kept], positions[kept]
        mask = torch.cat([mask, mask.new_ones(len(places), 1)], dim=1)
        last = prefix.extend(torch.tensor(tokens, device=base.device), mask, positions, cache)
        positions = positions + 1


def _decode_apart(base: FrozenLM, prefix: EncodedPrefix, chunk: list[Item], answers: _Answers) -> None:
    """With a decoder of its own: it has no text in front, so its answers have one length and no gap."""
    growing = GrowingAnswers(prefix, collate(chunk, base.device))
    while True:
        waiting = len(answers.open)
        places, tokens = answers.take(base.logits(growing.last))
        if not places:
            return
        if len(places) < waiting:
            growing.keep(torch.tensor(places, device=base.device))
        growing.extend(torch.tensor(tokens, device=base.device))


def _decode_plainly(base: FrozenLM, prefix: ConcatenatedPrefix, chunk: list[Item], answers: _Answers) -> None:
    """For models without a key-value cache: the whole sequence again for every token."""
    sequences = [list(item.ids) for item in chunk]
    while sequences:
        batch = collate([Item(i, tuple(ids), ()) for i, ids in enumerate(sequences)], base.device)
        hidden = prefix.hidden(batch.input_ids, batch.mask)
        last = hidden[torch.arange(len(sequences), device=base.device), batch.mask.sum(dim=1) - 1]
        places, tokens = answers.take(base.logits(last))
        sequences = [[*sequences[place], token] for place, token in zip(places, tokens, strict=True)]
