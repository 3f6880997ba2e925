"""What teachers answer: label probabilities, or completions with the distributions along them.

Shapes: ``n`` examples, ``C`` labels, ``A`` completions, ``N`` their places one after the other, ``K`` tokens.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from softprompt.config import DistillConfig
from softprompt.data.encoding.tokenization import safe_tokenizer
from softprompt.inference.generation import end_token_ids
from softprompt.models.frozen_lm import FrozenLM


@dataclass(frozen=True)
class LabelAnswers:
    """Of each example the log-probabilities of the labels, ``[n, C]``."""

    log_probabilities: Tensor

    def at(self, indices: Sequence[int]) -> "LabelAnswers":
        """Those to some of the examples, in that order."""
        return LabelAnswers(self.log_probabilities[list(indices)])


@dataclass(frozen=True)
class Completions:
    """Completions and the teacher's distributions along them; all on the CPU.

    Attributes:
        example: ``[A]``, of which example.
        counts: ``[A]``, places of each: its tokens, and the one behind it that ended it, if one did.
        ended: ``[A]``, 1 if one did.
        given: ``[A]``, 1 if it is no completion of the teacher's, but all turns that a conversation brings.
        tokens: ``[N]``, what was chosen, or given.
        top_ids, top: ``[N, K]``, the likeliest tokens and their log-probabilities.
        rest: ``[N]``, log-probability of all other tokens together.
        scale: ``[N]``, log of the sum of all probabilities ** (1 / temperature): what tempering divides by.
        tempered_rest: ``[N]``, ``rest`` at that temperature.
    """

    example: Tensor
    counts: Tensor
    ended: Tensor
    given: Tensor
    tokens: Tensor
    top_ids: Tensor
    top: Tensor
    rest: Tensor
    scale: Tensor
    tempered_rest: Tensor

    def at(self, indices: Sequence[int]) -> "Completions":
        """Those to some of the examples, counted anew; ``indices`` are in order."""
        places = {index: place for place, index in enumerate(indices)}
        answers = torch.tensor([example in places for example in self.example.tolist()], dtype=torch.bool)
        chosen = {"example": answers, "counts": answers, "ended": answers, "given": answers}
        tokens = answers.repeat_interleave(self.counts)
        kept = Completions(*(getattr(self, one.name)[chosen.get(one.name, tokens)] for one in fields(self)))
        return replace(kept, example=torch.tensor([places[one] for one in kept.example.tolist()], dtype=torch.long))

    @cached_property
    def answers(self) -> list[tuple[int, ...]]:
        """The tokens of each completion, the one that ended it too."""
        return [tuple(part.tolist()) for part in self.tokens.split(self.counts.tolist())]

    @cached_property
    def likeliest(self) -> Tensor:
        """``[N]``, what the teacher would choose: of its own completions what it chose."""
        given = self.given.repeat_interleave(self.counts).bool()
        return torch.where(given, self.top_ids[:, 0].to(self.tokens.dtype), self.tokens)

    def texts(self, tokenizer: Any, answer_mark: int | None = None) -> list[str]:
        """Each completion as ``predict`` gives it: what stands behind the last ``answer_mark``, where it has one."""
        words = [answer[: len(answer) - ended] for answer, ended in zip(self.answers, self.ended.tolist(), strict=True)]
        if answer_mark is not None:
            words = [ids[len(ids) - ids[::-1].index(answer_mark) :] if answer_mark in ids else ids for ids in words]
        return [safe_tokenizer(tokenizer).decode(ids).strip() for ids in words]


Answers: TypeAlias = LabelAnswers | Completions


def concatenate_completions(parts: Sequence[Completions]) -> Completions:
    """Completions of the same examples one after the other."""
    return Completions(*(torch.cat([getattr(part, one.name) for part in parts]) for one in fields(Completions)))


@dataclass
class CompletionRecord:
    """Keeps the distributions of a teacher while it writes."""

    settings: DistillConfig
    _steps: list[tuple[Tensor, ...]] = field(default_factory=list)

    def add(self, texts: list[int], logits: Tensor, tokens: list[int]) -> None:
        """The next place of some texts: logits ``[texts, V]``, and the tokens that stand there."""
        plain = logits.float().log_softmax(-1)
        top, ids = plain.topk(min(self.settings.teacher_top_k, plain.shape[1]), dim=-1)
        tempered = plain / self.settings.distillation_temperature
        scale = tempered.logsumexp(-1)
        rest, tempered_rest = (one.scatter(1, ids, -math.inf).logsumexp(-1) for one in (plain, tempered))
        kept = (ids.int(), top, rest, scale, tempered_rest - scale)
        self._steps.append((torch.tensor(texts), torch.tensor(tokens), *(one.cpu() for one in kept)))

    def completions(self, count: int, base: FrozenLM, ends: Collection[int] = ()) -> Completions:
        """Of ``count`` texts, each with one place at least; ``ends``: tokens that end one, beside the model's own."""
        texts, *rest = (torch.cat(parts) for parts in zip(*self._steps, strict=True))
        # the places of one text were seen in their order
        tokens, *others = (one[texts.argsort(stable=True)] for one in rest)
        counts = texts.bincount(minlength=count)
        last = tokens[counts.cumsum(0) - 1]
        ended = torch.isin(last, torch.tensor(sorted(end_token_ids(base) | set(ends)))).long()
        return Completions(torch.arange(count), counts, ended, torch.zeros(count, dtype=torch.long), tokens, *others)


def truncate_at_stop(completions: Completions, stop: Sequence[str], base: FrozenLM, end: int) -> Completions:
    """Completions that end where a stop string begins: the token that begins it stands for the end of the answer.

    So a student learns to end there by itself, with the probability that its teacher has of going on to that string.
    ``end`` is the token that ends an answer.
    """
    tokens, ids, counts, ended = (
        one.clone() for one in (completions.tokens, completions.top_ids, completions.counts, completions.ended)
    )
    kept = torch.ones(len(tokens), dtype=torch.bool)
    starts = (counts.cumsum(0) - counts).tolist()
    for index, (start, answer) in enumerate(zip(starts, completions.answers, strict=True)):
        words = list(answer[: len(answer) - int(ended[index])])

        def length(count: int, words: list[int] = words) -> int:
            return len(safe_tokenizer(base.tokenizer).decode(words[:count]))

        text = safe_tokenizer(base.tokenizer).decode(words)
        cuts = [at for one in stop if (at := text.find(one)) >= 0]
        if not cuts:
            continue
        place = next(count for count in range(len(words) - 1, -1, -1) if length(count) <= min(cuts))
        kept[start + place + 1 : start + len(answer)] = False
        counts[index], ended[index] = place + 1, 1
        row, begins = ids[start + place], int(tokens[start + place])
        was_end, was_begun = row == end, row == begins
        row[was_end], row[was_begun] = begins, end
        tokens[start + place] = end
    places = {name: getattr(completions, name)[kept] for name in ("top", "rest", "scale", "tempered_rest")}
    return Completions(completions.example, counts, ended, completions.given, tokens[kept], ids[kept], **places)
