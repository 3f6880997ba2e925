"""Files of samples as the server writes them: SQLite or JSON lines, for their owner alone, and bounded in size."""

import os
import sqlite3
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from softprompt.errors import ConfigError
from softprompt.serving.request_log.request_samples import (
    APPLICATION_ID,
    ROW_BYTES,
    SCHEMA,
    STORED,
    RequestRecord,
    Retention,
    check_schema,
    encode_line,
    encode_row,
    is_jsonl,
)
from softprompt.utils.safe_io import parse_json

_INTEGERS = ("characters", "tokens", "rare", "status")
_TYPES = {"time": "REAL", "milliseconds": "REAL", **dict.fromkeys(_INTEGERS, "INTEGER")}
_SLACK = 0.1  # share of rows beyond those to be kept after which a file of lines is written anew
_WHOLE = 10_000  # rows for that, where a span is to be kept


class SampleFile(Protocol):
    """Where samples go; used by one thread. All methods raise OSError or sqlite3.Error."""

    def write(self, samples: Sequence[RequestRecord]) -> None:
        """Add rows, all or none, and take the oldest out where there are too many."""
        ...

    def close(self) -> None:
        """Everything that was written is in the file."""
        ...


def open_samples(path: Path, keep: Retention) -> SampleFile:
    """A file that can be written, made if it is not there.

    Raises:
        ConfigError: it cannot, or is something else.
    """
    file: SampleFile = JsonlSampleFile(path, keep) if is_jsonl(path) else SqliteSampleFile(path, keep)
    try:
        file.write(())
    except (OSError, sqlite3.Error, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ConfigError(f"samples cannot be written to '{path}': {reason}; give another --sample-file") from error
    finally:
        with suppress(OSError, sqlite3.Error):
            file.close()
    return file


class SqliteSampleFile:
    """One table in an SQLite file, with a write-ahead log so that others read it meanwhile."""

    def __init__(self, path: Path, keep: Retention) -> None:
        self._path, self._keep = path, keep
        self._connection: sqlite3.Connection | None = None

    def write(self, samples: Sequence[RequestRecord]) -> None:
        if self._connection is None:
            self._connection = self._opened()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            marks = ", ".join("?" * len(STORED))
            self._connection.executemany(
                f"INSERT INTO samples ({', '.join(STORED)}) VALUES ({marks})", map(encode_row, samples)
            )
            self._prune(self._connection)
            self._connection.execute("COMMIT")
        except BaseException:
            with suppress(OSError, sqlite3.Error):
                self.close()
            raise

    def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()

    def _prune(self, connection: sqlite3.Connection) -> None:
        if self._keep.rows is not None:
            connection.execute("DELETE FROM samples WHERE id <= (SELECT max(id) FROM samples) - ?", (self._keep.rows,))
        else:
            connection.execute("DELETE FROM samples WHERE time < ?", (time.time() - (self._keep.seconds or 0),))

    def _opened(self) -> sqlite3.Connection:
        # made before SQLite does, which would ask nobody but the umask; its log gets the same mode
        new = _made(self._path) == 0
        connection = sqlite3.connect(self._path, timeout=10, isolation_level=None, check_same_thread=False)
        try:
            if new:
                self._begun(connection)
            if check_schema(connection) != STORED:  # of an earlier release
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(f"ALTER TABLE samples ADD COLUMN {STORED[-1]} TEXT")
                connection.execute(f"PRAGMA user_version = {SCHEMA}")
                connection.execute("COMMIT")
            self._path.chmod(0o600)
            for setting in ("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON"):
                connection.execute(f"PRAGMA {setting}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _begun(self, connection: sqlite3.Connection) -> None:
        columns = ", ".join(f"{name} {_TYPES.get(name, 'TEXT')}" for name in STORED)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"CREATE TABLE samples (id INTEGER PRIMARY KEY AUTOINCREMENT, {columns})")
        connection.execute("CREATE INDEX samples_time ON samples (time)")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
        connection.execute("COMMIT")


class JsonlSampleFile:
    """JSON lines; written anew now and then, without the oldest."""

    def __init__(self, path: Path, keep: Retention) -> None:
        self._path, self._keep = path, keep
        self._descriptor: int | None = None
        self._count = 0

    def write(self, samples: Sequence[RequestRecord]) -> None:
        if self._descriptor is None:
            self._open()
        assert self._descriptor is not None
        content = b"".join(map(encode_line, samples))
        before = os.fstat(self._descriptor).st_size
        try:
            _write_all(self._descriptor, content)
        except OSError:
            # half a row at the end would spoil the next one
            with suppress(OSError):
                os.ftruncate(self._descriptor, before)
            with suppress(OSError):
                self.close()
            raise
        self._count += len(samples)
        if self._count > self._most():
            self._shorten()

    def close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def _open(self) -> None:
        _made(self._path)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND)
        self._count, last = 0, b"\n"
        with open(self._descriptor, "rb", closefd=False) as stream:
            first = stream.readline(ROW_BYTES)
            if first and not _time_of(first):
                self.close()
                raise OSError("its first line is no sample")
            os.fchmod(self._descriptor, 0o600)
            stream.seek(0)
            while chunk := stream.read(2**20):
                self._count += chunk.count(b"\n")
                last = chunk[-1:]
        if last != b"\n":  # whoever wrote it before was cut off
            _write_all(self._descriptor, b"\n")

    def _most(self) -> int:
        """Rows at which the file is written anew."""
        return _WHOLE if self._keep.rows is None else self._keep.rows + max(1, int(_SLACK * self._keep.rows))

    def _shorten(self) -> None:
        skipped = 0 if self._keep.rows is None else self._count - self._keep.rows
        since = 0.0 if self._keep.seconds is None else time.time() - self._keep.seconds
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        self.close()
        try:
            _made(temporary)
            with self._path.open("rb") as old, temporary.open("wb") as new:
                for number, line in enumerate(old):
                    if number >= skipped and (not since or _time_of(line) >= since):
                        new.write(line)
            temporary.replace(self._path)
        finally:
            temporary.unlink(missing_ok=True)
        self._open()
        # those of a span that is not over are as many as they are
        if self._keep.rows is None:
            self._count = 0


def _made(path: Path) -> int:
    """The size of a file, which only its owner reads if it is new. Raises OSError for anything but a file."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o600)
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError("expected a file")
        return facts.st_size
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


def _time_of(line: bytes) -> float:
    """0 for what is no row."""
    try:
        return float(parse_json(line)["time"])
    except (KeyError, TypeError, ValueError):
        return 0.0
