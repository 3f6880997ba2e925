"""The training loop, and what makes it exact: order, checkpoints and choice of the best are pure functions of the data,
the settings and the seed, so a run that was killed goes on to the same bytes.

Several prompts of one task can learn in the same forward passes; a single one is the same loop with one learner.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from softprompt.config import TrainConfig
from softprompt.data.encoding.batching import batch_by_token_budget, collate
from softprompt.data.encoding.encoder import Batch, EncodedSequence
from softprompt.data.task import Task
from softprompt.errors import ConfigError, DataError, TrainingError
from softprompt.inference.scoring import learning_tokens
from softprompt.models.distributed import Processes
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.kernels.compilation import CompiledRun
from softprompt.prompts.inline_prefix import Scored, learning_prefix
from softprompt.prompts.methods.method_registry import check_method, state_of
from softprompt.prompts.state import PromptState
from softprompt.training.callbacks import Callback
from softprompt.training.checkpoint import Checkpoint, Saved, load_for_all
from softprompt.training.gradient_checkpointing import checkpoint_gradients
from softprompt.training.initialization import check_init, check_init_fits
from softprompt.training.learner import Learner
from softprompt.training.training_objective import TrainingObjective, Validator, labels

# what prompts that learn together have in common: these decide when something happens, or for how many at once
SHARED = (
    "steps",
    "batch_size",
    "micro_batch_size",
    "token_budget",
    "gradient_checkpointing",
    "compile",
    "max_length",
    "eval_every",
    "validation_limit",
    "checkpoint_every",
)


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


def train(
    base: FrozenLM, task: Task, config: TrainConfig, callback: Callback, checkpoint: Checkpoint | None = None
) -> TrainingResult:
    """Learn one prompt.

    Args:
        checkpoint: where the run is kept while it lasts; it goes on from there if there is one.

    Raises:
        ConfigError, DataError, TemplateError: the settings or the data cannot be used.
        TrainingError: the loss is no longer a number, or the checkpoint is of another run.
        OutputError: the checkpoint cannot be written.
    """
    return train_together(base, task, {"": config}, callback, checkpoint)[0]


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
        configs: by the name each is reported under; the settings of ``SHARED`` must be the same in all.
        checkpoint: as for ``train``.
        lesson: what is learned from; the task's labels or outputs, if not given.

    Raises:
        as ``train``; a loss that is no number ends only the prompt whose it is, unless it was the last.
    """
    processes = base.processes
    check_together(configs, sharded=processes.in_step)
    for config in configs.values():
        check_method(config.method, config.method_options)
        check_init(config.init, taught=objective is not None and config.length in objective.starts)
        check_init_fits(config.init, task.spec)
    if objective is None:
        check_trainable(task)
    saved = load_for_all(checkpoint, processes)
    objective = labels(base, task, configs.values()) if objective is None else objective
    learners = [
        Learner(base, task, config, name, objective.bar, objective.starts.get(config.length))
        for name, config in configs.items()
    ]
    shared = learners[0].config
    for note in dict.fromkeys(note for one in learners for note in objective.encoders[one.config.length].cut_notes()):
        callback.on_message(note)
    if saved is not None:
        for index, learner in enumerate(learners):
            learner.restore(*saved.learner(index))
        callback.on_message(
            f"resumed at step {max(learner.progress.step for learner in learners)}{_elsewhere(saved, base)}"
        )
    for learner in learners:
        processes.copy_main([*learner.method.state_dict().values(), *learner.averaged.values()])

    validations = [objective.validations[learner.config.length] for learner in learners]
    feeds = [objective.feed(learner.config) for learner in learners]
    for feed, learner in zip(feeds, learners, strict=True):
        feed.go_to(learner.progress.stream)
    first_step = step = max(learner.progress.step for learner in learners)
    seen, began = 0, time.perf_counter()
    with ExitStack() as stack:
        stack.callback(callback.on_train_end)
        callback.on_train_begin(step, shared.steps, sum(one.learned for one in learners), base.parameter_count)
        compiling = CompiledRun(stack, base, shared.compile, shared.steps, callback.on_message)
        for index, learner in enumerate(learners if objective.scores_start and not step else ()):
            if not _evaluate(learner, validations[index], callback, processes, last=False):
                _give_up(learners, index, "validation loss", callback, checkpoint)
        while active := [index for index, learner in enumerate(learners) if not learner.done]:
            compiling.before(step)
            step_began = time.perf_counter()
            chosen = {i: feeds[i].batch(step) for i in active}
            batches = [[item for items in some for item in items] for some in chosen.values()]
            for i in active:
                learners[i].progress.stream = feeds[i].position
            with checkpoint_gradients(base, shared.gradient_checkpointing):
                losses = _accumulate_gradients(base, [learners[i] for i in active], objective, batches)
            good = []
            for index, loss in zip(active, losses, strict=True):
                if math.isfinite(loss) and math.isfinite(learners[index].clip()):
                    good.append((index, loss))
                else:
                    _give_up(learners, index, "training loss", callback, checkpoint)
            # only now is it known that the prompts of the step before are good ones
            if checkpoint is not None and step > first_step and step % shared.checkpoint_every == 0:
                checkpoint.save(learners)
            rate = learners[active[0]].rate
            for index, _ in good:
                learners[index].update()
            step += 1
            seen += sum(map(len, chosen.values()))
            speed = sum(map(len, chosen.values())) / (time.perf_counter() - step_began)
            callback.on_step_end(step, sum(loss for _, loss in good) / max(len(good), 1), rate, speed)
            last = step == shared.steps
            for index, loss in good:
                learner = learners[index]
                if (text := learner.alarm(loss)) is not None:
                    callback.on_message(_named(text, learner))
                due = step % shared.eval_every == 0 or last
                if due and not _evaluate(learner, validations[index], callback, processes, last):
                    _give_up(learners, index, "validation loss", callback, checkpoint)
            if checkpoint is not None and all(learner.done for learner in learners):
                checkpoint.save(learners)

    seconds = time.perf_counter() - began
    return [
        TrainingResult(
            learner.best,
            validation.metric,
            learner.progress.best_value,
            learner.progress.best_loss,
            learner.progress.best_step,
            learner.progress.step,
            tuple(learner.progress.history),
            learner.learned,
            objective.encoders[learner.config.length].truncated + feed.truncated,
            seconds,
            seen / seconds if seconds else 0.0,
            learner.progress.alarmed,
            learner.progress.failed,
        )
        for learner, validation, feed in zip(learners, validations, feeds, strict=True)
    ]


def check_together(configs: Mapping[str, TrainConfig], *, sharded: bool = False) -> None:
    """Raise ConfigError unless prompts with these settings can learn in the same passes, of a ``sharded`` model."""
    if not configs:
        raise ConfigError("expected the settings of at least one prompt, got none")
    if sharded and len(configs) > 1:
        raise ConfigError("--sharding fsdp: expected one prompt to learn, got several: leave --seeds and --grid out")
    first = next(iter(configs.values()))
    for config in configs.values():
        for name in SHARED:
            if getattr(config, name) != getattr(first, name):
                raise ConfigError(
                    f"prompts that learn together share '{name}', got {getattr(first, name)!r} and "
                    f"{getattr(config, name)!r}: train them one by one"
                )


def check_there(task: Task) -> None:
    """Raise DataError unless there are training and validation examples."""
    source = task.splits.source
    if not task.train:
        raise DataError(f"{source}: expected a train split, got no training examples: add train.jsonl or the like")
    if not task.validation:
        raise DataError(
            f"{source}: expected validation examples, got none and too few others to set some aside: add rows, or a "
            "validation file"
        )


def check_trainable(task: Task) -> None:
    """Raise DataError unless there are training examples, of more than one label, and validation examples."""
    check_there(task)
    source = task.splits.source
    if task.spec.kind == "classification" and len({example.label for example in task.train}) == 1:
        raise DataError(
            f"{source}: expected training examples of at least two labels, got only '{task.train[0].label}': "
            "add examples of another class"
        )


def _accumulate_gradients(
    base: FrozenLM,
    learners: Sequence[Learner],
    objective: TrainingObjective,
    batches: Sequence[Sequence[EncodedSequence]],
) -> list[float]:
    """Gradient of each learner's mean loss over its batch, however many passes that takes; returns the means (nats)."""
    config = learners[0].config
    counts = [objective.count(batch) for batch in batches]
    items = [replace(item, prompt=owner) for owner, batch in enumerate(batches) for item in batch]

    def state(owner: int) -> PromptState:
        return state_of(learners[owner].method)

    totals = [0.0] * len(learners)
    for _, owners, prefix, batch in forward_passes(base, items, state, config):
        owner_of_target = batch.which[batch.row]
        losses = objective.losses(prefix, batch)
        sums = losses.new_zeros(len(owners)).index_add(0, owner_of_target, losses)
        means = sums / sums.new_tensor([counts[owner] for owner in owners])
        means.sum().backward()
        for owner, mean in zip(owners, means.tolist(), strict=True):
            totals[owner] += mean
    # losses are divided by what all processes count together
    base.processes.sum_gradients([parameter for learner in learners for parameter in learner.parameters])
    return base.processes.sum_numbers(*totals)


def forward_passes(
    base: FrozenLM,
    items: Sequence[EncodedSequence],
    state_of: Callable[[int], PromptState],
    config: TrainConfig,
) -> Iterator[tuple[list[EncodedSequence], list[int], Scored, Batch]]:
    """The forward passes that a step needs: items, the prompts they stand behind, these as a prefix, and the batch.

    Of several processes each has its part of them.

    Args:
        state_of: the prompt of an item's ``prompt``, with gradient; in the batch, prompts are counted anew.
    """
    budget = learning_tokens(config.token_budget, on_cpu=base.device.type == "cpu")
    parts = base.processes.parts(items)
    for chunk in base.processes.own(
        [list(batch_by_token_budget(part, budget, config.micro_batch_size)) for part in parts]
    ):
        owners = sorted({item.prompt for item in chunk})
        prefix = learning_prefix(base, *map(state_of, owners))
        batch = collate([replace(item, prompt=owners.index(item.prompt)) for item in chunk], base.device)
        yield chunk, owners, prefix, batch


def _evaluate(learner: Learner, validation: Validator, callback: Callback, processes: Processes, last: bool) -> bool:
    """Score a learner on validation; whether its loss there is a number."""
    candidate = learner.candidate()
    value, loss = validation.score(candidate)
    if not math.isfinite(loss):
        return False
    improved = learner.record_evaluation(candidate, value, loss, validation.error(value))
    history = learner.progress.history
    if processes.size > 1 or any("processes" in record for record in history):
        history[-1]["processes"] = processes.size
    metric = f"{validation.metric} of {learner.name}" if learner.name else validation.metric
    callback.on_evaluate(learner.progress.step, metric, value, loss, improved)
    if learner.progress.stopped_early and not last:
        text = f"stopped at step {learner.progress.step}: no better since step {learner.progress.best_step}"
        callback.on_message(_named(text, learner))
    return True


def _give_up(
    learners: Sequence[Learner], index: int, what: str, callback: Callback, checkpoint: Checkpoint | None
) -> None:
    """End a learner whose loss is no number; an error if none is left that may still give a prompt."""
    learner = learners[index]
    step = learner.progress.step + (what == "training loss")
    learner.progress.stopped_early = learner.progress.failed = True
    if all(other.progress.failed for other in learners):
        raise no_number(what, step, learner.rate, learner.config, checkpoint)
    callback.on_message(
        _named(f"the {what} is not a number at step {step} (rate {learner.rate:.2g}): it ends here", learner)
    )


def no_number(
    what: str, step: int, rate: float, config: TrainConfig, checkpoint: Checkpoint | None = None
) -> TrainingError:
    """The error that ends a run whose loss is no longer a number: what is kept, and what to do."""
    kept = ""
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        kept = f"; the last good checkpoint (step {saved.step}) is kept in '{checkpoint.folder}'"
    return TrainingError(
        f"the {what} is not a number at step {step} (rate {rate:.2g}){kept}: start again with --restart and a lower "
        f"rate (--learning-rate {config.learning_rate / 10:.2g}), or with --dtype float32"
    )


def _elsewhere(saved: Saved, base: FrozenLM) -> str:
    """What to say where a run goes on over another number of processes."""
    now = str(base.processes)
    return "" if saved.processes == now else f" over {now} where it was {saved.processes}: from here equal to rounding"


def _named(text: str, learner: Learner) -> str:
    return f"{learner.name}: {text}" if learner.name else text
