"""What is reported and kept in records: a score with its interval, a mean, a difference of two, a speed."""

from softprompt.utils.records import Record

SCHEMA_VERSION = 1


class Mean(Record):
    """A mean over ``n`` examples with its 95% interval."""

    value: float
    low: float
    high: float
    n: int


class Score(Record):
    """What a metric gives for ``n`` examples: ``value`` and its 95% interval ``low`` to ``high``."""

    metric: str
    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        from softprompt.metrics.registry import metric_format

        digits = metric_format(self.metric).digits
        return f"{self.metric} {self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}] n={self.n}"


class PairedDifference(Record):
    """Mean of A minus mean of B on the same ``n`` examples, its 95% interval, and a two-sided ``p_value``."""

    difference: float
    low: float
    high: float
    p_value: float
    n: int


class Speed(Record):
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
