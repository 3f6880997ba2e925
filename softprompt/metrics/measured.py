"""A metric as it is kept in a record: value, interval and number of examples."""

from pydantic import BaseModel, ConfigDict

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


class Mean(_Record):
    """A mean over ``n`` examples with its interval."""

    value: float
    low: float
    high: float
    n: int


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
