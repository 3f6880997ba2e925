"""Trials on this machine: one after the other on the model that is loaded already, or in several processes."""

from collections.abc import Callable
from typing import Any

from softprompt.experiments.sweep.search_space import PlainValue
from softprompt.experiments.sweep.sweep_folder import SweepTrial
from softprompt.experiments.sweep.trial import run_trial
from softprompt.experiments.sweep.trial_log import TrialLog
from softprompt.experiments.sweep.trial_sampler import compute_objective, open_study, optuna_module
from softprompt.models.frozen_lm import FrozenLM


class PruningStudy:
    """The study that evaluations are reported to, and that says which trials to give up."""

    def __init__(self, ledger: TrialLog) -> None:
        """The engine's view is made anew from what landed: it never says anything else."""
        self._optuna, self._proposals = optuna_module(), ledger.proposals
        least = ledger.terms.fixed.eval_every
        self._study = open_study(ledger.folder.journal, ledger.terms.pruning, least, anew=True)
        self._proposals.tell(self._study, ledger.landed)
        self._trials: dict[int, Any] = {}

    def begin(self, number: int, settings: dict[str, PlainValue]) -> None:
        """A trial begins."""
        self._study.enqueue_trial(settings, user_attrs={"number": number})
        self._trials[number] = self._study.ask(self._proposals.distributions())

    def evaluated(self, number: int, step: int, value: float) -> bool:
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


def run_here(ledger: TrialLog, base: FrozenLM) -> None:
    """Run what is missing, all of it on ``base``."""
    reports = PruningStudy(ledger)
    while (begun := ledger.start()) is not None:
        number, settings = begun
        reports.begin(number, settings)
        trial = run_trial(
            ledger.folder,
            number,
            settings,
            ledger.terms.fixed,
            base,
            ledger.task,
            _stop(reports, number),
            ledger.callback,
        )
        reports.end(trial)
        ledger.ended(trial)


def _stop(reports: PruningStudy, number: int) -> Callable[[int, float], bool]:
    return lambda step, value: reports.evaluated(number, step, value)
