"""The training loop of methods that change what a model computes (LoRA, full fine-tuning).

It differs from train.py's in what learns; batches, objective, schedule, clipping and the choice of the best evaluation
are the same. BOS is computed once a step and shared, with gradient, as a prompt would be; dropout is off, as there.
Weights that are kept in 16 bits learn through a copy in float32 (Micikevicius et al. 2018), of which the model gets the
rounded values: small steps add up, and what is evaluated is what will be served.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from softprompt.config import Settings, TrainConfig
from softprompt.data.encoding.batching import batch_by_token_budget, collate
from softprompt.data.encoding.encoder import EncodedSequence, ExampleEncoder
from softprompt.data.task import Task
from softprompt.errors import TrainingError
from softprompt.experiments.baselines.fitted_baseline import FittedBaseline
from softprompt.inference.predictor import Answers
from softprompt.inference.scoring import Objective
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import make_prefix
from softprompt.training.callbacks import Callback
from softprompt.training.data_loader import BatchSampler
from softprompt.training.learner import Progress, rate_factor
from softprompt.training.validation import Validation


def _as_for_prompts(name: str) -> Any:
    """The setting of this name, its default and its limits as TrainConfig has them."""
    return copy(TrainConfig.model_fields[name])


class FinetuningConfig(Settings):
    """How weights are tuned. What prompts have too has their defaults."""

    learning_rate: float | None = Field(None, gt=0, le=1e30, description="peak rate (default: the method's own)")
    seconds: float | None = Field(
        None, gt=0, description="time budget; the schedule is fitted to it, steps stay a limit"
    )
    steps: int = _as_for_prompts("steps")
    batch_size: int = _as_for_prompts("batch_size")
    token_budget: int = _as_for_prompts("token_budget")
    schedule: Literal["cosine", "constant"] = _as_for_prompts("schedule")
    warmup: float = _as_for_prompts("warmup")
    weight_decay: float = _as_for_prompts("weight_decay")
    clip: float = _as_for_prompts("clip")
    eval_every: int = _as_for_prompts("eval_every")
    patience: int = _as_for_prompts("patience")
    validation_limit: int = _as_for_prompts("validation_limit")
    max_length: int | None = Field(None, ge=8, description="tokens of template and text, at most (default: the task's)")
    seed: int = _as_for_prompts("seed")

    def for_prompts(self) -> TrainConfig:
        """The settings that prompts have too."""
        return TrainConfig(**self.model_dump(exclude={"learning_rate", "seconds", "max_length"}))


@dataclass(frozen=True)
class FinetuningResult:
    """How a run went; the weights are those of its best evaluation.

    Attributes:
        learned: numbers that learned.
        best_value, best_loss: of that evaluation.
        seconds: evaluations included.
        curve: an evaluation each: ``step``, ``seconds``, ``value``, ``loss``.
        settings: those of the run, the rate and the steps made among them.
    """

    learned: int
    best_value: float
    best_loss: float
    seconds: float
    curve: tuple[Mapping[str, float], ...]
    settings: Mapping[str, Any]

    def fitted(
        self, answers: Answers, base_bytes: int, task_bytes: int, save: Callable[[Path], None], **settings: Any
    ) -> FittedBaseline:
        """What was learned, as a baseline; the base is shared where it has to be in memory at all."""
        return FittedBaseline(
            answers=answers,
            trained_parameters=self.learned,
            best_value=self.best_value,
            best_loss=self.best_loss,
            seconds=self.seconds,
            added_tokens=0.0,
            base_bytes=base_bytes,
            base_shared=base_bytes > 0,
            task_bytes=task_bytes,
            save=save,
            curve=self.curve,
            settings={**self.settings, **settings},
        )


class _Masters:
    """The weights in float32, which the optimiser changes; the model's own where they are float32 already.

    Of a table of which only some rows can get a gradient, only these are here: Adam without weight decay leaves the
    others as they are, and a table of embeddings is most of a small model.
    """

    def __init__(self, weights: Sequence[nn.Parameter], touched: Mapping[nn.Parameter, Tensor]) -> None:
        """``touched``: of some weights, the rows that can get a gradient."""
        self.weights, self.rows = weights, [touched.get(weight) for weight in weights]
        self.values = [
            weight
            if rows is None and weight.dtype == torch.float32
            else nn.Parameter((weight if rows is None else weight[rows]).detach().float())
            for weight, rows in zip(weights, self.rows, strict=True)
        ]

    def take_gradients(self) -> None:
        """Add the model's gradients to those here."""
        for weight, rows, value in zip(self.weights, self.rows, self.values, strict=True):
            if value is not weight and weight.grad is not None:
                gradient, weight.grad = (weight.grad if rows is None else weight.grad[rows]).float(), None
                value.grad = gradient if value.grad is None else value.grad.add_(gradient)

    @torch.no_grad()
    def give_values(self) -> None:
        """Set the model's weights to those here, rounded."""
        for weight, rows, value in zip(self.weights, self.rows, self.values, strict=True):
            if rows is not None:
                weight.index_copy_(0, rows, value.to(weight.dtype))
            elif value is not weight:
                weight.copy_(value)


def finetune(
    model: FrozenLM,
    task: Task,
    config: FinetuningConfig,
    weights: Sequence[nn.Parameter],
    callback: Callback,
    *,
    default_rate: float,
    began: float,
) -> FinetuningResult:
    """Let ``weights`` of ``model`` learn the task; they end as they were at the best evaluation, and frozen.

    Args:
        default_rate: peak learning rate where ``config`` has none.
        began: ``time.perf_counter()`` when the method began: its time budget runs from there.

    Raises:
        DataError, TemplateError: the data cannot be used.
        TrainingError: the loss is no longer a number.
    """
    shared, rate = config.for_prompts(), config.learning_rate or default_rate
    encoder = ExampleEncoder(model, task.spec, 0)
    objective = Objective(model, encoder.verbalizer)
    items = encoder.training_items(task.train)
    validation = Validation(task, encoder, objective, shared)
    for note in encoder.cut_notes():
        callback.on_message(note)
    order = BatchSampler([len(item.ids) for item in items], shared)
    for weight in weights:
        weight.requires_grad_(True)
    masters = _Masters(weights, {} if config.weight_decay else _touched(model, objective, items))
    optimizer = torch.optim.AdamW(
        masters.values, lr=rate, weight_decay=config.weight_decay, fused=model.device.type in ("cpu", "cuda")
    )
    progress, curve = Progress(), list[dict[str, float]]()
    best: list[Tensor] = []
    learned = sum(weight.numel() for weight in weights)
    try:
        callback.on_train_begin(0, config.steps, learned, model.parameter_count - learned)
        while not progress.stopped_early and progress.step < config.steps:
            step_began = time.perf_counter()
            batch = [items[index] for index in order.batch(progress.step)]
            loss = _accumulate_gradients(model, objective, batch, masters, config.token_budget)
            norm = float(nn.utils.clip_grad_norm_(masters.values, config.clip))
            used = 0.0 if config.seconds is None else (step_began - began) / config.seconds
            # with a time budget the schedule follows whichever is further
            place = max(progress.step, min(config.steps - 1, int(used * config.steps)))
            now = rate * rate_factor(place, shared)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise _no_number("training loss", progress.step + 1, now, rate)
            for group in optimizer.param_groups:
                group["lr"] = now
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            masters.give_values()
            progress.step += 1
            progress.record_step(loss)
            callback.on_step_end(progress.step, loss, now, len(batch) / (time.perf_counter() - step_began))
            spent = config.seconds is not None and time.perf_counter() - began >= config.seconds
            last = spent or progress.step == config.steps
            if last or progress.step % config.eval_every == 0:
                value, validation_loss = validation.score(None)
                if not math.isfinite(validation_loss):
                    raise _no_number("validation loss", progress.step, now, rate)
                error = validation.error(value)
                improved = progress.record_evaluation(progress.step, value, validation_loss, error, config.patience)
                seconds = time.perf_counter() - began
                curve.append({"step": progress.step, "seconds": seconds, "value": value, "loss": validation_loss})
                callback.on_evaluate(progress.step, validation.metric, value, validation_loss, improved)
                if improved:
                    best = [weight.detach().to("cpu", copy=True) for weight in weights]
                if spent and progress.step < config.steps:
                    callback.on_message(
                        f"the time budget of {config.seconds:g} s ended the run at step {progress.step}"
                    )
                elif progress.stopped_early and not last:
                    callback.on_message(f"stopped at step {progress.step}: no better since step {progress.best_step}")
                progress.stopped_early |= last
    finally:
        callback.on_train_end()
    for weight, kept in zip(weights, best, strict=True):
        weight.requires_grad_(False).copy_(kept)
    settings = {
        **config.model_dump(exclude_none=True),
        "learning_rate": rate,
        "steps_made": progress.step,
        "best_step": progress.best_step,
    }
    seconds = time.perf_counter() - began
    return FinetuningResult(learned, progress.best_value, progress.best_loss, seconds, tuple(curve), settings)


def limited(task: Task, config: FinetuningConfig) -> Task:
    """The task with the length limit that ``config`` sets, if it sets one."""
    return task if config.max_length is None else replace(task, spec=replace(task.spec, max_length=config.max_length))


def _touched(model: FrozenLM, objective: Objective, items: Sequence[EncodedSequence]) -> dict[nn.Parameter, Tensor]:
    """Rows of the tables of a decoder that classification can give a gradient: its texts' tokens, and its labels'."""
    if objective.verbalizer is None or model.architecture != "decoder-only":
        return {}
    read = {*model.bos_ids, *(token for item in items for token in item.ids)}
    scored = set(objective.verbalizer.rows)
    incoming = model.model.get_input_embeddings().weight
    outgoing = model.model.get_output_embeddings().weight
    used = {incoming: read | scored} if incoming is outgoing else {incoming: read, outgoing: scored}
    return {weight: torch.tensor(sorted(rows), device=weight.device) for weight, rows in used.items()}


def _accumulate_gradients(
    model: FrozenLM, objective: Objective, items: Sequence[EncodedSequence], masters: _Masters, token_budget: int
) -> float:
    """Gradient of the mean loss over the items, however many passes that takes; returns the mean (nats)."""
    count, total = objective.count(items), 0.0
    for chunk in batch_by_token_budget(items, token_budget):
        prefix = make_prefix(model, None)
        loss = objective.losses(prefix, collate(chunk, model.device)).sum() / count
        loss.backward()
        masters.take_gradients()
        total += loss.item()
    return total


def _no_number(what: str, step: int, now: float, rate: float) -> TrainingError:
    return TrainingError(
        f"the {what} is not a number at step {step} (rate {now:.2g}): start again with a lower peak rate "
        f"({rate / 10:.2g}), or with --dtype float32"
    )
