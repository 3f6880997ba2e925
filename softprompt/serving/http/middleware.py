"""Around every request: an id, one line in the log, its metrics, and no exception that gets out."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softprompt.serving.http.http_errors import CLIENT_GONE, ApiError, to_api_error
from softprompt.serving.http.prometheus import ServerMetrics
from softprompt.serving.http.rate_limits import Admission
from softprompt.serving.http.server_settings import ServerSettings, is_address
from softprompt.serving.http.sse import EVENTS, encode_event
from softprompt.serving.request_log.request_sampler import RequestOutcome, RequestSampler

HEADER = "X-Request-Id"
# of every answer that has none of its own: data, that no browser is to take for a page
SAFE = {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "X-Content-Type-Options": "nosniff"}
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = logging.getLogger("softprompt.serving")


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
        outcome = RequestOutcome(given if _ID.fullmatch(given) else secrets.token_hex(16), _find_client(scope))
        state = scope.setdefault("state", {})
        state["outcome"] = outcome
        started, status, growing = time.perf_counter(), 0, False
        head = scope["method"] == "HEAD"
        # whatever is there to be got has a head too
        inner = {**scope, "method": "GET" if head else scope["method"], "root_path": self._config.root_path}

        async def send_observed(message: Message) -> None:
            nonlocal status, growing
            if message["type"] == "http.response.start":
                status = message["status"]
                sent = MutableHeaders(scope=message)
                sent[HEADER] = outcome.id
                outcome.streamed = growing = sent.get("content-type", "").startswith(EVENTS)
                _add_rate_headers(state, status, sent, ended=not growing)
                for name, value in SAFE.items():
                    sent.setdefault(name, value)
                if self._stopping():
                    sent["Connection"] = "close"
            elif head:
                message = {**message, "body": b""}
            if message["type"] == "http.response.body" and not message.get("more_body"):
                growing = False
            await send(message)

        self._metrics.in_progress.inc()
        try:
            if self._config.accepts_host(headers.get("host", ""), scope["path"]):
                await self._app(inner, receive, send_observed)
            else:
                refused = ApiError(400, "unknown_host", "this server is not known under the name in Host")
                outcome.code = refused.code
                await refused.response()(scope, receive, send_observed)
        except asyncio.CancelledError:
            # uvicorn does so when the time to finish is over; nothing waits outside for the cancellation
            stopped = ApiError(503, "stopping", "the server was stopped before the answer was there")
            outcome.status, outcome.code = 503, stopped.code
            if not status:
                await stopped.response()(scope, receive, send_observed)
            elif growing:
                await send_observed({"type": "http.response.body", "body": encode_event(stopped.to_dict())})
        except Exception as error:
            log.error("failure", exc_info=error, extra={"fields": {"request_id": outcome.id}})
            problem = to_api_error(error)
            outcome.status, outcome.code = 500, problem.code
            if not status:
                await ApiError(500, problem.code, problem.detail).response()(scope, receive, send_observed)
        finally:
            self._metrics.in_progress.dec()
            outcome.status = outcome.status or status or CLIENT_GONE
            outcome.seconds = time.perf_counter() - started
            if (admission := state.get("admission")) is not None:
                admission.settle(_count_spent(outcome, outcome.status))
            # the path that was declared, not the one that was sent: that can be anything
            outcome.route = getattr(inner.get("route"), "path", "other")
            self._record(scope["method"], outcome)

    def _record(self, method: str, outcome: RequestOutcome) -> None:
        self._metrics.record_request(outcome)
        if self._sampler is not None and outcome.served is not None and outcome.examples and self._sampler.is_chosen():
            outcome.time = time.time()
            self._sampler.offer(outcome)
        line = {
            "request_id": outcome.id,
            "method": method if method in ("GET", "POST", "HEAD", "OPTIONS") else "other",
            "route": outcome.route,
            "status": outcome.status,
            "milliseconds": round(1000 * outcome.seconds, 1),
            "first_token_milliseconds": round(1000 * (outcome.first_token_seconds or 0), 1),
            "client": outcome.client,
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


def _find_client(scope: Scope) -> str:
    """Address of the client, if it is one: what a proxy says may be anything."""
    host = str((scope.get("client") or ("",))[0]).partition("%")[0]  # what follows is no part of an address
    return host if is_address(host) else ""


def _add_rate_headers(state: Mapping[str, Any], status: int, headers: MutableHeaders, *, ended: bool) -> None:
    """Where its key stands, for a request that was let in; of a stream what it may come to is taken from that."""
    admission: Admission | None = state.get("admission")
    if admission is not None:
        if ended:
            admission.settle(_count_spent(state["outcome"], status))
        for name, value in admission.to_headers().items():
            headers.setdefault(name, value)


def _count_spent(outcome: RequestOutcome, status: int) -> int:
    """Tokens of a request; of one that was given up, which the model may have read by then, at least its texts'."""
    spent = outcome.prompt_tokens + outcome.completion_tokens
    return max(spent, outcome.expected_tokens) if status in (CLIENT_GONE, 504) else spent
