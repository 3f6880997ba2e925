"""Multitask prompt tuning (Wang et al. 2023): several tasks learn together, each ends with a plain prompt of its own.

    loss = sum over tasks k of  task loss_k + distillation * (KL_k + MSE_k)

Every step holds a batch of each task, and all of them go through the frozen model in the same passes. Where a task has
a teacher, a prompt learned for it alone, ``KL_k`` is the divergence of the label distribution from the teacher's and
``MSE_k`` the squared distance of the hidden states at the scored positions, in units of the teacher's variance.

Deviations from the paper: a batch of every task in every step, where the paper draws tasks by size; hidden states are
compared at the scored positions of the last layer. Generation tasks are distilled by hidden states only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from softprompt.config import TrainConfig
from softprompt.data.encoding.batching import collate
from softprompt.data.encoding.conversation_encoder import find_placement
from softprompt.data.encoding.encoder import Batch, EncodedSequence, ExampleEncoder
from softprompt.data.task import Task
from softprompt.errors import ConfigError
from softprompt.inference.chat_answers import check_placement
from softprompt.inference.scoring import AnswerScorer, kl_divergence
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.methods.multitask_prompt_tuning import MultitaskPrompt
from softprompt.prompts.prefix import Prefix, make_prefix
from softprompt.prompts.state import PromptState
from softprompt.training.callbacks.callback import Callback
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.data_loader import InMemoryLoader
from softprompt.training.initialization import initialize
from softprompt.training.learner import Learner
from softprompt.training.loop import TrainingResult, run_training, training_result
from softprompt.training.optimization import learning_unit, make_optimizer
from softprompt.training.training_objective import ForwardPass, Losses, TrainingObjective
from softprompt.training.validation import Validation


class TaskLearner(Learner):
    """One of the tasks: its data, its prompt. The first one holds the parameters of all."""

    def __init__(self, base: FrozenLM, index: int, name: str, task: Task, config: TrainConfig, method: Any) -> None:
        first = index == 0
        # tasks end together, and none raises an alarm
        config = config.model_copy(update={"patience": 0})
        super().__init__(
            name, config, list(method.parameters()) if first else [], make_optimizer(method, config) if first else None
        )
        self.index, self.method, self._placement = index, method, find_placement(base, task.spec)
        self.encoder = ExampleEncoder(base, task.spec, config.length)
        self.objective = AnswerScorer(base, self.encoder.verbalizer)
        self.validation = Validation(task, self.encoder, self.objective, config)
        # generation asks no decision; beside tasks that do, every position needs an entry
        self.loader = InMemoryLoader(
            [
                (replace(item, decisions=item.decisions or (0,) * len(item.positions)),)
                for item in self.encoder.training_items(task.train)
            ],
            config,
        )
        self.best = self.candidate()

    def state(self) -> PromptState:
        state: PromptState = self.method.read_state(self.index)
        return replace(state, placement=self._placement)

    def candidate(self) -> PromptState:
        with torch.no_grad():
            return self.state().detached()

    def tensors(self) -> dict[str, Tensor]:
        method = {f"method/{name}": tensor for name, tensor in self.method.state_dict().items()}
        return {"best": self.best.tensor, **(method if self.index == 0 else {})}

    def restore(self, tensors: Mapping[str, Tensor], optimizer: dict[str, Any], progress: Mapping[str, Any]) -> None:
        device = self.method.theta.device
        kept = {name: tensor.to(device) for name, tensor in tensors.items()}
        self.best = replace(self.best, tensors=(kept.pop("best"),))
        if kept:
            self.method.load_state_dict({name.removeprefix("method/"): tensor for name, tensor in kept.items()})
        super().restore(tensors, optimizer, progress)


class MultitaskLosses:
    """Each task's own loss, and the distance from its teacher where it has one."""

    def __init__(
        self, base: FrozenLM, learners: Sequence[TaskLearner], teachers: Mapping[str, PromptState], weight: float
    ) -> None:
        self._base, self._learners, self._weight = base, learners, weight
        for learner in learners:
            check_placement([teachers[learner.name]] if learner.name in teachers else [], learner.encoder.placement)
        with torch.no_grad():
            self._teachers = {name: make_prefix(base, state) for name, state in teachers.items()}

    def count(self, items: Sequence[EncodedSequence]) -> int:
        """What the mean loss of one task's items is over."""
        return self._learners[items[0].prompt].objective.count(items)

    def losses(self, forward: ForwardPass) -> Losses:
        """Of a batch that holds items of several tasks."""
        batch, hidden = forward.batch, forward.prefix.scored(forward.batch)
        owner_of_target = batch.which[batch.row]
        task = penalty = torch.zeros(len(batch.targets), device=hidden.device)
        for place, owner in enumerate(forward.owners):
            learner, mine = self._learners[owner], (owner_of_target == place).nonzero()[:, 0]
            own_losses = learner.objective.losses_of(hidden[mine], batch.targets[mine], batch.decisions[mine])
            task = task.index_copy(0, mine, own_losses)
            teacher = self._teachers.get(learner.name)
            if teacher is not None and self._weight:
                items = [replace(item, prompt=0) for item in forward.items if item.prompt == owner]
                own = collate(items, self._base.device)
                distance = distance_from_teacher(learner.objective, teacher, hidden[mine], own)
                penalty = penalty.index_copy(0, mine, self._weight * distance)
        return Losses(task, penalty if self._teachers and self._weight else None)


def distance_from_teacher(objective: AnswerScorer, teacher: Prefix, hidden: Tensor, own: Batch) -> Tensor:
    """Distance ``[N]`` from the teacher at hidden states ``[N, H]`` of ``own``, one task's items of a batch."""
    with torch.no_grad():
        taught = teacher.scored(own)
    distance = (hidden.float() - taught.float()).square().mean(dim=1) / taught.float().var().clamp(min=1e-6)
    if objective.verbalizer is None:
        return distance
    student = objective.decision_log_probabilities(hidden, own.decisions)
    with torch.no_grad():
        target = objective.decision_log_probabilities(taught, own.decisions)
    return distance + kl_divergence(target, student)


def train_multitask(
    base: FrozenLM,
    tasks: Mapping[str, Task],
    config: TrainConfig,
    callback: Callback,
    *,
    teachers: Mapping[str, PromptState] | None = None,
    distillation: float = 0.9,
    checkpoint: Checkpoint | None = None,
) -> dict[str, TrainingResult]:
    """Learn one prompt for each task, all of them together.

    Args:
        tasks: by name; ``config.batch_size`` examples of each make a step.
        config: the settings; the start (``init``) is that of the first task. Each task's chats have their own form.
        teachers: prompts learned for single tasks, by the task's name; a task without one is not distilled.
        distillation: weight of the distance from the teachers.
        checkpoint: where the run is kept while it lasts; it goes on from there if there is one.

    Returns:
        For each task the prompt of its own best evaluation, and how it did.

    Raises:
        ConfigError: a start that stands in front of BOS, or a teacher elsewhere than its task's chats say.
        DataError, TemplateError: the data cannot be used.
        TrainingError: the loss is no longer a number, or the checkpoint is of another run.
    """
    torch.manual_seed(config.seed)
    first = next(iter(tasks.values()))
    start = initialize(config.init, base, first.spec, config.length, config.seed, first.train)
    if not start.behind_bos and first.spec.chat is None:
        raise ConfigError(
            f"init '{config.init}' stands in front of BOS, as prompts learned elsewhere do, expected one behind it: "
            "learn on from it by train"
        )
    method = MultitaskPrompt(start.tensor, learning_unit(base, config), len(tasks)).to(base.device)
    learners = [
        TaskLearner(base, index, name, task, config, method) for index, (name, task) in enumerate(tasks.items())
    ]
    for learner in learners:
        learner.partners = learners
        for note in learner.encoder.truncation_notes():
            callback.on_message(f"{learner.name}: {note}")
    losses = MultitaskLosses(base, learners, teachers or {}, distillation)
    objective = TrainingObjective(losses.count, losses.losses)
    pace = run_training(base, learners, objective, callback, checkpoint)
    return {one.name: training_result(one, one.encoder.truncated, pace, learners[0].learned) for one in learners}
