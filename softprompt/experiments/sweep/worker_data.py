"""What a process needs to run trials by itself: where the sweep lies, the task, and the base model by its name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompt.config import TrainConfig
from softprompt.data.splits import Splits
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import ConfigError
from softprompt.experiments.sweep.sweep_folder import SweepFolder
from softprompt.experiments.sweep.trial_log import TrialLog
from softprompt.metrics.user_metrics import import_metric
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model


@dataclass(frozen=True)
class WorkerData:
    """Plain values alone, to be sent to another process.

    Attributes:
        fixed: the settings that are not searched.
        fingerprint: of the base model, which the process must find under that name.
    """

    place: Path
    fixed: dict[str, Any]
    spec: dict[str, Any]
    splits: Splits
    task_name: str
    model: str
    options: Mapping[str, Any]
    fingerprint: dict[str, str]

    @classmethod
    def of(cls, ledger: TrialLog) -> "WorkerData":
        """The source of a sweep's trials."""
        terms, task = ledger.terms, ledger.task
        return cls(
            ledger.folder.path.absolute(),
            terms.fixed.model_dump(exclude_unset=True),
            task.spec.to_dict(),
            task.splits,
            task.name,
            terms.model,
            dict(terms.options),
            dict(terms.fingerprint),
        )

    @property
    def folder(self) -> SweepFolder:
        """The sweep's folder, which the process that started this one has for itself."""
        return SweepFolder(self.place, {})

    @property
    def task(self) -> Task:
        spec = TaskSpec.from_dict(self.spec)
        import_metric(spec.metric)  # which the user named to the process that started this one
        return Task(spec, self.splits, self.task_name)

    @property
    def config(self) -> TrainConfig:
        return TrainConfig.build(**self.fixed)

    def load(self, slot: int = 0) -> FrozenLM:
        """Load the base model; of several GPUs each ``slot`` takes its own, unless a device was named.

        Raises:
            BaseModelError: as ``load_model``.
            ConfigError: another model goes by this name here.
        """
        import torch

        options = dict(self.options)
        if options.get("device") is None and torch.cuda.device_count() > 1:
            options["device"] = f"cuda:{slot % torch.cuda.device_count()}"
        base = load_model(self.model, **options)
        if base.fingerprint != self.fingerprint:
            raise ConfigError(f"'{self.model}' is another model where trials are run: expected the same weights there")
        return base
