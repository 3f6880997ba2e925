"""What an engine tells about itself: each forward pass as it ends, and where it stands."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from softprompt.serving.engine.engine_requests import RequestKind

_log = logging.getLogger("softprompt.serving")

_FORGOTTEN = 0.98  # share of what was measured that still counts after one more measurement


@dataclass(frozen=True)
class BatchStats:
    """One batch.

    Attributes:
        what: ``label`` read texts and answered them, ``read`` read texts to go on from, ``grow`` added a token each.
        rows: sequences in it.
        tokens: read or made, by the key of the prompt that they were for; virtual tokens and padding not counted.
        seconds: that it took.
    """

    what: Literal["label", "read", "grow"]
    rows: int
    tokens: Mapping[str, int]
    seconds: float


class BatchObserver(Protocol):
    """Is told of every batch, in the thread that runs the model: to be quick."""

    def record_batch(self, batch: BatchStats) -> None: ...


@dataclass
class EngineStats:
    """Where an engine stands; it counts on while that works.

    Attributes:
        waiting: examples that wait or are being prepared.
        running: completions that grow.
        batches: forward passes so far.
        answered: examples answered so far.
        refused: requests refused because the queue was full.
        expired: requests not answered at their deadline.
        failed: requests that ended with an error of their own.
        tokens_read, tokens_made: so far, virtual tokens and padding not counted.
        seconds: that the model was at work.
        prefix_entries, prefix_bytes: prompts whose prefix is kept, and the memory that takes.
        prefix_hits, prefix_misses: prompts of batches whose prefix was there, and those computed.
    """

    waiting: int = 0
    running: int = 0
    batches: int = 0
    answered: int = 0
    refused: int = 0
    expired: int = 0
    failed: int = 0
    tokens_read: int = 0
    tokens_made: int = 0
    seconds: float = 0.0
    prefix_entries: int = 0
    prefix_bytes: int = 0
    prefix_hits: int = 0
    prefix_misses: int = 0


class EngineCounters:
    """Counts, kept by the thread that runs the model.

    Attributes:
        stats: all of them, but for what is asked for when they are read: what waits, runs and is kept.
    """

    def __init__(self, observer: BatchObserver | None) -> None:
        self._observer = observer
        self.stats = EngineStats()
        self._spent: dict[RequestKind, float] = {"classification": 0.0, "generation": 0.0}
        self._ended: dict[RequestKind, float] = {"classification": 0.0, "generation": 0.0}

    def record_batch(self, batch: BatchStats, ended: int) -> None:
        """Take note of a batch in which ``ended`` examples were answered."""
        stats = self.stats
        stats.batches += 1
        stats.answered += ended
        stats.seconds += batch.seconds
        if batch.what == "grow":
            stats.tokens_made += sum(batch.tokens.values())
        else:
            stats.tokens_read += sum(batch.tokens.values())
        kind: RequestKind = "classification" if batch.what == "label" else "generation"
        self._spent[kind] = self._spent[kind] * _FORGOTTEN + batch.seconds
        self._ended[kind] = self._ended[kind] * _FORGOTTEN + ended
        if self._observer is not None:
            try:
                self._observer.record_batch(batch)
            except Exception:  # counting must not stop the answers
                _log.exception("an observer failed")

    def seconds_for(self, waiting: Mapping[RequestKind, int]) -> float:
        """How long so many examples take, by what was measured lately; 0 before anything was."""
        return sum(self._spent[kind] / max(self._ended[kind], 1.0) * count for kind, count in waiting.items())
