"""Tools that runs are written down in: TensorBoard, Weights & Biases, MLflow, Trackio.

Each is asked by its own interface, so that its own environment variables (project, run name, server, offline) hold. A
run that is open already, as of a notebook that began one, is used and left open.
"""

import contextlib
import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from softprompt.errors import map_write_errors

PROJECT = "softprompt"  # where the environment names none
MOST_CHARACTERS = 500  # of a setting
Scalars: TypeAlias = Mapping[str, float]


@dataclass(frozen=True)
class RunDescription:
    """What a tool is told of a run.

    Attributes:
        name: what it is called; empty leaves it to the tool.
        group: what it belongs to, a comparison or a sweep.
        settings: what it was made with, one level.
    """

    name: str = ""
    group: str = ""
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)


class Tracker(Protocol):
    """One run in one tool. What its methods raise ends the tracking, not the run."""

    overwrites: bool
    """Whether what was written behind ``first_step`` goes when a run goes on from there."""

    def begin(self, run: RunDescription, first_step: int, key: str) -> tuple[str, str]:
        """Open the run, or go on with the one of ``key``; returns its key, and what to say of its place."""

    def log(self, step: int, values: Scalars) -> None:
        """Write down the figures of a step."""

    def flush(self) -> None:
        """Have them where others see them."""

    def note(self, step: int, text: str) -> None:
        """Write down what was said."""

    def conclude(self, step: int, values: Scalars) -> None:
        """Write down what came of it."""

    def close(self, failed: bool) -> None:
        """Close the run."""


class TensorBoardTracker:
    """Event files in ``folder``, or in a folder of the run's name beneath ``TENSORBOARD_LOGGING_DIR`` or ``runs``."""

    overwrites = True

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._writer: Any = None

    def begin(self, run: RunDescription, first_step: int, key: str) -> tuple[str, str]:
        """Raises OutputError if the folder cannot be made or written."""
        from torch.utils.tensorboard import SummaryWriter

        root = Path(self._folder or os.environ.get("TENSORBOARD_LOGGING_DIR", "runs"))
        parts = [part for part in (run.group, run.name) if part and (run.group or not self._folder)]
        folder = root.joinpath(*parts)
        with map_write_errors(folder, "give another place, --track tensorboard:FOLDER"):
            # a resumed run writes anew what came behind its checkpoint
            self._writer = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)
        rows = "".join(f"| {name} | {value} |\n" for name, value in run.settings.items())
        self._writer.add_text("run", f"| setting | value |\n|---|---|\n{rows}", first_step)
        return "", f"in '{folder}'"

    def log(self, step: int, values: Scalars) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def note(self, step: int, text: str) -> None:
        self._writer.add_text("notes", text, step)

    def conclude(self, step: int, values: Scalars) -> None:
        self.log(step, values)

    def close(self, failed: bool) -> None:
        self._writer.close()


class WandbTracker:
    """Weights & Biases: ``WANDB_PROJECT``, ``WANDB_NAME``, ``WANDB_RUN_GROUP``, ``WANDB_MODE=offline`` and others."""

    overwrites = False

    def __init__(self, folder: str) -> None:
        self._run: Any = None
        self._own = True
        self._notes: list[str] = []

    def begin(self, run: RunDescription, first_step: int, key: str) -> tuple[str, str]:
        import wandb

        if wandb.run is not None:
            self._run, self._own = wandb.run, False
            self._run.config.update(dict(run.settings), allow_val_change=True)
        else:
            names = {"project": (PROJECT, "WANDB_PROJECT"), "name": (run.name, "WANDB_NAME")}
            names["group"] = run.group, "WANDB_RUN_GROUP"
            given: dict[str, Any] = {
                name: own for name, (own, variable) in names.items() if own and variable not in os.environ
            }
            if key:
                given |= {"id": key, "resume": "allow"}
            quiet = wandb.Settings(silent=True, console="off")
            self._run = wandb.init(**given, config=dict(run.settings), settings=quiet)
        place = self._run.settings.sync_dir if self._run.offline else self._run.url
        return self._run.id, f"offline in '{place}', wandb sync sends it" if self._run.offline else f"at {place}"

    def log(self, step: int, values: Scalars) -> None:
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """It sends by itself."""

    def note(self, step: int, text: str) -> None:
        self._notes.append(text)

    def conclude(self, step: int, values: Scalars) -> None:
        self._run.summary.update(dict(values))

    def close(self, failed: bool) -> None:
        if self._own:
            self._run.notes = "\n".join(self._notes)
            self._run.finish(exit_code=int(failed))


class MlflowTracker:
    """MLflow: ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``, ``MLFLOW_RUN_ID`` and others."""

    overwrites = False

    def __init__(self, folder: str) -> None:
        self._client: Any = None
        self._key, self._own = "", True
        self._waiting: list[Any] = []
        self._notes: list[str] = []

    def begin(self, run: RunDescription, first_step: int, key: str) -> tuple[str, str]:
        import mlflow
        from mlflow.entities import Param

        self._client, active = mlflow.MlflowClient(), mlflow.active_run()
        self._own = active is None
        self._key = key or os.environ.get("MLFLOW_RUN_ID", "") or (active.info.run_id if active is not None else "")
        if self._key:
            self._client.update_run(self._key, status="RUNNING")
        else:
            tags = {"mlflow.source.name": PROJECT} | ({"group": run.group} if run.group else {})
            made = self._client.create_run(self._find_experiment(), run_name=run.name or None, tags=tags)
            self._key = made.info.run_id
        known = self._client.get_run(self._key).data.params
        told = {_clean(name): str(value)[:MOST_CHARACTERS] for name, value in run.settings.items()}
        params = [Param(name, value) for name, value in told.items() if name not in known]
        for start in range(0, len(params), 100):
            self._client.log_batch(self._key, params=params[start : start + 100])
        return self._key, f"run {self._key} at {mlflow.get_tracking_uri()}"

    def _find_experiment(self) -> str:
        if "MLFLOW_EXPERIMENT_ID" in os.environ:
            return os.environ["MLFLOW_EXPERIMENT_ID"]
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self._client.create_experiment(name))

    def log(self, step: int, values: Scalars) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(_clean(name), float(value), now, step) for name, value in values.items()]

    def flush(self) -> None:
        while part := self._waiting[:1000]:
            self._client.log_batch(self._key, metrics=part)
            del self._waiting[: len(part)]

    def note(self, step: int, text: str) -> None:
        self._notes.append(text)

    def conclude(self, step: int, values: Scalars) -> None:
        self.log(step, values)
        self.flush()

    def close(self, failed: bool) -> None:
        self.flush()
        if self._notes:
            self._client.set_tag(self._key, "mlflow.note.content", "\n\n".join(self._notes)[:5000])
        if self._own:
            self._client.set_terminated(self._key, "FAILED" if failed else "FINISHED")


class TrackioTracker:
    """Trackio: ``TRACKIO_PROJECT``, ``TRACKIO_DIR``, ``TRACKIO_SPACE_ID`` and others."""

    overwrites = False

    def __init__(self, folder: str) -> None:
        self._run: Any = None

    def begin(self, run: RunDescription, first_step: int, key: str) -> tuple[str, str]:
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        # it prints what it has to say, and standard output is for results
        with contextlib.redirect_stdout(sys.stderr):
            import trackio

            self._run = trackio.init(
                project=project,
                name=key or run.name or None,
                group=run.group or None,
                config=dict(run.settings),
                resume="allow" if key else "never",
                embed=False,
            )
        return self._run.name, f"project {project}: trackio show --project {project}"

    def log(self, step: int, values: Scalars) -> None:
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """It sends by itself."""

    def note(self, step: int, text: str) -> None:
        """It has no place for notes."""

    def conclude(self, step: int, values: Scalars) -> None:
        self.log(step, values)

    def close(self, failed: bool) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()


def _clean(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w\-./ ]", "_", name)


# by name: the class, and the module that has to be there
TOOLS: Mapping[str, tuple[Any, str]] = {
    "tensorboard": (TensorBoardTracker, "torch.utils.tensorboard"),
    "wandb": (WandbTracker, "wandb"),
    "mlflow": (MlflowTracker, "mlflow"),
    "trackio": (TrackioTracker, "trackio"),
}
