"""softprompt's own methods in a comparison: several runs in the same passes, resumable within the run."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from softprompt.base import FrozenLM
from softprompt.baselines.fitted import Fitted, bytes_of, prefix_bytes
from softprompt.checkpoint import Checkpoint
from softprompt.config import TrainConfig
from softprompt.errors import OutputError, SoftpromptError, TrainingError
from softprompt.fit import best_prompt, open_run
from softprompt.folders import put_file
from softprompt.predict import Predictor
from softprompt.progress import Silent
from softprompt.sealed import read_sealed, sealed
from softprompt.task import Task
from softprompt.train import Observer, TrainingResult, train_together

CLOCK_FILE = "clock.json"
NO_NUMBER = "the loss is not a number: try a lower rate, or --dtype float32"
KEEP_EVERY = 25  # steps between two writings of the clock


def learn_prompts(
    base: FrozenLM, task: Task, configs: Mapping[str, TrainConfig], observer: Observer, folder: Path
) -> list[Fitted | SoftpromptError]:
    """Learn together, going on from where a process before left off; the seconds of each are its share of them all."""
    with _run(folder / "prompts", base, task, configs, observer) as checkpoint:
        clock = Clock(observer, folder / CLOCK_FILE)
        try:
            outcomes = train_together(base, task, configs, clock, checkpoint)
        except TrainingError:
            return [TrainingError(NO_NUMBER)] * len(configs)
    return [
        TrainingError(NO_NUMBER) if outcome.failed else _fitted(base, task, config, outcome, clock, len(configs))
        for config, outcome in zip(configs.values(), outcomes, strict=True)
    ]


def _run(out: Path, base: FrozenLM, task: Task, configs: Mapping[str, TrainConfig], observer: Observer) -> Checkpoint:
    """The checkpoint of this run; one that cannot be gone on with here (other versions, threads) is thrown away."""
    run = open_run(out, base, {"": task}, configs, resume=True, restart=False, observer=Silent())
    try:
        run.load()
    except TrainingError as error:
        observer.noted(f"begins anew: {error}")
        shutil.rmtree(run.folder)
    return run


def _fitted(
    base: FrozenLM, task: Task, config: TrainConfig, outcome: TrainingResult, clock: "Clock", together: int
) -> Fitted:
    answers = Predictor(base, task.spec, outcome.state)
    curve = tuple(
        {
            "step": int(point["step"]),
            "seconds": clock.at(int(point["step"])) / together,
            "value": point["value"],
            "loss": point["validation_loss"],
        }
        for point in outcome.history
    )

    def save(folder: Path) -> None:
        best_prompt(base, task, {"": config}, [outcome], ensemble=False).save(folder)

    return Fitted(
        answers=answers,
        trained_parameters=outcome.learned,
        curve=curve,
        seconds=clock.at(outcome.steps) / together,
        best_value=outcome.value,
        best_loss=outcome.loss,
        settings={
            **config.model_dump(exclude_unset=True),
            "learning_rate": config.learning_rate,
            "best_step": outcome.best_step,
            "steps_made": outcome.steps,
            "learned_together": together,
        },
        added_tokens=float(outcome.state.length),
        base_bytes=bytes_of(base.model),
        base_shared=True,
        task_bytes=prefix_bytes(answers.prefix),
        save=save,
    )


class Clock:
    """An observer that passes a run on to another one, and knows the seconds at which each step was reached.

    They are kept in a file, so that a run that went on in another process has the time before too.
    """

    def __init__(self, observer: Observer, path: Path | None) -> None:
        """``path`` of the file; ``None``: the run has none, and stays in this process."""
        self._observer, self._path = observer, path
        self._seconds: dict[int, float] = {0: 0.0}
        if path is not None and path.exists():
            try:
                kept = read_sealed(path)
            except (OSError, ValueError) as error:
                raise OutputError(
                    f"'{path}' is damaged: {error}; remove '{path.parent}', and it begins anew"
                ) from error
            self._seconds |= {int(step): seconds for step, seconds in kept.items()}
        self._zero = time.perf_counter()

    def at(self, step: int) -> float:
        """Seconds from the beginning to the end of ``step``, as far as they are known."""
        return self._seconds[max(known for known in self._seconds if known <= step)]

    def started(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        self._zero = time.perf_counter() - self.at(first_step)
        self._seconds = {step: seconds for step, seconds in self._seconds.items() if step <= first_step}
        self._observer.started(first_step, steps, learned, frozen)

    def stepped(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        self._reached(step, keep=step % KEEP_EVERY == 0)
        self._observer.stepped(step, loss, learning_rate, examples_per_second)

    def evaluated(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        self._reached(step, keep=True)
        self._observer.evaluated(step, metric, value, loss, best)

    def noted(self, text: str) -> None:
        self._observer.noted(text)

    def finished(self) -> None:
        self._observer.finished()

    def _reached(self, step: int, *, keep: bool) -> None:
        self._seconds[step] = time.perf_counter() - self._zero
        if keep and self._path is not None:
            put_file(self._path, json.dumps(sealed(self._seconds)).encode())
