"""Listening: a socket, uvicorn, and an orderly end."""

import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from softprompt.errors import ConfigError

BACKLOG = 2048  # connections that wait to be accepted


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; raises ConfigError if it cannot."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # of a name with both kinds of address, the one that most clients try
        family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"cannot listen on '{host}' port {port}: {reason}; give another --host or --port") from error


class Server:
    """One application on one socket."""

    def __init__(self, *, shutdown_timeout: int) -> None:
        """``shutdown_timeout``: seconds for what runs when the server is stopped."""
        self._seconds = shutdown_timeout
        self._server: uvicorn.Server | None = None

    @property
    def stopping(self) -> bool:
        """Whether it takes no more requests."""
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
        config = uvicorn.Config(app, timeout_graceful_shutdown=self._seconds, **options)
        self._server = uvicorn.Server(config)
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
