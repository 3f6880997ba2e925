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
