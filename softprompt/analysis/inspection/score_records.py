"""Losses and answers of several prompts on the same examples, in the same batches; and the task's metric of them.

Shapes: ``M`` prompts, ``n`` examples, ``C`` labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from softprompt.data.encoding.batching import batch_by_token_budget, collate
from softprompt.data.encoding.encoder import EncodedSequence
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.inference.chat_answers import make_bare_state
from softprompt.inference.predictor import Predictor, name_failing_example
from softprompt.inference.scoring import EVALUATION_TOKENS, AnswerScorer, check_finite
from softprompt.metrics import hypothesis_tests
from softprompt.metrics.bootstrap import Floats, paired_difference, resample_scores
from softprompt.metrics.registry import NEGATIVE_LOSS, Metric, choose_metric, score_runs
from softprompt.metrics.scores import Mean, Score
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import Prefix, make_prefix
from softprompt.prompts.state import PromptState
from softprompt.prompts.text_encoder import make_text_encoder

MEMBERS = 16  # prompts that stand in one prefix, at most: each holds its keys and values of every layer


@dataclass(frozen=True)
class PromptScores:
    """What prompts do on examples.

    Attributes:
        losses: ``[M, n]``, nats an example, or a target token in generation.
        log_probabilities: ``[M, n, C]`` of the labels; ``None`` for generation.
        truncated: texts that were cut.
        labels: names of the ``C``.
    """

    losses: Floats
    log_probabilities: Floats | None
    truncated: int
    labels: tuple[str, ...] = ()

    @property
    def answers(self) -> Floats | None:
        """The likeliest label of each, ``[M, n]``."""
        return None if self.log_probabilities is None else self.log_probabilities.argmax(axis=2)

    @property
    def predicted(self) -> list[str]:
        """The first prompt's answers by name."""
        assert self.answers is not None
        return [self.labels[int(index)] for index in self.answers[0]]


def score_states(
    base: FrozenLM, spec: TaskSpec, states: Sequence[PromptState | None], examples: Sequence[Example]
) -> PromptScores:
    """Score each of ``states`` on its own; ``None`` is the bare template. All are given the same room for texts.

    In chats ``None`` among others is an empty place of theirs; alone it is a conversation as nobody would prompt it.
    Labels are words behind those that have not learned them.
    """
    soft = [state is not None and state.label_rows is not None for state in states]
    if len(set(soft)) > 1:
        return _score_apart(base, spec, states, examples, soft)
    given = [state for state in states if state is not None]
    spec = spec if given else spec.without_prompt
    encoder = make_text_encoder(base, spec, given)
    items = encoder.training_items(examples) if spec.kind == "generation" else encoder.scoring_items(examples)
    losses, answers = [], []
    for start in range(0, len(states), MEMBERS):
        chunk = [state or make_bare_state(base, spec) for state in states[start : start + MEMBERS]]
        objective = AnswerScorer(base, encoder.verbalizer, chunk)
        with torch.no_grad():
            prefix = make_prefix(base, *chunk)
        if spec.kind == "generation":
            with name_failing_example(examples):
                losses.append(measure_losses(objective, prefix, items, len(chunk), len(examples)))
            continue
        with name_failing_example(examples):
            scores = objective.label_log_probabilities(prefix, repeated(items, len(chunk), len(examples)))
        shaped = scores.double().numpy().reshape(len(chunk), len(examples), -1)
        answers.append(shaped)
        losses.append(-np.take_along_axis(shaped, label_indices(spec, examples)[None, :, None], axis=2)[:, :, 0])
    return PromptScores(
        np.concatenate(losses), np.concatenate(answers) if answers else None, encoder.truncated, spec.labels
    )


def _score_apart(
    base: FrozenLM,
    spec: TaskSpec,
    states: Sequence[PromptState | None],
    examples: Sequence[Example],
    soft: Sequence[bool],
) -> PromptScores:
    """``score_states`` where only some have learned their labels."""
    losses, answers = np.zeros((len(states), len(examples))), np.zeros((len(states), len(examples), len(spec.labels)))
    truncated = 0
    for kind in (False, True):
        places = [place for place, one in enumerate(soft) if one == kind]
        found = score_states(base, spec, [states[place] for place in places], examples)
        assert found.log_probabilities is not None
        losses[places], answers[places] = found.losses, found.log_probabilities
        truncated = max(truncated, found.truncated)
    return PromptScores(losses, answers, truncated, spec.labels)


def score_ensemble(
    base: FrozenLM, spec: TaskSpec, states: Sequence[PromptState], examples: Sequence[Example]
) -> PromptScores:
    """``score_states`` for prompts that answer together: ``M`` is 1."""
    if len(states) == 1:
        return score_states(base, spec, states, examples)
    predictor = Predictor(base, spec, states)
    scores = predictor.label_log_probabilities(examples).double().numpy()
    gold = label_indices(spec, examples)
    return PromptScores(-scores[np.arange(len(gold)), gold][None], scores[None], predictor.truncated, spec.labels)


@torch.no_grad()
def measure_losses(
    objective: AnswerScorer, prefix: Prefix, items: Sequence[EncodedSequence], members: int, examples: int
) -> Floats:
    """Mean loss of the targets of each example behind each prompt, ``[M, n]``."""
    sums = torch.zeros(members * examples, dtype=torch.float64)
    counts = torch.zeros(members * examples, dtype=torch.float64)
    for chunk in batch_by_token_budget(repeated(items, members, examples), EVALUATION_TOKENS):
        batch = collate(chunk, objective.base.device)
        found = objective.losses(prefix, batch).double().cpu()
        owner = torch.tensor([item.example for item in chunk])[batch.row.cpu()]
        sums.index_add_(0, owner, found)
        counts.index_add_(0, owner, torch.ones_like(found))
    check_finite(sums.view(members, examples).T)
    shaped: Floats = (sums / counts).view(members, examples).numpy()
    return shaped


def repeated(items: Sequence[EncodedSequence], members: int, examples: int) -> list[EncodedSequence]:
    """Each item behind each of ``members`` prompts, next to each other so that batches hold one length."""
    return [
        replace(item, example=member * examples + item.example, prompt=member)
        for item in items
        for member in range(members)
    ]


def label_indices(spec: TaskSpec, examples: Sequence[Example]) -> np.ndarray:
    """Index of each example's label."""
    return np.array([spec.label_index[str(example.label)] for example in examples])


def gold_labels(examples: Sequence[Example]) -> list[str]:
    return [str(example.label) for example in examples]


def judging_metric(spec: TaskSpec) -> Metric | None:
    """What labels are judged by; ``None`` for generation, which is judged by the negative loss: completions cost much.

    Raises:
        ConfigError: a function of its maker's own, which nobody asked for here.
    """
    return choose_metric(spec.kind, spec.metric) if spec.kind == "classification" else None


def score_examples(spec: TaskSpec, scored: PromptScores, examples: Sequence[Example]) -> Floats:
    """How well each example is answered by itself: the metric's score of it, or the negative loss."""
    if (metric := judging_metric(spec)) is None:
        negative: Floats = -scored.losses[0]
        return negative
    return np.array(metric.score_each(gold_labels(examples), scored.predicted), dtype=np.float64)


def compute_metric(spec: TaskSpec, scored: PromptScores, examples: Sequence[Example]) -> float:
    """The metric over all examples, or the mean negative loss."""
    if (metric := judging_metric(spec)) is None:
        return float(-scored.losses[0].mean())
    return metric.compute(gold_labels(examples), scored.predicted)


def measure_metric(spec: TaskSpec, scored: PromptScores, examples: Sequence[Example]) -> Score:
    """``compute_metric`` with its interval."""
    if (metric := judging_metric(spec)) is None:
        return Score(metric=NEGATIVE_LOSS, **hypothesis_tests.bootstrap_mean(-scored.losses[0]).model_dump())
    return metric(gold_labels(examples), scored.predicted)


def compare_metric(
    spec: TaskSpec, now: PromptScores, before: PromptScores, examples: Sequence[Example]
) -> tuple[Mean, float]:
    """The metric of ``now`` minus that of ``before``, paired, and the p-value."""
    metric = judging_metric(spec)
    if metric is None or metric.is_mean:
        pair = (score_examples(spec, one, examples) for one in (now, before))
        return hypothesis_tests.paired_mean_difference(*pair)
    answered = {name: [one.predicted] for name, one in (("now", now), ("before", before))}
    runs = {name: score_runs(metric.name, gold_labels(examples), one) for name, one in answered.items()}
    found = paired_difference(runs["now"], runs["before"], *resample_scores(runs).values())
    return Mean(value=found.difference, low=found.low, high=found.high, n=found.n), found.p_value
