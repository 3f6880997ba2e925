"""What a comparison measured: one immutable JSON file for each method and seed, and one for the study they belong to.

Sizes are bytes, times seconds unless the name says otherwise, rates are those of a method's own unit. What does not
apply to a method, or was not measured, is ``None``.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import Field

from softprompt.errors import ConfigError
from softprompt.inference.speed_drift import find_speed_drift
from softprompt.metrics.formatting import format_interval, format_metric
from softprompt.metrics.scores import SCHEMA_VERSION, Score, Speed
from softprompt.utils.notebook_display import Displayed
from softprompt.utils.pandas_tables import make_table
from softprompt.utils.records import Record
from softprompt.utils.seals import SealedRecord
from softprompt.utils.summaries import describe_value, summarize

if TYPE_CHECKING:
    from pandas import DataFrame


class CurvePoint(Record):
    """One evaluation on validation while learning."""

    step: int
    seconds: float
    value: float
    loss: float


class Trial(Record):
    """One learning rate that was tried, and what it reached on validation.

    Attributes:
        settings: what was tried with it (a sweep).
    """

    learning_rate: float
    settings: dict[str, Any] = Field(default_factory=dict)
    value: float
    loss: float
    chosen: bool


class Cost(Record):
    """What it takes to learn and to keep.

    Attributes:
        trained_parameters: that received a gradient, or were fitted.
        stored_bytes: of the files that one task needs beside the base model, as saved.
        base_shared: whether tasks share one copy of the base model in memory; without one (TF-IDF) true.
        base_bytes: of the base model's weights in memory; 0 where the method needs none.
        task_bytes: memory of one more task (adapter, prefix cache, or a whole model).
        training_seconds: of the run that is reported, without its trials and evaluations on test.
        search_seconds: of the trials.
        peak_memory_bytes: largest resident size of the process (CPU) or allocation (CUDA) while learning.
    """

    trained_parameters: int
    stored_bytes: int
    base_shared: bool
    base_bytes: int
    task_bytes: int
    training_seconds: float
    search_seconds: float = 0.0
    peak_memory_bytes: int | None = None

    def memory_for(self, tasks: int) -> int:
        """Bytes for ``tasks`` tasks on one machine: base + tasks x task where the base is shared, else each whole."""
        return (
            self.base_bytes + tasks * self.task_bytes
            if self.base_shared
            else tasks * (self.base_bytes + self.task_bytes)
        )


class EngineSpeed(Record):
    """Inference of the exported prompt in another engine, in a process of its own on the same machine.

    Attributes:
        engine: its name and version.
    """

    engine: str
    speed: Speed


class Forgetting(Record):
    """Perplexity (per token) of the base model on neutral text before and after learning."""

    before: float
    after: float
    tokens: int


class Result(SealedRecord):
    """One method with one seed.

    Attributes:
        method: its name as given to ``--methods``, options included: ``few-shot:8``.
        family: what it is for colours and grouping: written, classical, soft prompt, adapter, full.
        status: ok, or failed (out of memory, loss not a number) with ``error`` in one line.
        predictions: label or completion for each test example, in the split's order.
        confidences: probability of each predicted label (classification).
        others: further metrics on test; ``calibration_error`` (ECE, 15 equal-width bins) among them.
        shift: the main metric on another domain.
    """

    schema_version: int = SCHEMA_VERSION
    method: str
    family: Literal["written", "classical", "soft prompt", "adapter", "full"]
    seed: int
    status: Literal["ok", "failed"]
    error: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    validation: Score | None = None
    test: Score | None = None
    others: dict[str, Score] = Field(default_factory=dict)
    shift: Score | None = None
    predictions: tuple[str, ...] = ()
    confidences: tuple[float, ...] = ()
    cost: Cost | None = None
    speed: Speed | None = None
    engine: EngineSpeed | None = None
    forgetting: Forgetting | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    created: str = ""


class Row(Record):
    """One method over its seeds.

    Attributes:
        seeds: that ended well; ``failed`` counts the others.
        mean, deviation: of the test metric over seeds (``deviation`` is ``None`` with one seed).
        low, high: 95% interval of the mean over seeds and examples: both are resampled.
        against_best, against_current: paired bootstrap of the difference (this minus that), mean over seeds of each
            example's score: ``{"difference", "low", "high", "p_value", "n"}``.
    """

    method: str
    family: str
    seeds: tuple[int, ...]
    failed: int
    error: str | None
    mean: float | None
    deviation: float | None
    low: float | None
    high: float | None
    against_best: dict[str, float | int] | None = None
    against_current: dict[str, float | int] | None = None
    cost: Cost | None = None
    speed: Speed | None = None
    engine: EngineSpeed | None = None
    forgetting: Forgetting | None = None
    calibration_error: float | None = None
    shift: float | None = None


class Recommendation(Record):
    """Which method to deploy.

    Attributes:
        deploy: the method's name, or ``None`` where there is not enough data to tell.
        rule: name of the rule that decided.
        sentence: the recommendation for people.
        reasons: the numbers that decided, a sentence each.
        candidates: methods that the data cannot tell apart, best first.
    """

    deploy: str | None
    rule: str
    sentence: str
    reasons: tuple[str, ...]
    candidates: tuple[str, ...] = ()


class Study(Displayed, Record):
    """All of a comparison, as the report needs it.

    Attributes:
        metric: name of the main metric.
        gold, texts: of the test split, in its order (texts cut to 300 characters).
        current: the method in use now, that the others are held against.
    """

    schema_version: int = SCHEMA_VERSION
    title: str
    base: str
    base_parameters: int
    data: str
    sizes: dict[str, int]
    metric: str
    kind: Literal["classification", "generation"]
    labels: tuple[str, ...]
    gold: tuple[str, ...]
    texts: tuple[str, ...]
    current: str | None
    price_per_hour: float | None
    machine: str
    settings: dict[str, Any]
    notes: tuple[str, ...]
    rows: tuple[Row, ...]
    results: tuple[Result, ...]
    recommendation: Recommendation
    created: str

    def __repr__(self) -> str:
        scored = sorted((row for row in self.rows if row.mean is not None), key=lambda row: -float(row.mean or 0.0))
        shown = [row for row in scored if row.method == self.recommendation.deploy] or scored[:1]
        best = [
            f"{row.method} {format_metric(self.metric, row.mean)} {format_interval(self.metric, row.low, row.high)}"
            for row in shown
        ]
        facts = {"methods": len(self.rows), "runs": len(self.results), "n": len(self.gold), "metric": self.metric}
        return summarize(self, describe_value(self.title), *best, **facts, deploy=self.recommendation.deploy)

    def to_pandas(self, by: Literal["method", "run"] = "method") -> "DataFrame":
        """A table of the numbers on test, in the order of the study.

        Args:
            by: ``method``: a row for each method, its mean over seeds with the interval over seeds and examples, its
                difference to the best one, what it costs; or ``run``: a row for each method and seed.

        Raises:
            ConfigError: another ``by``.
            MissingExtraError: pandas is not installed.
        """
        if by not in ("method", "run"):
            raise ConfigError(f"expected a row by 'method' or by 'run', got {by!r}")
        return make_table(*(_list_methods(self) if by == "method" else _list_runs(self)))


class SizePoint(Record):
    """A comparison on one of several base models.

    Attributes:
        parameters: of the base model.
        folder: of the comparison.
        rows: by method.
        gaps: the first method minus each other one, on the same test examples, as ``Row.against_best``.
    """

    model: str
    parameters: int
    folder: str
    rows: dict[str, Row]
    gaps: dict[str, dict[str, float | int]]


class SizeStudy(Displayed, Record):
    """The same comparison on base models of several sizes, smallest first.

    Attributes:
        methods: the first is the one whose gap to the others is followed.
        sentence: what the gaps say.
    """

    schema_version: int = SCHEMA_VERSION
    methods: tuple[str, ...]
    metric: str
    data: str
    points: tuple[SizePoint, ...]
    sentence: str
    created: str


Columns: TypeAlias = dict[str, str | None]


def _list_methods(study: Study) -> tuple[list[dict[str, Any]], Columns, str]:
    """Rows, types of columns and the index of a table by method."""
    counts, times = ("trained_parameters", "stored_bytes"), ("training_seconds",)
    speeds = ("p50_ms", "examples_per_second")
    differences = {"difference": "difference", "difference_low": "low", "difference_high": "high", "p_value": "p_value"}
    rows = [
        {
            "method": row.method,
            "family": row.family,
            "recommended": row.method == study.recommendation.deploy,
            "value": row.mean,
            "low": row.low,
            "high": row.high,
            "deviation": row.deviation,
            "seeds": len(row.seeds),
            "failed": row.failed,
            **{name: (row.against_best or {}).get(key) for name, key in differences.items()},
            **{name: getattr(row.cost, name, None) for name in (*counts, *times)},
            **{name: getattr(row.speed, name, None) for name in speeds},
        }
        for row in study.rows
    ]
    types: Columns = {"method": "str", "family": "str", "recommended": "bool"}
    types |= dict.fromkeys(("value", "low", "high", "deviation"), "float64") | dict.fromkeys(
        ("seeds", "failed"), "int64"
    )
    types |= dict.fromkeys(differences, "float64") | dict.fromkeys(counts, "Int64")
    return rows, {**types, **dict.fromkeys((*times, *speeds), "float64")}, "method"


def _list_runs(study: Study) -> tuple[list[dict[str, Any]], Columns, list[str]]:
    """Rows, types of columns and the index of a table by method and seed."""
    scores: Columns = {"value": "float64", "low": "float64", "high": "float64", "n": "Int64"}
    rows = [
        {
            "method": one.method,
            "seed": one.seed,
            "status": one.status,
            **{name: getattr(one.test, name, None) for name in scores},
            "training_seconds": None if one.cost is None else one.cost.training_seconds,
            "error": one.error,
        }
        for one in study.results
    ]
    types: Columns = {"method": "str", "seed": "int64", "status": "str", **scores, "training_seconds": "float64"}
    return rows, {**types, "error": "str"}, ["method", "seed"]


def collect_speeds(rows: Iterable[Row]) -> list[Speed | None]:
    return [row.speed for row in rows]


def warn_of_seconds(rows: Iterable[Row]) -> str:
    """What to say in front of seconds of learning, which have nothing timed beside them."""
    changed = find_speed_drift(collect_speeds(rows))
    return "The machine's speed changed meanwhile, so seconds of different methods do not compare. " if changed else ""
