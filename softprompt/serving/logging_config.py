"""Logs: one JSON object a line on standard error, without what users wrote.

Messages of errors can have a user's text in them, and so can a traceback's last line: neither is written unless asked
for. Where it happened is.
"""

import logging
import math
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

from softprompt.errors import printable_json

SERVER = "softprompt.serving"
CONNECTIONS = f"{SERVER}.connections"


class JsonFormatter(logging.Formatter):
    """A record as a line of JSON; ``extra={"fields": {...}}`` becomes its fields."""

    def __init__(self, *, text: bool = False) -> None:
        """``text``: write messages of exceptions too."""
        super().__init__()
        self._text = text

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info is not None and record.exc_info[1] is not None:
            line |= self._failure(record.exc_info[1])
        return printable_json(line, default=str)

    def _failure(self, error: BaseException) -> dict[str, Any]:
        frames = traceback.extract_tb(error.__traceback__)
        where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        said = {"message": str(error)} if self._text else {}
        return {"error": type(error).__name__, **said, "where": where}


class RepeatFilter(logging.Filter):
    """Lets what is said again and again through once in so many seconds, and counts the rest: no fault that a client
    can repeat is to fill the disk."""

    def __init__(self, seconds: float = 60) -> None:
        super().__init__()
        self._seconds = seconds
        self._said: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        # of a message of several lines the others tell of the single case
        what = (record.name, str(record.msg).partition("\n")[0])
        last, kept_back = self._said.get(what, (-math.inf, 0))
        if record.created - last < self._seconds:
            self._said[what] = last, kept_back + 1
            return False
        self._said[what] = record.created, 0
        if kept_back:
            record.fields = {**getattr(record, "fields", {}), "repeated": kept_back}
        return True


def configure_logging(*, text: bool = False) -> None:
    """Write what this server, uvicorn and asyncio have to say to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(text=text))
    repeated = RepeatFilter()
    for name in (CONNECTIONS, "uvicorn.error", "asyncio"):
        logging.getLogger(name).filters = [repeated]
    for name in (SERVER, "uvicorn", "uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers = [handler] if name != "uvicorn.error" else []
        logger.setLevel(logging.INFO)
        logger.propagate = name == "uvicorn.error"
