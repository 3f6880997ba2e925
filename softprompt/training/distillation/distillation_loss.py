"""What distillation learns: to give the next token, or the label, the probabilities that a teacher gives it.

    loss = t^2 * KL( teacher^(1/t) || student^(1/t) )        (Hinton, Vinyals and Dean 2015; t is the temperature)

Classification: over the labels. A label's probability is a product of choices (verbalizer.py), so its divergence is
the sum over all choices, each weighted by the teacher's probability of coming by. Generation: over the ``K`` tokens
that the teacher finds likeliest and all others as one, at each place of its completions. That is at most the
divergence over the whole vocabulary, and equal to it where student and teacher share out the rest alike.

Validation is the same divergence at temperature 1, whatever the temperature of learning. No label is looked at.
Shapes: ``n`` examples, ``C`` labels, ``D`` decisions, ``R`` rows of label tokens, ``N`` scored positions, ``K`` tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from softprompt.config import TrainConfig
from softprompt.data.encoding.batching import batch_by_token_budget, collate
from softprompt.data.encoding.encoder import Batch, EncodedSequence, ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.task import Task
from softprompt.inference.scoring import EVALUATION_TOKENS, AnswerScorer, count_tokens, kl_divergence, vocabulary_losses
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.inline_prefix import ScoringPrefix
from softprompt.prompts.prefix import Prefix, make_prefix
from softprompt.prompts.state import PromptState
from softprompt.training.distillation.given_answers import given_item
from softprompt.training.distillation.teacher_answers import Answers, Completions, LabelAnswers
from softprompt.training.learner import ReferenceLoss
from softprompt.training.training_objective import Losses, TrainingObjective, make_encoders, map_encoders

ENOUGH = 0.01  # nats of divergence, below which no run is said not to learn


class LabelTargets:
    """Label distributions. ``EncodedSequence.targets`` are rows of the table: each position's example."""

    def __init__(self, objective: AnswerScorer, answers: LabelAnswers, temperature: float) -> None:
        self._objective, self._temperature = objective, temperature
        self.plain = answers.log_probabilities
        self.tempered = objective.apply_temperature(self.plain, temperature)

    def items(self, encoder: ExampleEncoder, examples: Sequence[Example]) -> list[tuple[EncodedSequence, ...]]:
        """Of each example the items that together ask every decision."""
        portions: list[list[EncodedSequence]] = [[] for _ in examples]
        for item in encoder.scoring_items(examples):
            portions[item.example].append(replace(item, targets=(item.example,) * len(item.positions)))
        return [tuple(portion) for portion in portions]

    def count(self, items: Sequence[EncodedSequence]) -> int:
        """Examples."""
        return len({item.example for item in items})

    def losses(self, prefix: ScoringPrefix, batch: Batch) -> Tensor:
        """Divergence ``[N]`` (nats) at each scored position, weighted by the probability of coming by."""
        student = self._objective.decision_log_probabilities(prefix.scored(batch), batch.decisions)
        student = (student / self._temperature).log_softmax(-1)
        labels = self.tempered[batch.targets.cpu()].to(student.device)
        chosen, reached = self._objective.condition_on_decisions(labels, batch.decisions)
        return self._temperature**2 * reached * kl_divergence(chosen, student)

    def fidelity(self, prefix: Prefix, items: Sequence[EncodedSequence]) -> tuple[Tensor, Tensor, Tensor]:
        """At temperature 1, of each example: divergence, 1 where both choose the same label, 1; on the CPU."""
        student = self._objective.label_log_probabilities(prefix, items, learning=True)
        alike = (student.argmax(1) == self.plain.argmax(1)).float()
        return kl_divergence(self.plain, student), alike, torch.ones_like(alike)

    @property
    def reference(self) -> ReferenceLoss:
        """The divergence of the best constant answer: how often the teacher gives each label, whatever the input."""
        mean = self.tempered.logsumexp(dim=0, keepdim=True) - math.log(len(self.tempered))
        loss = self._temperature**2 * float(kl_divergence(self.tempered, mean.expand_as(self.tempered)).mean())
        return ReferenceLoss(loss, "that of the teacher's label frequencies", ENOUGH, LOOK)


class TokenTargets:
    """Distributions along completions. ``EncodedSequence.targets`` are rows of the tables: each position's place."""

    def __init__(self, base: FrozenLM, completions: Completions, temperature: float) -> None:
        self._base, self._temperature, self._completions = base, temperature, completions

    def items(self, encoder: ExampleEncoder, examples: Sequence[Example]) -> list[tuple[EncodedSequence, ...]]:
        """One item for each completion, and for the turns that each conversation brings."""
        told, answers = self._completions, self._completions.answers
        asked = [examples[index] for index in told.example.tolist()]
        own = [index for index, given in enumerate(told.given.tolist()) if not given]
        items = encoder.answer_items([asked[index] for index in own], [answers[index] for index in own]) if own else []
        by_index = dict(zip(own, items, strict=True))
        items = [
            replace(by_index[index] if index in by_index else given_item(encoder, example, answer), example=index)
            for index, (example, answer) in enumerate(zip(asked, answers, strict=True))
        ]
        starts = (told.counts.cumsum(0) - told.counts).tolist()
        return [
            (replace(item, targets=tuple(range(start, start + len(item.positions)))),)
            for item, start in zip(items, starts, strict=True)
        ]

    def count(self, items: Sequence[EncodedSequence]) -> int:
        """Places."""
        return sum(len(item.targets) for item in items)

    def losses(self, prefix: ScoringPrefix, batch: Batch) -> Tensor:
        """Divergence ``[N]`` (nats) at each scored position."""
        return self._divergence(prefix, batch, self._temperature)[0]

    @torch.no_grad()
    def fidelity(self, prefix: Prefix, items: Sequence[EncodedSequence]) -> tuple[Tensor, Tensor, Tensor]:
        """At temperature 1, of each completion: mean divergence, share of tokens chosen alike, places; on the CPU."""
        counts = self._completions.counts.float()
        sums = torch.zeros(2, len(counts))
        for chunk in batch_by_token_budget(items, EVALUATION_TOKENS):
            batch = collate(chunk, self._base.device)
            owner = torch.tensor([item.example for item in chunk])[batch.row.cpu()]
            losses, alike = self._divergence(prefix, batch, 1.0)
            sums[0].index_add_(0, owner, losses.float().cpu())
            sums[1].index_add_(0, owner, alike)
        return sums[0] / counts, sums[1] / counts, counts

    @property
    def reference(self) -> ReferenceLoss:
        """That of the first steps: what a constant answer would be is not known."""
        return ReferenceLoss(None, enough=ENOUGH, look=LOOK)

    def _divergence(self, prefix: ScoringPrefix, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
        """Divergence ``[N]``, and 1 where the student's likeliest token is the one that the teacher chose."""
        rows, told = batch.targets.cpu(), self._completions
        alike: list[Tensor] = []

        def losses_of(logits: Tensor, positions: slice) -> Tensor:
            own = rows[positions]
            alike.append((logits.detach().argmax(-1).cpu() == told.likeliest[own]).float())
            student = (logits / temperature).log_softmax(-1)
            ids = told.top_ids[own].long().to(logits.device)
            target = told.top[own] if temperature == 1 else told.top[own] / temperature - told.scale[own, None]
            rest = told.rest[own] if temperature == 1 else told.tempered_rest[own]
            among = student.gather(1, ids)
            if ids.shape[1] < student.shape[1]:
                among = torch.cat([among, student.scatter(1, ids, -math.inf).logsumexp(-1, keepdim=True)], dim=1)
                target = torch.cat([target, rest[:, None]], dim=1)
            return temperature**2 * kl_divergence(target.to(logits.device), among)

        losses = vocabulary_losses(prefix.scored(batch), self._base, losses_of)
        return losses, torch.cat(alike)


LOOK = "is the teacher good at them, does the template show the text?"


def distillation_objective(
    base: FrozenLM,
    task: Task,
    configs: Sequence[TrainConfig],
    answers: Mapping[str, Answers],
    starts: Mapping[int, PromptState],
    temperature: float = 1.0,
) -> TrainingObjective:
    """The lesson that a teacher's answers are.

    Args:
        answers: to the examples of ``train`` and ``validation``.
        starts: what students of each length begin as with ``init='teacher'``.

    Raises:
        TemplateError, DataError: prompt and answer leave no room for text in the model's context.
    """
    by_length = make_encoders(base, task.spec, [config.length for config in configs])
    objective = AnswerScorer(base, next(iter(by_length.values())).verbalizer)
    learned, held = (targets_of(objective, answers[split], temperature) for split in ("train", "validation"))
    return TrainingObjective(
        learned.count,
        lambda step: Losses(learned.losses(step.prefix, step.batch)),
        by_length,
        map_encoders(by_length, lambda one: learned.items(one, task.train)),
        map_encoders(by_length, lambda one: FidelityValidation(base, held, held.items(one, task.validation))),
        learned.reference,
        starts,
        scores_start=True,
    )


def targets_of(objective: AnswerScorer, answers: Answers, temperature: float = 1.0) -> LabelTargets | TokenTargets:
    """What a student is to give in place of the teacher."""
    if isinstance(answers, LabelAnswers):
        return LabelTargets(objective, answers, temperature)
    return TokenTargets(objective.base, answers, temperature)


class FidelityValidation:
    """How near a student is to its teacher on some examples."""

    def __init__(
        self, base: FrozenLM, targets: LabelTargets | TokenTargets, portions: Sequence[Sequence[EncodedSequence]]
    ) -> None:
        self._base, self._targets = base, targets
        self._items = [item for portion in portions for item in portion]
        self.tokens = count_tokens(self._items)
        self.metric = "agreement" if isinstance(targets, LabelTargets) else "token agreement"

    @torch.no_grad()
    def of(self, prefix: Prefix) -> tuple[Tensor, Tensor, Tensor]:
        """Divergence (nats, mean over places), share of agreement, places: of each example."""
        return self._targets.fidelity(prefix, self._items)

    @torch.no_grad()
    def score(self, state: PromptState | None) -> tuple[float, float]:
        """Agreement and divergence, both over all places."""
        divergences, alike, places = (one.double() for one in self.of(make_prefix(self._base, state)))
        total = places.sum()
        return float((alike * places).sum() / total), float((divergences * places).sum() / total)

    def standard_error(self, value: float) -> float:
        """No agreement decides: the divergence says more, whatever the agreement is."""
        return math.inf
