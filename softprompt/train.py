"""The training loop, and what makes it exact: order, checkpoints and choice of the best are pure functions of the data,
the settings and the seed, so a run that was killed goes on to the same bytes.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from softprompt.base import FrozenLM
from softprompt.batch import Encoder, Item, budgeted, collate, epoch_batches
from softprompt.checkpoint import Checkpoint
from softprompt.config import TrainConfig
from softprompt.errors import DataError, TrainingError
from softprompt.methods import METHODS, check_method
from softprompt.methods.initialisers import check_init, initialise
from softprompt.objective import EVALUATION_TOKENS, Objective
from softprompt.prefix import PromptState, make_prefix
from softprompt.task import Task


class Observer(Protocol):
    """Watches a run; see progress.py."""

    def started(self, first_step: int, steps: int, learned: int, frozen: int) -> None: ...
    def stepped(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None: ...
    def evaluated(self, step: int, metric: str, value: float, loss: float, best: bool) -> None: ...
    def noted(self, text: str) -> None: ...
    def finished(self) -> None: ...  # always called, after errors too


@dataclass
class Progress:
    """Where a run stands: everything beside tensors that a checkpoint has to keep."""

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    best_value: float = -math.inf
    best_loss: float = math.inf
    stale: int = 0
    recent: list[float] = field(default_factory=list)
    first_losses: list[float] = field(default_factory=list)
    alarmed: bool = False
    stopped_early: bool = False


@dataclass(frozen=True)
class TrainingResult:
    """What a run gives.

    Attributes:
        state: the prompt of the best evaluation.
        metric, value, loss: what it reached on validation, and its loss there (nats an example, or a token).
        best_step, steps: where it was reached, and how many steps were made.
        history: one record an evaluation.
        learned, truncated: parameters learned; texts cut to the limit.
        seconds, examples_per_second: of this process's part of the run.
        alarmed: whether the run was found not to be learning.
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


def train(
    base: FrozenLM, task: Task, config: TrainConfig, observer: Observer, checkpoint: Checkpoint | None = None
) -> TrainingResult:
    """Learn one prompt.

    Args:
        checkpoint: where the run is kept while it lasts; it goes on from there if there is one.

    Raises:
        ConfigError, DataError, TemplateError: the settings or the data cannot be used.
        TrainingError: the loss is no longer a number, or the checkpoint is of another run.
        OutputError: the checkpoint cannot be written.
    """
    check_method(config.method)
    check_init(config.init)
    check_trainable(task)
    saved = checkpoint.load() if checkpoint is not None else None
    torch.manual_seed(config.seed)
    encoder = Encoder(base, task.spec, config.length)
    start = initialise(config.init, base, task.spec, config.length, config.seed)
    items = encoder.training_items(task.train)
    objective = Objective(base, encoder.verbalizer)
    validation = _Validation(task, encoder, objective, config)
    if encoder.truncated:
        observer.noted(f"{encoder.truncated} texts were cut to {encoder.limit} tokens (--max-length)")

    unit = base.embedding_std if config.rate_unit == "embedding-std" else 1.0
    method: Any = METHODS[config.method](start, unit).to(base.device)
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = _optimizer(parameters, config)
    averaged = {name: parameter.detach().clone() for name, parameter in method.named_parameters()}
    best = method.fold().tensor.clone()
    progress = Progress()
    alarm = _Alarm(task, config)
    if saved is not None:
        method.load_state_dict(saved.tensors("method"))
        optimizer.load_state_dict(saved.optimizer())
        averaged = {name: tensor.to(base.device) for name, tensor in saved.tensors("averaged").items()}
        best, progress = saved.tensors("best")["prompt"].to(base.device), Progress(**saved.progress)
        observer.noted(f"resumed at step {progress.step}")

    learned = sum(parameter.numel() for parameter in parameters)
    first_step, seen, began = progress.step, 0, time.perf_counter()
    order = _Order([len(item.ids) for item in items], config)
    try:
        observer.started(progress.step, config.steps, learned, base.parameter_count)
        while progress.step < config.steps and not progress.stopped_early:
            rate = config.learning_rate * rate_factor(progress.step, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            step_began = time.perf_counter()
            batch = [items[index] for index in order.batch(progress.step)]
            loss = _accumulate_gradient(base, method, objective, batch, config)
            norm = float(nn.utils.clip_grad_norm_(parameters, config.clip))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise _not_a_number("training loss", progress.step + 1, rate, config, checkpoint)
            # only now is it known that the prompt of the step before is a good one
            if checkpoint is not None and progress.step > first_step and progress.step % config.checkpoint_every == 0:
                checkpoint.save(method, optimizer, averaged, best, progress)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            for name, parameter in method.named_parameters():
                averaged[name].lerp_(parameter.detach(), 1 - config.averaging)
            progress.step += 1
            seen += len(batch)
            observer.stepped(progress.step, loss, rate, len(batch) / (time.perf_counter() - step_began))

            if (text := alarm.check(progress, loss)) is not None:
                observer.noted(text)
            last = progress.step == config.steps
            if progress.step % config.eval_every == 0 or last:
                candidate = _averaged_prompt(method, averaged) if config.averaging else method.fold()
                value, validation_loss = validation.score(candidate)
                if not math.isfinite(validation_loss):
                    raise _not_a_number("validation loss", progress.step, rate, config, checkpoint)
                improved = (value, -validation_loss) > (progress.best_value, -progress.best_loss)
                if improved:
                    best, progress.best_step = candidate.tensor.clone(), progress.step
                    progress.best_value, progress.best_loss = value, validation_loss
                progress.stale = 0 if improved else progress.stale + 1
                progress.stopped_early = bool(config.patience) and progress.stale >= config.patience
                recent = sum(progress.recent) / len(progress.recent)
                progress.history.append(
                    {"step": progress.step, "train_loss": recent, "value": value, "validation_loss": validation_loss}
                )
                observer.evaluated(progress.step, validation.metric, value, validation_loss, improved)
                if progress.stopped_early and not last:
                    observer.noted(f"stopped at step {progress.step}: no better since step {progress.best_step}")
                if checkpoint is not None and (last or progress.stopped_early):
                    checkpoint.save(method, optimizer, averaged, best, progress)
    finally:
        observer.finished()

    seconds = time.perf_counter() - began
    return TrainingResult(
        PromptState("embeddings", best),
        validation.metric,
        progress.best_value,
        progress.best_loss,
        progress.best_step,
        progress.step,
        tuple(progress.history),
        learned,
        encoder.truncated,
        seconds,
        seen / seconds if seconds else 0.0,
        progress.alarmed,
    )


def check_trainable(task: Task) -> None:
    """Raise DataError unless there are training examples, of more than one label, and validation examples."""
    source = task.splits.source
    if not task.train:
        raise DataError(f"{source}: no training examples: expected a train split")
    if not task.validation:
        raise DataError(f"{source}: no validation examples: expected a validation split")
    if task.spec.kind == "classification" and len({example.label for example in task.train}) == 1:
        raise DataError(
            f"{source}: expected training examples of at least two labels, got only '{task.train[0].label}': "
            "add examples of another class"
        )


def rate_factor(step: int, config: TrainConfig) -> float:
    """The schedule: fraction of the peak rate at ``step`` (counted from 0); linear warm-up, then cosine or constant."""
    warmup = max(1, round(config.warmup * config.steps)) if config.warmup else 0
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))


def _accumulate_gradient(
    base: FrozenLM, method: Any, objective: Objective, items: list[Item], config: TrainConfig
) -> float:
    """Gradient of the mean loss of ``items``, however many forward passes they need; returns that mean (nats)."""
    # the mean is over examples for classification and over target tokens for generation
    count = sum(len(item.targets) for item in items) if objective.verbalizer is None else len(items)
    total = 0.0
    for chunk in budgeted(items, config.token_budget, config.micro_batch_size):
        prefix = make_prefix(base, method.virtual_tokens())
        loss = objective.loss_sum(prefix, collate(chunk, base.device)) / count
        loss.backward()
        total += loss.item()
    return total


def _averaged_prompt(method: Any, averaged: dict[str, Tensor]) -> PromptState:
    current = {name: parameter.detach().clone() for name, parameter in method.named_parameters()}
    method.load_state_dict(averaged, strict=False)
    try:
        state: PromptState = method.fold()
        return state
    finally:
        method.load_state_dict(current, strict=False)


class _Order:
    """Which examples each step takes."""

    def __init__(self, lengths: list[int], config: TrainConfig) -> None:
        self._lengths, self._config = lengths, config
        self._epoch, self._batches = -1, [[0]]

    def batch(self, step: int) -> list[int]:
        per_epoch = max(1, len(self._lengths) // self._config.batch_size)
        epoch, index = divmod(step, per_epoch)
        if epoch != self._epoch:
            self._batches = epoch_batches(self._lengths, self._config.batch_size, self._config.seed, epoch)
            self._epoch = epoch
        return self._batches[index]


class _Validation:
    """The validation examples, tokenised once, and how a prompt does on them."""

    def __init__(self, task: Task, encoder: Encoder, objective: Objective, config: TrainConfig) -> None:
        examples = list(task.validation)
        if len(examples) > config.validation_limit:
            chosen = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))
            examples = [examples[index] for index in sorted(chosen[: config.validation_limit].tolist())]
        self._objective = objective
        self.metric = "accuracy" if encoder.verbalizer is not None else "negative loss"
        if encoder.verbalizer is not None:
            self._items = encoder.scoring_items(examples)
            self._gold = torch.tensor([task.spec.label_index[str(example.label)] for example in examples])
        else:
            self._items = encoder.training_items(examples)

    @torch.no_grad()
    def score(self, state: PromptState) -> tuple[float, float]:
        """The metric, more being better, and the loss (nats an example, or a target token)."""
        prefix = make_prefix(self._objective.base, state.tensor)
        if self._objective.verbalizer is not None:
            scores = self._objective.label_log_probabilities(prefix, self._items)
            correct = int((scores.argmax(1) == self._gold).sum())
            return correct / len(self._gold), float(-scores.gather(1, self._gold[:, None]).mean())
        total, count = 0.0, 0
        for chunk in budgeted(self._items, EVALUATION_TOKENS):
            batch = collate(chunk, self._objective.base.device)
            total += self._objective.loss_sum(prefix, batch).item()
            count += len(batch.targets)
        return -total / count, total / count


class _Alarm:
    """Notices a run that does not learn: its loss stays at what knowing only the label frequencies gives."""

    WINDOW = 50  # steps that the loss is averaged over

    def __init__(self, task: Task, config: TrainConfig) -> None:
        self._after = config.alarm_after
        self._rate = config.learning_rate
        self._prior: float | None = None
        if task.spec.kind == "classification":
            counts = [sum(example.label == label for example in task.train) for label in task.spec.labels]
            shares = [count / len(task.train) for count in counts if count]
            self._prior = -sum(share * math.log(share) for share in shares)

    def check(self, progress: Progress, loss: float) -> str | None:
        """Take note of a step's loss; the text of the alarm, once, if there is cause for it."""
        progress.recent = [*progress.recent, loss][-self.WINDOW :]
        if len(progress.first_losses) < 10:
            progress.first_losses.append(loss)
        if progress.alarmed or progress.step < self._after:
            return None
        recent = sum(progress.recent) / len(progress.recent)
        bar, what = self._prior, "the label prior"
        if bar is None:
            bar, what = sum(progress.first_losses) / len(progress.first_losses), "the loss at the start"
        if recent < 0.98 * bar:
            return None
        progress.alarmed = True
        return (
            f"not learning: after {progress.step} steps the training loss is {recent:.3f}, {what} is {bar:.3f}. "
            "Look at a few rows first (are the labels right, does the template show the text?); "
            "then try a rate three times lower or higher "
            f"(--learning-rate {self._rate / 3:.2g} or {self._rate * 3:.2g}), another --init or more --steps"
        )


def _optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    from transformers.optimization import Adafactor

    # T5X's form: no relative step, no scaling by the parameter's size
    return Adafactor(
        parameters,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
    )


def _not_a_number(
    what: str, step: int, rate: float, config: TrainConfig, checkpoint: Checkpoint | None
) -> TrainingError:
    kept = ""
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        kept = f"; the last good checkpoint (step {saved.progress['step']}) is kept in '{checkpoint.folder}'"
    return TrainingError(
        f"the {what} is not a number at step {step} (rate {rate:.2g}){kept}: start again with --restart "
        f"and a lower rate (--learning-rate {config.learning_rate / 10:.2g}), or with --dtype float32"
    )


__all__ = ["Observer", "Progress", "TrainingResult", "check_trainable", "rate_factor", "train"]
