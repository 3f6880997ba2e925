"""The runs of a comparison: each method is learned with each seed, measured, and its result kept as it lands."""

import gc
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from softprompt.config import TrainConfig
from softprompt.data.examples import Example
from softprompt.data.split_assignment import sample_examples
from softprompt.data.task import Task
from softprompt.errors import ConfigError, OutputError
from softprompt.experiments.baselines.fitted_baseline import FittedBaseline
from softprompt.experiments.comparison.candidates import Candidate, Run, RunSettings
from softprompt.experiments.comparison.engine_benchmark import EnginePython, measure_engine_speed
from softprompt.experiments.comparison.study_folder import StudyFolder
from softprompt.experiments.comparison.study_records import Cost, CurvePoint, Forgetting, Result, Trial
from softprompt.experiments.comparison.time_budget import StepTimes, fit_steps
from softprompt.experiments.failed_runs import error_line
from softprompt.inference import benchmark
from softprompt.inference.evaluation import score, score_sample
from softprompt.inference.predictor import Predictor
from softprompt.metrics.scores import Score
from softprompt.models.frozen_lm import FrozenLM
from softprompt.training.callbacks.callback import Callback
from softprompt.training.callbacks.trackers import GroupTracker, flatten_scores, flatten_settings
from softprompt.training.optimization import choose_steps
from softprompt.training.training_run import TEST_LIMIT
from softprompt.utils.arguments import describe_argument, suggest_name
from softprompt.utils.summaries import summarize_fields
from softprompt.utils.version import read_versions

RATE_STEP = math.sqrt(10)  # between neighbouring rates of a search
PILOT_STEPS = 6  # made to see how long one takes


@dataclass(frozen=True)
class ComparisonSettings:
    """What is the same for all methods.

    Attributes:
        seeds: runs of each method, counted from 0.
        steps: optimiser steps of each learning run; ``None``: as many as ``train`` makes for these labels.
        budget: seconds of each learning run, in place of ``steps``.
        rates: learning rates tried for each trained method, its default among them; 1 is no search.
        batch_size: examples per step.
        instruction: words that written prompts have in front of everything.
        keep: whether to keep what the best seed of each method needs to be deployed.
        shift: examples of another domain.
        current: the method in use now.
        price_per_hour: of the machine.
        engine_python, engine_gguf: of an engine that exported prompts are timed in (see ``find_engine``).
        command: what was typed, to be told.
    """

    seeds: int = 3
    steps: int | None = None
    budget: float | None = None
    rates: int = 1
    batch_size: int = TrainConfig.model_fields["batch_size"].default
    instruction: str = ""
    keep: bool = False
    shift: tuple[Example, ...] = ()
    current: str | None = None
    price_per_hour: float | None = None
    engine_python: Path | None = None
    engine_gguf: Path | None = None
    command: str = ""

    def __repr__(self) -> str:
        return summarize_fields(self, only_changed=True)

    def with_steps_for(self, task: Task) -> "ComparisonSettings":
        """With as many steps as ``train`` makes for the task, where none are named."""
        if self.steps is not None:
            return self
        return replace(self, steps=choose_steps(len(task.spec.labels), self.batch_size))

    def to_dict(self) -> dict[str, Any]:
        """What results depend on."""
        return {
            "steps": None if self.budget else self.steps,
            "budget": self.budget,
            "rates": self.rates,
            "batch_size": self.batch_size,
            **({"instruction": self.instruction} if self.instruction else {}),
        }


def resolve_settings(settings: ComparisonSettings | None, given: Mapping[str, Any]) -> ComparisonSettings:
    """``settings`` with single ones in place of their own; raises ConfigError for one of another name or type."""
    names = [one.name for one in fields(ComparisonSettings)]
    if unknown := [name for name in given if name not in names]:
        raise ConfigError(f"unknown setting '{unknown[0]}': {suggest_name(unknown[0], names)}")
    chosen = replace(settings or ComparisonSettings(), **given)
    for name in ("seeds", "steps", "rates", "batch_size"):
        value = getattr(chosen, name)
        if (name, value) != ("steps", None) and (not isinstance(value, int) or value < 1):
            raise ConfigError(
                f"setting '{name}': expected a whole number of at least 1, got {describe_argument(value)}"
            )
    return chosen


@dataclass
class ComparisonRun:
    """A comparison while it goes: what has landed stays, what is missing is learned and measured."""

    base: FrozenLM
    task: Task
    settings: ComparisonSettings
    folder: StudyFolder
    callback: Callback
    engine: EnginePython | str
    tracker: GroupTracker

    @property
    def _limit(self) -> int:
        return TEST_LIMIT[self.task.spec.kind]

    @cached_property
    def test(self) -> tuple[Example, ...]:
        """The test examples that are scored."""
        return sample_examples(self.task.test, self._limit)

    @cached_property
    def bare(self) -> Predictor:
        """The bare template: what the speed of everything else is measured beside."""
        return Predictor(self.base, self.task.spec)

    @cached_property
    def versions(self) -> dict[str, str]:
        """Of the libraries at work."""
        return read_versions()

    @cached_property
    def perplexity(self) -> tuple[float, int] | None:
        """Of the base model on neutral text."""
        return benchmark.perplexity(self.base)

    def seeds(self, method: Candidate) -> range:
        """One, where another seed would give the same."""
        return range(self.settings.seeds if method.seeded else 1)

    def finish(self, method: Candidate, title: str) -> None:
        """Learn and measure whatever has not landed of a method."""
        name = method.name
        while missing := [seed for seed in self.seeds(method) if self.folder.result(name, seed) is None]:
            # runs that began together go on together
            group = self.folder.notes(name).get("seeds") or (missing if method.together else missing[:1])
            seeds = f"seed{'s' if len(group) > 1 else ''} {', '.join(map(str, group))}"
            self.callback.on_message(f"{title}, {seeds}")
            self.folder.note(name, seeds=group)
            self._land(method, group)
            self.folder.drop_unfinished(name)
            self.folder.note(name, seeds=None)

    def note_what_was_not_kept(self, results: Sequence[Result]) -> None:
        """Say of which methods nothing was kept, because they were measured before it was asked for."""
        for name in dict.fromkeys(result.method for result in results if result.status == "ok"):
            if not self.folder.artifact(name).exists():
                self.callback.on_message(
                    f"nothing of '{name}' was kept: it was measured before --keep was given; remove its files in "
                    "results/ to measure it again"
                )

    def _land(self, method: Candidate, seeds: Sequence[int]) -> None:
        outcomes: Sequence[FittedBaseline | Exception]
        trials: tuple[Trial, ...] = ()
        rate: float | None = None
        with benchmark.PeakMemory(self.base.device) as peak:
            try:
                plan = self._plan_steps(method)
                trials, rate = self._search_rate(method, plan)
                runs = [Run(seed, rate) for seed in seeds]
                folder = self.folder.unfinished(method.name) / "seeds"
                outcomes = method.learn(self.base, self.task, runs, plan, self.callback, folder)
            except OutputError:
                raise
            except Exception as error:  # whatever one method fails with, the others go on
                outcomes = [error] * len(seeds)
        for seed, outcome in zip(seeds, outcomes, strict=True):
            if self.folder.result(method.name, seed) is None:
                result = self._make_result(method, seed, outcome, trials, peak.bytes)
                self.folder.land(result)
                self._track(result)
        if not all(isinstance(outcome, FittedBaseline) and outcome.base_shared for outcome in outcomes):
            # a model of its own, perhaps held by a traceback: its memory is the next method's
            del outcome
            outcomes = []
            gc.collect()
            if self.base.device.type == "cuda":
                torch.cuda.empty_cache()

    def _track(self, result: Result) -> None:
        scores = {"validation": result.validation, "test": result.test}
        metrics = {split: score.model_dump() for split, score in scores.items() if score is not None}
        if "test" in metrics:
            metrics["test"]["others"] = {name: score.model_dump() for name, score in result.others.items()}
        cost = {} if result.cost is None else flatten_settings(result.cost.model_dump(), "cost/")
        self.tracker.land(
            f"{result.method}, seed {result.seed}",
            {"method": result.method, "family": result.family, "seed": result.seed, **result.settings},
            [(point.step, {"value": point.value, "loss": point.loss}) for point in result.curve],
            {**flatten_scores(metrics), **{name: float(value) for name, value in cost.items()}},
            failed=result.status == "failed",
        )

    def _plan_steps(self, method: Candidate) -> RunSettings:
        """The steps of a run: those given, or as many as fit into the time."""
        settings = self.settings
        assert settings.steps is not None  # compare has resolved them
        budget, plan = settings.budget, RunSettings(settings.steps, settings.batch_size, settings.instruction)
        if method.learning_rate is None or budget is None:
            return plan
        steps = self.folder.notes(method.name).get("steps")
        if steps is None:
            times = StepTimes()
            pilot, folder = RunSettings(PILOT_STEPS, plan.batch_size), self.folder.unfinished(method.name) / "pilot"
            shutil.rmtree(folder, ignore_errors=True)
            method.learn(self.base, self.task, [Run(0)], pilot, times, folder)
            steps = fit_steps(budget, times, lambda steps: RunSettings(steps).eval_every)
            self.callback.on_message(f"{steps} steps fit into {budget:.0f} seconds")
            self.folder.note(method.name, steps=steps)
        return RunSettings(int(steps), plan.batch_size)

    def _search_rate(self, method: Candidate, plan: RunSettings) -> tuple[tuple[Trial, ...], float | None]:
        """Trials of the first seed, one for each rate, and the rate that did best on validation."""
        if method.learning_rate is None or self.settings.rates == 1:
            return (), None
        rates = list_rates(method.learning_rate, self.settings.rates)
        tried: dict[str, Any] = self.folder.notes(method.name).get("trials", {})
        missing = [rate for rate in rates if repr(rate) not in tried]
        for group in [missing] if method.together else [[rate] for rate in missing]:
            if not group:
                continue
            self.callback.on_message(f"trying learning rate {', '.join(f'{rate:.3g}' for rate in group)}")
            runs = [Run(0, rate) for rate in group]
            folder = self.folder.unfinished(method.name) / "trials"
            outcomes: Sequence[FittedBaseline | Exception]
            try:
                outcomes = method.learn(self.base, self.task, runs, plan, self.callback, folder)
            except OutputError:
                raise
            except Exception as error:
                outcomes = [error] * len(group)
            for rate, outcome in zip(group, outcomes, strict=True):
                tried[repr(rate)] = _describe_outcome(outcome)
            self.folder.note(method.name, trials=tried)
        good = {rate: tried[repr(rate)] for rate in rates if "value" in tried[repr(rate)]}
        if not good:
            raise ConfigError(f"no rate could be learned with: {tried[repr(rates[0])]['error']}")
        best = max(good, key=lambda rate: (good[rate]["value"], -good[rate]["loss"]))
        trials = tuple(
            Trial(learning_rate=rate, value=one["value"], loss=one["loss"], chosen=rate == best)
            for rate, one in sorted(good.items())
        )
        return trials, best

    def _make_result(
        self,
        method: Candidate,
        seed: int,
        outcome: FittedBaseline | Exception,
        trials: tuple[Trial, ...],
        peak: int | None,
    ) -> Result:
        facts: dict[str, Any] = {
            "method": method.name,
            "family": method.family,
            "seed": seed,
            "trials": trials,
            "versions": self.versions,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if isinstance(outcome, FittedBaseline):
            try:
                measured = self._measure(method, outcome, peak)
            except OutputError:
                raise
            except Exception as error:
                outcome = error
            else:
                # the settings may come of a sweep, whose trials are then told
                facts["trials"] = trials or tuple(Trial.model_validate(one) for one in outcome.searched)
                test: Score = measured["test"]
                self.callback.on_message(
                    f"{method.name}, seed {seed}: test {test.metric} {test.value:.4g} [{test.low:.4g}, {test.high:.4g}]"
                )
                return Result(status="ok", **facts, **measured)
        line = error_line(outcome)
        self.callback.on_message(f"{method.name}, seed {seed}: failed, the others go on: {line}")
        return Result(status="failed", error=line, **facts)

    def _measure(self, method: Candidate, fitted: FittedBaseline, peak: int | None) -> dict[str, Any]:
        answers = fitted.answers
        test = score(answers, self.test)
        validation = score_sample(answers, self.task.validation, self._limit).metric
        shift = sample_examples(self.settings.shift, self._limit)
        before = [self.folder.result(method.name, seed) for seed in self.seeds(method)]
        speed, engine, notes = None, None, dict(fitted.settings)
        # seeds change no computation: one's speed stands for all
        if not any(result is not None and result.speed is not None for result in before):
            speed = benchmark.measure_speed(answers, self.bare, self.test, fitted.added_tokens)
            timed = (
                measure_engine_speed(self.engine, answers, self.test) if isinstance(self.engine, EnginePython) else ""
            )
            if isinstance(timed, str):
                notes |= {"engine_note": timed} if timed else {}
            else:
                engine = timed
        notes |= {"cut": test.cut} if test.cut else {}
        tried = self.folder.notes(method.name).get("trials", {}).values()
        kept = [one.validation.value for one in before if one is not None and one.validation is not None]
        return {
            "settings": notes,
            "curve": tuple(CurvePoint.model_validate(point) for point in fitted.curve),
            "validation": validation,
            "test": test.metric,
            "others": benchmark.collect_metrics(test),
            "shift": score(answers, shift).metric if shift else None,
            "predictions": tuple(str(one.label or one.completion or "") for one in test.predictions),
            "confidences": benchmark.confidences(test),
            "cost": Cost(
                trained_parameters=fitted.trained_parameters,
                stored_bytes=self._measure_files(method.name, fitted, best=all(validation.value > one for one in kept)),
                base_shared=fitted.base_shared,
                base_bytes=fitted.base_bytes,
                task_bytes=fitted.task_bytes,
                training_seconds=fitted.seconds if fitted.trained_parameters else 0.0,
                search_seconds=fitted.search_seconds + sum(one["seconds"] for one in tried if "seconds" in one),
                peak_memory_bytes=peak,
            ),
            "speed": speed,
            "engine": engine,
            "forgetting": self._measure_forgetting(method, fitted),
        }

    def _measure_files(self, name: str, fitted: FittedBaseline, *, best: bool) -> int:
        """Bytes of what one task needs as files; they are kept if wanted and the best so far."""
        saved = self.folder.scratch()
        fitted.save(saved)
        size = benchmark.folder_bytes(saved)
        if self.settings.keep and best:
            self.folder.keep(name, saved)
        else:
            shutil.rmtree(saved)
        return size

    def _measure_forgetting(self, method: Candidate, fitted: FittedBaseline) -> Forgetting | None:
        if not method.uses_base or self.perplexity is None:
            return None
        before, tokens = self.perplexity
        # what answers by a model of its own, changed by learning, has it
        measured = benchmark.perplexity(getattr(fitted.answers, "base", self.base))
        return None if measured is None else Forgetting(before=before, after=measured[0], tokens=tokens)


def list_rates(default: float, count: int) -> list[float]:
    """``count`` learning rates: the default, then its neighbours below and above by turns, a half decade apart."""
    powers = [(step + 1) // 2 * (-1 if step % 2 else 1) for step in range(count)]
    return [float(f"{default * RATE_STEP**power:.3g}") if power else default for power in powers]


def _describe_outcome(outcome: FittedBaseline | Exception) -> dict[str, Any]:
    if isinstance(outcome, FittedBaseline):
        return {"value": outcome.best_value, "loss": outcome.best_loss, "seconds": outcome.seconds}
    return {"error": error_line(outcome)}
