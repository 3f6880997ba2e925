"""Answers that grow: several at once in one stream, and server-sent events."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

EVENTS = "text/event-stream"
DONE = b"data: [DONE]\n\n"


async def merge_streams(sources: Sequence[AsyncIterator[T]]) -> AsyncGenerator[tuple[int, T], None]:
    """What several iterators give, as it comes, each item with the index of its iterator.

    All are closed when this one ends, is closed, or one of them raises, which is raised here.
    """
    arrived: asyncio.Queue[tuple[int, T | None, Exception | None]] = asyncio.Queue()

    async def drain(index: int, source: AsyncIterator[T]) -> None:
        try:
            async for item in source:
                arrived.put_nowait((index, item, None))
            arrived.put_nowait((index, None, None))
        except Exception as error:
            arrived.put_nowait((index, None, error))

    tasks = [asyncio.create_task(drain(index, source)) for index, source in enumerate(sources)]
    try:
        left = len(tasks)
        while left:
            index, item, error = await arrived.get()
            if error is not None:
                raise error
            if item is None:
                left -= 1
            else:
                yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for source in sources:
            if isinstance(source, AsyncGenerator):
                await source.aclose()


def encode_event(data: Any) -> bytes:
    """One server-sent event; JSON has no line breaks of its own."""
    return f"data: {json.dumps(data, ensure_ascii=False, allow_nan=False)}\n\n".encode()


class EventStream(StreamingResponse):
    """Server-sent events; their generator is closed as soon as nobody reads them any more."""

    media_type = EVENTS

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()
