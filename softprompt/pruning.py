"""What taking virtual tokens out of a prompt did, as a record; probe/prune.py does it."""

from pydantic import BaseModel, ConfigDict

from softprompt.inspection import Mean


class Pruning(BaseModel):
    """What ``prune`` did.

    Attributes:
        kept: indices of the virtual tokens that stayed, in the old prompt.
        before, after: the metric on validation, accuracy or negative loss; ``test_*`` on test, if there is one.
        difference: after minus before on validation, paired.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
