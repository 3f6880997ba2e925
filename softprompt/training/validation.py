"""How a prompt, or whatever answers, does on the validation examples: the figures that choose the best."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from softprompt.config import TrainConfig
from softprompt.data.encoding.batching import batch_by_token_budget, collate
from softprompt.data.encoding.encoder import EncodedSequence, ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.split_assignment import sample_examples
from softprompt.data.task import Task, TaskSpec
from softprompt.inference.scoring import EVALUATION_TOKENS, AnswerScorer, count_tokens
from softprompt.metrics.registry import METRICS, choose_metric
from softprompt.prompts.prefix import Prefix, make_prefix
from softprompt.prompts.state import PromptState

LOSS_ITSELF = "negative loss"  # the metric's name where the step is chosen by the loss


class Validator(Protocol):
    """How a prompt does on what was held out."""

    @property
    def metric(self) -> str: ...

    @property
    def tokens(self) -> int:
        """Tokens that a score reads, those of the prompt left out."""
        ...

    def score(self, state: PromptState | None) -> tuple[float, float]:
        """The metric, more being better, and the loss (nats)."""
        ...

    def standard_error(self, value: float) -> float:
        """Values of the metric that are no further apart cannot be told apart: the loss decides between them."""
        ...


class Validation:
    """The validation examples, tokenised once, and how a prompt does on them."""

    def __init__(self, task: Task, encoder: ExampleEncoder, objective: AnswerScorer, config: TrainConfig) -> None:
        self._objective, self._spec = objective, task.spec
        self._examples = validation_examples(task, config.validation_limit)
        self.metric = (
            LOSS_ITSELF if encoder.verbalizer is None else choose_metric(task.spec.kind, task.spec.metric).name
        )
        self._latest: list[str] = []
        items = encoder.training_items if encoder.verbalizer is None else encoder.scoring_items
        self._items = items(self._examples)
        self.tokens = count_tokens(self._items)

    @torch.no_grad()
    def score(self, state: PromptState | None) -> tuple[float, float]:
        """The metric, more being better, and the loss (nats an example, or a target token)."""
        prefix = make_prefix(self._objective.base, state)
        if self._objective.verbalizer is None:
            loss = mean_loss(self._objective, prefix, self._items)
            return -loss, loss
        objective = self._objective.behind([state])
        scores = objective.label_log_probabilities(prefix, self._items, learning=True)
        self._latest = likeliest_labels(scores, self._spec)
        return score_labels(scores, self._examples, self._spec)

    def standard_error(self, value: float) -> float:
        """The standard error of the latest score; none where the metric is the loss itself."""
        if self._objective.verbalizer is None:
            return 0.0
        return METRICS[self.metric].standard_error([str(one.label) for one in self._examples], self._latest, value)


def validation_examples(task: Task, limit: int) -> list[Example]:
    """At most ``limit`` of the validation examples, the same ones every time."""
    return list(sample_examples(task.validation, limit))


def score_labels(scores: Tensor, examples: Sequence[Example], spec: TaskSpec) -> tuple[float, float]:
    """Of log-probabilities ``[examples, C]``: the task's metric of the likeliest labels, and the mean loss (nats).

    Both are NaN where a score is: the likeliest label of such a row would be the first, whatever it is.
    """
    gold = torch.tensor([spec.label_index[str(example.label)] for example in examples])
    loss = float(-scores.gather(1, gold[:, None]).mean())
    if scores.isnan().any():
        return math.nan, math.nan
    labels = [str(example.label) for example in examples]
    return choose_metric(spec.kind, spec.metric).compute(labels, likeliest_labels(scores, spec)), loss


def likeliest_labels(scores: Tensor, spec: TaskSpec) -> list[str]:
    """Of log-probabilities ``[examples, C]``."""
    return [spec.labels[index] for index in scores.argmax(1).tolist()]


@torch.no_grad()
def mean_loss(objective: AnswerScorer, prefix: Prefix, items: Sequence[EncodedSequence]) -> float:
    """Mean loss (nats) of the target tokens of ``items`` behind ``prefix``."""
    total, count = 0.0, 0
    processes = objective.base.processes
    for chunk in processes.take_turns(list(batch_by_token_budget(items, EVALUATION_TOKENS))):
        batch = collate(chunk, objective.base.device)
        total += objective.losses(prefix, batch).sum().item()
        count += len(batch.targets)
    total, whole = processes.sum_numbers(total, count)
    return total / whole
