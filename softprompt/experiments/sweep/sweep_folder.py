"""The folder of a sweep: its trials as they land, and what an unfinished one needs to go on.

setup.json             what all trials have in common; another setup is refused
trials/NUMBER.json     one trial each, immutable
learning/NUMBER.json   the settings that were proposed for a trial that has not landed
learning/NUMBER/       its unfinished run
artifacts/NUMBER/      the prompt of the best trial so far
prompt/                the winner, with its figures on validation and test
sweep.json             what came of it
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from softprompt.errors import PromptFileError
from softprompt.experiments.comparison.study_records import CurvePoint
from softprompt.metrics.scores import Score
from softprompt.utils.notebook_display import Displayed
from softprompt.utils.pandas_tables import make_table
from softprompt.utils.run_folder import SETUP_FILE, RunFolder
from softprompt.utils.seals import SealedRecord
from softprompt.utils.summaries import summarize

if TYPE_CHECKING:
    from pandas import DataFrame

PROMPT, SUMMARY_FILE = "prompt", "sweep.json"


class SweepTrial(SealedRecord):
    """One trial.

    Attributes:
        number: counted from 0, in the order of the proposals.
        status: finished; pruned, ended early because validation promised nothing; failed, with ``error`` in one line;
            repeated, the settings are those of trial ``same_as``, which had landed.
        settings: what was chosen for it.
        metric, value, loss: the best on validation (accuracy, or minus the loss; nats), as far as it came.
        curve: its evaluations.
        seconds: of learning, evaluations included.
    """

    schema_version: Literal[1] = 1
    number: int = Field(ge=0)
    status: Literal["finished", "pruned", "failed", "repeated"]
    settings: dict[str, bool | int | float | str]
    error: str | None = None
    same_as: int | None = None
    metric: str | None = None
    value: float | None = None
    loss: float | None = None
    best_step: int | None = None
    steps_made: int = 0
    curve: tuple[CurvePoint, ...] = ()
    seconds: float = 0.0
    versions: dict[str, str] = Field(default_factory=dict)
    created: str = ""

    def __repr__(self) -> str:
        reached = {"value": self.value, "loss": self.loss, "best_step": self.best_step}
        return summarize(self, f"{self.number}", self.status, self.metric or "", **reached, settings=self.settings)

    @property
    def rank(self) -> tuple[float, float]:
        """More is better, for trials with a value."""
        assert self.value is not None
        assert self.loss is not None
        return self.value, -self.loss


class SweepSummary(Displayed, SealedRecord):
    """What came of a sweep.

    Attributes:
        winner: number of the trial that was best on validation.
        settings: what was chosen for it; ``config``: all that was set, as ``TrainConfig`` takes it.
        validation, test: of the winner; no other trial was scored on test.
        usual: number of the trial that has the settings of a run without a sweep, if they are in the space.
        seconds: of all trials.
        data, base: fingerprints.
    """

    schema_version: Literal[1] = 1
    model: str
    winner: int
    settings: dict[str, bool | int | float | str]
    config: dict[str, Any]
    validation: Score
    test: Score | None
    usual: int | None
    trials: dict[str, int]
    seconds: float
    data: str
    base: dict[str, str]
    versions: dict[str, str]
    created: str

    def __repr__(self) -> str:
        scores = [f"{split} {one}" for split, one in (("test", self.test), ("validation", self.validation)) if one]
        told = {"trials": sum(self.trials.values()), "winner": self.winner, "settings": self.settings}
        return summarize(self, *scores, **told)


class SweepResult(Displayed, NamedTuple("_SweepResult", [("summary", SweepSummary), ("trials", list[SweepTrial])])):
    """What ``sweep`` gives: what came of it, and all trials."""

    __slots__ = ()

    def __repr__(self) -> str:
        return summarize(self, repr(self.summary).partition("(")[2].removesuffix(")"))

    def to_pandas(self) -> "DataFrame":
        """A row for each trial, by its number: ``status``, its settings, ``value`` and ``loss`` on validation, ...

        Settings that are called as one of the other columns have ``setting_`` in front.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        types: dict[str, str | None] = {"trial": "int64", "status": "str"}
        reached = {"value": "float64", "loss": "float64", "best_step": "Int64", "steps_made": "int64"}
        told = {**reached, "seconds": "float64", "same_as": "Int64", "error": "str"}
        rows = [
            {
                "trial": one.number,
                "status": one.status,
                **{f"setting_{name}" if name in told else name: value for name, value in one.settings.items()},
                **{name: getattr(one, name) for name in told},
            }
            for one in self.trials
        ]
        settings = {name: None for row in rows for name in row if name not in {**types, **told}}
        return make_table(rows, types | settings | told, index="trial")


class SweepFolder(RunFolder):
    """A sweep's folder."""

    what: ClassVar[str] = "sweep"
    doing: ClassVar[str] = "sweeping"
    records: ClassVar[str] = "trials"

    def trial(self, number: int) -> SweepTrial | None:
        """What landed of a trial, if anything; DataError if the file is damaged."""
        return self._read(self._locate_trial(number), SweepTrial)

    def land_trial(self, trial: SweepTrial) -> None:
        """Keep a trial: whole or not at all."""
        self._land(self._locate_trial(trial.number), trial)

    def landed(self) -> list[SweepTrial]:
        """All trials that landed, by number."""
        numbers = sorted(int(path.stem) for path in (self.path / self.records).glob("*.json") if path.stem.isdecimal())
        return [trial for number in numbers if (trial := self.trial(number)) is not None]

    def summary(self) -> SweepSummary | None:
        """What came of it, once it was ended."""
        return self._read(self.path / SUMMARY_FILE, SweepSummary)

    def conclude(self, summary: SweepSummary) -> None:
        """Keep what came of it."""
        self._land(self.path / SUMMARY_FILE, summary)

    @property
    def prompt(self) -> Path:
        """Where the winner is saved."""
        return self.path / PROMPT

    def _locate_trial(self, number: int) -> Path:
        return self.path / self.records / f"{trial_name(number)}.json"


def trial_name(number: int) -> str:
    """What files of a trial are called."""
    return f"{number:04d}"


def best_of(trials: list[SweepTrial]) -> SweepTrial | None:
    """The best on validation of those that finished; the first of equals."""
    finished = [trial for trial in trials if trial.status == "finished"]
    return max(finished, key=lambda trial: (trial.rank, -trial.number), default=None)


def read_sweep(place: Path) -> tuple[SweepSummary, list[SweepTrial]]:
    """What came of the sweep in a folder, and its trials.

    Raises:
        PromptFileError: it is no sweep's folder, the sweep has not ended, or it is damaged.
    """
    if not (place / SETUP_FILE).is_file() or not (place / SweepFolder.records).is_dir():
        raise PromptFileError(f"'{place}' is no sweep: expected the folder that softprompt sweep wrote")
    folder = SweepFolder(place, {})
    summary = folder.summary()
    if summary is None:
        raise PromptFileError(f"the sweep in '{place}' has not ended: run it to its end first")
    return summary, folder.landed()
