"""A file of rows to dictionaries: JSON lines, JSON, CSV, TSV and Parquet, each row with its place for messages."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from softprompt.errors import DataError, MissingExtraError

Row = tuple[str, dict[str, Any]]  # where it stands, for messages, and its columns

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_LONGEST_FIELD = 2**31 - 1  # characters in a CSV field; the largest limit that every platform takes


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file, whose format its ending tells (one of ``ENDINGS``).

    Raises:
        DataError: malformed content, with the line where there is one.
        MissingExtraError: Parquet without the extra ``data``.
    """
    ending = path.suffix.lower()
    read = _parquet_rows if ending == ".parquet" else _json_rows if ending in (".jsonl", ".json") else _csv_rows
    return read(path)


def read_records(stream: Iterable[bytes | str], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number (from 1) and object for each line of JSONL as it arrives, past blank lines.

    Args:
        stream: lines as an open binary or text file gives them; a byte order mark before the first is dropped.
        name: what messages call the stream.

    Raises:
        DataError: a line that is not UTF-8, not JSON, or not an object.
    """
    for number, line in enumerate(stream, start=1):
        text = _decode(line, name, number) if isinstance(line, bytes) else line
        if number == 1:
            text = text.removeprefix("\ufeff")
        if text.strip():
            place = f"'{name}' line {number}"
            yield number, _object(_json(text.rstrip(), place), place)


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as stream:
        text = _decode(stream.read(), str(path)).removeprefix("\ufeff") if path.suffix.lower() == ".json" else ""
        if text.lstrip().startswith("["):
            for number, item in enumerate(_json(text, f"'{path}'"), start=1):
                yield (place := f"'{path}' item {number}"), _object(item, place)
            return
        stream.seek(0)
        yield from ((f"'{path}' line {number}", row) for number, row in read_records(stream, str(path)))


def _csv_rows(path: Path) -> Iterator[Row]:
    lines = io.StringIO(_decode(path.read_bytes(), str(path)).removeprefix("\ufeff"), newline="")
    reader = csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    records: list[tuple[str, list[str]]] = []
    line = 1
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        for record in reader:
            if record:
                records.append((f"'{path}' line {line}", record))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"'{path}' line {line}: expected CSV, got {error}: double the quotes inside quoted fields"
        ) from error
    finally:
        csv.field_size_limit(limit)
    header = records[0][1] if records else []
    if len(set(header)) < len(header):
        raise DataError(f"{records[0][0]}: expected columns of different names, got {listed(header)}: rename them")
    for place, record in records[1:]:
        if len(record) != len(header):
            raise DataError(
                f"{place}: expected {len(header)} fields, got {len(record)}: quote fields with a separator in them"
            )
        yield place, dict(zip(header, record, strict=True))


def _parquet_rows(path: Path) -> Iterator[Row]:
    parquet = optional_module("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            rows = [row for batch in file.iter_batches() for row in batch.to_pylist()]
    except (import_module("pyarrow").ArrowException, ValueError) as error:
        raise DataError(
            f"expected Parquet in '{path}', got a file that does not read as it ({error}): write it anew"
        ) from error
    yield from ((f"'{path}' row {number}", row) for number, row in enumerate(rows, start=1))


def type_name(value: Any) -> str:
    """What messages call a value of this kind."""
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object", str: "a string"}
    return "null" if value is None or value != value else names.get(type(value), f"a {type(value).__name__}")


def _decode(data: bytes, name: str, first_line: int = 1) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        got = f"the byte 0x{data[error.start]:02x}"
        raise DataError(f"'{name}' line {line}: expected UTF-8, got {got}: save the file as UTF-8") from error


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        # within one line the error's own line number would only mislead
        at = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise DataError(
            f"{place}: expected JSON, got text that does not parse ({error.msg} at {at}): mend or remove it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: expected JSON, got text that does not parse ({error}): mend or remove it") from error


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f'{place}: expected an object such as {{"text": "…", "label": "…"}}, got {type_name(value)}: mend it'
        )
    return value


def listed(names: Iterable[str], last: str = ", ", most: int = 12) -> str:
    """Names in quotes, for messages; no more than ``most`` of them, and how many were left out."""
    quoted = [f"'{name}'" for name in names]
    more = [f"{len(quoted) - most} more"] if len(quoted) > most else []
    return last.join([*quoted[:most], *more]) or "nothing"


def optional_module(module: str) -> Any:
    """Import a module of the extra ``data``; MissingExtraError where it is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(module.partition(".")[0], "data") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the operating system's read errors into a DataError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot read '{path}': {error.strerror or error}: check the path and its permissions"
        ) from error
