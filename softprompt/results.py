"""What a comparison measured: one immutable JSON file for each method and seed, and one for the study they belong to.

Sizes are bytes, times seconds unless the name says otherwise, rates are those of a method's own unit. What does not
apply to a method, or was not measured, is ``None``.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from softprompt.sealed import SealedRecord

SCHEMA_VERSION = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(_Record):
    """A metric as ``Metric.to_dict`` gives it."""

    metric: str
    value: float
    low: float
    high: float
    n: int


class CurvePoint(_Record):
    """One evaluation on validation while learning."""

    step: int
    seconds: float
    value: float
    loss: float


class Trial(_Record):
    """One learning rate that was tried, and what it reached on validation.

    Attributes:
        settings: what was tried with it (a sweep).
    """

    learning_rate: float
    settings: dict[str, Any] = Field(default_factory=dict)
    value: float
    loss: float
    chosen: bool


class Cost(_Record):
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


class Speed(_Record):
    """Inference on the machine of the study, one process.

    Attributes:
        p50_ms, p95_ms: latency of single requests.
        requests: how many single requests were timed.
        batch_size, examples_per_second: of a stream of batches.
        added_tokens: that each request carries beyond template and text (mean); computed anew each time or cached.
        reference_ms: median latency of the same requests answered by a reference that was timed in turns with this one,
            in a study the bare template: on a machine whose speed changes, ratios to it are what can be compared.
    """

    p50_ms: float
    p95_ms: float
    requests: int
    batch_size: int
    examples_per_second: float
    added_tokens: float
    reference_ms: float | None = None

    @property
    def times_reference(self) -> float | None:
        """Median latency as a multiple of the reference's."""
        return self.p50_ms / self.reference_ms if self.reference_ms else None

    def cost_per_million(self, price_per_hour: float) -> float:
        """Price of a million requests at full batches."""
        return price_per_hour * 1e6 / self.examples_per_second / 3600


class EngineSpeed(_Record):
    """Inference of the exported prompt in another engine, in a process of its own on the same machine.

    Attributes:
        engine: its name and version.
    """

    engine: str
    speed: Speed


class Forgetting(_Record):
    """Perplexity (per token) of the base model on neutral text before and after learning."""

    before: float
    after: float
    tokens: int


class Result(_Record, SealedRecord):
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
    validation: Figure | None = None
    test: Figure | None = None
    others: dict[str, Figure] = Field(default_factory=dict)
    shift: Figure | None = None
    predictions: tuple[str, ...] = ()
    confidences: tuple[float, ...] = ()
    cost: Cost | None = None
    speed: Speed | None = None
    engine: EngineSpeed | None = None
    forgetting: Forgetting | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    created: str = ""


class Fidelity(_Record):
    """How a student does beside its teacher on one split.

    Attributes:
        n: inputs that both answered.
        agreement: share of inputs to which both give the same label, or the same completion.
        kl: Kullback-Leibler divergence, nats; mean over inputs of the mean over their places.
        token_agreement: share of places of the teacher's completion at which the student's likeliest token is its.
        teacher, student: the task's metric, over the inputs that have labels or references; ``None`` without any.
        kept: student / teacher, both on the same resamples; ``None`` where the teacher has nothing right.
    """

    n: int
    agreement: Figure
    kl: Figure
    token_agreement: Figure | None = None
    teacher: Figure | None = None
    student: Figure | None = None
    kept: Figure | None = None


class RequestTokens(_Record):
    """What a request to the model has: what stands in front, and template and text (mean over inputs).

    Attributes:
        times_fewer: tokens of a whole request before / after.
    """

    teacher: int
    student: int
    text: float
    before: float
    after: float
    times_fewer: float


class BreakEven(_Record):
    """Requests after which distilling has cost less time than it saved.

    ``None``: never, it saves none, or too little to be told from the noise of timing.

    Attributes:
        single: of requests that come one by one (median latency).
        batched: of requests in full batches.
    """

    single: int | None
    batched: int | None


class Distilled(_Record):
    """What came of a distillation.

    Attributes:
        teacher: what it is.
        held_out: by split.
        teacher_seconds, training_seconds: of answering all inputs once, and of learning; of students that learn
            together each one's share.
        student_speed, teacher_speed: each with its prefix computed once and kept.
        read_speed: the teacher where its text is read with every request, as an engine without prefix caching does;
            ``None`` for a saved prompt, which is no text.
        against_read, against_cached: break-even against each of the two.
    """

    schema_version: int = SCHEMA_VERSION
    teacher: str
    method: str
    length: int
    metric: str
    held_out: dict[str, Fidelity]
    tokens: RequestTokens
    teacher_seconds: float
    training_seconds: float
    student_speed: Speed | None = None
    teacher_speed: Speed | None = None
    read_speed: Speed | None = None
    against_read: BreakEven | None = None
    against_cached: BreakEven | None = None


class Row(_Record):
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


class Recommendation(_Record):
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


class Study(_Record):
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


class SizePoint(_Record):
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


class SizeStudy(_Record):
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
