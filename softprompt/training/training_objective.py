"""What a run learns from: the items of each example, their losses, the validation that chooses the best step.

The training loop knows no more of it than this. ``make_task_objective`` is that of a task's own labels or outputs;
distillation has another, the distributions of a teacher (distillation_loss.py).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from torch import Tensor

from softprompt.config import TrainConfig
from softprompt.data.encoding.encoder import Batch, EncodedSequence, ExampleEncoder
from softprompt.data.encoding.verbalizer import number_labels
from softprompt.data.task import Task, TaskSpec
from softprompt.inference.scoring import AnswerScorer
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.inline_prefix import ScoringPrefix
from softprompt.prompts.state import PromptState
from softprompt.training.data_loader import DataLoader, InMemoryLoader, StreamingLoader
from softprompt.training.initialization import uses_soft_verbalizer
from softprompt.training.learner import ReferenceLoss
from softprompt.training.validation import Validation, Validator

Made = TypeVar("Made")


@dataclass(frozen=True)
class ForwardPass:
    """One of the passes that a step takes through the model.

    Attributes:
        items: what is read.
        owners: the learners whose prompts stand in front; ``batch.which`` counts these.
        states: their prompts; none where it is the model that learns.
    """

    items: list[EncodedSequence]
    owners: list[int]
    states: Sequence[PromptState]
    prefix: ScoringPrefix
    batch: Batch


class Losses(NamedTuple):
    """The loss ``[N]`` (nats) at each scored position, and what is added to it while learning, but not reported."""

    task: Tensor
    penalty: Tensor | None = None


@dataclass(frozen=True)
class TrainingObjective:
    """What a run learns from; prompts of different lengths may cut texts differently.

    Attributes:
        count: what the mean loss of the items of whole examples is over.
        losses: of a forward pass.
        encoders: what turned the texts into items, for each prompt length.
        examples: for each length the items of each training example.
        validations: for each length.
        reference: the loss of having learned nothing; ``None``: that of the task's label frequencies.
        starts: what a prompt of each length begins as with ``init='teacher'``.
        scores_start: whether the start is scored as steps are: it may be the best there is.
        streamed: gives the examples where they are not all in memory; ``examples`` has none then.
        soft_verbalizer: whether the labels are learned with each prompt.
    """

    count: Callable[[Sequence[EncodedSequence]], int]
    losses: Callable[[ForwardPass], Losses]
    encoders: Mapping[int, ExampleEncoder] = field(default_factory=dict)
    examples: Mapping[int, Sequence[Sequence[EncodedSequence]]] = field(default_factory=dict)
    validations: Mapping[int, Validator] = field(default_factory=dict)
    reference: ReferenceLoss | None = None
    starts: Mapping[int, PromptState] = field(default_factory=dict)
    scores_start: bool = False
    streamed: Callable[[TrainConfig], DataLoader] | None = None
    soft_verbalizer: bool = False

    def loader(self, config: TrainConfig) -> DataLoader:
        """What a prompt with these settings learns from."""
        return InMemoryLoader(self.examples[config.length], config) if self.streamed is None else self.streamed(config)


def make_task_objective(base: FrozenLM, task: Task, configs: Iterable[TrainConfig]) -> TrainingObjective:
    """A task's own labels or outputs; raises TemplateError or DataError."""
    configs = list(configs)
    soft_verbalizer = any(uses_soft_verbalizer(base, config, task.spec) for config in configs)
    by_length = make_encoders(base, task.spec, [config.length for config in configs], soft_verbalizer=soft_verbalizer)
    objective = AnswerScorer(base, next(iter(by_length.values())).verbalizer)
    stream = task.splits.stream
    return TrainingObjective(
        objective.count,
        lambda step: Losses(objective.behind(step.states).losses(step.prefix, step.batch)),
        by_length,
        map_encoders(by_length, lambda one: [(item,) for item in one.training_items(() if stream else task.train)]),
        # tokenised, and counted where cut, once
        map_encoders(by_length, lambda one: Validation(task, one, objective, configs[0])),
        streamed=None if stream is None else lambda config: StreamingLoader(stream, by_length[config.length], config),
        soft_verbalizer=soft_verbalizer,
    )


def make_encoders(
    base: FrozenLM, spec: TaskSpec, lengths: Iterable[int], *, soft_verbalizer: bool = False
) -> dict[int, ExampleEncoder]:
    """An encoder for each prompt length; lengths that cut texts alike share theirs."""
    label_ids = number_labels(spec, base.tokenizer) if soft_verbalizer else ()
    by_limit: dict[int, ExampleEncoder] = {}
    by_length: dict[int, ExampleEncoder] = {}
    for length in sorted(set(lengths)):
        encoder = ExampleEncoder(base, spec, length, label_ids=label_ids)
        # generation cuts each text to what its answer leaves, which depends on the length
        key = encoder.limit if spec.kind == "classification" else -length
        by_length[length] = by_limit.setdefault(key, encoder)
    return by_length


def map_encoders(by_length: Mapping[int, ExampleEncoder], make: Callable[[ExampleEncoder], Made]) -> dict[int, Made]:
    """What ``make`` gives for the encoder of each length, made once for each encoder."""
    made = {id(encoder): make(encoder) for encoder in {id(one): one for one in by_length.values()}.values()}
    return {length: made[id(encoder)] for length, encoder in by_length.items()}
