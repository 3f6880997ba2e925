"""What a run learns from: the items of each example, their losses, the validation that chooses the best step.

The training loop knows no more of it than this. ``labels`` is the lesson of a task's own labels or outputs;
distillation has another, the distributions of a teacher (distillation_loss.py).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from torch import Tensor

from softprompt.config import TrainConfig
from softprompt.data.encoding.encoder import Batch, EncodedSequence, ExampleEncoder
from softprompt.data.task import Task, TaskSpec
from softprompt.inference.scoring import Objective
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.inline_prefix import Scored
from softprompt.prompts.state import PromptState
from softprompt.training.data_loader import DataLoader, FeedOf, InMemoryLoader, StreamingLoader
from softprompt.training.learner import ReferenceLoss
from softprompt.training.validation import Validation

Made = TypeVar("Made")


class Validator(Protocol):
    """How a prompt does on what was held out."""

    @property
    def metric(self) -> str: ...

    def score(self, state: PromptState | None) -> tuple[float, float]:
        """The metric, more being better, and the loss (nats)."""
        ...

    def error(self, value: float) -> float:
        """Values of the metric that are no further apart cannot be told apart: the loss decides between them."""
        ...


@dataclass(frozen=True)
class TrainingObjective:
    """What a run learns from; prompts of different lengths may cut texts differently.

    Attributes:
        encoders: what turned the texts into items, for each prompt length.
        examples: for each length the items of each training example.
        validations: for each length.
        count: what the mean loss of the items of whole examples is over.
        losses: the loss ``[N]`` (nats) at each scored position of a batch behind a prefix.
        bar: the loss of having learned nothing; ``None``: that of the task's label frequencies.
        starts: what a prompt of each length begins as with ``init='teacher'``.
        scores_start: whether the start is scored as steps are: it may be the best there is.
        streamed: gives the examples where they are not all in memory; ``examples`` has none then.
    """

    encoders: Mapping[int, ExampleEncoder]
    examples: Mapping[int, Sequence[Sequence[EncodedSequence]]]
    validations: Mapping[int, Validator]
    count: Callable[[Sequence[EncodedSequence]], int]
    losses: Callable[[Scored, Batch], Tensor]
    bar: ReferenceLoss | None = None
    starts: Mapping[int, PromptState] = field(default_factory=dict)
    scores_start: bool = False
    streamed: FeedOf | None = None

    def feed(self, config: TrainConfig) -> DataLoader:
        """What a prompt with these settings learns from."""
        return InMemoryLoader(self.examples[config.length], config) if self.streamed is None else self.streamed(config)


def labels(base: FrozenLM, task: Task, configs: Iterable[TrainConfig]) -> TrainingObjective:
    """A task's own labels or outputs; raises TemplateError or DataError."""
    configs = list(configs)
    by_length = encoders(base, task.spec, [config.length for config in configs])
    objective = Objective(base, next(iter(by_length.values())).verbalizer)
    stream = task.splits.stream
    return TrainingObjective(
        by_length,
        shared(by_length, lambda one: [(item,) for item in one.training_items(() if stream else task.train)]),
        # tokenised, and counted where cut, once
        shared(by_length, lambda one: Validation(task, one, objective, configs[0])),
        objective.count,
        objective.losses,
        streamed=None if stream is None else lambda config: StreamingLoader(stream, by_length[config.length], config),
    )


def encoders(base: FrozenLM, spec: TaskSpec, lengths: Iterable[int]) -> dict[int, ExampleEncoder]:
    """An encoder for each prompt length; lengths that cut texts alike share theirs."""
    by_limit: dict[int, ExampleEncoder] = {}
    by_length: dict[int, ExampleEncoder] = {}
    for length in sorted(set(lengths)):
        encoder = ExampleEncoder(base, spec, length)
        # generation cuts each text to what its answer leaves, which depends on the length
        key = encoder.limit if spec.kind == "classification" else -length
        by_length[length] = by_limit.setdefault(key, encoder)
    return by_length


def shared(by_length: Mapping[int, ExampleEncoder], make: Callable[[ExampleEncoder], Made]) -> dict[int, Made]:
    """What ``make`` gives for the encoder of each length, made once for each encoder."""
    made = {id(encoder): make(encoder) for encoder in {id(one): one for one in by_length.values()}.values()}
    return {length: made[id(encoder)] for length, encoder in by_length.items()}
