"""A server on a tiny model, whose engine answers each request alone, by Predictor; and stores of prompts for it."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from helpers.tiny_models import random_prompt, tiny_base
from starlette.testclient import TestClient

from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictions import Prediction
from softprompt.inference.predictor import Predictor
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.serving.app import create_app
from softprompt.serving.engine.completion_chunks import CompletionChunk, InputUsage
from softprompt.serving.engine.engine_requests import RawPrompt, ServedPrompt
from softprompt.serving.engine.inference_engine import InferenceEngine
from softprompt.serving.engine.prompt_registry import PromptRegistry
from softprompt.serving.engine.request_timing import RequestTiming
from softprompt.serving.http.guarded_route import Authenticator
from softprompt.serving.http.prometheus import ServerMetrics
from softprompt.serving.http.rate_limits import RateLimiter
from softprompt.serving.http.server_settings import ServerSettings
from softprompt.serving.request_log.request_records import Retention
from softprompt.serving.request_log.request_sampler import RequestSampler
from softprompt.serving.request_log.sample_files import open_samples
from softprompt.serving.uvicorn_server import ConnectionLimits, Server, listen
from softprompt.store.prompt_sources import FolderSource, PromptSource, StoreSource, read_served_profile
from softprompt.store.version_store import Store

LABELS = TaskSpec.of(labels=["bad", "good"], verbalizers={"good": "great"}, template="{{ text }}:")
WORDS = TaskSpec.of(template="{{ text }}\nOutput:")
MORE = TaskSpec.of(labels=["no", "yes"], template="{{ title }} {{ text }}?")
BASE_NAME = "tiny"


def the_base() -> FrozenLM:
    return tiny_base("llama")


def prompt(spec: TaskSpec = LABELS, seed: int = 1, base: FrozenLM | None = None) -> Prompt:
    """Four virtual tokens that no other seed has, for the tiny model."""
    on = base or the_base()
    state = PromptState.of_embeddings(random_prompt(on, 4, seed).detach())
    return Prompt((state,), spec, on.name, on.fingerprint, "prompt-tuning")


def a_store(folder: Path) -> Store:
    """``tone`` in two versions, the first in production; ``words`` and ``more`` in one."""
    store = Store(folder / "store")
    for version in (prompt(seed=1), prompt(seed=2)):
        store.put(version, "tone")
    store.promote("tone@1", "prod")
    store.put(prompt(WORDS, seed=3), "words")
    store.put(prompt(MORE, seed=4), "more")
    return store


def expected(spec: TaskSpec, seed: int, *rows: Example) -> list[dict[str, Any]]:
    """What the prompt of this seed says to rows."""
    predictor = Predictor.of_prompt(the_base(), prompt(spec, seed), GenerationConfig(max_new_tokens=8))
    found = sorted(predictor.predict(rows), key=lambda one: one.index)
    return [one.to_dict() for one in found]


class DirectEngine:
    """Implements ``EngineClient``, one request after the other.

    Attributes:
        hold: while it is set, nothing is answered.
        hold_pieces: while it is set, no completion grows beyond its first piece.
        failure: what is raised instead of an answer, or of the rest of one.
        numbers: what stands for every probability.
        cancelled: requests that were given up while they waited.
        asked: keys of the prompts that were asked, in order.
    """

    def __init__(self, base: FrozenLM) -> None:
        self._base = base
        self.hold, self.hold_pieces = threading.Event(), threading.Event()
        self.failure: Exception | None = None
        self.numbers: float | None = None
        self.cancelled = 0
        self.asked: list[str] = []

    async def classify(
        self,
        served: ServedPrompt,
        examples: Sequence[Example],
        *,
        deadline: float | None = None,
        timing: RequestTiming | None = None,
    ) -> list[Prediction]:
        self.asked.append(served.key)
        await self._turn(self.hold)
        predictor = Predictor(self._base, served.spec, served.states)
        read = [self._read(predictor, one) for one in examples]
        found = [
            replace(one, prompt_tokens=of_it.tokens, cut=of_it.cut)
            for one, of_it in zip(predictor.predict(examples), read, strict=True)
        ]
        if self.numbers is not None:
            found = [replace(one, probabilities=dict.fromkeys(served.spec.labels, self.numbers)) for one in found]
        if timing is not None:
            timing.mark_tokens()
        return found

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
        self.asked.append(served.key)
        await self._turn(self.hold)
        if isinstance(example, RawPrompt):
            # what it says is for the real engine to know
            yield CompletionChunk("said" if example.echo else "", 0, InputUsage(1, False))
            yield CompletionChunk("", 0, InputUsage(1, False), "length")
            return
        predictor = Predictor(self._base, served.spec, served.states, generation)
        (answer,) = predictor.predict([example])
        text, read = answer.completion or "", self._read(predictor, example)
        for start in range(0, len(text), 3):
            if start:
                await self._turn(self.hold_pieces)
            if timing is not None:
                timing.mark_tokens()
            yield CompletionChunk(text[start : start + 3], 1, read)
        await self._turn(self.hold_pieces)
        yield CompletionChunk("", 0, read, "stop")

    async def _turn(self, hold: threading.Event) -> None:
        try:
            await asyncio.sleep(0)
            while hold.is_set():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failure is not None:
            raise self.failure

    def _read(self, predictor: Predictor, example: Example) -> InputUsage:
        before = predictor.truncated
        (ids,) = predictor.encoder.encode_inputs([example])
        return InputUsage(len(ids) + sum(state.length for state in predictor.states), predictor.truncated > before)


class Clock:
    """A clock that goes on only when it is told to, in seconds and as the time of the day."""

    def __init__(self) -> None:
        self.now = 0.0
        self.start = datetime.now(UTC)

    def __call__(self) -> float:
        return self.now

    def date(self) -> datetime:
        return self.start + timedelta(seconds=self.now)


class Place:
    """A server in parts, for tests to take hold of."""

    def __init__(
        self,
        source: PromptSource,
        sampling: tuple[Path, float, bool] | None = None,
        draining: bool = False,
        clock: Clock | None = None,
        **settings: Any,
    ) -> None:
        """Put it together.

        Args:
            clock: by which limits and keys go.
            sampling: into which file, what share, and whether with texts.
            draining: it goes on answering for a while when it is stopped.
        """
        values = {"model": "tiny", "prompts": ("x",), "refresh": 0, "default_max_tokens": 8, "max_tokens": 32}
        self.config = ServerSettings.build(**{**values, **settings})
        self.metrics = ServerMetrics()
        self.engine = self.make_engine()
        self.registry = self.make_registry(source)
        self.registry.refresh()
        clocks = {} if clock is None else {"clock": clock.date}
        self.access = Authenticator(
            self.config.keys_path, open_admin=self.config.is_private, origins=self.config.cors_origins, **clocks
        )
        self.server = Server(
            shutdown_timeout=self.config.shutdown_timeout,
            drain=self.config.drain_delay if draining else 0,
            bounds=ConnectionLimits(self.config.max_connections, self.config.header_timeout, self.config.timeout),
            proxies=self.config.forwarded_allow_ips,
        )
        limiter = None
        if clock is not None:
            most = (self.config.requests_per_minute, self.config.tokens_per_minute)
            limiter = RateLimiter(*most, clock, self.metrics.record_rate_limited)
        self.sampler: RequestSampler | None = None
        if sampling is not None:
            path, rate, text = sampling
            file, profile = open_samples(path, Retention.parse("100000")), partial(read_served_profile, source)
            base = self.registry.base
            self.sampler = RequestSampler(base, file, profile, self.metrics.record_samples, rate=rate, text=text)
        self.app: FastAPI = create_app(
            self.engine,
            self.registry,
            self.config,
            self.access,
            self.metrics,
            sampler=self.sampler,
            stopping=lambda: self.server.stopping,
            limiter=limiter,
        )

    def make_engine(self) -> Any:
        return DirectEngine(the_base())

    def make_registry(self, source: PromptSource) -> PromptRegistry:
        return PromptRegistry(the_base(), source, base_name=BASE_NAME, default_alias=self.config.default_alias)

    @classmethod
    def of_store(cls, store: Store, **settings: Any) -> "Place":
        return cls(StoreSource(str(store.url)), **settings)

    @classmethod
    def of_folders(cls, *places: object, **settings: Any) -> "Place":
        return cls(FolderSource([str(place) for place in places]), **settings)

    @contextmanager
    def client(self, token: str | None = None) -> Iterator[TestClient]:
        """Requests in this process."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        with TestClient(
            self.app, base_url="http://127.0.0.1", headers=headers, raise_server_exceptions=False
        ) as client:
            yield client

    @contextmanager
    def running(self) -> Iterator[str]:
        """The address of uvicorn in a thread, on a free port, while it runs."""
        listening = listen("127.0.0.1", 0)
        port = listening.getsockname()[1]
        thread = threading.Thread(target=self.server.serve, args=(self.app, listening))
        thread.start()
        try:
            wait_for(lambda: self.server.started)
            yield f"http://127.0.0.1:{port}"
        finally:
            self.server.stop()
            thread.join(60)
            assert not thread.is_alive()


class RealPlace(Place):
    """With the real engine, which is to be closed (``place.engine.close``) from its event loop."""

    def make_engine(self) -> Any:
        return InferenceEngine(the_base(), observer=self.metrics)


def wait_for(condition: Any, seconds: float = 60) -> None:
    """Until it holds; fails if it never does."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.01)


def error_of(response: Any, status: int) -> dict[str, Any]:
    """The error of a response of this status, in OpenAI's format."""
    assert response.status_code == status, (response.status_code, response.text)
    (content,) = [response.json()["error"]]
    assert set(content) == {"message", "type", "param", "code"}
    assert "\n" not in content["message"]
    assert response.headers["x-request-id"]
    return dict(content)
