"""Multitask prompt tuning (Wang et al. 2023): several tasks learn together, each ends with a plain prompt of its own.

    loss = sum over tasks k of  task loss_k + distillation * (KL_k + MSE_k)

Every step holds a batch of each task, and all of them go through the frozen model in the same passes. Where a task has
a teacher, a prompt learned for it alone, ``KL_k`` is the divergence of the label distribution from the teacher's and
``MSE_k`` the squared distance of the hidden states at the scored positions, in units of the teacher's variance.

Deviations from the paper: a batch of every task in every step, where the paper draws tasks by size; hidden states are
compared at the scored positions of the last layer. Generation tasks are distilled by hidden states only.
"""

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from softprompt.config import TrainConfig
from softprompt.data.encoding.batching import collate
from softprompt.data.encoding.encoder import Batch, EncodedSequence, ExampleEncoder
from softprompt.data.task import Task
from softprompt.errors import ConfigError
from softprompt.inference.scoring import Objective, divergence
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.kernels.compilation import CompiledRun
from softprompt.prompts.methods.multitask_prompt_tuning import MultitaskPrompt
from softprompt.prompts.prefix import Prefix, make_prefix
from softprompt.prompts.state import PromptState
from softprompt.training.callbacks import Callback
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.data_loader import BatchSampler
from softprompt.training.gradient_checkpointing import checkpoint_gradients
from softprompt.training.initialization import initialize
from softprompt.training.learner import Progress, make_optimizer, rate_factor
from softprompt.training.loop import TrainingResult, check_trainable, forward_passes, no_number
from softprompt.training.validation import Validation


@dataclass
class _Joint:
    """Where a run stands."""

    step: int = 0
    tasks: list[Progress] = field(default_factory=list)


class _Student:
    """One of the tasks: its data, its teacher, how it does."""

    def __init__(
        self, base: FrozenLM, index: int, task: Task, config: TrainConfig, teacher: PromptState | None
    ) -> None:
        check_trainable(task)
        encoder = ExampleEncoder(base, task.spec, config.length)
        self.index = index
        self.items = encoder.training_items(task.train)
        self.objective = Objective(base, encoder.verbalizer)
        self.validation = Validation(task, encoder, self.objective, config)
        self.truncated, self.cut_notes = encoder.truncated, encoder.cut_notes()
        self.order = BatchSampler([len(item.ids) for item in self.items], config)
        self.teacher: Prefix | None = None
        if teacher is not None:
            with torch.no_grad():
                self.teacher = make_prefix(base, teacher)

    def batch(self, step: int) -> list[EncodedSequence]:
        """The examples of a step, marked as this task's."""
        items = [self.items[index] for index in self.order.batch(step)]
        # generation asks no decision; beside tasks that do, every position needs an entry
        return [
            replace(item, prompt=self.index, decisions=item.decisions or (0,) * len(item.positions)) for item in items
        ]

    def distilled(self, hidden: Tensor, own: Batch) -> Tensor:
        """Summed distance from the teacher at hidden states ``[N, H]`` of ``own``, this task's items of a batch."""
        assert self.teacher is not None
        with torch.no_grad():
            taught = self.teacher.scored(own)
        distance = (hidden.float() - taught.float()).square().mean(dim=1) / taught.float().var().clamp(min=1e-6)
        if self.objective.verbalizer is None:
            return distance.sum()
        student = self.objective.decision_log_probabilities(hidden, own.decisions)
        with torch.no_grad():
            target = self.objective.decision_log_probabilities(taught, own.decisions)
        return (distance + divergence(target, student)).sum()


class _Run:
    """The parameters of all tasks, as a checkpoint sees them."""

    def __init__(self, base: FrozenLM, start: Tensor, config: TrainConfig, tasks: int) -> None:
        unit = base.embedding_std if config.rate_unit == "embedding-std" else 1.0
        self.method = MultitaskPrompt(start, unit, tasks).to(base.device)
        self.optimizer = make_optimizer(self.method, config)
        self.progress = _Joint(0, [Progress() for _ in range(tasks)])
        self.best = [self.method.state_of(task).detached() for task in range(tasks)]

    def tensors(self) -> dict[str, Tensor]:
        kept = {f"method/{name}": tensor for name, tensor in self.method.state_dict().items()}
        return kept | {f"best/{index}": state.tensor for index, state in enumerate(self.best)}

    def restore(self, tensors: Mapping[str, Tensor], optimizer: dict[str, Any], progress: Mapping[str, Any]) -> None:
        device = self.method.theta.device
        method = {
            name.removeprefix("method/"): t.to(device) for name, t in tensors.items() if name.startswith("method/")
        }
        self.method.load_state_dict(method)
        self.best = [PromptState.of_embeddings(tensors[f"best/{index}"].to(device)) for index in range(len(self.best))]
        self.optimizer.load_state_dict(optimizer)
        self.progress = _Joint(progress["step"], [Progress(**task) for task in progress["tasks"]])


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
        config: the settings; the start (``init``) is that of the first task.
        teachers: prompts learned for single tasks, by the task's name; a task without one is not distilled.
        distillation: weight of the distance from the teachers.
        checkpoint: where the run is kept while it lasts; it goes on from there if there is one.

    Returns:
        For each task the prompt of its own best evaluation, and how it did.

    Raises:
        ConfigError: fewer than two tasks, a teacher for a task that is not there, a start that cannot be used.
        DataError, TemplateError: the data cannot be used.
        TrainingError: the loss is no longer a number, or the checkpoint is of another run.
    """
    check_tasks(tasks, config, teachers or {}, distillation)
    torch.manual_seed(config.seed)
    first = next(iter(tasks.values()))
    start = initialize(config.init, base, first.spec, config.length, config.seed, first.train)
    if not start.behind_bos:
        raise ConfigError(
            f"init '{config.init}' stands in front of BOS, as prompts learned elsewhere do, expected one behind it: "
            "learn on from it by train"
        )
    students = [
        _Student(base, index, task, config, (teachers or {}).get(name))
        for index, (name, task) in enumerate(tasks.items())
    ]
    for name, student in zip(tasks, students, strict=True):
        for note in student.cut_notes:
            callback.on_message(f"{name}: {note}")
    run = _Run(base, start.tensor, config, len(students))
    saved = checkpoint.load() if checkpoint is not None else None
    if saved is not None:
        run.restore(*saved.learner(0))
        callback.on_message(f"resumed at step {run.progress.step}")
    progress, first_step, seen, began = run.progress, run.progress.step, 0, time.perf_counter()
    learned = sum(parameter.numel() for parameter in run.method.parameters())
    with ExitStack() as stack:
        stack.callback(callback.on_train_end)
        callback.on_train_begin(progress.step, config.steps, learned, base.parameter_count)
        compiling = CompiledRun(stack, base, config.compile, config.steps, callback.on_message)
        while progress.step < config.steps:
            compiling.before(progress.step)
            step_began, rate = time.perf_counter(), config.learning_rate * rate_factor(progress.step, config)
            batches = [student.batch(progress.step) for student in students]
            with checkpoint_gradients(base, config.gradient_checkpointing):
                losses = _accumulate_gradients(base, run.method, students, batches, config, distillation)
            norm = float(nn.utils.clip_grad_norm_(run.method.parameters(), config.clip))
            if not (math.isfinite(norm) and all(map(math.isfinite, losses))):
                raise no_number("training loss", progress.step + 1, rate, config, checkpoint)
            if checkpoint is not None and progress.step > first_step and progress.step % config.checkpoint_every == 0:
                checkpoint.save([run])
            for group in run.optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            seen += sum(map(len, batches))
            speed = sum(map(len, batches)) / (time.perf_counter() - step_began)
            callback.on_step_end(progress.step, sum(losses) / len(losses), rate, speed)
            for own, loss in zip(progress.tasks, losses, strict=True):
                own.record_step(loss)
            if progress.step % config.eval_every == 0 or progress.step == config.steps:
                for name, student in zip(tasks, students, strict=True):
                    if not _evaluate(run, name, student, callback):
                        raise no_number(f"validation loss of '{name}'", progress.step, rate, config, checkpoint)
                if checkpoint is not None and progress.step == config.steps:
                    checkpoint.save([run])
    seconds = time.perf_counter() - began
    return {
        name: TrainingResult(
            run.best[student.index],
            student.validation.metric,
            own.best_value,
            own.best_loss,
            own.best_step,
            progress.step,
            tuple(own.history),
            learned,
            student.truncated,
            seconds,
            seen / seconds if seconds else 0.0,
            own.alarmed,
            own.failed,
        )
        for name, student, own in zip(tasks, students, progress.tasks, strict=True)
    }


def check_tasks(
    tasks: Mapping[str, Any], config: TrainConfig, teachers: Mapping[str, Any], distillation: float
) -> None:
    """What can be said of tasks and teachers by their names, before any is read; raises ConfigError."""
    if len(tasks) < 2:
        raise ConfigError(
            f"multitask prompt tuning needs at least two tasks, got {len(tasks)}: learn a single one by train"
        )
    if unknown := sorted(set(teachers) - set(tasks)):
        raise ConfigError(f"a teacher for '{unknown[0]}': expected one of the tasks {', '.join(tasks)}")
    if config.averaging:
        raise ConfigError("averaging is not available for multitask prompt tuning: leave it at 0")
    if not 0 <= distillation < math.inf:
        raise ConfigError(f"distillation must be 0 or more, got {distillation}")


def _accumulate_gradients(
    base: FrozenLM,
    method: MultitaskPrompt,
    students: list[_Student],
    batches: list[list[EncodedSequence]],
    config: TrainConfig,
    distillation: float,
) -> list[float]:
    """Gradient of the sum of all tasks' losses; returns each task's mean task loss (nats), without distillation."""
    counts = [student.objective.count(batch) for student, batch in zip(students, batches, strict=True)]
    totals = [0.0] * len(students)
    items = [item for batch in batches for item in batch]
    for chunk, owners, prefix, batch in forward_passes(base, items, method.state_of, config):
        hidden = prefix.scored(batch)
        whole: list[Tensor] = []
        for place, owner in enumerate(owners):
            student, mine = students[owner], batch.which[batch.row] == place
            losses = student.objective.losses_of(hidden[mine], batch.targets[mine], batch.decisions[mine])
            totals[owner] += losses.sum().item() / counts[owner]
            whole.append(losses.sum() / counts[owner])
            if student.teacher is not None and distillation:
                own = collate([replace(item, prompt=0) for item in chunk if item.prompt == owner], base.device)
                whole.append(distillation * student.distilled(hidden[mine], own) / counts[owner])
        torch.stack(whole).sum().backward()
    return totals


def _evaluate(run: _Run, name: str, student: _Student, callback: Callback) -> bool:
    """Score one task on validation, keep its prompt if it is the best so far; whether its loss there is a number."""
    own, step = run.progress.tasks[student.index], run.progress.step
    with torch.no_grad():
        candidate = run.method.state_of(student.index).detached()
    value, loss = student.validation.score(candidate)
    if not math.isfinite(loss):
        return False
    best = own.record_evaluation(step, value, loss, student.validation.error(value))
    if best:
        run.best[student.index] = candidate
    callback.on_evaluate(step, f"{student.validation.metric} of {name}", value, loss, best)
    return True
