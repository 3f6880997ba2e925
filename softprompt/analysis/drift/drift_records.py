"""What monitoring found of live traffic, as records that can be written, drawn and judged; nothing here computes.

Shares and p-values lie in 0..1. *Trained* is what the prompt's profile holds, of its validation rows;
*live* is sampled.
"""

from typing import Literal

from softprompt.analysis.finding_rules import Finding
from softprompt.utils.notebook_display import Displayed
from softprompt.utils.records import Record

SignalName = Literal["length", "rare", "labels", "confidence", "hidden"]
Verdict = Literal["drift", "small", "none", "too few"]


class Curve(Record):
    """Shares of trained and of live values at or below each point."""

    points: tuple[float, ...]
    trained: tuple[float, ...]
    live: tuple[float, ...]


class LabelShare(Record):
    """How often a label was answered."""

    label: str
    trained: int
    live: int


class Signal(Record):
    """One thing that is compared.

    Attributes:
        trained, live: medians, of the rare tokens rates; ``None`` for labels.
        trained_n, live_n: rows on each side.
        test, statistic, p_value: of there being no difference; ``None`` where there are too few rows.
        adjusted: the p-value, for all signals of all prompts that were looked at (Holm).
        measure, effect: population stability index, or Cohen's h; the ``bar`` is what counts as drift, ``large`` as
            much of it.
        curve: of the two distributions; of labels, ``labels``; of the rare tokens, 95% ``ranges``.
    """

    name: SignalName
    title: str
    unit: str
    trained: float | None = None
    live: float | None = None
    trained_n: int
    live_n: int
    test: str = ""
    statistic: float | None = None
    p_value: float | None = None
    adjusted: float | None = None
    measure: str
    effect: float | None = None
    bar: float
    large: float
    verdict: Verdict = "too few"
    curve: Curve | None = None
    labels: tuple[LabelShare, ...] = ()
    ranges: tuple[tuple[float, float], ...] = ()

    @property
    def moved(self) -> tuple[str, float, float] | None:
        """The label whose share differs most, and its shares, trained and live."""
        if not self.trained_n or not self.live_n or not self.labels:
            return None
        shares = [(one.label, one.trained / self.trained_n, one.live / self.live_n) for one in self.labels]
        return max(shares, key=lambda one: abs(one[2] - one[1]))


class DriftExample(Record):
    """A sampled text that shows a drift; ``text`` is ``None`` where texts were not kept."""

    signal: SignalName
    why: str
    time: str
    request: str
    text: str | None
    tokens: int | None
    answer: str | None
    confidence: float | None


class PromptDrift(Record):
    """One prompt.

    Attributes:
        prompt: ``name@version``.
        verdict: drift if one signal drifts; too few if none can be judged.
        profile: where what it saw comes from.
        texts: samples whose text was kept.
        errors: samples that ended in an error, by its code.
        first, last: times of the samples.
    """

    prompt: str
    kind: str
    verdict: Verdict
    profile: str
    samples: int
    texts: int
    errors: dict[str, int]
    first: str
    last: str
    milliseconds: float
    signals: tuple[Signal, ...]
    findings: tuple[Finding, ...] = ()
    examples: tuple[DriftExample, ...] = ()
    notes: tuple[str, ...] = ()


class DriftReport(Displayed, Record):
    """All of it.

    Attributes:
        samples: the file.
        since: the earliest time that was looked at; empty for all.
        read, damaged, left_out: rows that were used, that are none, and that are older than those read.
        least, least_trained: samples, and validation rows, below which nothing is said.
        significance: adjusted p-value below which a difference is sure.
    """

    samples: str
    since: str
    read: int
    damaged: int
    left_out: int
    least: int
    least_trained: int
    significance: float
    prompts: tuple[PromptDrift, ...]
    notes: tuple[str, ...] = ()
    created: str = ""

    @property
    def drifting(self) -> tuple[PromptDrift, ...]:
        """The prompts that drift."""
        return tuple(one for one in self.prompts if one.verdict == "drift")
