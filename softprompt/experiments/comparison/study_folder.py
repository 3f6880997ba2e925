"""The folder of a comparison: results as they land, and what an unfinished one needs to go on.

setup.json             what all results have in common; another setup is refused
results/NAME-SEED.json one result each, immutable
learning/NAME.json     what is known of a method that is not finished: steps that fit the time, trials, seeds begun
learning/NAME/         of its unfinished run
artifacts/NAME/        what one task needs to be deployed, of the seed that is best on validation (--keep)
report.json, ...       all of it, once every method is finished (see report/)
"""

from pathlib import Path
from typing import Any, ClassVar

from softprompt.data.task import Task
from softprompt.experiments.comparison.study_records import Result
from softprompt.models.frozen_lm import FrozenLM
from softprompt.utils.run_folder import RunFolder, make_file_name


class StudyFolder(RunFolder):
    """A comparison's folder."""

    what: ClassVar[str] = "comparison"
    doing: ClassVar[str] = "comparing"
    records: ClassVar[str] = "results"

    def result(self, name: str, seed: int) -> Result | None:
        """What landed of a method's seed, if anything.

        Raises:
            DataError: the file is damaged.
        """
        return self._read(self._locate_result(name, seed), Result)

    def land(self, result: Result) -> None:
        """Keep a result: whole or not at all."""
        self._land(self._locate_result(result.method, result.seed), result)

    def _locate_result(self, name: str, seed: int) -> Path:
        return self.path / self.records / f"{make_file_name(name)}-{seed}.json"


def describe_base_and_task(base: FrozenLM, task: Task) -> dict[str, Any]:
    """What all runs of a folder have in common of the model and the data."""
    return {
        "base": {part: digest[:12] for part, digest in base.fingerprint.items()},
        "device": base.device.type,
        "dtype": str(base.dtype).removeprefix("torch."),
        "data": task.splits.fingerprint[:12],
        "task": task.spec.to_dict(),
    }
