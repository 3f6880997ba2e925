"""Files of records: SQLite, or JSON lines where the name ends with ``.jsonl``, for their owner alone.

What is written is bounded in size. A file may have been cut off or written by somebody else: what is read is bounded
too, and each row is checked.
"""

import json
import os
import sqlite3
import stat
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from softprompt.errors import ConfigError, DataError
from softprompt.serving.request_log.request_records import RequestRecord, Retention
from softprompt.utils.safe_io import parse_json
from softprompt.utils.seals import SEAL

MOST_ROWS = 200_000  # that are read, the newest ones
ROW_BYTES = 2**20
READ_CHARACTERS = 2**27  # of all texts that are held at once; those of older rows are left out
APPLICATION_ID = 0x73705361  # tells SQLite files of samples from others
SCHEMA, UNSEALED_SCHEMA = 2, 1  # the first release's rows had no digest
COLUMNS = tuple(RequestRecord.model_fields)
STORED = (*COLUMNS, SEAL)
_STRUCTURED = ("columns", "probabilities")  # JSON within a column of SQLite
_INTEGERS = ("characters", "tokens", "rare", "status")
_TYPES = {"time": "REAL", "milliseconds": "REAL", **dict.fromkeys(_INTEGERS, "INTEGER")}
_SLACK = 0.1  # share of rows beyond those to be kept after which a file of lines is written anew
_WHOLE = 10_000  # rows for that, where a span is to be kept


class SampleFile(Protocol):
    """Where records go; used by one thread. All methods raise OSError or sqlite3.Error."""

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
            self._connection = self._connect()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            marks = ", ".join(f":{name}" for name in STORED)
            self._connection.executemany(
                f"INSERT INTO samples ({', '.join(STORED)}) VALUES ({marks})", map(_encode_row, samples)
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

    def _connect(self) -> sqlite3.Connection:
        # made before SQLite does, which would ask nobody but the umask; its log gets the same mode
        new = _create_file(self._path) == 0
        connection = sqlite3.connect(self._path, timeout=10, isolation_level=None, check_same_thread=False)
        try:
            if new:
                self._create_table(connection)
            if _check_schema(connection) != STORED:  # of an earlier release
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

    def _create_table(self, connection: sqlite3.Connection) -> None:
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
        content = b"".join(json.dumps(one.to_row(), ensure_ascii=False).encode() + b"\n" for one in samples)
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
            self._rewrite()

    def close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def _open(self) -> None:
        _create_file(self._path)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND)
        self._count, last = 0, b"\n"
        with open(self._descriptor, "rb", closefd=False) as stream:
            first = stream.readline(ROW_BYTES)
            if first and not _read_time(first):
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

    def _rewrite(self) -> None:
        skipped = 0 if self._keep.rows is None else self._count - self._keep.rows
        since = 0.0 if self._keep.seconds is None else time.time() - self._keep.seconds
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        self.close()
        try:
            _create_file(temporary)
            with self._path.open("rb") as old, temporary.open("wb") as new:
                for number, line in enumerate(old):
                    if number >= skipped and (not since or _read_time(line) >= since):
                        new.write(line)
            temporary.replace(self._path)
        finally:
            temporary.unlink(missing_ok=True)
        self._open()
        # those of a span that is not over are as many as they are
        if self._keep.rows is None:
            self._count = 0


def _create_file(path: Path) -> int:
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


def _read_time(line: bytes) -> float:
    """0 for what is no row."""
    try:
        return float(parse_json(line)["time"])
    except (KeyError, TypeError, ValueError):
        return 0.0


def _encode_row(record: RequestRecord) -> dict[str, Any]:
    """The values of a row of SQLite."""
    row = dict.fromkeys(STORED) | record.to_row()
    return row | {name: json.dumps(row[name], ensure_ascii=False) for name in _STRUCTURED if row[name] is not None}


def is_jsonl(path: Path) -> bool:
    """Whether a file of this name holds JSON lines."""
    return path.suffix.lower() == ".jsonl"


@dataclass(frozen=True)
class RecordedRequests:
    """What a file of samples holds: the newest rows, the oldest of them first.

    Attributes:
        damaged: rows that are none.
        left_out: rows older than those read.
    """

    samples: tuple[RequestRecord, ...]
    damaged: int = 0
    left_out: int = 0


def read_samples(path: Path, since: float = 0.0, most: int = MOST_ROWS) -> RecordedRequests:
    """The newest samples of a file.

    Args:
        since: seconds since 1970; older ones are left out.

    Raises:
        DataError: it is not there, no file of samples, or damaged so that no row can be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"--samples '{path}': expected a file of samples, got no regular file")
        rows, left_out = _read_lines(path, most) if is_jsonl(path) else _read_table(path, since, most)
    except FileNotFoundError as error:
        raise DataError(f"--samples '{path}': expected a file that softprompt serve wrote, found none") from error
    except OSError as error:
        raise DataError(f"--samples '{path}' cannot be read: {error.strerror or error}") from error
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"--samples '{path}' is no sound SQLite file of samples: {error}; give the one that softprompt serve wrote "
            "(JSON lines have a name that ends with .jsonl)"
        ) from error
    sound, damaged = _check_rows(rows)
    if damaged and not sound:
        raise DataError(f"--samples '{path}': none of its {damaged:,} rows is a sample: give the file that serve wrote")
    return RecordedRequests(tuple(one for one in sound if one.time >= since), damaged, left_out)


Raw: TypeAlias = tuple[Iterable[dict[str, Any] | None], int]  # None: it is no row; and how many were left out


def _check_rows(rows: Iterable[dict[str, Any] | None]) -> tuple[list[RequestRecord], int]:
    """Sound samples in the order of time, and how many are none; ``rows`` with the newest first."""
    sound, damaged, held = [], 0, 0
    for row in rows:
        try:
            sample = RequestRecord.from_row(row)
        except ValueError:  # pydantic's too
            damaged += 1
            continue
        held += len(sample.text or "") + len(sample.answer or "") + len(json.dumps(sample.columns))
        if held > READ_CHARACTERS:
            sample = sample.model_copy(update={"text": None, "columns": None})
        sound.append(sample)
    sound.reverse()
    return sorted(sound, key=lambda one: one.time), damaged


def _read_lines(path: Path, most: int) -> Raw:
    """The last rows of JSON lines, the newest first."""
    kept: deque[bytes] = deque(maxlen=most)
    count = 0
    with path.open("rb") as stream:
        # a line without end must not fill the memory
        while line := stream.readline(ROW_BYTES):
            if line.strip():
                kept.append(line)
                count += 1
    return (_parse_line(line) for line in reversed(kept)), count - len(kept)


def _parse_line(line: bytes) -> dict[str, Any] | None:
    try:
        value = parse_json(line, limit=ROW_BYTES, finite=True)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _read_table(path: Path, since: float, most: int) -> Raw:
    """The last rows of SQLite, the newest first; raises sqlite3.Error."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as connection:
        # a value larger than any of ours is an error, not memory
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 4 * ROW_BYTES)
        for setting in ("trusted_schema = OFF", "cell_size_check = ON", "query_only = ON"):
            connection.execute(f"PRAGMA {setting}")
        columns = _check_schema(connection)
        where = "FROM samples WHERE typeof(time) = 'real' AND time >= ?"
        (count,) = connection.execute(f"SELECT count(*) {where}", (since,)).fetchone()
        found = connection.execute(
            f"SELECT {', '.join(columns)} {where} ORDER BY id DESC LIMIT ?", (since, most)
        ).fetchall()
        never = "SELECT count(*) FROM samples WHERE typeof(time) != 'real' OR time < 0"
        (odd,) = connection.execute(never).fetchone()
    return [*_decode_rows(columns, found), *[None] * min(odd, most)], max(0, count - len(found))


def _check_schema(connection: sqlite3.Connection) -> tuple[str, ...]:
    """The columns of a file of samples; raises sqlite3.DatabaseError if it is none, or of another schema."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise sqlite3.DatabaseError("it was not written by softprompt")
    if schema not in (SCHEMA, UNSEALED_SCHEMA):
        raise sqlite3.DatabaseError(f"it has schema version {schema}, expected {SCHEMA}")
    kinds = connection.execute("SELECT type FROM sqlite_master WHERE name = 'samples'").fetchall()
    columns = [name for _, name, *_ in connection.execute("PRAGMA table_xinfo(samples)")]
    expected = STORED if schema == SCHEMA else COLUMNS
    if kinds != [("table",)] or columns != ["id", *expected]:
        raise sqlite3.DatabaseError("its table has other columns")
    return expected


def _decode_rows(columns: Sequence[str], found: Iterable[tuple[Any, ...]]) -> Iterator[dict[str, Any] | None]:
    for values in found:
        row = {name: value for name, value in zip(columns, values, strict=True) if value is not None}
        try:
            for name in _STRUCTURED:
                if name in row:
                    row[name] = parse_json(str(row[name]).encode(), limit=ROW_BYTES, finite=True)
        except ValueError:
            yield None
            continue
        yield row
