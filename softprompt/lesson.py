"""What a run learns from: the items of each example, their losses, the validation that chooses the best step.

The training loop knows no more of it than this. ``Labels`` learns a task's own labels or outputs; distillation has
another lesson, the distributions of a teacher (imitation.py).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from torch import Tensor

from softprompt.base import FrozenLM
from softprompt.batch import Batch, Encoder, Item
from softprompt.config import TrainConfig
from softprompt.learner import Bar
from softprompt.objective import Objective
from softprompt.prefix import Prefix, PromptState
from softprompt.task import Task, TaskSpec
from softprompt.validation import Validation

Made = TypeVar("Made")


class Held(Protocol):
    """How a prompt does on what was held out."""

    @property
    def metric(self) -> str: ...

    def score(self, state: PromptState | None) -> tuple[float, float]:
        """The metric, more being better, and the loss (nats)."""
        ...

    def error(self, value: float) -> float:
        """Values of the metric that are no further apart cannot be told apart: the loss decides between them."""
        ...


class Lesson(Protocol):
    """What a run learns from; prompts of different lengths may cut texts differently."""

    @property
    def bar(self) -> Bar | None:
        """The loss of having learned nothing; ``None``: that of the task's label frequencies."""
        ...

    @property
    def scores_start(self) -> bool:
        """Whether the start is scored as steps are: it may be the best there is."""
        ...

    @property
    def teacher(self) -> PromptState | None:
        """Whose words a prompt may begin as (``init='teacher'``)."""
        ...

    def encoder(self, length: int) -> Encoder:
        """What turned the texts into the items for prompts of this length."""
        ...

    def examples(self, length: int) -> Sequence[Sequence[Item]]:
        """The items of each training example."""
        ...

    def validation(self, length: int) -> Held: ...

    def count(self, items: Sequence[Item]) -> int:
        """What the mean loss of whole examples is over."""
        ...

    def losses(self, prefix: Prefix, batch: Batch) -> Tensor:
        """The loss ``[N]`` (nats) at each scored position behind ``prefix``."""
        ...


class Labels:
    """A task's own labels or outputs."""

    bar: Bar | None = None
    scores_start = False
    teacher: PromptState | None = None

    def __init__(self, base: FrozenLM, task: Task, configs: Iterable[TrainConfig]) -> None:
        configs = list(configs)
        self._encoders = encoders(base, task.spec, [config.length for config in configs])
        self._objective = Objective(base, next(iter(self._encoders.values())).verbalizer)
        self._examples = shared(self._encoders, lambda one: [(item,) for item in one.training_items(task.train)])
        # tokenised, and counted where cut, once
        self._validations = shared(self._encoders, lambda one: Validation(task, one, self._objective, configs[0]))

    def encoder(self, length: int) -> Encoder:
        return self._encoders[length]

    def examples(self, length: int) -> Sequence[Sequence[Item]]:
        return self._examples[length]

    def validation(self, length: int) -> Held:
        return self._validations[length]

    def count(self, items: Sequence[Item]) -> int:
        return self._objective.count(items)

    def losses(self, prefix: Prefix, batch: Batch) -> Tensor:
        return self._objective.losses(prefix, batch)


def encoders(base: FrozenLM, spec: TaskSpec, lengths: Iterable[int]) -> dict[int, Encoder]:
    """An encoder for each prompt length; lengths that cut texts alike share theirs."""
    by_limit: dict[int, Encoder] = {}
    by_length: dict[int, Encoder] = {}
    for length in sorted(set(lengths)):
        encoder = Encoder(base, spec, length)
        # generation cuts each text to what its answer leaves, which depends on the length
        key = encoder.limit if spec.kind == "classification" else -length
        by_length[length] = by_limit.setdefault(key, encoder)
    return by_length


def shared(by_length: Mapping[int, Encoder], make: Callable[[Encoder], Made]) -> dict[int, Made]:
    """What ``make`` gives for the encoder of each length, made once for each encoder."""
    made = {id(encoder): make(encoder) for encoder in {id(one): one for one in by_length.values()}.values()}
    return {length: made[id(encoder)] for length, encoder in by_length.items()}
