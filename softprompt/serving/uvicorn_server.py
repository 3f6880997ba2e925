"""Listening: a socket, uvicorn within bounds, and an orderly end.

A client that opens a connection and says nothing, or says its headers a byte at a time, or never reads, costs nothing
but its connection; kept for ever, such connections take all descriptors of the process, and nobody else is served.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from softprompt.errors import ConfigError
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
        full = len(self.connections) >= self._bounds.effective_connections and not self._make_room()
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

    def _make_room(self) -> bool:
        """Close the connection that waits for its client for longest; whether there is one."""
        waiting = [one for one in self.connections if isinstance(one, BoundedConnection) and one.waits]
        if not waiting:
            return False
        longest = min(waiting, key=lambda one: one._asking_since)
        log.warning("too many connections: one that asked nothing was closed")
        self.connections.discard(longest)
        longest.transport.abort()
        return True


BACKLOG = 2048  # connections that wait to be accepted
ACCEPTED_AT_ONCE = 64  # of them, before others have a turn and their number is looked at
TICKS = 10  # of uvicorn's tenths of a second: how often connections are looked at


class _ListeningSocket(socket.socket):
    """A socket that keeps its backlog: asyncio takes that for the number of connections to accept at once."""

    def listen(self, backlog: int = BACKLOG) -> None:
        super().listen(BACKLOG)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; raises ConfigError if it cannot."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # of a name with both kinds of address, the one that most clients try
        family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"cannot listen on '{host}' port {port}: {reason}; give another --host or --port") from error
    return _ListeningSocket(fileno=listener.detach())


class _DrainingServer(uvicorn.Server):
    """Looks at its connections, and goes on answering for a while when it is told to end."""

    def __init__(self, config: uvicorn.Config, drain: float) -> None:
        super().__init__(config)
        self.drain = drain
        self._signals: list[int] = []
        self._until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals.append(sig)
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        now = asyncio.get_running_loop().time()
        if counter % TICKS == 0:
            for one in tuple(self.server_state.connections):
                if isinstance(one, BoundedConnection):
                    one.close_if_slow(now)
        if not await super().on_tick(counter):
            return False
        if self._until is None:
            self._until = now + self.drain
        # who presses Ctrl+C, or asks twice, does not want to wait
        return now >= self._until or self._signals not in ([], [signal.SIGTERM])


class Server:
    """One application on one socket."""

    def __init__(
        self,
        *,
        shutdown_timeout: int,
        drain: float = 0,
        bounds: ConnectionLimits | None = None,
        proxies: Sequence[str] = (),
    ) -> None:
        """How it ends.

        Args:
            shutdown_timeout: seconds for what runs when the server is stopped.
            drain: seconds before that in which it still answers, but says that it is not ready.
            bounds: what its connections may take.
            proxies: addresses and networks whose word for a client's address is taken.
        """
        self._proxies = list(proxies)
        self._seconds, self._drain, self._bounds = shutdown_timeout, drain, bounds or ConnectionLimits()
        self._server: _DrainingServer | None = None

    @property
    def stopping(self) -> bool:
        """Whether it was told to end."""
        return self._server is not None and self._server.should_exit

    @property
    def started(self) -> bool:
        """Whether it takes requests."""
        return self._server is not None and self._server.started

    def stop(self) -> None:
        """Take no more requests, finish those that run, and return from ``serve``. From any thread."""
        if self._server is not None:
            self._server.should_exit = True

    def serve(self, app: ASGIApp, listening: socket.socket) -> None:
        """Answer until an interrupt, SIGTERM or ``stop``; then finish what runs, within the time."""
        options: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False, "ws": "none"}
        options["http"] = partial(BoundedConnection, bounds=self._bounds)
        # not uvicorn's default, which takes the word of whoever asks from this machine
        options |= {"proxy_headers": bool(self._proxies), "forwarded_allow_ips": self._proxies}
        config = uvicorn.Config(app, timeout_graceful_shutdown=self._seconds, backlog=ACCEPTED_AT_ONCE, **options)
        self._server = _DrainingServer(config, self._drain)
        with _keep_signal_handlers():
            self._server.run(sockets=[listening])


@contextmanager
def _keep_signal_handlers() -> Iterator[None]:
    """Let signals that ended the server be over with that: uvicorn raises them anew when it is done."""
    before = {}
    with suppress(ValueError):  # not the main thread: uvicorn leaves signals alone, too
        before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
