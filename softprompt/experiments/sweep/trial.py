"""One trial: a run as ``train`` makes it, watched at each evaluation, landed in the sweep's folder."""

import gc
import json
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from softprompt.config import TrainConfig
from softprompt.data.task import Task
from softprompt.errors import OutputError, map_write_errors
from softprompt.experiments.baselines.fitted_baseline import FittedBaseline
from softprompt.experiments.baselines.soft_prompts import learn_prompts
from softprompt.experiments.comparison.study_records import CurvePoint
from softprompt.experiments.failed_runs import error_line
from softprompt.experiments.sweep.search_space import PlainValue, build_trial_config
from softprompt.experiments.sweep.sweep_folder import SweepFolder, SweepTrial, trial_name
from softprompt.experiments.sweep.trial_sampler import compute_objective
from softprompt.models.frozen_lm import FrozenLM
from softprompt.training.callbacks.callback import Callback
from softprompt.training.callbacks.step_timer import StepTimer
from softprompt.training.training_run import limit_length
from softprompt.utils.files import replace_file
from softprompt.utils.seals import read_sealed, seal
from softprompt.utils.version import read_versions

CLOCK_FILE, POINTS_FILE = "watched.json", "evaluations.json"

ShouldPrune: TypeAlias = Callable[[int, float], bool]
"""Given the step and the objective of each evaluation: whether to give the trial up."""


class TrialPruned(Exception):
    """The engine gave the trial up."""


class TrialCallback(StepTimer):
    """Passes a run on to another callback, keeps its evaluations in a file, and ends it if told so."""

    def __init__(self, callback: Callback, folder: Path, stop: ShouldPrune) -> None:
        super().__init__(callback, folder / CLOCK_FILE)
        self._points_path, self._stop = folder / POINTS_FILE, stop
        self.metric, self.points = read_points(folder)

    def on_train_begin(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        super().on_train_begin(first_step, steps, learned, frozen)
        # what comes behind the checkpoint is measured again; what came before it, the engine has yet to be told
        self.points = [point for point in self.points if point.step <= first_step]
        for point in self.points:
            self._tell(point)

    def on_evaluate(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        super().on_evaluate(step, metric, value, loss, best)
        self.metric = metric
        self.points.append(CurvePoint(step=step, seconds=self.at(step), value=value, loss=loss))
        with map_write_errors(self._points_path):
            points = [point.model_dump() for point in self.points]
            replace_file(self._points_path, json.dumps(seal({"metric": metric, "points": points})).encode())
        self._tell(self.points[-1])

    def _tell(self, point: CurvePoint) -> None:
        if self._stop(point.step, compute_objective(point.value, point.loss)):
            raise TrialPruned


def read_points(folder: Path) -> tuple[str | None, list[CurvePoint]]:
    """The metric and the evaluations of an unfinished run, as far as they were kept."""
    try:
        kept = read_sealed(folder / POINTS_FILE)
    except FileNotFoundError:
        return None, []
    except (OSError, ValueError) as error:
        raise OutputError(
            f"'{folder / POINTS_FILE}' is damaged: {error}; remove '{folder}', and it begins anew"
        ) from error
    return kept["metric"], [CurvePoint.model_validate(point) for point in kept["points"]]


def run_trial(
    folder: SweepFolder,
    number: int,
    settings: Mapping[str, PlainValue],
    fixed: TrainConfig,
    base: FrozenLM,
    task: Task,
    stop: ShouldPrune,
    callback: Callback,
) -> SweepTrial:
    """Learn, or go on learning, with these settings; land the trial, and its prompt if it came to its end.

    Whatever the trial fails with is its result. OutputError: the folder cannot be written.
    """
    name = trial_name(number)
    unfinished = folder.unfinished(name)
    watch = TrialCallback(callback, unfinished, stop)
    error: str | None = None
    fitted: FittedBaseline | None = None
    status: Literal["finished", "pruned", "failed"] = "finished"
    try:
        config = build_trial_config(fixed, settings)
        own = limit_length(task, config)
        config = config.model_copy(update={"max_length": own.spec.max_length})
        (outcome,) = learn_prompts(base, own, {"": config}, watch, unfinished)
        if not isinstance(outcome, FittedBaseline):
            raise outcome
        fitted = outcome
    except TrialPruned:
        status = "pruned"
    except OutputError:
        raise
    except Exception as failure:
        status, error = "failed", error_line(failure)
    if error is not None:
        # a traceback may have held what the next trial needs the memory for
        gc.collect()
        if base.device.type == "cuda":
            torch.cuda.empty_cache()
    if fitted is not None:
        saved = unfinished / "saved"
        shutil.rmtree(saved, ignore_errors=True)
        fitted.save(saved)
        folder.put(saved, folder.artifact(name))
    trial = make_trial(number, settings, status, watch.metric, watch.points, error)
    if fitted is not None:
        trial = trial.model_copy(
            update={
                "value": fitted.best_value,
                "loss": fitted.best_loss,
                "best_step": fitted.settings["best_step"],
                "steps_made": fitted.settings["steps_made"],
                "seconds": fitted.seconds,
            }
        )
    folder.land_trial(trial)
    return trial


def make_trial(
    number: int,
    settings: Mapping[str, PlainValue],
    status: Literal["finished", "pruned", "failed", "repeated"],
    metric: str | None = None,
    points: list[CurvePoint] | None = None,
    error: str | None = None,
    **more: Any,
) -> SweepTrial:
    """A trial as far as its evaluations tell of it."""
    best = max(points or (), key=lambda point: compute_objective(point.value, point.loss), default=None)
    reached = {} if best is None else {"value": best.value, "loss": best.loss, "best_step": best.step}
    return SweepTrial(
        number=number,
        status=status,
        settings=dict(settings),
        error=error,
        metric=metric,
        curve=tuple(points or ()),
        steps_made=points[-1].step if points else 0,
        seconds=points[-1].seconds if points else 0.0,
        versions=read_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        **{**reached, **more},
    )
