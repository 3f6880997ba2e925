"""Trials in several processes of this machine, each with a base model of its own."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection, get_context
from typing import Any, TypeAlias

from softprompt.errors import BaseModelError, OutputError, SoftpromptError
from softprompt.experiments.sweep.local_backend import PruningStudy
from softprompt.experiments.sweep.sweep_folder import SweepTrial, trial_name
from softprompt.experiments.sweep.trial import make_trial, read_points, run_trial
from softprompt.experiments.sweep.trial_log import TrialLog
from softprompt.experiments.sweep.worker_data import WorkerData
from softprompt.training.callbacks.callback import Callback

Message: TypeAlias = tuple[str, Any]
"""Of a worker: evaluated (step and objective; it waits for the answer), noted, landed (its number), broken (a line)."""


class _Relay(Callback):
    """Passes a run's notes and evaluations to the process that shows them."""

    def __init__(self, send: Callable[[str], None]) -> None:
        self._send = send

    def on_evaluate(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        self._send(f"step {step}  validation {metric} {value:.4f}  loss {loss:.4f}")

    def on_message(self, text: str) -> None:
        self._send(text)


def work(pipe: Any, source: WorkerData, slot: int, threads: int) -> None:
    """A worker: settings in, messages out, until the pipe is closed."""
    import torch

    torch.set_num_threads(threads)
    try:
        relay = _Relay(lambda text: pipe.send(("noted", text)))
        base, task, fixed, folder = source.load(slot), source.task, source.settings.fixed, source.folder
        while True:
            number, settings = pipe.recv()

            def stop(step: int, value: float) -> bool:
                pipe.send(("evaluated", (step, value)))
                return bool(pipe.recv())

            run_trial(folder, number, settings, fixed, base, task, stop, relay)
            pipe.send(("landed", number))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        # whoever started it has ended
        os._exit(0)
    except SoftpromptError as error:
        pipe.send(("broken", (isinstance(error, OutputError), str(error))))


@dataclass
class _Worker:
    process: Any
    pipe: Any
    number: int = -1


def run_in_processes(log: TrialLog, workers: int) -> None:
    """Run what is missing, ``workers`` trials at a time.

    Raises:
        BaseModelError, OutputError: a worker cannot load the model, or not write. One that dies costs its trial only.
    """
    pool = _WorkerPool(log, workers)
    try:
        for slot in range(min(workers, log.missing)):
            pool.start_worker(slot)
        while pool.workers:
            ready = connection.wait([worker.pipe for worker in pool.workers.values()])
            for slot, worker in list(pool.workers.items()):
                if worker.pipe in ready:
                    pool.handle_message(slot, worker)
    finally:
        for worker in pool.workers.values():
            worker.pipe.close()
            worker.process.terminate()
            worker.process.join()


class _WorkerPool:
    def __init__(self, log: TrialLog, size: int) -> None:
        self._log, self._data, self._size = log, WorkerData.of(log), size
        self._study = PruningStudy(log.sampler, log.settings, log.landed)
        self.workers: dict[int, _Worker] = {}

    def start_worker(self, slot: int) -> None:
        """Start a worker and give it a trial, if there is one left."""
        import torch

        if (begun := self._log.start()) is None:
            return
        # a forked process cannot use what the libraries set up in this one
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        threads = max(1, torch.get_num_threads() // self._size)
        process = context.Process(target=work, args=(theirs, self._data, slot, threads), daemon=True)
        process.start()
        theirs.close()
        self.workers[slot] = _Worker(process, ours)
        self._assign(self.workers[slot], begun)

    def handle_message(self, slot: int, worker: _Worker) -> None:
        """See to a message, or to a death: its trial failed, unless that landed, and another worker takes its place."""
        log = self._log
        try:
            kind, what = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            del self.workers[slot]
            worker.process.join()
            code = worker.process.exitcode
            how = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            line = f"its process died ({how}): if it was for memory, --workers or --batch-size may be too large"
            self._end_trial(find_landed(log, worker.number, line))
            self.start_worker(slot)
            return
        if kind == "evaluated":
            worker.pipe.send(self._study.should_prune(worker.number, *what))
        elif kind == "noted":
            log.callback.on_message(f"trial {worker.number}: {what}")
        elif kind == "broken":
            writing, line = what
            raise OutputError(line) if writing else BaseModelError(line)
        else:
            self._end_trial(find_landed(log, worker.number, ""))
            if (begun := log.start()) is not None:
                self._assign(worker, begun)
            else:
                worker.pipe.close()
                worker.process.join()
                del self.workers[slot]

    def _assign(self, worker: _Worker, begun: tuple[int, Any]) -> None:
        worker.number = begun[0]
        self._study.begin(*begun)
        worker.pipe.send(begun)

    def _end_trial(self, trial: SweepTrial) -> None:
        self._study.end(trial)
        self._log.ended(trial)


def find_landed(log: TrialLog, number: int, line: str) -> SweepTrial:
    """What landed of a trial; with what is known of it, if its process died before it could."""
    landed = log.folder.trial(number)
    if landed is None:
        metric, points = read_points(log.folder.unfinished(trial_name(number)))
        landed = make_trial(number, log.running[number], "failed", metric, points, line)
        log.folder.land_trial(landed)
    return landed
