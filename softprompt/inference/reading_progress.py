"""How much of the rows has been read, for whoever shows it: evaluations and predictions take minutes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias, TypeVar

Listener: TypeAlias = Callable[[float], None]
Part = TypeVar("Part")

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def report_progress(listener: Listener | None) -> Iterator[None]:
    """Within it ``listener`` is told the share (0 to 1) of each reading that is done, behind each of its batches.

    The last is told 1, whatever ends it.
    """
    latest = 1.0

    def listen(share: float) -> None:
        nonlocal latest
        latest = share
        if listener is not None:
            listener(share)

    token = _listener.set(None if listener is None else listen)
    try:
        yield
    finally:
        _listener.reset(token)
        if latest < 1:
            listen(1.0)


def track(parts: Sequence[Part], size: Callable[[Part], int]) -> Iterator[Part]:
    """The parts of a reading, in order, each of a ``size`` in any unit."""
    listener = _listener.get()
    if listener is None:
        yield from parts
        return
    total, done = sum(map(size, parts)), 0
    for part in parts:
        yield part
        done += size(part)
        listener(done / total if total else 1.0)
