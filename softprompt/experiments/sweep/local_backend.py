"""Trials on this machine, one after the other, on the model that is loaded already."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from softprompt.experiments.sweep.search_space import PlainValue
from softprompt.experiments.sweep.sweep_folder import SweepTrial
from softprompt.experiments.sweep.trial import run_trial
from softprompt.experiments.sweep.trial_log import SweepSettings, TrialLog
from softprompt.experiments.sweep.trial_sampler import TrialSampler, compute_objective, make_pruner, optuna_module
from softprompt.models.frozen_lm import FrozenLM


class PruningStudy:
    """The study that evaluations are reported to, and that says which trials to give up."""

    def __init__(self, sampler: TrialSampler, settings: SweepSettings, landed: Sequence[SweepTrial]) -> None:
        """The engine's view is made anew from what ``landed``: it never says anything else."""
        self._optuna, self._sampler = optuna_module(), sampler
        pruner = make_pruner(settings.pruning, settings.fixed.eval_every)
        self._study = self._optuna.create_study(direction="maximize", pruner=pruner)
        self._sampler.tell(self._study, landed)
        self._trials: dict[int, Any] = {}

    def begin(self, number: int, settings: dict[str, PlainValue]) -> None:
        """A trial begins."""
        self._study.enqueue_trial(settings)
        self._trials[number] = self._study.ask(self._sampler.distributions())

    def should_prune(self, number: int, step: int, value: float) -> bool:
        """A trial was evaluated; whether to give it up."""
        trial = self._trials[number]
        trial.report(value, step)
        return bool(trial.should_prune())

    def end(self, trial: SweepTrial) -> None:
        """A trial has landed."""
        states = self._optuna.trial.TrialState
        begun = self._trials.pop(trial.number)
        if trial.status == "finished":
            self._study.tell(begun, compute_objective(trial.value, trial.loss))
        else:
            self._study.tell(begun, state=states.PRUNED if trial.status == "pruned" else states.FAIL)


def run_here(log: TrialLog, base: FrozenLM) -> None:
    """Run what is missing, all of it on ``base``."""
    study = PruningStudy(log.sampler, log.settings, log.landed)
    while (begun := log.start()) is not None:
        number, settings = begun
        study.begin(number, settings)
        stop = partial(study.should_prune, number)
        trial = run_trial(log.folder, number, settings, log.settings.fixed, base, log.task, stop, log.callback)
        study.end(trial)
        log.ended(trial)
