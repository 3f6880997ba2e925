"""A vLLM server over HTTP: completions by token ids, and what its errors mean here.

no answer, 401, 403, 404, 502, 503, 504    EngineUnreachableError    it is not there, or not the one that was meant
429                                        EngineBusyError           with its Retry-After
other 4xx                                  DataError                 it refuses the request, as one that is too long
other 5xx                                  a failure of ours, with its status in the log
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from softprompt.errors import ConfigError, DataError
from softprompt.serving.engine.engine_requests import EngineBusyError, EngineUnreachableError

_Value = TypeVar("_Value")

log = logging.getLogger("softprompt.serving")

CONNECT_SECONDS = 5.0  # until a connection must be there; how long an answer may take, deadlines say
LOOK_SECONDS = 60.0  # for questions about the server itself; its first answers take longer
REASON_LIMIT = 300  # characters of the server's own words that are passed on
EXPECTED = "expected a vLLM server there that has started: give its address with --engine-url"
NOT_THERE = (401, 403, 404, 502, 503, 504)


@dataclass(frozen=True)
class VllmModelInfo:
    """What a vLLM server says that it runs: the name of its model, and the longest sequence in tokens."""

    model: str
    context_length: int | None


class VllmClient:
    """The server at ``http://host:port``, with or without ``/v1`` behind it."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """Nothing is asked yet; ``key``: its API key, if it wants one."""
        self.url = url.rstrip("/").removesuffix("/v1")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        # a request is bounded by its deadline and by how many may wait, not by the number of connections
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers=self._headers,
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )

    def describe_model(self) -> VllmModelInfo:
        """What it runs; blocks.

        Raises:
            ConfigError: nothing answers there, or something else than vLLM.
        """
        models = self._request_once("GET", "/v1/models")
        try:
            length = models["data"][0].get("max_model_len")
            return VllmModelInfo(str(models["data"][0]["id"]), None if length is None else int(length))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ConfigError(f"'{self.url}' answers otherwise than vLLM: {EXPECTED}") from error

    def complete_once(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The choices of a completion; blocks, raises as ``look``."""
        return _read_choices(self._request_once("POST", "/v1/completions", body))

    async def is_healthy(self) -> bool:
        """Whether it says that it can be asked."""
        try:
            return (await self._client.get("/health", timeout=LOOK_SECONDS)).is_success
        except httpx.TransportError:
            return False

    async def complete(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The choices of a completion, in the order of the texts; raises what stands on top."""
        task = self._start_task(self._fetch(body))
        try:
            return _read_choices(_parse_json(await asyncio.shield(task)))
        finally:
            task.cancel()

    async def stream(self, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The choice in each event of a completion as it grows; raises what stands on top."""
        arrived: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        task = self._start_task(self._forward_events({**body, "stream": True}, arrived))
        try:
            while (choice := await arrived.get()) is not None:
                yield choice
            await task
        finally:
            task.cancel()

    async def close(self) -> None:
        """End what runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    def _start_task(self, work: Coroutine[Any, Any, _Value]) -> "asyncio.Task[_Value]":
        """A task that is cancelled once at most: cancelled again while it closes its connection, that would stay open,
        and the engine at work."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget_task)
        return task

    def _forget_task(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, even if nobody waits any more

    async def _fetch(self, body: Mapping[str, Any]) -> bytes:
        async with self._open_response(body) as response:
            return await response.aread()

    async def _forward_events(self, body: Mapping[str, Any], arrived: "asyncio.Queue[dict[str, Any] | None]") -> None:
        """Hand over the choices of a stream, and ``None`` when there are no more, whatever the reason."""
        try:
            async with self._open_response(body) as response:
                async for line in response.aiter_lines():
                    kind, _, data = line.partition(":")
                    if kind != "data" or data.strip() == "[DONE]":
                        continue
                    event = json.loads(data)
                    if "error" in event:
                        raise _to_stream_error(event["error"])
                    for choice in event.get("choices", ()):
                        arrived.put_nowait(choice)
        finally:
            arrived.put_nowait(None)

    def _request_once(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            response = httpx.request(
                method, f"{self.url}{path}", json=body, headers=self._headers, timeout=LOOK_SECONDS
            )
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise ConfigError(f"no answer from '{self.url}' ({error}): {EXPECTED}") from error
        if response.status_code in (401, 403):
            raise ConfigError(f"'{self.url}' wants another API key: give it in SOFTPROMPT_ENGINE_KEY")
        if not response.is_success:
            reason = f"{response.status_code}: {_read_reason(response.content)}"
            raise ConfigError(f"'{self.url}{path}' answers {reason}; {EXPECTED}")
        return _parse_json(response.content)

    @asynccontextmanager
    async def _open_response(self, body: Mapping[str, Any]) -> AsyncGenerator[httpx.Response, None]:
        """A response that has begun well; left early, it closes its connection, which ends the engine's work on it."""
        try:
            async with self._client.stream("POST", "/v1/completions", json=body) as response:
                if not response.is_success:
                    raise _to_error(response, await response.aread())
                yield response
        except httpx.TransportError as error:
            log.warning("engine not reached", extra={"fields": {"reason": f"{type(error).__name__}: {error}"}})
            raise EngineUnreachableError("the engine behind this server does not answer: try again later") from error


def _parse_json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _read_choices(answer: Any) -> list[dict[str, Any]]:
    """In the order of the texts."""
    try:
        return sorted(answer["choices"], key=lambda one: int(one["index"]))
    except (ValueError, LookupError, TypeError) as error:
        raise RuntimeError(f"the engine's answer is none of vLLM's: {type(error).__name__}") from error


def _to_error(response: httpx.Response, content: bytes) -> Exception:
    status, reason = response.status_code, _read_reason(content)
    if status == 429:
        seconds = response.headers.get("retry-after", "")
        return EngineBusyError(float(seconds) if seconds.isdecimal() else 1.0)
    if 400 <= status < 500 and status not in NOT_THERE:
        return DataError(f"the engine refuses this request: {reason}")
    log.warning("engine failed", extra={"fields": {"status": status}})
    if status in NOT_THERE:
        return EngineUnreachableError(
            f"the engine behind this server cannot be asked now (it answers {status}): try again later"
        )
    return RuntimeError(f"the engine answers {status}")


def _to_stream_error(error: Any) -> Exception:
    """What an error within a stream means: it refuses a request there too."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and 400 <= code < 500:
        return DataError(f"the engine refuses this request: {str(error.get('message'))[:REASON_LIMIT]}")
    return RuntimeError("the engine's stream ended with an error")


def _read_reason(content: bytes) -> str:
    """The message of an error in OpenAI's format, on one line."""
    try:
        parsed = json.loads(content)
        message = str(parsed.get("error", parsed)["message"])
    except (ValueError, LookupError, TypeError, AttributeError):
        message = "no reason given"
    return " ".join(message.split())[:REASON_LIMIT]
