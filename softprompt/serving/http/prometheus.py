"""What Prometheus is told.

Labels are routes, codes of errors, and the names of prompts that there are: never what a request made up, and no keys.
"""

from collections.abc import Iterator
from functools import partial
from typing import Protocol, runtime_checkable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from softprompt.models.frozen_lm import FrozenLM
from softprompt.serving.engine.engine_requests import EngineClient
from softprompt.serving.engine.engine_stats import BatchStats
from softprompt.serving.engine.prompt_registry import PromptRegistry, StoreChanges
from softprompt.serving.http.guarded_route import Authenticator
from softprompt.serving.request_log.request_sampler import RequestOutcome
from softprompt.utils.version import VERSION, read_revision, read_versions

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 10)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

GAUGES = {
    "waiting": "Texts waiting for the model.",
    "running": "Completions growing.",
    "prefix_entries": "Prompts whose prefix is kept.",
    "prefix_bytes": "Memory of kept prefixes.",
}
COUNTERS = {
    "refused": "Requests refused because the queue was full.",
    "expired": "Requests not answered at their deadline.",
    "failed": "Requests that ended with an error of their own.",
    "prefix_hits": "Prefixes that were kept when a batch needed them.",
    "prefix_misses": "Prefixes that had to be computed.",
}


@runtime_checkable
class StatsProvider(Protocol):
    """An engine that tells where it stands: numbers by the names in ``GAUGES`` and ``COUNTERS``."""

    def snapshot(self) -> object: ...


class ServerMetrics:
    """Counters of one server. An engine that observes itself is given this as its observer."""

    def __init__(self) -> None:
        # when each series began: a third of all lines, and Prometheus does not need it
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._all = CollectorRegistry()
        ProcessCollector(registry=self._all)
        counter, histogram = partial(Counter, registry=self._all), partial(Histogram, registry=self._all)
        self._requests = counter("softprompt_requests", "Requests answered.", ("route", "status", "task"))
        took = "Seconds from the request's head to the end of its answer."
        self._seconds = histogram("softprompt_request_seconds", took, ("route", "task"), buckets=SECONDS)
        self._errors = counter("softprompt_request_errors", "Requests that ended in an error.", ("route", "code"))
        first = "Seconds from a request's arrival at the engine to its first token, or to its labels."
        labels = ("route", "task", "stream")
        self._first_token = histogram("softprompt_time_to_first_token_seconds", first, labels, buckets=SECONDS)
        between = "Seconds between a token and the one before."
        self._between = histogram("softprompt_inter_token_latency_seconds", between, ("task",), buckets=TOKEN_SECONDS)
        queued = "Seconds that a request waited for the model, tokenisation included."
        self._queued = histogram("softprompt_request_queue_time_seconds", queued, ("task",), buckets=SECONDS)
        read, made = "Tokens read for a request.", "Tokens generated for a request."
        self._read = histogram("softprompt_request_prompt_tokens", read, ("task",), buckets=TOKENS)
        self._made = histogram("softprompt_request_generation_tokens", made, ("task",), buckets=TOKENS)
        self._tokens = counter("softprompt_tokens", "Tokens read and generated.", ("task", "kind"))
        self._refreshes = counter("softprompt_refreshes", "Looks at the store, by how they ended.", ("result",))
        self._rate_limited = counter("softprompt_rate_limited", "Requests refused by their key's limits.", ("limit",))
        chosen = "Requests chosen as samples, by what became of them."
        self._samples = counter("softprompt_samples", chosen, ("result",))
        self.in_progress = Gauge("softprompt_requests_in_progress", "Requests being answered.", registry=self._all)
        self._rows = histogram("softprompt_batch_rows", "Rows of a forward pass.", ("what",), buckets=ROWS)
        self._batch_seconds = counter("softprompt_batch_seconds", "Seconds of forward passes.", ("what",))

    def watch(self, engine: EngineClient, registry: PromptRegistry, authenticator: Authenticator) -> None:
        """Have these asked whenever the metrics are read."""
        self._all.register(_StateCollector(engine, registry, authenticator))
        build = Info("softprompt_build", "What runs, and on what.", registry=self._all)
        build.info(_describe_build(registry))

    def record_batch(self, batch: BatchStats) -> None:
        """Count a forward pass; from any thread."""
        self._rows.labels(batch.what).observe(batch.rows)
        self._batch_seconds.labels(batch.what).inc(batch.seconds)

    def record_request(self, outcome: RequestOutcome) -> None:
        """Count a request that has ended."""
        route, task = outcome.route, outcome.task
        self._requests.labels(route, str(outcome.status), task).inc()
        self._seconds.labels(route, task).observe(outcome.seconds)
        if outcome.code:
            self._errors.labels(route, outcome.code).inc()
        for timing in outcome.timings:
            if timing.queue_seconds is not None:
                self._queued.labels(task).observe(timing.queue_seconds)
            if timing.first_token_seconds is not None:
                stream = "true" if outcome.streamed else "false"
                self._first_token.labels(route, task, stream).observe(timing.first_token_seconds)
            between = self._between.labels(task)
            for gap in timing.gaps:
                between.observe(gap)
        if outcome.prompt_tokens:
            self._read.labels(task).observe(outcome.prompt_tokens)
        if outcome.completion_tokens:
            self._made.labels(task).observe(outcome.completion_tokens)

    def record_tokens(self, task: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Count tokens."""
        self._tokens.labels(task, "prompt").inc(prompt_tokens)
        self._tokens.labels(task, "completion").inc(completion_tokens)

    def record_rate_limited(self, limit: str) -> None:
        """Count a request that was refused because its key had its ``requests`` or ``tokens``."""
        self._rate_limited.labels(limit).inc()

    def record_samples(self, result: str, requests: int) -> None:
        """Count requests that were chosen as samples; from any thread."""
        self._samples.labels(result).inc(requests)

    def record_refresh(self, changes: StoreChanges | None) -> None:
        """Count a look at the store; ``None`` for one that failed."""
        result = "failed" if changes is None else "in part" if changes.troubles else "ok"
        self._refreshes.labels(result).inc()

    def render(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self._all)


class _StateCollector(Collector):
    """What engine and registry have at the moment of reading."""

    def __init__(self, engine: EngineClient, registry: PromptRegistry, authenticator: Authenticator) -> None:
        self._engine, self._registry, self._authenticator = engine, registry, authenticator

    def describe(self) -> Iterator[Metric]:
        # asked while it is registered, when the engine may not be there yet
        return iter(())

    def collect(self) -> Iterator[Metric]:
        versions = sum(len(listing.numbers) for listing in self._registry.names.values())
        yield GaugeMetricFamily("softprompt_prompt_versions", "Versions that can be asked.", versions)
        yield GaugeMetricFamily("softprompt_prompts_loaded", "Versions in memory.", self._registry.loaded_count)
        yield from self._collect_keys()
        if not isinstance(self._engine, StatsProvider):
            return
        snapshot = self._engine.snapshot()
        for name, what in GAUGES.items():
            yield GaugeMetricFamily(f"softprompt_engine_{name}", what, getattr(snapshot, name))
        for name, what in COUNTERS.items():
            yield CounterMetricFamily(f"softprompt_engine_{name}", what, getattr(snapshot, name))

    def _collect_keys(self) -> Iterator[Metric]:
        if not self._authenticator.needs_key:
            return
        valid, expired = self._authenticator.list_valid_keys(), self._authenticator.expired_count
        keys = GaugeMetricFamily("softprompt_api_keys", "API keys.", labels=("state",))
        keys.add_metric(("valid",), len(valid))
        keys.add_metric(("expired",), expired)
        yield keys
        if ends := [key.expires.timestamp() for key in valid if key.expires is not None]:
            name = "softprompt_api_keys_next_expiry_timestamp_seconds"
            yield GaugeMetricFamily(name, "When the next API key expires, in seconds since 1970.", min(ends))


def _describe_build(registry: PromptRegistry) -> dict[str, str]:
    """Labels of ``softprompt_build_info``; the model by the name that requests have for it."""
    base, versions = registry.base, read_versions()
    device, dtype = (str(base.device), str(base.dtype)) if isinstance(base, FrozenLM) else ("vllm", "unknown")
    return {
        "version": VERSION,
        "revision": read_revision() or "unknown",
        "python": versions["python"],
        "torch": versions["torch"],
        "device": device,
        "dtype": dtype.removeprefix("torch."),
        "model": registry.base_name,
    }
