"""What a process needs to run trials by itself: where the sweep lies, the task, and the base model by its name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompt.data.splits import Splits
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import ConfigError
from softprompt.experiments.sweep.sweep_folder import SweepFolder
from softprompt.experiments.sweep.trial_log import SweepSettings, TrialLog
from softprompt.metrics.user_metrics import import_metric
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model


@dataclass(frozen=True)
class WorkerData:
    """Plain values alone, to be sent to another process."""

    place: Path
    settings: SweepSettings
    spec: dict[str, Any]
    splits: Splits
    task_name: str

    @classmethod
    def of(cls, log: TrialLog) -> "WorkerData":
        """What the trials of a sweep need."""
        task = log.task
        return cls(log.folder.path.absolute(), log.settings, task.spec.to_dict(), task.splits, task.name)

    @property
    def folder(self) -> SweepFolder:
        """The sweep's folder, which the process that started this one has for itself."""
        return SweepFolder(self.place, {})

    @property
    def task(self) -> Task:
        spec = TaskSpec.from_dict(self.spec)
        import_metric(spec.metric)  # which the user named to the process that started this one
        return Task(spec, self.splits, self.task_name)

    def load(self, slot: int = 0) -> FrozenLM:
        """Load the base model; of several GPUs each ``slot`` takes its own, unless a device was named.

        Raises:
            BaseModelError: as ``load_model``.
            ConfigError: another model goes by this name here.
        """
        import torch

        settings = self.settings
        options = dict(settings.options)
        if options.get("device") is None and torch.cuda.device_count() > 1:
            options["device"] = f"cuda:{slot % torch.cuda.device_count()}"
        base = load_model(settings.model, **options)
        if base.fingerprint != settings.fingerprint:
            raise ConfigError(
                f"'{settings.model}' is another model where trials are run: expected the same weights there"
            )
        return base
