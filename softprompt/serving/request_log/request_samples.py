"""Sampled requests: what a server keeps of some of them in a file, and how that file is read back.

SQLite, or JSON lines where the name ends with ``.jsonl``. One row is one text of a request. The file may have been cut
off or written by somebody else: what is read is bounded in size, and each row is checked.
"""

import json
import re
import sqlite3
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, ValidationError

from softprompt.errors import ConfigError, DataError
from softprompt.utils.safe_io import parse_json
from softprompt.utils.seals import SEAL, json_digest, seal

MOST_ROWS = 200_000  # that are read, the newest ones
TEXT_CHARACTERS = 20_000  # of a text or an answer that are kept
ROW_BYTES = 2**20
READ_CHARACTERS = 2**27  # of all texts that are held at once; those of older rows are left out
APPLICATION_ID = 0x73705361  # tells SQLite files of samples from others
SCHEMA, UNSEALED_SCHEMA = 2, 1  # the first release's rows had no digest

_SPAN = re.compile(r"([1-9][0-9]{0,5})([mhd])")
_SECONDS = {"m": 60, "h": 3600, "d": 86400}

Name = Annotated[str, Field(max_length=300)]
Words = Annotated[str, Field(max_length=TEXT_CHARACTERS)]
Count = Annotated[int, Field(ge=0, le=2**31)]


class RequestRecord(BaseModel):
    """One text of a request.

    Attributes:
        time: when it was answered, in seconds since 1970.
        request: its id.
        prompt: ``name@version``.
        key: name of the API key.
        route: that was asked.
        characters: of the text.
        tokens: of template and text, as they are read.
        rare: how many of these are not among the frequent ones of the prompt's profile; not known without one.
        text, columns: only where the server was told to keep texts.
        answer: the label, or the completion where texts are kept.
        probabilities: of the labels.
        milliseconds: of the whole request.
        status: of HTTP.
        error: its code, if it ended in one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    time: FiniteFloat = Field(ge=0, le=2**40)
    request: Name
    prompt: Name
    key: Name = ""
    route: Name = ""
    characters: Count
    tokens: Count | None = None
    rare: Count | None = None
    text: Words | None = None
    columns: dict[Name, JsonValue] | None = None
    answer: Words | None = None
    probabilities: dict[Name, Annotated[float, Field(ge=0, le=1.001)]] | None = None
    milliseconds: FiniteFloat = Field(ge=0)
    status: Count = 200
    error: Name = ""

    @property
    def confidence(self) -> float | None:
        """The probability of the label that was answered."""
        return min(max(self.probabilities.values()), 1.0) if self.probabilities else None


COLUMNS = tuple(RequestRecord.model_fields)
STORED = (*COLUMNS, SEAL)
_STRUCTURED = ("columns", "probabilities")  # JSON within a column of SQLite


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


LONGEST_SPAN = 36_500 * 86_400  # seconds: a century


def parse_span(span: str, what: str) -> int:
    """Seconds of a span as ``7d``, ``12h``, ``30m``; raises ConfigError, which calls it ``what``."""
    found = _SPAN.fullmatch(span)
    if found is None:
        raise ConfigError(f"{what}: expected a number with m, h or d, as in 7d, got '{span}'")
    seconds = int(found[1]) * _SECONDS[found[2]]
    if seconds > LONGEST_SPAN:
        raise ConfigError(f"{what}: expected at most {LONGEST_SPAN // _SECONDS['d']:,}d, got '{span}'")
    return seconds


@dataclass(frozen=True)
class Retention:
    """How much of a file of samples stays: so many rows, or those of so many seconds."""

    rows: int | None = None
    seconds: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Retention":
        """``100000`` rows, or ``30d``; raises ConfigError."""
        if re.fullmatch(r"[1-9][0-9]{0,8}", text):
            return cls(rows=int(text))
        try:
            return cls(seconds=parse_span(text, ""))
        except ConfigError as error:
            raise ConfigError(
                f"sample_keep: expected a number of rows, as 100000, or a span, as 30d, got '{text}'"
            ) from error


def is_jsonl(path: Path) -> bool:
    """Whether a file of this name holds JSON lines."""
    return path.suffix.lower() == ".jsonl"


def encode_row(sample: RequestRecord) -> tuple[Any, ...]:
    """The values of a row of SQLite, the last one being the digest of the others."""
    values = sample.model_dump()
    seal = json_digest(sample.model_dump(exclude_none=True))
    for name in _STRUCTURED:
        values[name] = None if values[name] is None else json.dumps(values[name], ensure_ascii=False)
    return *(values[name] for name in COLUMNS), seal


def encode_line(sample: RequestRecord) -> bytes:
    """A line of a JSONL file."""
    return json.dumps(seal(sample.model_dump(exclude_none=True)), ensure_ascii=False).encode() + b"\n"


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
        raw = _lines(path, most) if is_jsonl(path) else _rows(path, since, most)
    except FileNotFoundError as error:
        raise DataError(f"--samples '{path}': expected a file that softprompt serve wrote, found none") from error
    except OSError as error:
        raise DataError(f"--samples '{path}' cannot be read: {error.strerror or error}") from error
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"--samples '{path}' is no sound SQLite file of samples: {error}; give the one that softprompt serve wrote "
            "(JSON lines have a name that ends with .jsonl)"
        ) from error
    rows, left_out = raw
    sound, damaged = _checked(rows)
    if damaged and not sound:
        raise DataError(f"--samples '{path}': none of its {damaged:,} rows is a sample: give the file that serve wrote")
    return RecordedRequests(tuple(one for one in sound if one.time >= since), damaged, left_out)


Raw: TypeAlias = tuple[Iterable[dict[str, Any] | None], int]  # None: it is no row; and how many were left out


def _checked(rows: Iterable[dict[str, Any] | None]) -> tuple[list[RequestRecord], int]:
    """Sound samples in the order of time, and how many are none; ``rows`` with the newest first."""
    sound, damaged, held = [], 0, 0
    for row in rows:
        try:
            if row is None:
                raise ValueError
            seal = row.pop(SEAL, None)
            sample = RequestRecord.model_validate(row)
            if seal is not None and seal != json_digest(sample.model_dump(exclude_none=True)):
                raise ValueError
        except (ValidationError, ValueError):
            damaged += 1
            continue
        held += len(sample.text or "") + len(sample.answer or "") + len(json.dumps(sample.columns))
        if held > READ_CHARACTERS:
            sample = sample.model_copy(update={"text": None, "columns": None})
        sound.append(sample)
    sound.reverse()
    return sorted(sound, key=lambda one: one.time), damaged


def _lines(path: Path, most: int) -> Raw:
    """The last rows of JSON lines, the newest first."""
    kept: deque[bytes] = deque(maxlen=most)
    count = 0
    with path.open("rb") as stream:
        # a line without end must not fill the memory
        while line := stream.readline(ROW_BYTES):
            if line.strip():
                kept.append(line)
                count += 1
    return (_parsed(line) for line in reversed(kept)), count - len(kept)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = parse_json(line, limit=ROW_BYTES, finite=True)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _rows(path: Path, since: float, most: int) -> Raw:
    """The last rows of SQLite, the newest first; raises sqlite3.Error."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as connection:
        # a value larger than any of ours is an error, not memory
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 4 * ROW_BYTES)
        for setting in ("trusted_schema = OFF", "cell_size_check = ON", "query_only = ON"):
            connection.execute(f"PRAGMA {setting}")
        columns = check_schema(connection)
        where = "FROM samples WHERE typeof(time) = 'real' AND time >= ?"
        (count,) = connection.execute(f"SELECT count(*) {where}", (since,)).fetchone()
        found = connection.execute(
            f"SELECT {', '.join(columns)} {where} ORDER BY id DESC LIMIT ?", (since, most)
        ).fetchall()
        never = "SELECT count(*) FROM samples WHERE typeof(time) != 'real' OR time < 0"
        (odd,) = connection.execute(never).fetchone()
    return [*_dictionaries(columns, found), *[None] * min(odd, most)], max(0, count - len(found))


def check_schema(connection: sqlite3.Connection) -> tuple[str, ...]:
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


def _dictionaries(columns: Sequence[str], found: Iterable[tuple[Any, ...]]) -> Iterator[dict[str, Any] | None]:
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
