"""Optimisers and schedules, as the settings name them."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from softprompt.config import TrainConfig
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.methods import soft_verbalizer

LEARNED_FROM = 100  # times that a run learns from each label, at least (docs/results/findings.md)

# of schedules that need more than warm-up and steps: as transformers.get_scheduler takes it
SCHEDULE_OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "polynomial": lambda steps: {"power": 2.0},
    "warmup_stable_decay": lambda steps: {"num_decay_steps": max(1, steps // 5)},
}


def learning_unit(base: FrozenLM, config: TrainConfig) -> float:
    """What a learned value of 1 is worth in virtual tokens."""
    return base.embedding_std if config.rate_unit == "embedding-std" else 1.0


def choose_steps(labels: int, batch_size: int) -> int:
    """Steps where nobody says how many: the usual ones, or as many as learn from each label ``LEARNED_FROM`` times."""
    usual: int = TrainConfig.model_fields["steps"].default
    return max(usual, math.ceil(LEARNED_FROM * labels / batch_size))


def rate_factor(step: int, config: TrainConfig) -> float:
    """The schedule: fraction of the peak rate at ``step`` (counted from 0), behind a linear warm-up."""
    warmup = max(1, round(config.warmup * config.steps)) if config.warmup else 0
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))
    return _schedule(config.schedule, warmup, config.steps)(step)


@cache
def _schedule(name: str, warmup: int, steps: int) -> Callable[[int], float]:
    """That of ``transformers``, as a function of the step alone: a run that goes on needs no more."""
    from transformers.optimization import get_scheduler

    of_nothing = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    options = SCHEDULE_OPTIONS[name](steps) if name in SCHEDULE_OPTIONS else None
    kind = "constant_with_warmup" if name == "constant" else name
    scheduler = get_scheduler(kind, of_nothing, warmup, steps, scheduler_specific_kwargs=options)
    factor: Callable[[int], float] = scheduler.lr_lambdas[0]
    return factor


def make_optimizer(method: Any, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of a method's parameters; each group keeps under ``factor`` what its rate is multiplied by."""
    factors = {**method.rate_factors(), "verbalizer.": soft_verbalizer.RATE}
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in method.named_parameters():
        factor = next((factor for start, factor in factors.items() if name.startswith(start)), 1.0)
        groups.setdefault(factor, []).append(parameter)
    parameters = [{"params": group, "factor": factor} for factor, group in groups.items()]
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
