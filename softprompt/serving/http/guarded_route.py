"""Before a route is run: who asks, by an API key, and how often; and a body that is bounded and sound JSON."""

import asyncio
import threading
from collections.abc import Callable, Collection, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from softprompt.errors import ConfigError
from softprompt.serving.http.api_keys import ApiKey, ApiKeyFile, read_changed_keys
from softprompt.serving.http.http_errors import ApiError, ClientDisconnectedError
from softprompt.serving.http.rate_limits import RateLimiter
from softprompt.serving.http.server_settings import ServerSettings, host_name
from softprompt.utils.safe_io import parse_json


class Authenticator:
    """The keys in use, or everybody's access where there are none."""

    def __init__(
        self,
        path: Path | None,
        *,
        open_admin: bool = False,
        origins: Collection[str] = (),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Read the keys.

        Args:
            path: of the file of keys; ``None`` lets everybody ask.
            open_admin: without keys, everybody may reload and read the metrics too.
            origins: of the web, whose pages may ask; ``*`` for all.
            clock: the time, by which keys expire.

        Raises:
            ConfigError: the file cannot be read, or holds no key, or expired ones alone: nobody could ask.
        """
        self._path, self._origins, self._clock = path, origins, clock
        self._keys, self._digest, self._reading = ApiKeyFile(), "", threading.Lock()
        self._everybody = ApiKey(
            name="everybody", sha256="0" * 64, admin=open_admin, created=datetime.fromtimestamp(0, UTC)
        )
        self.reload()
        if path is not None and not self._keys.keys:
            raise ConfigError(f"there is no API key in '{path}', nobody could ask: softprompt keys add makes one")
        if path is not None and not self.list_valid_keys():
            raise ConfigError(
                f"every API key in '{path}' has expired, nobody could ask: softprompt keys add makes one, softprompt "
                "keys update NAME --expires 90d lets one go on"
            )

    @property
    def needs_key(self) -> bool:
        return self._path is not None

    def list_valid_keys(self) -> list[ApiKey]:
        """Those that have not expired."""
        now = self._clock()
        return [key for key in self._keys.keys if not key.is_expired(now)]

    @property
    def expired_count(self) -> int:
        """Keys that have expired."""
        return len(self._keys.keys) - len(self.list_valid_keys())

    def reload(self) -> None:
        """Read the file again, from any thread.

        Raises ConfigError, the keys staying as they were, if it cannot be read. A sound file without keys lets
        nobody in: the last one was taken away.
        """
        if self._path is None:
            return
        with self._reading:  # what was read later is to stay
            keys, self._digest = read_changed_keys(self._path, self._digest)
            if keys is not None:
                self._keys = keys

    def authenticate(self, request: Request) -> None:
        """Put the key of whoever asks into the request's state.

        Raises:
            ApiError: 401, there is no key, a wrong or an expired one; 403, a page of the web asks that has no business
                here.
        """
        if self._path is None and self._is_foreign(request):
            message = "a page of another origin asks, without an API key: name its origin in cors_origins"
            raise ApiError(403, "foreign_origin", message)
        request.state.key = self._everybody if self._path is None else self._find_key(request)
        request.state.outcome.key = request.state.key.name if self.needs_key else ""

    def _is_foreign(self, request: Request) -> bool:
        """Whether a page of another origin made its browser ask.

        It cannot read the answer, but what is asked would be done. Browsers tell, and a page cannot keep them from it;
        those that follow a link (navigate) ask for somebody who reads the answer himself.
        """
        headers = request.headers
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin in self._origins or "*" in self._origins:
            return False
        if site is not None:
            followed = request.method == "GET" and headers.get("sec-fetch-mode") == "navigate"
            return site not in ("same-origin", "none") and not followed
        if origin is None:
            return False
        own, asking = headers.get("host", ""), origin.partition("://")[2]
        # a proxy may leave out the port
        return asking.lower() != own.lower() and host_name(asking) != own.lower()

    def _find_key(self, request: Request) -> ApiKey:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        key = self._keys.find(token.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            got = "a wrong one" if token else "none"
            message = f"expected an API key, got {got}: send it as 'Authorization: Bearer sp-...'"
            raise ApiError(401, "invalid_api_key", message, headers={"WWW-Authenticate": "Bearer"})
        if key.is_expired(self._clock()):
            message = f"this API key expired on {key.expires:%Y-%m-%d at %H:%M} UTC: ask for a new one"
            headers = {"WWW-Authenticate": 'Bearer error="invalid_token", error_description="expired"'}
            request.state.outcome.key = key.name
            raise ApiError(401, "expired_api_key", message, headers=headers)
        return key


def check_model_allowed(request: Request, name: str) -> None:
    """Raise ApiError (403) unless whoever asks may ask the prompt, or base model, ``name``."""
    if not request.state.key.allows(name):
        raise ApiError(403, "model_not_allowed", "this API key may not ask this model", param="model")


def check_admin(request: Request) -> None:
    """Raise ApiError (403) unless whoever asks is an admin."""
    if not request.state.key.admin:
        raise ApiError(403, "not_an_admin", "this needs an admin's API key")


LEAST_VALUES, BYTES_A_VALUE = 10_000, 50  # of a body of JSON: so many at most, or one for so many bytes of the limit


class BoundedRequest(Request):
    """A request whose body is JSON in UTF-8, of so many bytes and levels, and there within a time."""

    def __init__(self, request: Request, config: ServerSettings) -> None:
        super().__init__(request.scope, request.receive)
        self._bytes_limit, self._depth_limit, self._seconds = config.body_limit, config.depth_limit, config.timeout

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            try:
                async with asyncio.timeout(self._seconds):
                    self._body = await self._bounded_body()
            except TimeoutError as error:
                raise ApiError(408, "body_timeout", f"the body was not there within {self._seconds:g} s") from error
            except ClientDisconnect as error:
                raise ClientDisconnectedError from error
        return self._body

    async def json(self) -> Any:
        content = await self.body()
        try:
            value = parse_json(content, limit=self._bytes_limit, finite=True)
        except UnicodeDecodeError as error:
            raise ApiError(400, "invalid_utf8", f"the body is not UTF-8, at byte {error.start}") from error
        except ValueError as error:
            raise ApiError(400, "invalid_json", f"the body is no JSON that can be read: {error}") from error
        depth, values = _measure_json(value)
        if depth > self._depth_limit:
            raise ApiError(400, "too_deep", f"the body's JSON is nested deeper than {self._depth_limit} levels")
        # each may be wrong, and what is said of a wrong one takes a thousand times its bytes
        if values > (most := max(LEAST_VALUES, self._bytes_limit // BYTES_A_VALUE)):
            raise ApiError(400, "too_many_values", f"the body's JSON has more than {most:,} values")
        return value

    async def _bounded_body(self) -> bytes:
        # what it says of its length is believed where that is too much, and not relied on where it is not
        length = self.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._bytes_limit:
            raise self._too_large()
        content = bytearray()
        async for chunk in self.stream():
            content += chunk
            if len(content) > self._bytes_limit:
                raise self._too_large()
        if content and not _is_json(self.headers.get("content-type", "")):
            # a page of the web may send other types without asking first, JSON it may not
            raise ApiError(415, "not_json", "expected Content-Type: application/json")
        return bytes(content)

    def _too_large(self) -> ApiError:
        return ApiError(413, "body_too_large", f"a body has at most {self._bytes_limit:,} bytes")


def make_guarded_route(
    authenticator: Authenticator, config: ServerSettings, limiter: RateLimiter | None = None
) -> type[APIRoute]:
    """The kind of route whose requests are let in by ``authenticator`` and ``limiter``, and then read so."""

    class GuardedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def guarded(request: Request) -> Response:
                authenticator.authenticate(request)
                key: ApiKey = request.state.key
                request.state.admission = None if limiter is None else limiter.admit(key, request.state.outcome.key)
                return await handle(BoundedRequest(request, config))

            return guarded

    return GuardedRoute


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _measure_json(value: Any) -> tuple[int, int]:
    """Levels of lists and objects, and values in them, counted without recursion."""
    depth, values, level = 0, 1, [value]
    while level := [one for one in level if isinstance(one, list | dict)]:
        depth += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
        values += len(level)
    return depth, values
