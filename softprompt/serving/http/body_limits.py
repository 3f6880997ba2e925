"""Reading a request's body: bounded while it comes in, and JSON without what breaks readers behind it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from softprompt.serving.http.http_errors import ApiError, ClientDisconnectedError
from softprompt.utils.safe_io import parse_json

LEAST_VALUES, BYTES_A_VALUE = 10_000, 50  # of a body of JSON: so many at most, or one for so many bytes of the limit


class BoundedRequest(Request):
    """A request whose body is JSON in UTF-8, of so many bytes and levels, and there within a time."""

    def __init__(self, request: Request, *, bytes_limit: int, depth_limit: int, seconds: float) -> None:
        super().__init__(request.scope, request.receive)
        self._bytes_limit, self._depth_limit, self._seconds = bytes_limit, depth_limit, seconds

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
        depth, values = _size(value)
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
    before: Callable[[Request], None], *, bytes_limit: int, depth_limit: int, seconds: float
) -> type[APIRoute]:
    """The kind of route whose requests are read so, after ``before`` has let them in."""

    class GuardedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def guarded(request: Request) -> Response:
                before(request)
                limits = {"bytes_limit": bytes_limit, "depth_limit": depth_limit}
                return await handle(BoundedRequest(request, **limits, seconds=seconds))

            return guarded

    return GuardedRoute


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _size(value: Any) -> tuple[int, int]:
    """Levels of lists and objects, and values in them, counted without recursion."""
    depth, values, level = 0, 1, [value]
    while level := [one for one in level if isinstance(one, list | dict)]:
        depth += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
        values += len(level)
    return depth, values
