"""What learns in methods that change what a model computes (LoRA, full fine-tuning), for the loop of prompts.

BOS, and of chats all that they begin with, is computed in each pass and shared, with gradient, as a prompt would be;
dropout is off, as there. Weights that are
kept in 16 bits learn through a copy in float32 (Micikevicius et al. 2018), of which the model gets the rounded values.
"""

import time
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from softprompt.config import Schedule, Settings, TrainConfig
from softprompt.data.encoding.encoder import EncodedSequence, ExampleEncoder
from softprompt.data.task import Task
from softprompt.experiments.baselines.fitted_baseline import make_curve
from softprompt.inference.chat_answers import make_bare_state
from softprompt.inference.scoring import AnswerScorer
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.state import PromptState
from softprompt.prompts.written_prompt import count_written
from softprompt.training.callbacks.callback import Callback
from softprompt.training.callbacks.step_timer import StepTimer
from softprompt.training.data_loader import InMemoryLoader
from softprompt.training.learner import Learner
from softprompt.training.loop import run_training
from softprompt.training.optimization import rate_factor
from softprompt.training.training_objective import Losses, TrainingObjective
from softprompt.training.validation import Validation


def _copy_setting(name: str) -> Any:
    """The setting of this name, its default and its limits as TrainConfig has them."""
    return copy(TrainConfig.model_fields[name])


class FinetuningConfig(Settings):
    """How weights are tuned. What prompts have too has their defaults."""

    learning_rate: float | None = Field(None, gt=0, le=1e30, description="peak rate (default: the method's own)")
    seconds: float | None = Field(
        None, gt=0, description="time budget; the schedule is fitted to it, steps stay a limit"
    )
    steps: int = _copy_setting("steps")
    batch_size: int = _copy_setting("batch_size")
    token_budget: int = _copy_setting("token_budget")
    schedule: Schedule = _copy_setting("schedule")
    warmup: float = _copy_setting("warmup")
    weight_decay: float = _copy_setting("weight_decay")
    clip: float = _copy_setting("clip")
    eval_every: int = _copy_setting("eval_every")
    patience: int = _copy_setting("patience")
    validation_limit: int = _copy_setting("validation_limit")
    max_length: int | None = Field(None, ge=8, description="tokens of template and text, at most (default: the task's)")
    seed: int = _copy_setting("seed")

    def for_prompts(self, **more: Any) -> TrainConfig:
        """The settings that prompts have too; nothing of the model's own layers is compiled while they learn."""
        shared = self.model_dump(exclude={"learning_rate", "seconds", "max_length"})
        return TrainConfig(**shared, **more, compile="never")


class _MasterWeights:
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


class WeightsLearner(Learner):
    """Weights of a model that learn a task, within a time if one is given."""

    changes_base = True

    def __init__(
        self,
        model: FrozenLM,
        task: Task,
        config: TrainConfig,
        weights: Sequence[nn.Parameter],
        *,
        seconds: float | None,
        began: float,
    ) -> None:
        """``seconds`` run from ``began``."""
        self.encoder = ExampleEncoder(model, task.spec.without_prompt, 0)
        self._shared = make_bare_state(model, self.encoder.spec)
        self.objective = AnswerScorer(model, self.encoder.verbalizer)
        items = self.encoder.training_items(task.train)
        self.loader = InMemoryLoader([(item,) for item in items], config)
        self.validation = Validation(task, self.encoder, self.objective, config)
        self.weights = weights
        for weight in weights:
            weight.requires_grad_(True)
        self._masters = _MasterWeights(
            weights, {} if config.weight_decay else _find_touched_rows(model, self.encoder, items)
        )
        self._seconds, self._began, self._spent, self._place = seconds, began, False, 0
        self.best_weights: list[Tensor] = []
        values, rate, decay = self._masters.values, config.learning_rate, config.weight_decay
        fused = model.device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(values, lr=rate, weight_decay=decay, fused=fused)
        for group in optimizer.param_groups:
            group["factor"] = 1.0
        super().__init__("", config, values, optimizer)

    @property
    def learned(self) -> int:
        return sum(weight.numel() for weight in self.weights)

    @property
    def rate(self) -> float:
        return self.config.learning_rate * rate_factor(self._place, self.config)

    @property
    def done(self) -> bool:
        return self._spent or super().done

    @property
    def advice(self) -> str:
        return f"a lower peak rate ({self.config.learning_rate / 10:.2g})"

    def token_budget(self, *, on_cpu: bool) -> int:
        return self.config.token_budget

    def next_batch(self, step: int) -> list[Sequence[EncodedSequence]]:
        used = 0.0 if self._seconds is None else (time.perf_counter() - self._began) / self._seconds
        # with a time budget the schedule follows whichever is further
        self._place = max(step, min(self.config.steps - 1, int(used * self.config.steps)))
        return super().next_batch(step)

    def state(self) -> PromptState | None:
        return self._shared

    def candidate(self) -> PromptState | None:
        return self._shared

    def record_best(self, candidate: PromptState | None) -> None:
        self.best_weights = [weight.detach().to("cpu", copy=True) for weight in self.weights]

    def collect_gradients(self) -> None:
        self._masters.take_gradients()

    def update(self) -> None:
        super().update()
        self._masters.give_values()

    def is_last(self, step: int) -> bool:
        self._spent = self._seconds is not None and time.perf_counter() - self._began >= self._seconds
        return self._spent or super().is_last(step)

    def describe_stop(self) -> str | None:
        if self._spent and self.progress.step < self.config.steps:
            return f"the time budget of {self._seconds:g} s ended the run at step {self.progress.step}"
        return super().describe_stop()

    def restore_best(self) -> None:
        """Have the model as it was at its best evaluation, and frozen."""
        for weight, kept in zip(self.weights, self.best_weights, strict=True):
            weight.requires_grad_(False).copy_(kept)


def finetune(
    model: FrozenLM,
    task: Task,
    config: FinetuningConfig,
    weights: Sequence[nn.Parameter],
    callback: Callback,
    *,
    default_rate: float,
    began: float,
) -> dict[str, Any]:
    """Let ``weights`` of ``model`` learn the task; they end as they were at the best evaluation, and frozen.

    Args:
        default_rate: peak learning rate where ``config`` has none.
        began: ``time.perf_counter()`` when the method began: its time budget runs from there.

    Returns:
        What a ``FittedBaseline`` says of how it was learned.

    Raises:
        DataError, TemplateError: the data cannot be used.
        TrainingError: the loss is no longer a number.
    """
    rate = config.learning_rate or default_rate
    learner = WeightsLearner(
        model, task, config.for_prompts(learning_rate=rate), weights, seconds=config.seconds, began=began
    )
    for note in learner.encoder.truncation_notes():
        callback.on_message(note)
    timer, prepared = StepTimer(callback, None), time.perf_counter() - began
    losses = learner.objective.losses
    objective = TrainingObjective(learner.objective.count, lambda step: Losses(losses(step.prefix, step.batch)))
    run_training(model, [learner], objective, timer)
    learner.restore_best()
    progress = learner.progress
    return {
        "trained_parameters": learner.learned,
        "best_value": progress.best_value,
        "best_loss": progress.best_loss,
        "seconds": time.perf_counter() - began,
        "added_tokens": float(count_written(model, task.spec.without_prompt)),
        "curve": make_curve(progress.history, lambda step: prepared + timer.at(step)),
        "settings": {
            **config.model_dump(exclude_none=True),
            "learning_rate": rate,
            "steps_made": progress.step,
            "best_step": progress.best_step,
        },
    }


def limit_length(task: Task, config: FinetuningConfig) -> Task:
    """The task with the length limit that ``config`` sets, if it sets one."""
    return task if config.max_length is None else replace(task, spec=replace(task.spec, max_length=config.max_length))


def _find_touched_rows(
    model: FrozenLM, encoder: ExampleEncoder, items: Sequence[EncodedSequence]
) -> dict[nn.Parameter, Tensor]:
    """Rows of the tables of a decoder that classification can give a gradient: its texts' tokens, and its labels'."""
    if encoder.verbalizer is None or model.architecture != "decoder-only":
        return {}
    around = encoder.placement
    read = {*model.bos_ids, *around.before, *around.behind, *(token for item in items for token in item.ids)}
    scored = set(encoder.verbalizer.rows)
    incoming = model.model.get_input_embeddings().weight
    outgoing = model.model.get_output_embeddings().weight
    used = {incoming: read | scored} if incoming is outgoing else {incoming: read, outgoing: scored}
    return {weight: torch.tensor(sorted(rows), device=weight.device) for weight, rows in used.items()}
