"""Completions that grow in one batch: they join between two tokens, and leave when they end or nobody waits."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from softprompt.data.encoding.token_bytes import token_bytes
from softprompt.errors import DataError, GrammarError
from softprompt.inference.decoding_batch import DecodingBatch, join_batches, start_decoding
from softprompt.inference.generation import next_tokens
from softprompt.inference.token_logprobs import ScoredToken, score_text, score_tokens
from softprompt.models.frozen_lm import FrozenLM
from softprompt.serving.engine.completion_chunks import CompletionChunk, spell_echo
from softprompt.serving.engine.engine_requests import GenerationRequest
from softprompt.serving.engine.label_scoring import make_not_finite_error
from softprompt.serving.engine.prefix_cache import PrefixCache

_log = logging.getLogger("softprompt.serving")


@dataclass
class _Group:
    """Texts that grow in one batch, a row each."""

    decoding_batch: DecodingBatch
    texts: list[GenerationRequest]


class DecodingLoop:
    """All completions that grow.

    Attributes:
        max_rows: completions at once, at most.
        max_tokens: that they may come to, padding counted; a single one may be longer.
    """

    def __init__(
        self,
        base: FrozenLM,
        prefixes: PrefixCache,
        deliver: Callable[[GenerationRequest, CompletionChunk | Exception], None],
        *,
        max_rows: int,
        max_tokens: int,
        token_budget: int,
    ) -> None:
        """``token_budget``: padded tokens of texts that are read at once."""
        self._base, self._prefixes, self._deliver = base, prefixes, deliver
        self.max_rows, self.max_tokens, self._token_budget = max_rows, max_tokens, token_budget
        self._groups: list[_Group] = []

    def __len__(self) -> int:
        return sum(len(group.texts) for group in self._groups)

    @property
    def texts(self) -> list[GenerationRequest]:
        return [text for group in self._groups for text in group.texts]

    def fits(self, beside: Sequence[GenerationRequest], text: GenerationRequest) -> bool:
        """Whether ``text`` may start, together with those ``beside`` it."""
        texts = [*self.texts, *beside, text]
        longest = max(len(one.item.ids) for one in (*beside, text))
        return len(texts) == 1 or (
            len(texts) <= self.max_rows
            and len(texts) * max(one.final_length for one in texts) <= self.max_tokens
            and (not beside or (len(beside) + 1) * longest <= self._token_budget)
        )

    def start(self, texts: Sequence[GenerationRequest]) -> list[GenerationRequest]:
        """Read texts, and let them grow with the others; those that nothing is to follow."""
        failing = self._prefixes.prepare(text.served for text in texts)
        for text in texts:
            if text.served.key in failing:
                self._deliver(text, failing[text.served.key])
        sound = [text for text in texts if text.served.key not in failing]
        if not sound:
            return []
        try:
            group = _Group(self._start_batch(sound), sound)
        except Exception as error:  # whatever it is, the others are not to suffer
            self._isolate(sound, error)
            return []
        return self._merge_group(group)

    def step(self) -> list[GenerationRequest]:
        """One more token for each; those that ended."""
        ended: list[GenerationRequest] = []
        for group in list(self._groups):
            try:
                ended += self._decode_group(group)
            except Exception as error:  # as above
                self._groups.remove(group)
                ended += [text for text in group.texts if text.completion.finish is not None]
                self._isolate([text for text in group.texts if text.completion.finish is None], error)
        self._groups = [group for group in self._groups if group.texts]
        return ended

    def stop(self, error: Exception) -> None:
        """End all of them."""
        for text in self.texts:
            self._deliver(text, error)
        self._groups.clear()

    def _start_batch(self, texts: Sequence[GenerationRequest]) -> DecodingBatch:
        prefix, first = self._prefixes.join(text.served for text in texts)
        items = [replace(text.item, example=row, prompt=first[text.served.key]) for row, text in enumerate(texts)]
        decoding_batch = start_decoding(prefix, items, max(text.final_length for text in texts))
        for row, text in enumerate(texts):
            if text.echo is not None and not text.cancelled:
                self._tell_echo(text, None if decoding_batch.texts is None else decoding_batch.texts[row])
        # large, and of no use any more
        decoding_batch.texts = None
        return decoding_batch

    def _tell_echo(self, text: GenerationRequest, hidden: Tensor | None) -> None:
        """What an answer begins with: the text itself, by hidden states ``[T, H]`` of it."""
        assert text.echo is not None
        scored: list[ScoredToken] = []
        if text.tops is not None:
            if hidden is None:
                raise DataError("an encoder-decoder model gives its text no log-probabilities: leave echo out")
            scored = score_text(self._base, text.served.states, text.echo.before, text.item.ids, hidden, text.tops)
        told = spell_echo(token_bytes(self._base.tokenizer), text.echo.text, scored)
        self._deliver(text, CompletionChunk(text.echo.text, 0, text.read, "length" if text.only_read else None, told))
        text.echo = None

    def _merge_group(self, new: _Group) -> list[GenerationRequest]:
        """Let texts grow, with others if they can; those that nothing is to follow."""
        ended = [text for text in new.texts if text.only_read]
        self._keep_rows(new, [row for row, text in enumerate(new.texts) if not text.only_read])
        if new.texts:
            self._join_group(new)
        return ended

    def _join_group(self, new: _Group) -> None:
        for group in self._groups:
            if any(text.isolated for text in (*group.texts, *new.texts)):
                continue
            try:
                together = join_batches(group.decoding_batch, new.decoding_batch)
            except Exception as error:  # of memory above all: they grow beside each other then
                _log.warning("texts could not join others: %s", error)
                break
            if together:
                group.texts += new.texts
                return
        self._groups.append(new)

    def _decode_group(self, group: _Group) -> list[GenerationRequest]:
        """One more token for each of a group; those that ended."""
        wanted = [row for row, text in enumerate(group.texts) if not text.cancelled]
        self._keep_rows(group, wanted)
        finite = group.decoding_batch.last.isfinite().all(dim=1).tolist() if group.texts else []
        if not all(finite):
            strange = [text for text, good in zip(group.texts, finite, strict=True) if not good]
            self._keep_rows(group, [row for row, good in enumerate(finite) if good])
            self._isolate(strange, None)
        self._drop_stuck(group)
        if not group.texts:
            return []
        logits = self._base.logits(group.decoding_batch.last)
        tokens = next_tokens(logits, [text.completion for text in group.texts])
        told = [row for row, text in enumerate(group.texts) if text.tops is not None]
        if told:
            tops = [group.texts[row].tops or 0 for row in told]
            for row, one in zip(told, score_tokens(logits[told], [tokens[row] for row in told], tops), strict=True):
                group.texts[row].scored.append(one)
        for text, token in zip(group.texts, tokens, strict=True):
            text.completion.add(token)
            text.timing.mark_tokens()
            if (piece := text.detokenizer.next_chunk()) is not None:
                self._deliver(text, piece)
        ended = [text for text in group.texts if text.completion.finish is not None]
        going = [row for row, text in enumerate(group.texts) if text.completion.finish is None]
        self._keep_rows(group, going)
        if going:
            group.decoding_batch.extend(torch.tensor([tokens[row] for row in going], device=self._base.device))
        return ended

    def _drop_stuck(self, group: _Group) -> None:
        """Without the texts whose grammar is too much work."""
        going = []
        for row, text in enumerate(group.texts):
            try:
                if text.completion.grammar is not None:
                    text.completion.grammar.find_allowed()
                going.append(row)
            except GrammarError as error:
                self._deliver(text, error)
        self._keep_rows(group, going)

    def _keep_rows(self, group: _Group, rows: list[int]) -> None:
        if len(rows) == len(group.texts):
            return
        group.texts = [group.texts[row] for row in rows]
        if rows:
            group.decoding_batch.keep(torch.tensor(rows, device=self._base.device))

    def _isolate(self, texts: Sequence[GenerationRequest], error: Exception | None) -> None:
        """Let texts whose batch failed grow each by itself; no ``error`` means numbers that are not finite."""
        for text in texts:
            if text.isolated:
                self._deliver(text, error or make_not_finite_error(text.served))
                continue
            text.isolated = True
            try:
                decoding_batch = self._start_batch([text])
                if text.only_read:
                    continue
                for token in text.completion.tokens:
                    decoding_batch.extend(torch.tensor([token], device=self._base.device))
            except Exception as own:  # of this text alone
                self._deliver(text, own)
                continue
            self._groups.append(_Group(decoding_batch, [text]))
