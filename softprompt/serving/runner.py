"""Listening: a socket, uvicorn, and an orderly end."""

import asyncio
import signal
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from softprompt.errors import ConfigError
from softprompt.serving.http.connections import BoundedConnection, ConnectionLimits

BACKLOG = 2048  # connections that wait to be accepted
ACCEPTED_AT_ONCE = 64  # of them, before others have a turn and their number is looked at
TICKS = 10  # of uvicorn's tenths of a second: how often connections are looked at


class _Listening(socket.socket):
    """A socket that keeps its backlog: asyncio takes that for the number of connections to accept at once."""

    def listen(self, backlog: int = BACKLOG) -> None:
        super().listen(BACKLOG)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; raises ConfigError if it cannot."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # of a name with both kinds of address, the one that most clients try
        family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        made = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"cannot listen on '{host}' port {port}: {reason}; give another --host or --port") from error
    return _Listening(fileno=made.detach())


class _Uvicorn(uvicorn.Server):
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

    def __init__(self, *, shutdown_timeout: int, drain: float = 0, bounds: ConnectionLimits | None = None) -> None:
        """How it ends.

        Args:
            shutdown_timeout: seconds for what runs when the server is stopped.
            drain: seconds before that in which it still answers, but says that it is not ready.
            bounds: what its connections may take.
        """
        self._seconds, self._drain, self._bounds = shutdown_timeout, drain, bounds or ConnectionLimits()
        self._server: _Uvicorn | None = None

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
        config = uvicorn.Config(app, timeout_graceful_shutdown=self._seconds, backlog=ACCEPTED_AT_ONCE, **options)
        self._server = _Uvicorn(config, self._drain)
        restore = _ignored_afterwards()
        try:
            self._server.run(sockets=[listening])
        finally:
            restore()


def _ignored_afterwards() -> Callable[[], None]:
    """Let signals that ended the server be over with that: uvicorn raises them anew when it is done."""

    def nothing(number: int, frame: FrameType | None) -> None:
        pass

    try:
        before = {number: signal.signal(number, nothing) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: uvicorn leaves signals alone, too
        return lambda: None

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore
