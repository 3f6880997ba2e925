"""The thread that runs the model: one batch of examples, one of new texts, one token for all that grow, and again."""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Literal

import torch

from softprompt.models.frozen_lm import FrozenLM
from softprompt.serving.engine.completion_chunks import CompletionChunk
from softprompt.serving.engine.decoding_loop import DecodingLoop
from softprompt.serving.engine.engine_requests import EngineRequest, GenerationRequest, ScheduledExample
from softprompt.serving.engine.engine_stats import BatchStats, EngineCounters
from softprompt.serving.engine.label_scoring import score_labels
from softprompt.serving.engine.prefix_cache import PrefixCache
from softprompt.serving.engine.request_queue import RequestQueue

_log = logging.getLogger("softprompt.serving")


class EngineWorker(threading.Thread):
    """Answers what waits, until it is told to end.

    Attributes:
        ready: set when it takes requests.
    """

    def __init__(
        self,
        base: FrozenLM,
        queue: RequestQueue,
        prefixes: PrefixCache,
        counters: EngineCounters,
        *,
        rows: int,
        token_budget: int,
        running_tokens: int,
        gather: float,
        compiling: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """The limits are those of ``EngineLimits``; all is done within ``compiling``."""
        super().__init__(name="softprompt model", daemon=True)
        self._base, self._queue, self._prefixes, self._counters = base, queue, prefixes, counters
        self._rows, self._token_budget, self._gather = rows, token_budget, gather
        self.decoding = DecodingLoop(
            base,
            prefixes,
            self._deliver_later,
            max_rows=rows,
            max_tokens=running_tokens,
            token_budget=token_budget,
        )
        self.ready = threading.Event()
        self._compiling = compiling
        self.loop: asyncio.AbstractEventLoop | None = None
        self._scheduled: list[ScheduledExample] = []
        self._outbox: list[Callable[[], None]] = []
        self._several = False
        self._ending: Literal["finish", "drop"] | None = None
        self._why: Exception = RuntimeError("the engine was closed")

    def end(self, *, finish: bool, why: Exception) -> None:
        """End when all is answered, or at once, those who wait being told ``why``."""
        self._ending, self._why = "finish" if finish else "drop", why
        self._queue.wake()

    def run(self) -> None:
        try:
            with torch.no_grad(), self._compiling():
                self.ready.set()
                self._answer_requests()
        finally:  # nobody is to wait for a thread that is gone
            self.ready.set()

    def _answer_requests(self) -> None:
        while self._has_work():
            try:
                self._run_iteration()
            except Exception as error:  # a fault of ours: whoever it hits is told, the next are served
                _log.exception("a batch failed")
                self._fail_all(error)
            self._deliver_all()
        self._fail_all(self._why, close=True)
        self._deliver_all()

    def _has_work(self) -> bool:
        queue = self._queue

        def something() -> bool:
            return bool(queue.ready or self._ending)

        if not self.decoding.texts and not queue.ready:
            if self._ending == "finish":
                queue.wait(lambda: bool(queue.ready or not queue.preparing or self._ending == "drop"))
            else:
                queue.wait(something)
            # where requests come several at a time, the first is worth more with the others
            if self._gather and (self._several or queue.preparing):
                queue.wait(
                    lambda: bool(queue.ready >= self._rows or self._ending or not (self._several or queue.preparing)),
                    self._gather,
                )
        if self._ending == "drop":
            return False
        return self._ending is None or bool(self.decoding.texts or queue.ready or queue.preparing)

    def _run_iteration(self) -> None:
        self._score_labels()
        self._deliver_all()
        self._prefill()
        self._deliver_all()
        self._decode()

    def _score_labels(self) -> None:
        self._scheduled = self._queue.take_examples(self._rows, self._token_budget)
        if not self._scheduled:
            return
        for question in self._scheduled:
            question.request.timing.mark_scheduled()
        start = time.perf_counter()
        found = score_labels(self._base, self._prefixes, self._scheduled, self._token_budget)
        seconds = time.perf_counter() - start
        self._several = len({id(question.request) for question in self._scheduled}) > 1
        tokens: Counter[str] = Counter()
        for question in self._scheduled:
            tokens[question.request.served.key] += sum(len(item.ids) for item in question.items)
        rows = sum(len(question.numbers) for question in self._scheduled)
        self._counters.record_batch(
            BatchStats("label", rows, tokens, seconds), sum(question.last for question in self._scheduled)
        )
        for question, answer in zip(self._scheduled, found, strict=True):
            if isinstance(answer, Exception):
                self._fail(question.request, answer)
            elif answer is not None and question.request.add_prediction(answer):
                question.request.timing.mark_tokens()
                self._outbox.append(question.request.deliver)
        self._scheduled = []

    def _prefill(self) -> None:
        texts = [text for text in self._queue.take_generations(self.decoding.fits) if not text.cancelled]
        if texts:
            for text in texts:
                text.timing.mark_scheduled()
            start = time.perf_counter()
            try:
                ended = self.decoding.start(texts)
            except Exception as error:  # as in _answer; they stand nowhere else yet
                for text in texts:
                    self._fail(text, error)
                raise
            tokens = _count_tokens(texts, [len(text.item.ids) for text in texts])
            self._counters.record_batch(BatchStats("read", len(texts), tokens, time.perf_counter() - start), len(ended))

    def _decode(self) -> None:
        if texts := self.decoding.texts:
            start = time.perf_counter()
            ended = self.decoding.step()
            tokens = _count_tokens(texts, [1] * len(texts))
            self._counters.record_batch(BatchStats("grow", len(texts), tokens, time.perf_counter() - start), len(ended))

    def _deliver_later(self, text: GenerationRequest, piece: CompletionChunk | Exception) -> None:
        if isinstance(piece, Exception):
            self._counters.stats.failed += 1
        self._outbox.append(partial(text.deliver, piece))

    def _fail(self, request: EngineRequest, error: Exception) -> None:
        if request.cancelled:
            return
        request.cancelled = True
        self._queue.remove(request)
        if isinstance(request, GenerationRequest):
            self._deliver_later(request, error)
        else:
            self._counters.stats.failed += 1
            self._outbox.append(partial(request.deliver, error))

    def _fail_all(self, error: Exception, *, close: bool = False) -> None:
        for request in (*(question.request for question in self._scheduled), *self._queue.take_all(close=close)):
            self._fail(request, error)
        self._scheduled = []
        self.decoding.stop(error)

    def _deliver_all(self) -> None:
        """Hand over, in the event loop, what is ready."""
        outbox, self._outbox = self._outbox, []
        if outbox and self.loop is not None:
            try:
                self.loop.call_soon_threadsafe(_call_all, outbox)
            except RuntimeError:  # the loop is closed, and with it all who waited are gone
                _log.debug("answers for a closed event loop")


def _call_all(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _count_tokens(texts: Sequence[GenerationRequest], tokens: Sequence[int]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text, count in zip(texts, tokens, strict=True):
        counts[text.served.key] += count
    return counts
