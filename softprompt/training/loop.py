"""The training loop: for one prompt, several together, the tasks of multitask tuning, and tuned weights.

Order, checkpoints and choice of the best are pure functions of the data, the settings and the seed, so a run that was
killed goes on to the same bytes.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import NamedTuple

from softprompt.config import TrainConfig
from softprompt.data.encoding.batching import batch_by_token_budget, collate
from softprompt.data.encoding.encoder import EncodedSequence
from softprompt.data.task import Task
from softprompt.errors import TrainingError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.kernels.compilation import CompiledRun
from softprompt.prompts.inline_prefix import make_learning_prefix
from softprompt.prompts.prefix import make_prefix
from softprompt.prompts.state import PromptState
from softprompt.training.callbacks.callback import Callback
from softprompt.training.checkpoint import Checkpoint, SavedCheckpoint, load_for_all
from softprompt.training.gradient_checkpointing import checkpoint_gradients
from softprompt.training.learner import Learner, PromptLearner
from softprompt.training.training_objective import ForwardPass, TrainingObjective, make_task_objective


@dataclass(frozen=True)
class TrainingResult:
    """What a run gives.

    Attributes:
        state: the prompt of the best evaluation.
        metric, value, loss: what it reached on validation, and its loss there (nats an example, or a token).
        best_step, steps: where it was reached, and how many steps were made.
        history: one record an evaluation.
        learned, truncated: parameters learned; texts cut to the limit.
        seconds, examples_per_second: of this process's part of the run, all learners together.
        alarmed: whether the run was found not to be learning.
        failed: whether its loss became something that is not a number; only beside others, alone it is an error.
    """

    state: PromptState
    metric: str
    value: float
    loss: float
    best_step: int
    steps: int
    history: tuple[Mapping[str, float], ...]
    learned: int
    truncated: int
    seconds: float
    examples_per_second: float
    alarmed: bool
    failed: bool


class Throughput(NamedTuple):
    """Of this process's part of a run, all learners together."""

    seconds: float
    examples_per_second: float


def train_together(
    base: FrozenLM,
    task: Task,
    configs: Mapping[str, TrainConfig],
    callback: Callback,
    checkpoint: Checkpoint | None = None,
    objective: TrainingObjective | None = None,
) -> list[TrainingResult]:
    """Learn several prompts of one task in the same forward passes of the frozen model.

    Each ends, to rounding, where it would have ended alone: its examples, its order, its gradient norm, its schedule
    and its early stop are its own.

    Args:
        configs: by the name each is reported under; checked, with the task, by ``run_checks``.
        checkpoint: where the run is kept while it lasts; it goes on from there if there is one.
        objective: what is learned from; the task's labels or outputs, if not given.

    Raises:
        DataError, TemplateError: the data cannot be used.
        TrainingError: the loss is no longer a number, which ends only the prompt whose it is unless it was the last;
            or the checkpoint is of another run.
        OutputError: the checkpoint cannot be written.
    """
    if objective is None:
        objective = make_task_objective(base, task, configs.values())
    learners = []
    for name, config in configs.items():
        start = objective.starts.get(config.length)
        learner = PromptLearner(
            base, task, config, name, objective.reference, start, soft_verbalizer=objective.soft_verbalizer
        )
        learner.loader, learner.validation = objective.loader(config), objective.validations[config.length]
        learners.append(learner)
    for note in dict.fromkeys(
        note for one in configs.values() for note in objective.encoders[one.length].truncation_notes()
    ):
        callback.on_message(note)
    pace = run_training(base, learners, objective, callback, checkpoint)
    return [training_result(one, objective.encoders[one.config.length].truncated, pace) for one in learners]


def run_training(
    base: FrozenLM,
    learners: Sequence[Learner],
    objective: TrainingObjective,
    callback: Callback,
    checkpoint: Checkpoint | None = None,
) -> Throughput:
    """The training loop: forward passes, gradients, clipping, steps, evaluations, checkpoints, early stops.

    Args:
        learners: the settings of ``run_checks.SHARED`` are the same in all.
        checkpoint: where the run is kept while it lasts; it goes on from there if there is one.

    Raises:
        DataError: a stream has fewer rows than a batch.
        TrainingError: the loss is no longer a number, or the checkpoint is of another run.
        OutputError: the checkpoint cannot be written.
    """
    config = learners[0].config
    first_step = step = _resume(base, learners, callback, checkpoint)
    seen, began = 0, time.perf_counter()
    with ExitStack() as stack:
        stack.callback(callback.on_train_end)
        learned = sum(learner.learned for learner in learners)
        frozen = base.parameter_count - sum(learner.learned for learner in learners if learner.changes_base)
        callback.on_train_begin(step, config.steps, learned, frozen)
        compiling = CompiledRun(stack, base, config.compile, config.steps, callback.on_message)
        if objective.scores_start and not step:
            _evaluate(base, learners, learners, callback, checkpoint)
        while active := [learner for learner in learners if not learner.done]:
            compiling.before(step)
            step_began = time.perf_counter()
            batches = [learner.next_batch(step) for learner in active]
            if step == first_step:
                callback.on_plan(config.eval_every, _evaluation_cost(active, batches))
            with checkpoint_gradients(base, config.gradient_checkpointing):
                losses = _accumulate_gradients(base, active, objective, batches)
            for learner, loss in zip(active, losses, strict=True):
                if not (math.isfinite(loss) and math.isfinite(learner.clip_gradients())):
                    _give_up(learner, "training loss", learners, callback, checkpoint)
            # only now is it known that the parameters of the step before are good ones
            if checkpoint is not None and step > first_step and step % config.checkpoint_every == 0:
                checkpoint.save(learners)
            rate = active[0].rate
            good = [(learner, loss) for learner, loss in zip(active, losses, strict=True) if not learner.done]
            for learner, _ in good:
                learner.update()
            step += 1
            seen += (examples := sum(map(len, batches)))
            speed = examples / (time.perf_counter() - step_began)
            callback.on_step_end(step, sum(loss for _, loss in good) / max(len(good), 1), rate, speed)
            for learner, loss in good:
                if (text := learner.record_step(loss)) is not None:
                    callback.on_message(_prefix_name(text, learner))
            regular = step % config.eval_every == 0
            ends = _is_told_to_stop(base, callback, regular)
            due = [one for one, _ in good if ends or regular or one.is_last(step)]
            _evaluate(base, due, learners, callback, checkpoint)
            if due and (ends or _is_told_to_stop(base, callback, regular)):
                for learner in active:
                    learner.progress.stopped_early = True
                callback.on_message(f"stopped at step {step}: a callback asked for it")
            if checkpoint is not None and all(learner.done for learner in learners):
                checkpoint.save(learners)
    seconds = time.perf_counter() - began
    return Throughput(seconds, seen / seconds if seconds else 0.0)


def _evaluation_cost(learners: Sequence[Learner], batches: Sequence[Sequence[Sequence[EncodedSequence]]]) -> float:
    """How many steps an evaluation of all learners takes, by the tokens that both read.

    A step's backward pass costs as much as its forward pass: the weights need no gradient.
    """
    texts = sum(len(item.ids) for batch in batches for example in batch for item in example)
    prompts = sum(learner.config.length for learner in learners)
    return sum(learner.validation.tokens for learner in learners) / max(1, 2 * (texts + prompts))


def training_result(learner: Learner, truncated: int, pace: Throughput, learned: int | None = None) -> TrainingResult:
    """What a learner gave. ``truncated``: texts that its encoder has cut."""
    progress = learner.progress
    return TrainingResult(
        state=learner.best,
        metric=learner.validation.metric,
        value=progress.best_value,
        loss=progress.best_loss,
        best_step=progress.best_step,
        steps=progress.step,
        history=tuple(progress.history),
        learned=learner.learned if learned is None else learned,
        truncated=truncated + learner.loader.truncated,
        seconds=pace.seconds,
        examples_per_second=pace.examples_per_second,
        alarmed=progress.alarmed,
        failed=progress.failed,
    )


def _resume(base: FrozenLM, learners: Sequence[Learner], callback: Callback, checkpoint: Checkpoint | None) -> int:
    """Stand where the checkpoint was left, if there is one, in all processes; returns the steps made."""
    saved = load_for_all(checkpoint, base.processes)
    if saved is not None:
        for index, learner in enumerate(learners):
            learner.restore(*saved.learner(index))
        callback.on_message(f"resumed at step {saved.step}{_describe_processes(saved, base)}")
    for learner in learners:
        base.processes.broadcast_in_place(learner.learned_tensors())
        learner.loader.seek(learner.progress.stream)
    return max(learner.progress.step for learner in learners)


def _accumulate_gradients(
    base: FrozenLM,
    learners: Sequence[Learner],
    objective: TrainingObjective,
    batches: Sequence[Sequence[Sequence[EncodedSequence]]],
) -> list[float]:
    """Gradient of each learner's mean loss over its batch, however many passes that takes; returns the means (nats)."""
    items = [
        [replace(item, prompt=owner) for example in batch for item in example] for owner, batch in enumerate(batches)
    ]
    counts = [objective.count(own) for own in items]
    totals = [0.0] * len(learners)
    for forward in _forward_passes(base, learners, [item for own in items for item in own]):
        owner_of_target = forward.batch.which[forward.batch.row]
        losses = objective.losses(forward)
        sums = losses.task.new_zeros(len(forward.owners)).index_add(0, owner_of_target, losses.task)
        over = sums.new_tensor([counts[owner] for owner in forward.owners])
        means = sums / over
        for owner, mean in zip(forward.owners, means.tolist(), strict=True):
            totals[owner] += mean
        if losses.penalty is not None:
            means = means + sums.new_zeros(len(sums)).index_add(0, owner_of_target, losses.penalty) / over
        means.sum().backward()
        for owner in forward.owners:
            learners[owner].collect_gradients()
    # losses are divided by what all processes count together
    base.processes.sum_gradients([parameter for learner in learners for parameter in learner.parameters])
    return base.processes.sum_numbers(*totals)


def _forward_passes(
    base: FrozenLM, learners: Sequence[Learner], items: Sequence[EncodedSequence]
) -> Iterator[ForwardPass]:
    """The forward passes that a step needs; of several processes each has its part of them."""
    budget = learners[0].token_budget(on_cpu=base.device.type == "cpu")
    size = learners[0].config.micro_batch_size
    parts = [list(batch_by_token_budget(part, budget, size)) for part in base.processes.parts(items)]
    for chunk in base.processes.share_passes(parts):
        owners = sorted({item.prompt for item in chunk})
        states = [state for owner in owners if (state := learners[owner].state()) is not None]
        prefix = make_learning_prefix(base, *states) if states else make_prefix(base, None)
        batch = collate([replace(item, prompt=owners.index(item.prompt)) for item in chunk], base.device)
        yield ForwardPass(chunk, owners, states, prefix, batch)


def _evaluate(
    base: FrozenLM,
    due: Sequence[Learner],
    learners: Sequence[Learner],
    callback: Callback,
    checkpoint: Checkpoint | None,
) -> None:
    """Score the learners that are due, and keep what is the best so far; give up those whose loss is no number."""
    for learner in due:
        candidate, validation, progress = learner.candidate(), learner.validation, learner.progress
        value, loss = validation.score(candidate)
        if not math.isfinite(loss):
            _give_up(learner, "validation loss", learners, callback, checkpoint)
            continue
        step, patience = progress.step, learner.config.patience
        improved = progress.record_evaluation(step, value, loss, validation.standard_error(value), patience)
        if improved:
            learner.record_best(candidate)
        if base.processes.world_size > 1 or any("processes" in record for record in progress.history):
            progress.history[-1]["processes"] = base.processes.world_size
        metric = f"{validation.metric} of {learner.name}" if learner.name else validation.metric
        callback.on_evaluate(step, metric, value, loss, improved)
        if (text := learner.describe_stop()) is not None:
            callback.on_message(_prefix_name(text, learner))


def _is_told_to_stop(base: FrozenLM, callback: Callback, shared: bool) -> bool:
    """Whether a callback wants the run to end; several processes, one of which knows, talk where all evaluate."""
    if base.processes.world_size == 1:
        return callback.should_stop
    return shared and any(base.processes.all_gather(callback.should_stop))


def _give_up(
    learner: Learner,
    what: str,
    learners: Sequence[Learner],
    callback: Callback,
    checkpoint: Checkpoint | None,
) -> None:
    """End a learner whose loss is no number; an error if none is left that may still give a prompt."""
    for one in learner.partners:
        one.progress.stopped_early = one.progress.failed = True
    of = f" of '{learner.name}'" if len(learner.partners) > 1 and what == "validation loss" else ""
    step = learner.progress.step + (what == "training loss")
    told = f"the {what}{of} is not a number at step {step} (rate {learner.rate:.2g})"
    if not all(other.progress.failed for other in learners):
        return callback.on_message(_prefix_name(f"{told}: it ends here", learner))
    kept = ""
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        kept = f"; the last good checkpoint (step {saved.step}) is kept in '{checkpoint.folder}'"
    raise TrainingError(f"{told}{kept}: start again with {learner.advice}, or with --dtype float32")


def _describe_processes(saved: SavedCheckpoint, base: FrozenLM) -> str:
    """What to say where a run goes on over another number of processes."""
    now = str(base.processes)
    return "" if saved.processes == now else f" over {now} where it was {saved.processes}: from here equal to rounding"


def _prefix_name(text: str, learner: Learner) -> str:
    return f"{learner.name}: {text}" if learner.name else text
