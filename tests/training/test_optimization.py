"""Schedules of the learning rate."""

from typing import Any, get_args

import pytest
from helpers.runs import train
from helpers.small_tasks import FAST, Recorder, reviews_task
from helpers.tiny_models import tiny_base

from softprompt.config import Schedule, TrainConfig
from softprompt.errors import ConfigError
from softprompt.training.optimization import rate_factor


@pytest.mark.parametrize("settings", [{}, {"schedule": "constant"}, {"warmup": 0.0}], ids=str)
def test_rate_factor(settings: dict[str, Any]) -> None:
    config = TrainConfig.build(**{"steps": 100, "warmup": 0.1, **settings})
    factors = [rate_factor(step, config) for step in range(100)]
    if config.warmup:
        assert factors[:11] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0])
    if config.schedule == "constant":
        assert factors[10:] == [1.0] * 90
    else:
        first = 10 if config.warmup else 0
        assert factors[first] == 1.0
        assert factors[(first + 100) // 2] == pytest.approx(0.5)
        assert 0 < factors[99] < 0.001
        assert factors[first:] == sorted(factors[first:], reverse=True)


@pytest.mark.parametrize("steps", [1, 2, 19])
def test_rate_factor_of_short_runs(steps: int) -> None:
    config = TrainConfig(steps=steps)
    assert all(0 < rate_factor(step, config) <= 1 for step in range(steps))


@pytest.mark.parametrize("name", get_args(Schedule))
def test_every_schedule_warms_up_and_never_rises_again(name: str) -> None:
    config = TrainConfig.build(steps=40, warmup=0.1, schedule=name)
    factors = [rate_factor(step, config) for step in range(40)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[3:] == sorted(factors[3:], reverse=True)
    assert 0 < factors[-1] <= 1
    if name != "constant":
        assert factors[-1] < 0.4


@pytest.mark.parametrize("name", get_args(Schedule))
def test_a_run_follows_its_schedule(name: str) -> None:
    seen, config = Recorder(), TrainConfig.build(**{**FAST, "schedule": name})
    train(tiny_base("llama"), reviews_task(), config, seen)
    assert seen.rates == [config.learning_rate * rate_factor(step, config) for step in range(config.steps)]


def test_an_unknown_schedule() -> None:
    with pytest.raises(ConfigError, match=r"setting 'schedule' .*'cosine', 'constant', 'linear'"):
        TrainConfig.build(schedule="staircase")
