"""The engine: one frozen model answers requests for any mix of prompts, in batches that form by themselves.

    event loop             classify, generate: reserve room, wait for the answer; cancelled or late: give up
    a thread               templates and tokens (request_preparation.py); another one for schemas and grammars
    the model's thread     batches of whatever waits (engine_worker.py and what it imports)

The event loop never waits for the model, and the model's thread never for a client.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from math import inf
from typing import Literal, Self, TypeVar

from softprompt.data.examples import Example
from softprompt.errors import ConfigError, DataError
from softprompt.inference.generation import GenerationConfig, start_grammar
from softprompt.inference.predictions import Prediction
from softprompt.inference.scoring import EVALUATION_TOKENS
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.kernels.compilation import SERVED, compiled, should_compile
from softprompt.prompts.prefix import shares_prefix
from softprompt.serving.engine.completion_chunks import CompletionChunk, InputUsage
from softprompt.serving.engine.engine_requests import (
    ClassificationRequest,
    DeadlineExceededError,
    EngineBusyError,
    EngineRequest,
    GenerationRequest,
    RawPrompt,
    RequestKind,
    ServedPrompt,
    deadline_after,
    expire_at,
)
from softprompt.serving.engine.engine_stats import BatchObserver, EngineCounters, EngineStats
from softprompt.serving.engine.engine_worker import EngineWorker
from softprompt.serving.engine.prefix_cache import PrefixCache
from softprompt.serving.engine.request_preparation import RequestPreparer, split_portions
from softprompt.serving.engine.request_queue import RequestQueue
from softprompt.serving.engine.request_timing import RequestTiming

_log = logging.getLogger("softprompt.serving")
_Value = TypeVar("_Value")
_Request = TypeVar("_Request", ClassificationRequest, GenerationRequest)

_LONGEST_WAIT = 60.0  # seconds that a client is told to wait, at most


class EngineClosedError(EngineBusyError):
    """The engine is closing, and takes no more requests."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.args = ("the engine is closing, try again after 1 s",)


@dataclass(frozen=True)
class EngineLimits:
    """How much an engine takes at once.

    Attributes:
        waiting: examples that may wait; more are refused, but for a few of other prompts than those that fill it.
        rows: sequences of a forward pass, and completions that grow at once.
        batch_tokens: padded tokens of a forward pass; 2,048 on a processor, 16,384 on a GPU if not given.
        running_tokens: that the completions that grow at once may come to, prompts and padding counted.
        gather: seconds that the first of several requests waits for the others where nothing else is to be done.
        prefix_bytes: memory for prompts' prefixes.
        text_characters: of an example, its columns counted; longer ones are refused.
    """

    waiting: int = 1024
    rows: int = 64
    batch_tokens: int | None = None
    running_tokens: int = 65_536
    gather: float = 0.002
    prefix_bytes: int = 512 * 2**20
    text_characters: int = 200_000

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "gather" else 1
            if value is not None and not least <= value < inf:
                raise ConfigError(f"{field.name} must be at least {least}, got {value}")


class InferenceEngine:
    """Implements ``EngineClient``: to be used from one event loop, and closed at the end.

    async with Engine(base) as engine:
        (prediction,) = await engine.classify(served, [Example("a quiet film")])
    """

    def __init__(
        self,
        base: FrozenLM,
        limits: EngineLimits | None = None,
        observer: BatchObserver | None = None,
        *,
        compile: Literal["auto", "always", "never"] = "auto",
        note: Callable[[str], None] = _log.warning,
    ) -> None:
        """Start the threads; returns when the model's thread is ready, which compiles first.

        Args:
            observer: is told of every batch.
            compile: what texts are scored by, on a CPU with a C++ compiler; ``auto``: for models above 50 million
                parameters.
            note: is told if the compiler fails.
        """
        self.base, self.limits = base, limits or EngineLimits()
        # measured here, for it takes a few forward passes
        self._shares = shares_prefix(base)
        self._preparing = RequestPreparer(base, self.limits.text_characters)
        self._preparer = ThreadPoolExecutor(1, "softprompt tokens")
        # a schema may take long, and texts are not to wait for it
        self._compiler = ThreadPoolExecutor(1, "softprompt grammars")
        self._queue = RequestQueue(self.limits.waiting)
        self._prefixes = PrefixCache(base, self.limits.prefix_bytes)
        self._counters = EngineCounters(observer)
        self._closing = False
        self._worker = EngineWorker(
            base,
            self._queue,
            self._prefixes,
            self._counters,
            rows=self.limits.rows,
            token_budget=self.limits.batch_tokens or (EVALUATION_TOKENS if base.device.type == "cpu" else 16_384),
            running_tokens=self.limits.running_tokens,
            gather=self.limits.gather,
            compiling=partial(compiled, base, should_compile(base, compile, SERVED), note, learning=False),
        )
        self._worker.start()
        self._worker.ready.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close(graceful=False)

    async def classify(
        self,
        served: ServedPrompt,
        examples: Sequence[Example],
        *,
        deadline: float | None = None,
        timing: RequestTiming | None = None,
    ) -> list[Prediction]:
        """See ``EngineClient``; raises PromptFileError and BaseModelError too, for a prompt that does not work here."""
        if served.spec.kind != "classification":
            raise DataError(f"'{served.key}' has no labels to choose from: expected a prompt for classification")
        if not examples:
            return []
        answer: asyncio.Future[list[Prediction]] = self._bind_loop().create_future()

        async def ready() -> ClassificationRequest:
            texts: list[tuple[int, ...]] = []
            read: list[InputUsage] = []
            for part in split_portions(served.spec.template, examples):
                asking, some, of_them = await self._run(
                    self._preparer, partial(self._preparing.encode_examples, served, part)
                )
                texts += some
                read += of_them
            lengths = (state.length + state.placement.added for state in served.states)
            unshared = 0 if self._shares else max(lengths, default=0)
            return ClassificationRequest(served, asking, texts, read, unshared, answer, timing)

        until = deadline_after(deadline)
        async with self._expire_at(until):
            request = await self._enqueue("classification", served.key, len(examples), ready)
            try:
                return await answer
            finally:
                self._cancel(request)

    async def generate(
        self,
        served: ServedPrompt,
        example: Example | RawPrompt,
        generation: GenerationConfig,
        *,
        logprobs: int | None = None,
        deadline: float | None = None,
        timing: RequestTiming | None = None,
    ) -> AsyncIterator[CompletionChunk]:
        """See ``EngineClient``; raises as ``classify``."""
        if len(served.states) > 1:
            raise DataError(f"'{served.key}' is several prompts that vote on a label: expected one prompt")
        self._bind_loop()
        out: asyncio.Queue[CompletionChunk | Exception] = asyncio.Queue()

        async def ready() -> GenerationRequest:
            work = partial(self._preparing.encode_text, served, example, generation.max_new_tokens)
            encoded = await self._run(self._preparer, work)
            grammar = None
            if generation.grammar is not None:
                grammar = await self._run(self._compiler, partial(start_grammar, self.base, generation))
            return GenerationRequest(
                self.base, served, encoded, generation, out, timing, grammar=grammar, logprobs=logprobs
            )

        until = deadline_after(deadline)
        async with self._expire_at(until):
            request = await self._enqueue("generation", served.key, 1, ready)
        try:
            while True:
                # only while waiting: between pieces the caller's own time passes
                async with self._expire_at(until):
                    piece = await out.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.finish is not None:
                    return
        finally:
            self._cancel(request)

    async def close(self, *, graceful: bool = True) -> None:
        """Take no more requests, and end; those that wait or run are finished first, or refused (EngineClosedError)."""
        self._closing = True
        self._worker.end(finish=graceful, why=EngineClosedError())
        await asyncio.to_thread(self._worker.join)
        self._preparer.shutdown(wait=False)
        self._compiler.shutdown(wait=False)

    def snapshot(self) -> EngineStats:
        """Where it stands; from any thread."""
        prefixes = self._prefixes
        return replace(
            self._counters.stats,
            waiting=sum(self._queue.counts.values()),
            running=len(self._worker.decoding),
            prefix_entries=len(prefixes),
            prefix_bytes=prefixes.bytes,
            prefix_hits=prefixes.hits,
            prefix_misses=prefixes.misses,
        )

    def _bind_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._worker.loop not in (None, loop):
            raise RuntimeError("an engine is to be used from one event loop")
        self._worker.loop = loop
        return loop

    async def _run(self, executor: ThreadPoolExecutor, work: Callable[[], _Value]) -> _Value:
        try:
            working = asyncio.get_running_loop().run_in_executor(executor, work)
        except RuntimeError as error:  # it was shut down meanwhile
            raise EngineClosedError from error
        return await working

    async def _enqueue(
        self, kind: RequestKind, key: str, examples: int, ready: Callable[[], Awaitable[_Request]]
    ) -> _Request:
        """Keep room for a request, make it ready, and let it wait its turn."""
        if self._closing:
            raise EngineClosedError
        if examples > self._queue.capacity:
            raise DataError(f"{examples:,} examples at once: expected at most {self._queue.capacity:,}, send fewer")
        if not self._queue.reserve(kind, key, examples):
            self._counters.stats.refused += 1
            seconds = self._counters.seconds_for(self._queue.counts)
            raise EngineBusyError(min(max(seconds, 1.0), _LONGEST_WAIT))
        try:
            request = await ready()
            if not self._queue.put(request):
                raise EngineClosedError
        except BaseException:
            self._queue.release(kind, key, examples)
            raise
        return request

    def _cancel(self, request: EngineRequest) -> None:
        """Nobody waits for it any more: out of the queue, or out of its batch at the next step."""
        request.cancelled = True
        self._queue.remove(request)

    @asynccontextmanager
    async def _expire_at(self, until: float | None) -> AsyncIterator[None]:
        """DeadlineExceededError, and counted, if what is in it takes until then."""
        try:
            async with expire_at(until):
                yield
        except DeadlineExceededError:
            self._counters.stats.expired += 1
            raise
