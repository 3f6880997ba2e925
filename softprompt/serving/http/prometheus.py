"""What Prometheus is told. Labels are routes and the names of prompts that there are, never what a request made up."""

from collections.abc import Iterator
from functools import partial
from typing import Protocol, runtime_checkable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from softprompt.serving.engine.engine_requests import EngineClient
from softprompt.serving.engine.engine_stats import BatchStats
from softprompt.serving.engine.prompt_registry import PromptRegistry, StoreChanges

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
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
        self._tokens = counter("softprompt_tokens", "Tokens read and generated.", ("task", "kind"))
        self._refreshes = counter("softprompt_refreshes", "Looks at the store, by how they ended.", ("result",))
        self._rate_limited = counter("softprompt_rate_limited", "Requests refused by their key's limits.", ("limit",))
        chosen = "Requests chosen as samples, by what became of them."
        self._samples = counter("softprompt_samples", chosen, ("result",))
        self.in_progress = Gauge("softprompt_requests_in_progress", "Requests being answered.", registry=self._all)
        self._rows = histogram("softprompt_batch_rows", "Rows of a forward pass.", ("what",), buckets=ROWS)
        self._batch_seconds = counter("softprompt_batch_seconds", "Seconds of forward passes.", ("what",))

    def watch(self, engine: EngineClient, registry: PromptRegistry) -> None:
        """Have these asked whenever the metrics are read."""
        self._all.register(_StateCollector(engine, registry))

    def record_batch(self, batch: BatchStats) -> None:
        """Count a forward pass; from any thread."""
        self._rows.labels(batch.what).observe(batch.rows)
        self._batch_seconds.labels(batch.what).inc(batch.seconds)

    def record_request(self, route: str, status: int, task: str, seconds: float) -> None:
        """Count a request that has ended."""
        self._requests.labels(route, str(status), task).inc()
        self._seconds.labels(route, task).observe(seconds)

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

    def __init__(self, engine: EngineClient, registry: PromptRegistry) -> None:
        self._engine, self._registry = engine, registry

    def describe(self) -> Iterator[Metric]:
        # asked while it is registered, when the engine may not be there yet
        return iter(())

    def collect(self) -> Iterator[Metric]:
        versions = sum(len(listing.numbers) for listing in self._registry.names.values())
        yield GaugeMetricFamily("softprompt_prompt_versions", "Versions that can be asked.", versions)
        yield GaugeMetricFamily("softprompt_prompts_loaded", "Versions in memory.", self._registry.loaded_count)
        if not isinstance(self._engine, StatsProvider):
            return
        snapshot = self._engine.snapshot()
        for name, what in GAUGES.items():
            yield GaugeMetricFamily(f"softprompt_engine_{name}", what, getattr(snapshot, name))
        for name, what in COUNTERS.items():
            yield CounterMetricFamily(f"softprompt_engine_{name}", what, getattr(snapshot, name))
