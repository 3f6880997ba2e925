"""What a distillation measured, as records."""

from softprompt.metrics.scores import SCHEMA_VERSION, Score, Speed
from softprompt.utils.notebook_display import Displayed
from softprompt.utils.records import Record
from softprompt.utils.summaries import summarize


class Fidelity(Record):
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
    agreement: Score
    kl: Score
    token_agreement: Score | None = None
    teacher: Score | None = None
    student: Score | None = None
    kept: Score | None = None


class RequestTokens(Record):
    """What a request to the model has: what stands in front, and template and text (mean over inputs).

    Attributes:
        teacher, student: in front; of a student in a chat its virtual tokens and what all conversations begin with.
        times_fewer: tokens of a whole request before / after.
    """

    teacher: int
    student: int
    text: float
    before: float
    after: float
    times_fewer: float


class BreakEven(Record):
    """Requests after which distilling has cost less time than it saved.

    ``None``: never, it saves none, or too little to be told from the noise of timing.

    Attributes:
        single: of requests that come one by one (median latency).
        batched: of requests in full batches.
        single_seconds, batched_seconds: that a request of each kind takes less.
    """

    single: int | None
    batched: int | None
    single_seconds: float | None = None
    batched_seconds: float | None = None


class DistillationReport(Displayed, Record):
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

    def __repr__(self) -> str:
        near = [f"{split} {one.agreement}" for split, one in reversed(self.held_out.items())]
        return summarize(self, f"{self.length} virtual tokens", *near, teacher=self.teacher, method=self.method)
