"""Trials on a Ray cluster: Ray Tune places them on nodes, gives them up, and sees processes die.

The proposals are those of any sweep, and so is the folder, which all nodes must see. Ray's own files are for its use
while it runs; nothing is read back from them, since they are pickles.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from softprompt.errors import BaseModelError, MissingExtraError, SoftpromptError
from softprompt.experiments.sweep.sweep_folder import SweepTrial, trial_name
from softprompt.experiments.sweep.trial import make_trial, read_points, run_trial
from softprompt.experiments.sweep.trial_log import TrialLog
from softprompt.experiments.sweep.trial_sampler import FULL_RUNS, Pruning
from softprompt.experiments.sweep.worker_data import WorkerData
from softprompt.experiments.sweep.workers import record_dead_trial
from softprompt.models.frozen_lm import FrozenLM
from softprompt.training.callbacks import Callback
from softprompt.utils.files import replace_file

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0"}
STORE_BYTES = 100_000_000  # of Ray's object store on one machine: the task's examples are all that goes in there
BROKEN_FILE = "learning/broken.txt"
METRIC, STEP = "objective", "step"

_bases: dict[int, FrozenLM] = {}


def ray_module() -> Any:
    """Import Ray with Tune; MissingExtraError where it is not installed."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.tune
    except ModuleNotFoundError as error:
        raise MissingExtraError("ray[tune]", "ray") from error
    return ray


def run_on_ray(ledger: TrialLog, workers: int) -> None:
    """Run what is missing, ``workers`` trials at a time, each on a GPU where the cluster has any.

    The cluster is that of ``RAY_ADDRESS``; without it one is started here, and ended again.

    Raises:
        BaseModelError: the first trials' processes could not load the base model.
    """
    ray = ray_module()
    with _cluster(ray, workers):
        tune = ray.tune
        source = ray.put(WorkerData.of(ledger))

        def trainable(config: dict[str, Any]) -> None:
            run_on_node(config, ray.get(source))

        on_gpu = ray.cluster_resources().get("GPU", 0) and not str(ledger.terms.options.get("device")).startswith("cpu")
        place = (ledger.folder.path / "learning" / ".ray").absolute()
        (ledger.folder.path / BROKEN_FILE).unlink(missing_ok=True)
        search = _search(tune, ledger)
        try:
            # standard output is for the result alone
            with contextlib.redirect_stdout(sys.stderr):
                tuner = tune.Tuner(
                    tune.with_resources(trainable, {"cpu": 1, **({"gpu": 1} if on_gpu else {})}),
                    tune_config=tune.TuneConfig(
                        metric=METRIC,
                        mode="max",
                        search_alg=search,
                        scheduler=_scheduler(tune, ledger.terms.pruning, ledger.terms.fixed.eval_every),
                        num_samples=ledger.missing,
                        max_concurrent_trials=workers,
                        # a process keeps the base model that it has loaded for the trials to come
                        reuse_actors=True,
                    ),
                    run_config=tune.RunConfig(name="sweep", storage_path=str(place), verbose=0),
                )
                tuner.fit()
        finally:
            shutil.rmtree(place, ignore_errors=True)
        if search.broken is not None:
            raise BaseModelError(search.broken)


def run_on_node(config: Mapping[str, Any], source: WorkerData) -> None:
    """A trial, in a process of the cluster."""
    from ray import tune

    if not _bases:
        try:
            _bases[0] = source.load()
        except SoftpromptError as error:
            # no fault of this trial's: the others would end alike
            replace_file(source.place / BROKEN_FILE, str(error).encode())
            raise

    def stop(step: int, value: float) -> bool:
        # Ray ends the thread in here if it gives the trial up
        tune.report({STEP: step, METRIC: value})
        return False

    trial = run_trial(
        source.folder, config["number"], config["settings"], source.config, _bases[0], source.task, stop, Callback()
    )
    if not trial.curve:
        # Tune wants to hear of every trial at least once
        tune.report({STEP: 0, METRIC: float("-inf")})


@contextmanager
def _cluster(ray: Any, workers: int) -> Iterator[None]:
    address = os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"configure_logging": False, "log_to_driver": False}
    if address:
        ray.init(address=address, **quiet)
    else:
        # never a cluster that somebody else has left running here
        ray.init(address="local", num_cpus=workers, include_dashboard=False, object_store_memory=STORE_BYTES, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def _scheduler(tune: Any, pruning: Pruning, least: int) -> Any:
    """Ray's rules for giving trials up; see ``trial_sampler.make_pruner``."""
    if pruning == "none":
        return tune.schedulers.FIFOScheduler()
    if pruning == "median":
        return tune.schedulers.MedianStoppingRule(
            time_attr=STEP, grace_period=least, min_samples_required=FULL_RUNS, hard_stop=True
        )
    # a trial that came to its last step ends by itself
    return tune.schedulers.ASHAScheduler(time_attr=STEP, max_t=2**31, grace_period=least, reduction_factor=3)


def _search(tune: Any, ledger: TrialLog) -> Any:
    """The ledger as Tune asks for trials, and tells how they ended."""

    class Search(tune.search.Searcher):  # type: ignore[misc]
        def __init__(self, book: TrialLog) -> None:
            super().__init__(metric=METRIC, mode="max")
            self._book = book
            self._numbers: dict[str, int] = {}
            self.broken: str | None = None

        def __getstate__(self) -> dict[str, Any]:
            # Tune keeps a copy to go on from, which is never read: the folder has it all
            return {}

        def suggest(self, trial_id: str) -> Any:
            begun = None if self.broken else self._book.start()
            if begun is None:
                return self.FINISHED
            self._numbers[trial_id], settings = begun
            return {"number": begun[0], "settings": settings}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            number = self._numbers.pop(trial_id)
            self.broken = self.broken or _broken(self._book)
            if self.broken is None:
                self._book.ended(_landed(self._book, number, died_there=error))

        def save(self, checkpoint_path: str) -> None:
            """As above."""

        def restore(self, checkpoint_path: str) -> None:
            """As above."""

    return Search(ledger)


def _broken(ledger: TrialLog) -> str | None:
    """Why a process of the cluster could not begin, if one left word of that."""
    try:
        return (ledger.folder.path / BROKEN_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _landed(ledger: TrialLog, number: int, *, died_there: bool) -> SweepTrial:
    """What landed of a trial that has ended: by itself, given up by Ray, or dead."""
    folder, settings = ledger.folder, ledger.running[number]
    if died_there:
        return record_dead_trial(
            folder, number, settings, "its process failed or died on the cluster: was it for memory?"
        )
    landed = folder.trial(number)
    if landed is None:
        metric, points = read_points(folder.unfinished(trial_name(number)))
        landed = make_trial(number, settings, "pruned", metric, points)
        folder.land_trial(landed)
    return landed
