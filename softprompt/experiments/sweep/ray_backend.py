"""Trials on a Ray cluster: as many actors as trials at a time, on whichever node, each with a base model of its own.

Settings are proposed and trials given up as in any sweep, and so is the folder, which all nodes must see.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from softprompt.errors import BaseModelError, MissingExtraError, OutputError, SoftpromptError
from softprompt.experiments.sweep.local_backend import PruningStudy
from softprompt.experiments.sweep.search_space import PlainValue
from softprompt.experiments.sweep.trial import run_trial
from softprompt.experiments.sweep.trial_log import TrialLog
from softprompt.experiments.sweep.worker_data import WorkerData
from softprompt.experiments.sweep.workers import find_landed
from softprompt.models.frozen_lm import FrozenLM
from softprompt.training.callbacks.callback import Callback

STORE_BYTES = 100_000_000  # of Ray's object store on one machine: the task's examples are all that goes in there


def ray_module() -> Any:
    """Import Ray; MissingExtraError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtraError("ray", "ray") from error
    return ray


class TrialActor:
    """Runs trials in a process of the cluster."""

    def __init__(self, data: WorkerData, study: Any) -> None:
        """``study``: the actor of the ``PruningStudy``."""
        self._data, self._study = data, study
        self._base: FrozenLM | None = None

    def run(self, number: int, settings: dict[str, PlainValue]) -> SoftpromptError | None:
        """Land a trial; what no other trial could do without either is returned."""
        import ray

        def stop(step: int, value: float) -> bool:
            return bool(ray.get(self._study.should_prune.remote(number, step, value)))

        data = self._data
        try:
            self._base = self._base or data.load()
            run_trial(data.folder, number, settings, data.settings.fixed, self._base, data.task, stop, Callback())
        except OutputError as error:
            return OutputError(str(error))
        except SoftpromptError as error:
            return BaseModelError(str(error))
        return None


def run_on_ray(log: TrialLog, workers: int) -> None:
    """Run what is missing, ``workers`` trials at a time, each on a GPU where the cluster has any.

    The cluster is that of ``RAY_ADDRESS``; without it one is started here, and ended again.

    Raises:
        BaseModelError, OutputError: a process cannot load the model, or not write. One that dies costs its trial only.
    """
    ray = ray_module()
    # standard output is for the result alone
    with contextlib.redirect_stdout(sys.stderr), _open_cluster(ray, workers):
        on_gpu = ray.cluster_resources().get("GPU", 0) and not str(log.settings.options.get("device")).startswith("cpu")
        study = ray.remote(num_cpus=0)(PruningStudy).remote(log.sampler, log.settings, log.landed)
        actors, data = ray.remote(num_cpus=1, num_gpus=int(bool(on_gpu)))(TrialActor), ray.put(WorkerData.of(log))
        idle: list[Any] = []
        running: dict[Any, tuple[Any, int]] = {}
        while True:
            while len(running) < workers and (begun := log.start()) is not None:
                # a process keeps the base model that it has loaded for the trials to come
                actor = idle.pop() if idle else actors.remote(data, study)
                ray.get(study.begin.remote(*begun))
                running[actor.run.remote(*begun)] = actor, begun[0]
            if not running:
                return
            (done, *_), _ = ray.wait(list(running))
            actor, number = running.pop(done)
            try:
                failure = ray.get(done)
                idle.append(actor)
            except ray.exceptions.RayError:
                failure = None
            if failure is not None:
                raise failure
            line = "its process failed or died on the cluster: was it for memory?"
            trial = find_landed(log, number, line)
            ray.get(study.end.remote(trial))
            log.ended(trial)


@contextmanager
def _open_cluster(ray: Any, workers: int) -> Iterator[None]:
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
