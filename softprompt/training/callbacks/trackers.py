"""Runs written down in the tools of others while they go, and a comparison's or sweep's as they land."""

import importlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

from softprompt.config import TrainConfig
from softprompt.data.task import Task
from softprompt.errors import ConfigError, MissingExtraError, OutputError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.training.callbacks.callback import Callback, CallbackList
from softprompt.training.callbacks.tracker_tools import TOOLS, RunDescription, Scalars, Tracker
from softprompt.training.checkpoint import CHECKPOINT_FILE, Checkpoint
from softprompt.training.validation import LOSS_ITSELF
from softprompt.utils.files import replace_file

TRACKED_FILE = "tracked.json"  # of a run's folder: the runs in other tools that it goes on with
FLUSH_SECONDS = 5.0
Track: TypeAlias = str | Sequence[str] | None
"""``wandb``, ``mlflow``, ``trackio``, ``tensorboard`` or ``tensorboard:FOLDER``; several as a list, or with commas."""


@dataclass(frozen=True)
class TrackerChoice:
    """A tool that a run is to be written down in."""

    name: str
    folder: str = ""

    def make(self) -> Tracker:
        tracker: Tracker = TOOLS[self.name][0](self.folder)
        return tracker


def parse_trackers(track: Track) -> tuple[TrackerChoice, ...]:
    """The tools named, each installed.

    Raises:
        ConfigError: an unknown tool.
        MissingExtraError: its package is not installed.
    """
    given = [track] if isinstance(track, str) else track or ()
    chosen = []
    for part in [part.strip() for one in given for part in one.split(",")]:
        name, _, folder = part.partition(":")
        if name not in TOOLS or (folder and name != "tensorboard"):
            raise ConfigError(
                f"unknown tracker '{part}': expected {', '.join(sorted(TOOLS))}, or tensorboard:FOLDER; several with "
                "commas"
            )
        try:
            importlib.import_module(TOOLS[name][1])
        except ImportError as error:
            raise MissingExtraError(name, name) from error
        chosen.append(TrackerChoice(name, folder))
    return tuple(dict.fromkeys(chosen))


def describe_run(
    base: FrozenLM, tasks: Mapping[str, Task], configs: Mapping[str, TrainConfig], out: Path | None, **more: Any
) -> RunDescription:
    """A run of ``fit`` or ``distill``: its settings, model and data."""
    first = next(iter(configs.values()))
    facts: dict[str, Any] = {**first.model_dump(), "model": base.name, "precision": base.precision, **more}
    if len(configs) > 1:
        facts["population"] = list(configs)
    for key, task in tasks.items():
        data = {"source": task.splits.source, "fingerprint": task.splits.fingerprint, "kind": task.spec.kind}
        facts[f"data {key}".strip()] = data | {"metric": task.spec.metric, "template": task.spec.template}
    return RunDescription("" if out is None else out.name, settings=flatten_settings(facts))


def flatten_settings(facts: Mapping[str, Any], before: str = "") -> dict[str, str | int | float | bool]:
    """One level: what lies deeper has its path as a name; what is nothing is left out."""
    flat: dict[str, str | int | float | bool] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            flat |= flatten_settings(value, f"{before}{name}.")
        elif isinstance(value, str | int | float | bool):
            flat[f"{before}{name}"] = value
        elif value is not None:
            flat[f"{before}{name}"] = json.dumps(value, default=str)
    return flat


def flatten_scores(metrics: Mapping[str, Mapping[str, Any]], of: str = "") -> dict[str, float]:
    """What splits were scored with, ``of`` one of several prompts: values, intervals, ``n``, other metrics."""
    flat: dict[str, float] = {}
    for split, score in metrics.items():
        name = f"final_{split}/{of}" if of else f"final_{split}"
        flat[f"{name}/n"] = score["n"]
        for one in (score, *score.get("others", {}).values()):
            key = f"{name}/{str(one['metric']).replace(' ', '_')}"
            flat |= {key: one["value"], f"{key}_low": one["low"], f"{key}_high": one["high"]}
    return {name: value for name, value in flat.items() if isinstance(value, int | float)}


def say_nothing(text: str) -> None:
    """Says nothing."""


class RunTracker(Callback):
    """Writes a run down in several tools; ``with`` closes them. What goes wrong in one ends its tracking, not the run.

    Nothing is opened before the run begins.

    Attributes:
        failed: whether the run is to be closed as one that failed; one that an error ended is.
    """

    def __init__(
        self, choices: Iterable[TrackerChoice], say: Callable[[str], None], run: RunDescription | None = None
    ) -> None:
        """``say`` is told where the tools have the run, and once of each that failed."""
        self._trackers = {choice.name: choice.make() for choice in choices}
        self._say, self._run = say, run or RunDescription()
        self._begun: set[str] = set()
        self._kept_path: Path | None = None
        self._kept: dict[str, str] = {}
        self._seen = self._step = 0
        self._flushed = time.monotonic()
        self._notes: list[str] = []
        self.failed = False

    @classmethod
    def of(cls, track: Track, callback: Callback) -> Self:
        """In the tools that are named, beside another ``callback``; raises as ``parse_trackers``."""
        return cls(parse_trackers(track), callback.on_message)

    def join(self, callback: Callback, run: RunDescription, checkpoint: Checkpoint | None = None) -> Callback:
        """``callback`` and this one together, of what is known once everything is loaded.

        ``checkpoint``: where the run can be gone on with.
        """
        self._run, self._kept_path = run, None if checkpoint is None else checkpoint.folder / TRACKED_FILE
        return CallbackList([callback, self])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for name, tracker in self._opened():
            self._attempt(name, tracker.close, kind is not None or self.failed)
        self._begun.clear()

    def on_train_begin(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        """Raises OutputError where TensorBoard's folder cannot be written."""
        facts = {"learned_parameters": learned, "frozen_parameters": frozen}
        self.begin(first_step, facts)

    def begin(self, first_step: int = 0, facts: Mapping[str, int] | None = None) -> None:
        """Open the run in all tools, or go on with it."""
        kept = self._read_kept() if first_step else {}
        self._seen, self._step = kept.pop("step", first_step), first_step
        run = RunDescription(self._run.name, self._run.group, {**self._run.settings, **(facts or {})})
        for name in list(self._trackers):
            self._attempt(name, self._open, name, run, first_step, kept.get(name, ""))
        for text in self._notes:
            self._note(text)
        self._notes = []

    def _open(self, name: str, run: RunDescription, first_step: int, key: str) -> None:
        self._kept[name], place = self._trackers[name].begin(run, first_step, key)
        self._begun.add(name)
        self._say(f"{name}: {place}")

    def on_step_end(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        values = {"loss": loss, "learning_rate": learning_rate, "examples_per_second": examples_per_second}
        self.log(step, {f"train/{name}": value for name, value in values.items()})
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def on_evaluate(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        values = {"validation/loss": loss}
        if not metric.startswith(LOSS_ITSELF):
            values[f"validation/{metric.replace(' ', '_')}"] = value
        self.log(step, values)
        self.flush()

    def on_message(self, text: str) -> None:
        if not self._begun:
            self._notes.append(text)
        self._note(text)

    def on_train_end(self) -> None:
        self.flush()

    def log(self, step: int, values: Scalars) -> None:
        """Figures of a step; those that a run which goes on has told before are not told again."""
        self._step = step
        for name, tracker in self._opened():
            if tracker.overwrites or step > self._seen:
                self._attempt(name, tracker.log, step, values)

    def flush(self) -> None:
        """Have all figures where others see them."""
        for name, tracker in self._opened():
            self._attempt(name, tracker.flush)
        self._flushed = time.monotonic()
        # a run without a checkpoint begins anew, and so does what is told of it
        if self._kept_path is not None and self._begun and (self._kept_path.parent / CHECKPOINT_FILE).exists():
            facts = {**self._kept, "step": max(self._step, self._seen)}
            self._attempt("", replace_file, self._kept_path, json.dumps(facts).encode())

    def conclude(self, values: Scalars) -> None:
        """What came of the run."""
        for name, tracker in self._opened():
            self._attempt(name, tracker.conclude, self._step, values)

    def conclude_splits(self, metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        """What the splits of each prompt were scored with, by its name."""
        for name, splits in metrics.items():
            self.conclude(flatten_scores(splits, name))

    def _note(self, text: str) -> None:
        for name, tracker in self._opened():
            self._attempt(name, tracker.note, self._step, text)

    def _opened(self) -> list[tuple[str, Tracker]]:
        return [(name, tracker) for name, tracker in self._trackers.items() if name in self._begun]

    def _attempt(self, name: str, action: Callable[..., Any], *inputs: Any) -> None:
        """Do ``action``; if it fails, the run goes on without ``name``."""
        try:
            action(*inputs)
        except OutputError:
            # a place that the user gave, before anything was learned
            if name in self._begun:
                self._give_up(name, "its place cannot be written")
            else:
                raise
        except Exception as error:
            self._give_up(name, f"{type(error).__name__}: {error}".splitlines()[0])

    def _give_up(self, name: str, reason: str) -> None:
        self._begun.discard(name)
        if self._trackers.pop(name, None) is not None:
            self._say(f"{name} does not track this run any further, which goes on: {reason}")

    def _read_kept(self) -> dict[str, Any]:
        try:
            return {} if self._kept_path is None else dict(json.loads(self._kept_path.read_bytes()))
        except (OSError, ValueError):
            return {}


@dataclass(frozen=True)
class GroupTracker:
    """Writes runs down that have ended, each as one of a group: the methods of a comparison, the trials of a sweep."""

    choices: tuple[TrackerChoice, ...] = ()
    group: str = ""
    say: Callable[[str], None] = say_nothing

    def land(
        self,
        name: str,
        settings: Mapping[str, Any],
        curve: Iterable[tuple[int, Scalars]],
        values: Scalars,
        *,
        failed: bool = False,
    ) -> None:
        """A run with its ``curve`` over steps, and what came of it."""
        if not self.choices:
            return
        run = RunDescription(name, self.group, flatten_settings(settings))
        with RunTracker(self.choices, self.say, run) as tracker:
            tracker.begin()
            for step, scalars in curve:
                tracker.log(step, {f"validation/{key}": value for key, value in scalars.items()})
            tracker.conclude(values)
            tracker.failed = failed
