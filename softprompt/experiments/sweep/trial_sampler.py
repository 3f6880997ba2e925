"""What to try next: Optuna's Tree-structured Parzen Estimator (Bergstra et al. 2011), and its rules for giving up.

A proposal is a pure function of the seed, its number and the trials that landed before: a sweep that was killed goes on
with the trials of an unbroken one. So each number has a sampler of its own; a single one's random numbers would start
anew with the process.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from softprompt.errors import MissingExtraError
from softprompt.experiments.sweep.search_space import Choice, PlainValue, SearchSpace
from softprompt.experiments.sweep.sweep_folder import SweepTrial

Pruning: TypeAlias = Literal["median", "asha", "none"]

STARTUP_TRIALS = 10  # drawn at random, before the sampler has something to go by (Optuna's default)
FULL_RUNS = 4  # trials that run to their end before any is given up


def optuna_module() -> Any:
    """Import Optuna, silent; MissingExtraError where it is not installed."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise MissingExtraError("optuna", "sweep") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class TrialSampler:
    """Proposes the settings of trials, by number."""

    def __init__(self, space: SearchSpace, usual: Mapping[str, PlainValue] | None, trials: int, seed: int) -> None:
        """
        Args:
            usual: settings to try first, if they lie in the space.
            trials: how many are asked for; a space that has no more combinations is tried through instead.
        """
        self._optuna, self._space, self._make_seed = optuna_module(), space, seed
        self._usual = usual
        self._all = self._list_combinations() if trials >= space.size else None
        self._trials = trials

    def count(self, landed: Sequence[SweepTrial]) -> int:
        """How many trials there are in all, after those that landed."""
        if self._all is None:
            return self._trials
        # some that were proposed while fewer were asked for may be repetitions
        tried = [trial.settings for trial in landed]
        return len(landed) + sum(settings not in tried for settings in self._all)

    def propose(
        self, number: int, landed: Sequence[SweepTrial], running: Mapping[int, Mapping[str, PlainValue]]
    ) -> dict[str, PlainValue]:
        """The settings of trial ``number``.

        Args:
            running: settings of trials that have not landed, by number; they are taken for bad ones, so that trials
                beside each other differ ("constant liar").
        """
        if self._all is not None:
            taken = [*(trial.settings for trial in landed), *running.values()]
            return next((settings for settings in self._all if settings not in taken), self._all[0])
        if number == 0 and self._usual is not None:
            return dict(self._usual)
        optuna = self._optuna
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=STARTUP_TRIALS, seed=_make_seed(self._make_seed, number), constant_liar=bool(running)
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        self.tell(study, landed)
        distributions = self.distributions()
        for settings in running.values():
            study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.RUNNING, params=dict(settings), distributions=distributions
                )
            )
        return {name: self._round(name, value) for name, value in study.ask(distributions).params.items()}

    def _round(self, name: str, value: PlainValue) -> PlainValue:
        """Four digits of a number are enough to choose by, and can be read."""
        axis = self._space.axes[name]
        if isinstance(axis, Choice) or axis.whole:
            return value
        return min(max(float(f"{value:.4g}"), axis.low), axis.high)

    def tell(self, study: Any, landed: Sequence[SweepTrial]) -> None:
        """Add trials that landed to a study."""
        optuna = self._optuna
        states = {
            "finished": optuna.trial.TrialState.COMPLETE,
            "pruned": optuna.trial.TrialState.PRUNED,
            "failed": optuna.trial.TrialState.FAIL,
        }
        by_number = {trial.number: trial for trial in landed}
        for trial in landed:
            told = trial if trial.same_as is None else by_number[trial.same_as]
            state = states[told.status]
            study.add_trial(
                optuna.trial.create_trial(
                    state=state,
                    params=trial.settings,
                    distributions=self.distributions(),
                    value=None if told.status != "finished" else compute_objective(told.value, told.loss),
                    intermediate_values={
                        point.step: compute_objective(point.value, point.loss) for point in told.curve
                    },
                )
            )

    def distributions(self) -> dict[str, Any]:
        """The space, as Optuna has it."""
        kinds = self._optuna.distributions
        found: dict[str, Any] = {}
        for name, axis in self._space.axes.items():
            if isinstance(axis, Choice):
                found[name] = kinds.CategoricalDistribution(axis.values)
            else:
                kind = kinds.IntDistribution if axis.whole else kinds.FloatDistribution
                found[name] = kind(axis.low, axis.high, log=axis.log)
        return found

    def _list_combinations(self) -> list[dict[str, PlainValue]]:
        found = list(self._space.combinations())
        if self._usual is not None:
            # the usual first, as elsewhere; whatever else the settings are called, equal ones are equal
            found.sort(key=lambda settings: settings != self._usual)
        return found


def make_pruner(pruning: Pruning, least: int = 1) -> Any:
    """Optuna's rule for giving a trial up.

    ``median``: its best is below the median of what finished trials had at the same step. ``asha``: it is not among the
    best third of those that came as far (Li et al. 2020); ``least`` steps are made in any case.
    """
    optuna = optuna_module()
    if pruning == "none":
        return optuna.pruners.NopPruner()
    if pruning == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=FULL_RUNS)
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=3)


def compute_objective(value: float | None, loss: float | None) -> float:
    """One number for the engines, more being better: the metric, and among equals the lower loss.

    The loss moves it by less than a millionth, which no share of right answers over a validation split comes near.
    """
    assert value is not None
    assert loss is not None
    return value - 1e-6 * loss / (1 + abs(loss))


def _make_seed(seed: int, number: int) -> int:
    """Another one for each trial; NumPy takes 32 bits."""
    return (seed * 1_000_003 + number) % 2**32
