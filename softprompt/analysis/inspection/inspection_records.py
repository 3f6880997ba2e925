"""What an inspection of a prompt found, as records that can be written, drawn and judged; nothing here computes.

Losses are nats (an example, or a target token in generation), shares lie in 0..1, intervals are at 95%. What could not
be had is ``None`` or empty, and ``Inspection.notes`` says why.
"""

from collections import Counter
from typing import Any, Literal

from pydantic import Field

from softprompt.analysis.finding_rules import Finding
from softprompt.metrics.scores import Mean, Score
from softprompt.utils.notebook_display import Displayed
from softprompt.utils.records import Record
from softprompt.utils.summaries import describe_value, summarize

# what makes a training row suspected, in words that follow "rows"
SUSPECTED = {
    "classification": "it is as sure of another answer as where that answer is right",
    "generation": "the loss lies far above that of the others",
}


class Quantiles(Record):
    """Quantiles of something over ordinary vocabulary tokens."""

    least: float
    p5: float
    median: float
    p95: float
    most: float


class Vocabulary(Record):
    """How near each of ``sampled`` ordinary tokens is to the nearest other one; and the norms of all of them."""

    sampled: int
    cosine: Quantiles
    distance: Quantiles
    norm: Quantiles


class Neighbor(Record):
    """A vocabulary token beside a virtual one; ``value`` is the cosine, or the Euclidean distance."""

    token: str
    token_id: int
    value: float


class VirtualToken(Record):
    """One virtual token.

    Attributes:
        member: which prompt of an ensemble it is of; 0 where there is one.
        norm_share: of vocabulary tokens whose norm is smaller.
        nearer_by_cosine, nearer_by_distance: share of ordinary tokens that are nearer to their nearest other token than
            this one is to its own; near 1: it is no word, near 0: it is one.
        moved: from the start, in standard deviations of the embeddings (root mean square over the numbers of a virtual
            token); of keys and values, as a share of the start's norm.
        start_cosine: between what it is and what it was.
        start_token: the vocabulary token it began as, where it began as one.
        ablation: loss without it minus loss with it; above 0 it is of use.
        changed: share of examples whose answer changes without it.
        attention: share that the position that answers pays to it, in each layer, mean over heads and examples.
    """

    index: int
    member: int = 0
    norm: float
    norm_share: float | None = None
    by_cosine: tuple[Neighbor, ...] = ()
    by_distance: tuple[Neighbor, ...] = ()
    nearer_by_cosine: float | None = None
    nearer_by_distance: float | None = None
    moved: float | None = None
    start_cosine: float | None = None
    start_token: str | None = None
    ablation: Mean | None = None
    changed: float | None = None
    attention: tuple[float, ...] = ()


class Attention(Record):
    """What the position that answers looks at, in each layer; ``even``: the prompt's share, were it spread evenly."""

    examples: int
    bos: tuple[float, ...]
    prompt: tuple[float, ...]
    text: tuple[float, ...]
    even: float


class NextToken(Record):
    token: str
    probability: float


class Continuation(Record):
    """What the model says behind the prompt alone, and behind nothing, and its likeliest next tokens."""

    text: str
    next: tuple[NextToken, ...]
    without: str
    without_next: tuple[NextToken, ...]


class ChangedAnswer(Record):
    """An example that prompt and reference answer differently; ``gain`` is the fall of its loss, in nats."""

    index: int
    text: str
    gold: str
    now: str
    before: str
    gain: float


class Comparison(Record):
    """The prompt minus a reference on the same examples, paired.

    ``fixed`` are right now and were wrong before, ``broken`` the other way round; in generation, examples whose loss
    fell, or rose, by more than a tenth of a nat a token.
    """

    reference: str
    before: Score
    difference: Mean
    p_value: float
    fixed: int
    broken: int
    fixed_examples: tuple[ChangedAnswer, ...] = ()
    broken_examples: tuple[ChangedAnswer, ...] = ()


class ReliabilityBin(Record):
    """Answers given with a confidence above ``low`` and up to ``high``; the interval is of the share that is right."""

    low: float
    high: float
    n: int
    confidence: float
    right: float
    right_low: float
    right_high: float


class Calibration(Record):
    """``excess`` is mean confidence minus accuracy."""

    error: Score
    excess: Mean
    bins: tuple[ReliabilityBin, ...]


class Slice(Record):
    """A part of the examples.

    Attributes:
        by, name: what cuts it out: ``label``, ``length``, or a column, and its value.
        value: metric on the slice, with its interval; ``rest`` on all others.
        p_value: of being at least as much worse than the rest by chance; ``adjusted`` for all slices looked at (Holm).
    """

    by: str
    name: str
    n: int
    value: float
    low: float
    high: float
    rest: float
    p_value: float
    adjusted: float


class Answers(Record):
    """How the prompt does on a split.

    Attributes:
        metric: the task's, of labels; ``negative_loss`` for generation.
        confusion: ``[gold, answer, count]`` of what occurs.
        slices: the worst first; ``small_slices`` more had fewer than ``least_slice`` examples and were not judged.
        unsliced: columns whose values are too many, and too rare, to be judged.
    """

    split: str
    metric: Score
    loss: Mean
    comparison: Comparison | None = None
    confusion: tuple[tuple[str, str, int], ...] = ()
    calibration: Calibration | None = None
    slices: tuple[Slice, ...] = ()
    small_slices: int = 0
    least_slice: int = 0
    unsliced: tuple[str, ...] = ()
    truncated: int = 0


class LabelError(Record):
    """A training row that may be mislabelled; ``score`` ranks, the most suspicious have the highest."""

    index: int
    text: str
    gold: str
    instead: str
    score: float
    reason: str


class LabelErrors(Record):
    """``found`` of ``looked_at`` training rows; ``listed`` are all of them, or the first thousand."""

    looked_at: int
    found: int
    listed: tuple[LabelError, ...]

    @property
    def share(self) -> float:
        return self.found / self.looked_at if self.looked_at else 0.0


class DuplicateRow(Record):
    split: str
    index: int
    answer: str
    text: str


class DuplicateGroup(Record):
    rows: tuple[DuplicateRow, ...]
    size: int
    conflicting: bool


class Duplicates(Record):
    """Near duplicates over all splits.

    Attributes:
        redundant: training rows beyond the first of their group.
        leaked: validation and test rows with a near duplicate in train.
        conflicting: groups whose rows have different labels.
        listed: the conflicting groups first, then the largest.
    """

    rows: int
    groups: int
    redundant: int
    leaked: int
    held_out: int
    conflicting: int
    listed: tuple[DuplicateGroup, ...]


class Memorization(Record):
    """Is training text better completed under the prompt, more than held-out text is?

    Attributes:
        what: whose tokens are scored.
        trained, held_out: gain of the log-likelihood a token, prompt minus no prompt, over texts; and its difference.
        auc: probability that a training text gains more than a held-out one; 0.5: nothing tells them apart.
        same_data: whether the data given are those that the prompt was learned on.
    """

    what: str
    trained: Mean
    held_out: Mean
    difference: Mean
    auc: float
    same_data: bool


class TrainingFit(Record):
    """Loss and metric on training and validation rows under the prompt as it is."""

    train_loss: Mean
    validation_loss: Mean
    gap: Mean
    train_metric: float
    validation_metric: float


class ServedTexts(Record):
    """What is served beside what was learned.

    Attributes:
        differences: in words, between the template that is served, if it was given, and the prompt's.
        cost: loss with it minus loss with the prompt's own template.
        texts: what is odd about the texts, in words.
    """

    template: str | None = None
    differences: tuple[str, ...] = ()
    cost: Mean | None = None
    texts: tuple[str, ...] = ()


class Reproduction(Record):
    """A metric of the manifest beside the same metric now, on the same rows if ``same_data``."""

    split: str
    saved: Score
    now: Score
    same_data: bool


class StartCandidate(Record):
    """Another saved prompt as a start: the loss on this task under it as it is, and the options of ``train``."""

    place: str
    average_tokens: float
    same_start: bool | None
    loss: Mean | None
    options: tuple[str, ...]


class StoreNeighbors(Record):
    """The prompts of a store: ``matrix[i][j]`` is the cosine of the average tokens of ``names`` i and j."""

    names: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]
    starts: tuple[StartCandidate, ...]
    own_loss: Mean | None = None
    left_out: int = 0


class Inspection(Displayed, Record):
    """All of it.

    Attributes:
        facts: of the prompt, by name, as a page shows them.
        same_data: whether the data given are those that the prompt was learned on.
        prior_loss: loss of knowing nothing but how frequent each label is in validation.
        history: evaluations while it learned, as saved.
    """

    place: str
    base: str
    kind: Literal["classification", "generation"]
    state_kind: str
    labels: tuple[str, ...]
    length: int
    embedding_size: int
    members: int
    data: str
    sizes: dict[str, int]
    same_data: bool
    training: dict[str, Any] = Field(default_factory=dict)
    vocabulary: Vocabulary | None = None
    tokens: tuple[VirtualToken, ...] = ()
    attention: Attention | None = None
    continuation: Continuation | None = None
    answers: Answers | None = None
    fit: TrainingFit | None = None
    prior_loss: float | None = None
    label_errors: LabelErrors | None = None
    duplicates: Duplicates | None = None
    memorization: Memorization | None = None
    serving: ServedTexts = ServedTexts()
    reproduction: tuple[Reproduction, ...] = ()
    history: tuple[dict[str, float], ...] = ()
    neighbors: StoreNeighbors | None = None
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    created: str = ""

    def __repr__(self) -> str:
        counts = Counter(one.severity for one in self.findings)
        found = ", ".join(f"{count} {severity}s" for severity, count in counts.items()) or "nothing found"
        score = "" if self.answers is None else f"{self.answers.split} {self.answers.metric}"
        return summarize(
            self, describe_value(self.place), found, score, f"{self.length} virtual tokens", base=self.base
        )


class Pruning(Displayed, Record):
    """What ``prune`` did.

    Attributes:
        kept: indices of the virtual tokens that stayed, in the old prompt.
        before, after: the metric on validation; ``test_*`` on test, if there is one.
        difference: after minus before on validation, paired.
    """

    metric: str
    tolerance: float
    length: int
    kept: tuple[int, ...]
    before: float
    after: float
    difference: Mean
    test_before: float | None = None
    test_after: float | None = None
    test_difference: Mean | None = None
    measured: int
