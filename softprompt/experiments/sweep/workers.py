"""Trials in several processes of this machine, each with a base model of its own."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection, get_context
from typing import Any, TypeAlias

from softprompt.errors import BaseModelError, OutputError, SoftpromptError
from softprompt.experiments.sweep.local_backend import PruningStudy
from softprompt.experiments.sweep.sweep_folder import SweepFolder, SweepTrial, trial_name
from softprompt.experiments.sweep.trial import make_trial, read_points, run_trial
from softprompt.experiments.sweep.trial_log import TrialLog
from softprompt.experiments.sweep.worker_data import WorkerData
from softprompt.training.callbacks import Callback

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
    number: int | None = None


def run_in_processes(log: TrialLog, workers: int) -> None:
    """Run what is missing, ``workers`` trials at a time.

    Raises:
        BaseModelError, OutputError: a worker cannot load the model, or not write. One that dies costs its trial only.
    """
    pool = _WorkerPool(log)
    try:
        for slot in range(min(workers, log.missing)):
            pool.start_worker(slot, workers)
        while pool.busy:
            pool.handle_messages()
    finally:
        pool.shut_down()


class _WorkerPool:
    def __init__(self, log: TrialLog) -> None:
        self._log, self._source = log, WorkerData.of(log)
        self._study = PruningStudy(log.sampler, log.settings, log.landed)
        self._workers: dict[int, _Worker] = {}
        self._size = 1

    @property
    def busy(self) -> bool:
        """Whether trials are being run."""
        return bool(self._workers)

    def start_worker(self, slot: int, size: int) -> None:
        """Start a worker and give it a trial, if there is one left."""
        import torch

        self._size = size
        begun = self._log.start()
        if begun is None:
            return
        # a forked process cannot use what the libraries set up in this one
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        threads = max(1, torch.get_num_threads() // size)
        process = context.Process(target=work, args=(theirs, self._source, slot, threads), daemon=True)
        process.start()
        theirs.close()
        self._workers[slot] = _Worker(process, ours)
        self._assign(slot, begun)

    def handle_messages(self) -> None:
        """Wait for a message, or a death, and see to it."""
        ready = connection.wait([worker.pipe for worker in self._workers.values()])
        for slot, worker in [(slot, worker) for slot, worker in self._workers.items() if worker.pipe in ready]:
            try:
                kind, what = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                self._replace(slot)
                continue
            self._handle(slot, kind, what)

    def shut_down(self) -> None:
        """End all workers."""
        for worker in self._workers.values():
            worker.pipe.close()
            worker.process.terminate()
            worker.process.join()
        self._workers = {}

    def _handle(self, slot: int, kind: str, what: Any) -> None:
        worker, log = self._workers[slot], self._log
        assert worker.number is not None
        if kind == "evaluated":
            worker.pipe.send(self._study.should_prune(worker.number, *what))
        elif kind == "noted":
            log.callback.on_message(f"trial {worker.number}: {what}")
        elif kind == "broken":
            writing, line = what
            raise OutputError(line) if writing else BaseModelError(line)
        else:
            trial = log.folder.trial(worker.number)
            assert trial is not None
            self._end(trial)
            if (begun := log.start()) is not None:
                self._assign(slot, begun)
            else:
                worker.pipe.close()
                worker.process.join()
                del self._workers[slot]

    def _assign(self, slot: int, begun: tuple[int, Any]) -> None:
        worker = self._workers[slot]
        worker.number = begun[0]
        self._study.begin(*begun)
        worker.pipe.send(begun)

    def _replace(self, slot: int) -> None:
        """A worker has died: its trial failed, unless that landed; another one takes its place."""
        worker = self._workers.pop(slot)
        worker.process.join()
        assert worker.number is not None
        code = worker.process.exitcode
        how = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        line = f"its process died ({how}): if it was for memory, --workers or --batch-size may be too large"
        self._end(record_dead_trial(self._log.folder, worker.number, self._log.running[worker.number], line))
        self.start_worker(slot, self._size)

    def _end(self, trial: SweepTrial) -> None:
        self._study.end(trial)
        self._log.ended(trial)


def record_dead_trial(folder: SweepFolder, number: int, settings: Any, line: str) -> SweepTrial:
    """Land a trial whose process died before it could, with what is known of it; or what it landed, if it did."""
    landed = folder.trial(number)
    if landed is None:
        metric, points = read_points(folder.unfinished(trial_name(number)))
        landed = make_trial(number, settings, "failed", metric, points, line)
        folder.land_trial(landed)
    return landed
