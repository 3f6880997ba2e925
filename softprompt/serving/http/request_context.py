"""What every request for an answer goes through: permission, prompt, limits, a deadline, a client that may leave."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from fastapi import Header
from starlette.requests import Request

from softprompt.data.examples import Example, count_characters, unlabelled_example
from softprompt.errors import DataError, shorten
from softprompt.inference.predictor import Prediction
from softprompt.serving.engine.engine_types import Answering, Expired, Served
from softprompt.serving.engine.prompt_registry import Found, Registry
from softprompt.serving.http.auth import check_model
from softprompt.serving.http.http_errors import ApiError, ClientGone
from softprompt.serving.http.middleware import Facts
from softprompt.serving.http.prometheus import Metrics
from softprompt.serving.http.prompt_free_requests import Baselines
from softprompt.serving.http.schemas import Baseline
from softprompt.serving.http.server_settings import ServeConfig
from softprompt.serving.request_log.request_sampler import Answered

T = TypeVar("T")

MOST_NAMED = 8  # columns, or texts, that are warned of in one answer

Timeout = Annotated[
    int | None,
    Header(alias="X-Request-Timeout", ge=1, le=86400, description="seconds, at most those of the server's settings"),
]


@dataclass(frozen=True)
class Asked:
    """A request whose model is found.

    Attributes:
        request: for the client's leaving.
        found: what answers.
        served: the same for the engine.
        ends: when the answer is no longer wanted, on the event loop's clock.
        facts: for log and metrics.
        model: that was asked for, with its version, which may be another than answers (a baseline).
        columns: that its template uses.
    """

    request: Request
    found: Found
    served: Served
    ends: float
    facts: Facts
    model: str
    columns: frozenset[str]

    @property
    def left(self) -> float:
        """Seconds until the deadline; raises Expired behind it."""
        seconds = self.ends - asyncio.get_running_loop().time()
        if seconds <= 0:
            raise Expired
        return seconds

    async def attended(self, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` comes to, which is cancelled when its deadline passes or the client goes away.

        Raises:
            Expired, ClientGone: that happened.
        """
        task, watch = asyncio.create_task(work), asyncio.create_task(_gone(self.request))
        try:
            done, _ = await asyncio.wait({task, watch}, timeout=self.left, return_when=asyncio.FIRST_COMPLETED)
            if task in done:
                return task.result()
            raise ClientGone if watch in done else Expired
        finally:
            task.cancel()
            watch.cancel()
            await asyncio.gather(task, watch, return_exceptions=True)

    async def in_time(self, events: AsyncGenerator[T, None]) -> T | None:
        """The next one of a stream whose response has begun, ``None`` at its end; raises Expired."""
        try:
            async with asyncio.timeout(self.left):
                return await anext(events, None)
        except TimeoutError as error:
            raise Expired from error


class Desk:
    """What the routes share."""

    def __init__(self, engine: Answering, registry: Registry, config: ServeConfig, metrics: Metrics) -> None:
        self.engine, self.registry, self.config, self.metrics = engine, registry, config, metrics
        self._baselines = Baselines(registry.base)

    async def ask(
        self, request: Request, model: str, seconds: int | None = None, baseline: Baseline | None = None
    ) -> Asked:
        """Find what a request means, once.

        Args:
            seconds: that the client allows.
            baseline: the base model answers in place of the prompt.

        Raises:
            ApiError, Unknown, Unavailable: it may not be asked, is not there, or cannot be used.
        """
        ends = asyncio.get_running_loop().time() + min(self.config.timeout, seconds or self.config.timeout)
        # before it is looked up, so that a key learns nothing of what it may not ask
        check_model(request, model if model == self.registry.base_name else model.partition("@")[0])
        if baseline is not None:
            check_model(request, self.registry.base_name)
        found = self.registry.find(model)
        facts: Facts = request.state.facts
        facts.task, facts.model = found.name, found.id
        bare = self.registry.bare
        asked = Asked(request, found, bare, ends, facts, found.id, bare.spec.compiled.names)
        if found.number is not None:
            loaded = self.registry.in_memory(found.id)
            if loaded is None:
                loaded = await asked.attended(self.registry.loaded(found))
            asked = replace(asked, served=loaded.served, columns=loaded.served.spec.compiled.names)
            if baseline is None:
                facts.served = loaded.served
        if baseline is not None:
            served = await asked.attended(asyncio.to_thread(self._baselines.of, asked.served, baseline))
            found = self.registry.find(self.registry.base_name)
            facts.task, facts.model = found.name, found.id
            asked = replace(asked, found=found, served=served)
        return asked

    def examples(self, asked: Asked, rows: Sequence[Mapping[str, Any]]) -> list[Example]:
        """Rows of a request for the engine; columns and texts that the template does not use are noted.

        Raises:
            ApiError: too many, or one too long.
            DataError: one cannot be used.
        """
        # what never fits into the queue is not to be tried again and again
        most = min(self.config.batch_limit, int(self.config.engine.get("waiting", self.config.batch_limit)))
        if len(rows) > most:
            raise ApiError(422, "too_many_texts", f"a request has at most {most:,} texts")
        columns = asked.served.spec.row_columns
        examples = [unlabelled_example(row, f"text {index}", columns) for index, row in enumerate(rows)]
        for index, one in enumerate(examples):
            if (length := count_characters(one)) > self.config.text_limit:
                limit = f"at most {self.config.text_limit:,} characters, got {length:,}"
                raise ApiError(422, "text_too_long", f"text {index}: expected {limit}")
        used = sorted(asked.columns)
        for name in sorted({name for one in examples for name in one.columns} - asked.columns)[:MOST_NAMED]:
            asked.facts.warnings.append(
                f"the column '{shorten(name, 80)}' has no effect: the template of '{asked.model}' uses "
                f"{', '.join(used)}"
            )
        needed = asked.served.spec.compiled.names
        if "text" not in needed and any(one.text for one in examples):
            asked.facts.warnings.append(
                f"the text has no effect: the template of '{asked.model}' uses {', '.join(sorted(needed))}"
            )
        asked.facts.examples = examples
        return examples

    def row(self, asked: Asked, text: str, columns: Mapping[str, Any] | None) -> dict[str, Any]:
        """The row of a text with its columns; raises DataError for a second text."""
        for name in ("text", asked.served.spec.columns.text):
            if columns and name in columns:
                raise DataError(
                    f"columns: expected columns beside '{name}', which the request has already: leave it out"
                )
        return {**(columns or {}), "text": text}

    def warn_of_cut(self, asked: Asked, index: int, tokens: int) -> None:
        """Note that a text was too long to be read whole."""
        asked.facts.cut += 1
        if asked.facts.cut <= MOST_NAMED:
            asked.facts.warnings.append(
                f"text {index} was cut: it is longer than the {tokens:,} tokens that '{asked.model}' reads, prompt and "
                "template included"
            )

    def account(self, facts: Facts, prompt_tokens: int, completion_tokens: int) -> None:
        """Count what was read and generated for a request."""
        facts.prompt_tokens += prompt_tokens
        facts.completion_tokens += completion_tokens
        self.metrics.read(facts.task, prompt_tokens, completion_tokens)

    def note(self, facts: Facts, answers: Sequence[str], predictions: Sequence[Prediction] = ()) -> None:
        """Keep what was answered for samples, and put it into the log with its texts, where that is asked for."""
        if self.config.log_text:
            facts.said = {"texts": [one.text for one in facts.examples], "answers": list(answers)}
        facts.answers = [Answered(str(one.label), one.probabilities) for one in predictions] or [
            Answered(one) for one in answers
        ]


def warned(facts: Facts) -> dict[str, Any]:
    """What an answer has beside OpenAI's fields, where there is something to tell."""
    return {"warnings": facts.warnings} if facts.warnings else {}


async def _gone(request: Request) -> None:
    """Wait until the client has closed the connection; the body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
