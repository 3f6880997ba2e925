"""What is reported and kept in records: a score with its interval, a mean, a difference of two, a speed."""

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints, ValidationError, model_serializer, model_validator
from pydantic_core.core_schema import SerializerFunctionWrapHandler

from softprompt.utils.records import Record

SCHEMA_VERSION = 1


class MetricFormat(Record):
    """How a metric's values are shown; beside each result of a user's metric, for processes that do not import it.

    Attributes:
        low, high: the least and the greatest value; ``None``: not known.
        digits: behind the point.
    """

    heading: Annotated[str, StringConstraints(max_length=100)]
    low: float | None = None
    high: float | None = None
    digits: int = Field(3, ge=0, le=12)

    @property
    def limits(self) -> tuple[float, float]:
        """Infinite where they are not known."""
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high


# of what is no metric of the registry: those that results tell of come to these, by their import path
FORMATS = {"negative_loss": MetricFormat(heading="Negative loss", high=0.0)}


class Mean(Record):
    """A mean over ``n`` examples with its 95% interval."""

    value: float
    low: float
    high: float
    n: int


class Score(Record):
    """What a metric gives for ``n`` examples: ``value`` and its 95% interval ``low`` to ``high``.

    ``format``: of a user's metric.
    """

    metric: str
    value: float
    low: float
    high: float
    n: int
    format: MetricFormat | None = None

    @model_validator(mode="after")
    def _remember_format(self) -> Self:
        if self.format is not None:
            FORMATS[self.metric] = self.format
        return self

    @model_serializer(mode="wrap")
    def _leave_out_no_format(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        if values.get("format") is None:
            values.pop("format", None)
        return values

    def __str__(self) -> str:
        from softprompt.metrics.registry import metric_format

        digits = metric_format(self.metric).digits
        return f"{self.metric} {self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}] n={self.n}"


def read_score(saved: Any) -> Score | None:
    """A saved result without what stands beside it; ``None`` for what is none, as it may be in somebody else's file."""
    if not isinstance(saved, Mapping):
        return None
    with suppress(ValidationError):
        return Score.model_validate({name: saved[name] for name in Score.model_fields if name in saved})
    return None


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
