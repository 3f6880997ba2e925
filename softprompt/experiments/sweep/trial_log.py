"""What has landed of a sweep, what is being tried, what comes next: the same book for every engine."""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from softprompt.config import TrainConfig
from softprompt.data.task import Task
from softprompt.experiments.sweep.search_space import PlainValue
from softprompt.experiments.sweep.sweep_folder import SweepFolder, SweepTrial, best_of, trial_name
from softprompt.experiments.sweep.trial import make_trial
from softprompt.experiments.sweep.trial_sampler import Pruning, TrialSampler
from softprompt.training.callbacks.callback import Callback
from softprompt.training.callbacks.trackers import GroupTracker


@dataclass(frozen=True)
class SweepSettings:
    """What is the same for all trials of a sweep.

    Attributes:
        fixed: the settings that are not in the space.
        pruning: the rule for giving trials up.
        model, options, fingerprint: the base model's name, how to load it, and what it then is: for processes that
            have to load their own.
    """

    fixed: TrainConfig
    pruning: Pruning
    model: str
    options: Mapping[str, Any]
    fingerprint: Mapping[str, str]


@dataclass
class TrialLog:
    """A sweep while it goes."""

    folder: SweepFolder
    sampler: TrialSampler
    settings: SweepSettings
    task: Task
    callback: Callback
    tracker: GroupTracker
    landed: list[SweepTrial] = field(init=False)
    running: dict[int, dict[str, PlainValue]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.landed = self.folder.landed()
        self._drop_all_but_the_best()

    @property
    def count(self) -> int:
        """Trials that are asked for."""
        return self.sampler.count(self.landed)

    @property
    def missing(self) -> int:
        """Trials that have neither landed nor begun."""
        return len(self._list_missing())

    def start(self) -> tuple[int, dict[str, PlainValue]] | None:
        """The next trial that has to be run, with its settings; ``None`` if there is none.

        Settings that have landed before are not run again: that trial is landed at once.
        """
        while missing := self._list_missing():
            number = missing[0]
            name = trial_name(number)
            settings = self.folder.notes(name).get("settings")
            if settings is None:
                settings = self.sampler.propose(number, self.landed, self.running)
                self.folder.note(name, settings=settings)
            told = ", ".join(f"{key} {value}" for key, value in settings.items())
            same = next((one for one in self.landed if one.settings == settings and one.same_as is None), None)
            if same is not None:
                self.callback.on_message(
                    f"trial {number} of {self.count}: {told}: as trial {same.number}, not run again"
                )
                again = make_trial(number, settings, "repeated", same.metric, same_as=same.number)
                again = again.model_copy(update={"value": same.value, "loss": same.loss})
                self.folder.land_trial(again)
                self.ended(again)
                continue
            self.callback.on_message(f"trial {number} of {self.count}: {told}")
            self.running[number] = settings
            return number, settings
        return None

    def ended(self, trial: SweepTrial) -> None:
        """Take note of a trial that has landed."""
        self.running.pop(trial.number, None)
        self.landed = sorted([*self.landed, trial], key=lambda one: one.number)
        name = trial_name(trial.number)
        self.folder.drop_unfinished(name)
        self.folder.forget(name)
        self._drop_all_but_the_best()
        if trial.status != "repeated":
            self._track(trial)
            self.callback.on_message(f"trial {trial.number}: {_describe_trial(trial)}")

    def _track(self, trial: SweepTrial) -> None:
        reached = {"value": trial.value, "loss": trial.loss, "best_step": trial.best_step, "seconds": trial.seconds}
        settings = {**self.settings.fixed.model_dump(exclude_unset=True), **trial.settings}
        self.tracker.land(
            f"trial {trial.number}",
            {**settings, "model": self.settings.model, "status": trial.status, "metric": trial.metric},
            [(point.step, {"value": point.value, "loss": point.loss}) for point in trial.curve],
            {f"best/{name}": float(value) for name, value in reached.items() if value is not None},
            failed=trial.status == "failed",
        )

    def _list_missing(self) -> list[int]:
        known = {trial.number for trial in self.landed} | self.running.keys()
        return [number for number in range(self.count) if number not in known]

    def _drop_all_but_the_best(self) -> None:
        best = best_of(self.landed)
        for trial in self.landed:
            if trial is not best:
                shutil.rmtree(self.folder.artifact(trial_name(trial.number)), ignore_errors=True)
        with suppress(OSError):
            (self.folder.path / "artifacts").rmdir()


def _describe_trial(trial: SweepTrial) -> str:
    if trial.status == "failed":
        return f"failed, the others go on: {trial.error}"
    reached = f"validation {trial.metric} {trial.value:.4f}, loss {trial.loss:.4f}" if trial.value is not None else ""
    return f"given up after step {trial.steps_made}: {reached}" if trial.status == "pruned" else reached
