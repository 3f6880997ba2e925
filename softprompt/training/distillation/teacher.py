"""The teacher of a distillation: a long text, solved examples or a saved prompt; and what it answers.

It reads every input once: for classification it leaves the probabilities of the labels; for generation a completion
and, at each place of it, the ``K`` likeliest tokens and what probability is left for all others. Students learn
from these (distillation_loss.py). Shapes: ``n`` examples, ``C`` labels, ``A`` completions, ``N`` their
places one after the other, ``K`` tokens.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from softprompt.config import DistillConfig
from softprompt.data.encoding.tokenization import safe_tokenizer
from softprompt.data.encoding.verbalizer import end_token_id
from softprompt.data.examples import Example
from softprompt.data.few_shot import GAP
from softprompt.data.task import TaskSpec
from softprompt.errors import ConfigError
from softprompt.inference.generation import ANSWER_ROOM, GenerationConfig, complete, end_token_ids
from softprompt.inference.predictor import Predictor, name_failing_example
from softprompt.inference.scoring import EVALUATION_TOKENS
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.prompts.written_prompt import written_ids, written_prompt


@dataclass(frozen=True)
class Teacher:
    """What stands in front of the inputs while the teacher answers.

    Attributes:
        states: the prompt, or several that answer together.
        ids: its tokens, where it is text; empty for a saved prompt.
        stop: strings that end its completions.
        source: what it is, for people.
    """

    states: tuple[PromptState, ...]
    ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    source: str = "text"

    @classmethod
    def written(cls, base: FrozenLM, spec: TaskSpec, text: str = "", shots: Sequence[Example] = ()) -> "Teacher":
        """A text, solved examples, or a text and solved examples behind it; a blank line stands between and behind.

        Completions behind solved examples end where the next one would begin, unless an output has a blank line.

        Raises:
            ConfigError: neither is given.
        """
        text = text.strip()
        state = written_prompt(base, spec, text, shots)
        if state is None:
            raise ConfigError("expected a text or solved examples for the teacher, got neither: give one of them")
        gap_within = any(GAP in output for shot in shots for output in shot.references)
        parts = [*(["text"] if text else []), *([f"{len(shots)} solved examples"] if shots else [])]
        stop = (GAP,) if shots and spec.kind == "generation" and not gap_within else ()
        return cls((state,), tuple(written_ids(base, spec, text, shots)), stop, " and ".join(parts))

    @classmethod
    def saved(cls, prompt: Prompt) -> "Teacher":
        """A saved prompt of any method and length; an ensemble for classification only."""
        members = f"an ensemble of {len(prompt.states)} saved prompts" if len(prompt.states) > 1 else "a saved prompt"
        return cls(prompt.states, source=f"{members} ({prompt.method})")

    @property
    def tokens(self) -> int:
        """That stand in front of an input; of several prompts, of all of them together, for each reads the input."""
        return sum(state.length for state in self.states)

    @property
    def start(self) -> PromptState:
        """What a student may begin as."""
        return self.states[0]

    @cached_property
    def digest(self) -> str:
        """What tells it from another teacher."""
        parts = [",".join(state.digest for state in self.states), *map(str, self.ids), *self.stop]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def predictor(self, base: FrozenLM, spec: TaskSpec, settings: DistillConfig) -> Predictor:
        """It answers, its prefix computed once."""
        return Predictor(base, spec, self.states, self.generation(settings))

    def generation(self, settings: DistillConfig) -> GenerationConfig:
        """How its greedy completions are made."""
        return GenerationConfig(max_new_tokens=settings.max_new_tokens or ANSWER_ROOM, stop=settings.stop or self.stop)


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
        tokens: ``[N]``, what was chosen.
        top_ids, top: ``[N, K]``, the likeliest tokens and their log-probabilities.
        rest: ``[N]``, log-probability of all other tokens together.
        scale: ``[N]``, log of the sum of all probabilities ** (1 / temperature): what tempering divides by.
        tempered_rest: ``[N]``, ``rest`` at that temperature.
    """

    example: Tensor
    counts: Tensor
    ended: Tensor
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
        chosen = {"example": answers, "counts": answers, "ended": answers}
        tokens = answers.repeat_interleave(self.counts)
        kept = Completions(*(getattr(self, one.name)[chosen.get(one.name, tokens)] for one in fields(self)))
        return replace(kept, example=torch.tensor([places[one] for one in kept.example.tolist()], dtype=torch.long))

    @cached_property
    def answers(self) -> list[tuple[int, ...]]:
        """The tokens of each completion, the one that ended it too."""
        return [tuple(part.tolist()) for part in self.tokens.split(self.counts.tolist())]

    def texts(self, tokenizer: Any) -> list[str]:
        """Each completion as ``predict`` gives it."""
        words = [answer[: len(answer) - ended] for answer, ended in zip(self.answers, self.ended.tolist(), strict=True)]
        return [safe_tokenizer(tokenizer).decode(ids).strip() for ids in words]


Answers: TypeAlias = LabelAnswers | Completions


def ask_teacher(
    base: FrozenLM,
    spec: TaskSpec,
    teacher: Teacher,
    settings: DistillConfig,
    splits: Mapping[str, Sequence[Example]],
    note: Callable[[str], None],
) -> dict[str, Answers]:
    """What the teacher answers to the examples of each split; those of ``train`` as the settings say, others greedily.

    Raises:
        TemplateError: the teacher leaves no room for text in the model's context.
        ConfigError: an ensemble for generation.
    """
    predictor = teacher.predictor(base, spec, settings)
    found: dict[str, Answers] = {}
    for split, examples in splits.items():
        note(f"the teacher ({teacher.source}, {teacher.tokens:,} tokens) answers {len(examples):,} {split} inputs")
        if spec.kind == "classification":
            found[split] = LabelAnswers(predictor.label_log_probabilities(examples))
            continue
        runs = [(predictor.generation, 1)] if settings.greedy or split != "train" else []
        if settings.samples and split == "train":
            sampled = replace(predictor.generation, temperature=settings.sample_temperature, seed=settings.sample_seed)
            runs.append((sampled, settings.samples))
        found[split] = concatenate_completions([_completions(predictor, examples, *run, settings) for run in runs])
    for text in predictor.encoder.truncation_notes():
        note(f"behind the teacher {text}")
    return found


def concatenate_completions(parts: Sequence[Completions]) -> Completions:
    """Completions of the same examples one after the other."""
    return Completions(*(torch.cat([getattr(part, one.name) for part in parts]) for one in fields(Completions)))


def _completions(
    predictor: Predictor,
    examples: Sequence[Example],
    generation: GenerationConfig,
    times: int,
    settings: DistillConfig,
) -> Completions:
    """``times`` completions of each example."""
    base, texts = predictor.base, predictor.encoder.encode_inputs(examples)
    record = _Record(settings)
    with name_failing_example(examples):
        for _ in complete(base, predictor.prefix, texts * times, generation, EVALUATION_TOKENS, record):
            pass
    completions = record.completions(len(texts) * times, base)
    if generation.stop:
        completions = _truncate_at_stop(completions, generation.stop, base)
    return replace(completions, example=completions.example % len(texts))


@dataclass
class _Record:
    """Keeps the distributions of a teacher while it writes."""

    settings: DistillConfig
    _steps: list[tuple[Tensor, ...]] = field(default_factory=list)

    def __call__(self, texts: list[int], logits: Tensor, tokens: list[int]) -> None:
        plain = logits.float().log_softmax(-1)
        top, ids = plain.topk(min(self.settings.teacher_top_k, plain.shape[1]), dim=-1)
        tempered = plain / self.settings.distillation_temperature
        scale = tempered.logsumexp(-1)
        rest, tempered_rest = (one.scatter(1, ids, -math.inf).logsumexp(-1) for one in (plain, tempered))
        kept = (ids.int(), top, rest, scale, tempered_rest - scale)
        self._steps.append((torch.tensor(texts), torch.tensor(tokens), *(one.cpu() for one in kept)))

    def completions(self, count: int, base: FrozenLM) -> Completions:
        """Of ``count`` texts, each with one place at least."""
        texts, *rest = (torch.cat(parts) for parts in zip(*self._steps, strict=True))
        # the places of one text were seen in their order
        tokens, *others = (one[texts.argsort(stable=True)] for one in rest)
        counts = texts.bincount(minlength=count)
        last = tokens[counts.cumsum(0) - 1]
        ended = torch.isin(last, torch.tensor(sorted(end_token_ids(base)))).long()
        return Completions(torch.arange(count), counts, ended, tokens, *others)


def _truncate_at_stop(completions: Completions, stop: Sequence[str], base: FrozenLM) -> Completions:
    """Completions that end where a stop string begins: the token that begins it stands for the end of the answer.

    So a student learns to end there by itself, with the probability that its teacher has of going on to that string.
    """
    end = end_token_id(base.tokenizer)
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
    return Completions(completions.example, counts, ended, tokens[kept], ids[kept], **places)
