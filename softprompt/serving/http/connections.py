"""Connections: bounded in number and in the time that a client may take to ask, and to read its answer.

A client that opens a connection and says nothing, or says its headers a byte at a time, or never reads, costs nothing
but its connection; kept for ever, such connections take all descriptors of the process, and nobody else is served.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from softprompt.serving.logging_config import CONNECTIONS

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None  # type: ignore[assignment]

OTHER_FILES = 128  # descriptors for all that is no connection: the model, the store, and what has just been accepted
FEWEST = 8  # connections, however few descriptors there are
REFUSED = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b"
)
WORDS = (
    b'{"error":{"message":"the server has as many connections as it takes: try again","type":"server_error",'
    b'"param":null,"code":"too_many_connections"}}'
)

log = logging.getLogger(CONNECTIONS)


@dataclass(frozen=True)
class ConnectionLimits:
    """What connections may take.

    Attributes:
        most: connections at once.
        head_seconds: for the headers of a request, counted from when the connection was made or the request began.
        read_seconds: that a client may take nothing of an answer that waits for it.
    """

    max_connections: int = 1000
    head_seconds: float = 10
    read_seconds: float = 60

    @property
    def effective_connections(self) -> int:
        """``most``, or fewer where this process may not open as many files."""
        if resource is None:
            return self.max_connections
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            self.max_connections
            if files == resource.RLIM_INFINITY
            else min(self.max_connections, max(FEWEST, files - OTHER_FILES))
        )


class BoundedConnection(H11Protocol):
    """A connection within bounds; ``look`` is to be called again and again."""

    def __init__(self, *args: Any, bounds: ConnectionLimits, **more: Any) -> None:
        super().__init__(*args, **more)
        self._bounds = bounds
        self._asked: Any = None
        self._asking_since = self.loop.time()
        self._unread, self._unread_since = 0, self.loop.time()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        full = len(self.connections) >= self._bounds.effective_connections and not self._made_room()
        super().connection_made(transport)
        if full:
            log.warning("too many connections: one was refused")
            transport.write(REFUSED % (len(WORDS), WORDS))
            transport.close()

    @property
    def waits(self) -> bool:
        """Whether nothing is being answered on it."""
        return (self.cycle is None or self.cycle.response_complete) and not self.transport.get_write_buffer_size()

    def close_if_slow(self, now: float) -> None:
        """Close it if its client takes too long."""
        unread = self.transport.get_write_buffer_size()
        if not unread or unread < self._unread:
            self._unread_since = now
        self._unread = unread
        if now - self._unread_since > self._bounds.read_seconds:
            log.warning("a connection was closed whose client read no more of its answer")
            self.transport.abort()
            return
        # between two requests uvicorn's own limit holds, until something comes
        if not self.waits or self.timeout_keep_alive_task is not None or self.cycle is not self._asked:
            self._asking_since, self._asked = now, self.cycle
        elif now - self._asking_since > self._bounds.head_seconds:
            log.warning("a connection was closed whose headers did not come in time")
            self.transport.abort()

    def _made_room(self) -> bool:
        """Close the connection that waits for its client for longest; whether there is one."""
        waiting = [one for one in self.connections if isinstance(one, BoundedConnection) and one.waits]
        if not waiting:
            return False
        longest = min(waiting, key=lambda one: one._asking_since)
        log.warning("too many connections: one that asked nothing was closed")
        self.connections.discard(longest)
        longest.transport.abort()
        return True
