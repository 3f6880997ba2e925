"""Around every request: an id, one line in the log, its metrics, and no exception that gets out."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softprompt.data.examples import Example
from softprompt.serving.engine.engine_types import ServedPrompt
from softprompt.serving.http.http_errors import CLIENT_GONE, ApiError, to_api_error
from softprompt.serving.http.prometheus import ServerMetrics
from softprompt.serving.http.server_settings import ServerSettings
from softprompt.serving.http.sse import EVENTS, encode_event
from softprompt.serving.request_log.request_sampler import RequestAnswer, RequestSampler, SampledRequest

HEADER = "X-Request-Id"
# of every answer that has none of its own: data, that no browser is to take for a page
SAFE = {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "X-Content-Type-Options": "nosniff"}
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = logging.getLogger("softprompt.serving")


@dataclass
class RequestOutcome:
    """What is known of a request by its end.

    Attributes:
        id: of the request; the client's own, if it sent one.
        key: name of the API key.
        task: name of the prompt, if it is one that there is.
        model: what answered, with its version.
        prompt_tokens, completion_tokens: read and generated.
        status: what it came to, where that is not the response's status: it had begun already.
        code, param: of the error, if it ended in one, and of the field that is wrong.
        warnings: what whoever asked is told beside the answer.
        cut: texts that were too long to be read whole.
        said: texts and answers, where they are to be logged.
        served, examples, answers: of a request to a prompt, as far as it got, for samples.
    """

    id: str
    key: str = ""
    task: str = ""
    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    status: int | None = None
    code: str = ""
    param: str = ""
    warnings: list[str] = field(default_factory=list)
    cut: int = 0
    said: dict[str, Any] = field(default_factory=dict)
    served: ServedPrompt | None = None
    examples: Sequence[Example] = ()
    answers: Sequence[RequestAnswer] = ()


class RequestMiddleware:
    """ASGI middleware, the outermost one of ours."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: ServerMetrics,
        config: ServerSettings,
        stopping: Callable[[], bool],
        sampler: RequestSampler | None = None,
    ) -> None:
        """Wrap ``app``.

        Args:
            config: says which Host a request may have, and below which path a proxy has the server.
            stopping: whether the server was told to end.
        """
        self._app, self._metrics, self._sampler = app, metrics, sampler
        self._config, self._stopping = config, stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(HEADER, "")
        outcome = RequestOutcome(given if _ID.fullmatch(given) else secrets.token_hex(16))
        scope.setdefault("state", {})["outcome"] = outcome
        started, status, growing = time.perf_counter(), 0, False
        head = scope["method"] == "HEAD"
        # whatever is there to be got has a head too
        asked = {**scope, "method": "GET" if head else scope["method"], "root_path": self._config.root_path}

        async def sending(message: Message) -> None:
            nonlocal status, growing
            if message["type"] == "http.response.start":
                status = message["status"]
                sent = MutableHeaders(scope=message)
                sent[HEADER] = outcome.id
                for name, value in SAFE.items():
                    sent.setdefault(name, value)
                if self._stopping():
                    sent["Connection"] = "close"
                growing = sent.get("content-type", "").startswith(EVENTS)
            elif head:
                message = {**message, "body": b""}
            if message["type"] == "http.response.body" and not message.get("more_body"):
                growing = False
            await send(message)

        self._metrics.in_progress.inc()
        try:
            if self._config.answers_as(headers.get("host", ""), scope["path"]):
                await self._app(asked, receive, sending)
            else:
                refused = ApiError(400, "unknown_host", "this server is not known under the name in Host")
                outcome.code = refused.code
                await refused.response()(scope, receive, sending)
        except asyncio.CancelledError:
            # uvicorn does so when the time to finish is over; nothing waits outside for the cancellation
            stopped = ApiError(503, "stopping", "the server was stopped before the answer was there")
            outcome.status, outcome.code = 503, stopped.code
            if not status:
                await stopped.response()(scope, receive, sending)
            elif growing:
                await sending({"type": "http.response.body", "body": encode_event(stopped.to_dict())})
        except Exception as error:
            log.error("failure", exc_info=error, extra={"fields": {"request_id": outcome.id}})
            problem = to_api_error(error)
            outcome.status, outcome.code = 500, problem.code
            if not status:
                await ApiError(500, problem.code, problem.detail).response()(scope, receive, sending)
        finally:
            self._metrics.in_progress.dec()
            seconds = time.perf_counter() - started
            self._ended(asked, scope["method"], outcome, outcome.status or status or CLIENT_GONE, seconds)

    def _ended(self, scope: Scope, method: str, outcome: RequestOutcome, status: int, seconds: float) -> None:
        # the path that was declared, not the one that was sent: that can be anything
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.record_request(route, status, outcome.task, seconds)
        if self._sampler is not None and outcome.served is not None and outcome.examples and self._sampler.is_chosen():
            self._sampler.offer(
                SampledRequest(
                    time=time.time(),
                    request=outcome.id,
                    prompt=outcome.model,
                    served=outcome.served,
                    key=outcome.key,
                    route=route,
                    examples=outcome.examples,
                    answers=outcome.answers,
                    seconds=seconds,
                    status=status,
                    error=outcome.code,
                )
            )
        line = {
            "request_id": outcome.id,
            "method": method if method in ("GET", "POST", "HEAD", "OPTIONS") else "other",
            "route": route,
            "status": status,
            "milliseconds": round(1000 * seconds, 1),
            "key": outcome.key,
            "model": outcome.model,
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
            "code": outcome.code,
            "param": outcome.param,
            "warnings": len(outcome.warnings),
            "cut": outcome.cut,
            **outcome.said,
        }
        log.info("request", extra={"fields": {name: value for name, value in line.items() if value not in ("", 0)}})
