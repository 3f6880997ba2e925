"""Contestants for comparisons in tests: they answer as planted, and remember what they were given."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.experiments.baselines.fitted_baseline import FittedBaseline
from softprompt.experiments.comparison.candidates import Run, RunSettings
from softprompt.experiments.comparison.study_records import Study
from softprompt.inference import benchmark
from softprompt.inference.predictions import Prediction
from softprompt.inference.predictor import predict_labels

TIMES = (
    "created",
    "peak_memory_bytes",
    "training_seconds",
    "search_seconds",
    "command",
    "speed",
    "seconds",
)


@pytest.fixture
def few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed is measured on a handful of requests, perplexity on one passage."""
    monkeypatch.setattr(benchmark, "PASSAGES", benchmark.PASSAGES[:1])
    monkeypatch.setattr(benchmark, "REQUESTS", 3)
    monkeypatch.setattr(benchmark, "FEWEST_REQUESTS", 3)
    monkeypatch.setattr(benchmark, "BATCHES", 1)
    monkeypatch.setattr(benchmark, "BATCH_SIZE", 4)


def share(*parts: object) -> float:
    """A number in 0..1 that depends on the parts alone."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16) / 16**8


@dataclass
class PlantedAnswers:
    """Right on a share of the examples, always the same ones for the same seed."""

    spec: TaskSpec
    right: float
    seed: int
    truncated: int = 0

    def label_log_probabilities(self, examples: Sequence[Example]) -> Tensor:
        rows = []
        for example in examples:
            gold = self.spec.label_index[str(example.label)]
            hit = share(example.text, self.seed) < self.right
            chosen = gold if hit else (gold + 1) % len(self.spec.labels)
            rows.append([0.8 if index == chosen else 0.2 for index in range(len(self.spec.labels))])
        return torch.tensor(rows).log()

    def iterate_predictions(self, examples: Sequence[Example]) -> Iterator[Prediction]:
        return predict_labels(self.spec, self.label_log_probabilities(examples))


@dataclass
class Planted:
    """A contestant whose quality is known: ``right(run)``, or an error that it raises."""

    name: str
    right: Callable[[Run], float] | float = 0.9
    family: Any = "adapter"
    learning_rate: float | None = None
    together: bool = False
    seeded: bool = True
    uses_base: bool = True
    raises: BaseException | None = None
    seconds_a_step: float = 0.0
    calls: list[tuple[list[Run], RunSettings]] = field(default_factory=list)
    given: list[tuple[str, ...]] = field(default_factory=list)

    def learn(
        self, base: Any, task: Any, runs: Sequence[Run], plan: RunSettings, callback: Any, folder: Path
    ) -> list[Any]:
        self.calls.append((list(runs), plan))
        splits = (task.train, task.validation, task.test)
        self.given.append(tuple(hashlib.sha256(repr(split).encode()).hexdigest() for split in splits))
        if self.raises is not None:
            raise self.raises
        callback.on_train_begin(0, plan.steps, 1, 1)
        for step in range(1, plan.steps + 1):
            torch.tensor(0.0)
            callback.on_step_end(step, 1.0, 0.1, 1.0)
        callback.on_train_end()
        return [self._fitted(task, run) for run in runs]

    def _fitted(self, task: Any, run: Run) -> FittedBaseline:
        right = self.right(run) if callable(self.right) else self.right

        def save(folder: Path) -> None:
            folder.mkdir()
            (folder / "weights").write_text(f"seed {run.seed}")

        return FittedBaseline(
            answers=PlantedAnswers(task.spec, right, run.seed),
            trained_parameters=7,
            best_value=right,
            best_loss=1 - right,
            seconds=2.0,
            added_tokens=3.0,
            base_bytes=1000,
            base_shared=True,
            task_bytes=10,
            save=save,
            curve=({"step": 5, "seconds": 1.0, "value": right, "loss": 1 - right},),
            settings={"learning_rate": run.learning_rate},
        )


def without_times(study: Study) -> Any:
    """All of a study that depends neither on the clock nor on where it was asked for."""
    return _stripped(study.model_dump(mode="json", exclude={"recommendation", "notes"}))


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stripped(one) for key, one in value.items() if key not in TIMES}
    return [_stripped(one) for one in value] if isinstance(value, list) else value
