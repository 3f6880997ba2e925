"""When what became of a request in an engine."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class RequestTiming:
    """What an engine notes of a request, in seconds of one clock; made when the engine is asked.

    Attributes:
        arrived: it was asked, the texts not yet tokenised.
        scheduled: the model took the first of it; not known where the model runs elsewhere.
        first_token: the first token was made, or, of a request for labels, all of them were found.
        gaps: between each further token and the one before.
    """

    clock: Callable[[], float] = time.perf_counter
    arrived: float = field(init=False)
    scheduled: float | None = None
    first_token: float | None = None
    gaps: list[float] = field(default_factory=list)
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        self.arrived = self._last = self.clock()

    def mark_scheduled(self) -> None:
        """The model takes it, or more of it."""
        if self.scheduled is None:
            self.scheduled = self.clock()

    def mark_tokens(self, count: int = 1) -> None:
        """So many tokens are there at once."""
        now = self.clock()
        if self.first_token is None:
            self.first_token = self._last = now
            count -= 1
        self.gaps += [(now - self._last) / max(count, 1)] * count
        self._last = now

    @property
    def queue_seconds(self) -> float | None:
        """That it waited for the model, tokenisation included."""
        return None if self.scheduled is None else self.scheduled - self.arrived

    @property
    def first_token_seconds(self) -> float | None:
        """From its arrival to the first token."""
        return None if self.first_token is None else self.first_token - self.arrived
