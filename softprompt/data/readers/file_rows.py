"""A file of rows to dictionaries: JSON lines, JSON, CSV, TSV and Parquet, read as it is asked for, from any row on.

Every command reads its files here, streamed or not: a value is what the file has. Cells of tables are strings (``01``,
``NA`` and ``True`` are words), numbers that stand for classes are the names that Parquet of the ``datasets`` library
gives them.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from softprompt.data.readers.delimited import read_table
from softprompt.data.readers.lines import LineReader, Place, ReadingNotes, Row, Step, decode_line
from softprompt.errors import DataError
from softprompt.utils.messages import import_optional, map_read_errors, quote_names, type_name

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


class FileRows:
    """The rows of a file, whose format its ending tells (one of ``ENDINGS``), one after the other.

    Raises, at the first row or any other:
        DataError: the file is not of this format.
        MissingExtraError: Parquet without the extra ``data``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._remarks = ReadingNotes(path)
        self._place = Place()
        self._steps: Iterator[Step] | None = None

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        if self._steps is None:
            ending = self._path.suffix.lower()
            read = _parquet if ending == ".parquet" else _json_file if ending in (".jsonl", ".json") else read_table
            self._steps = read(self._path, self._place, self._remarks)
        with map_read_errors(self._path):
            row, self._place = next(self._steps)
        return row

    @property
    def position(self) -> list[int]:
        """Where it stands, as JSON has it; ``seek`` takes it back."""
        return list(self._place)

    def seek(self, position: Sequence[int]) -> None:
        """Stand where ``position`` was taken."""
        self._place, self._steps = Place(*position), None

    def notes(self) -> list[str]:
        """What there is to say of how the rows so far were read."""
        return list(self._remarks.notes())


def read_records(stream: Iterable[bytes | str], name: str) -> Iterator[Row]:
    """Yield the row of each line of JSONL as it arrives, past blank lines.

    Args:
        stream: lines as an open binary or text file gives them; a byte order mark before the first is dropped.
        name: what messages call the stream.
    """
    for number, line in enumerate(stream, start=1):
        text, reason = decode_line(line) if isinstance(line, bytes) else (line, "")
        if row := _json_row(text, reason, f"'{name}' line {number}"):
            yield row


def _json_file(path: Path, start: Place, remarks: ReadingNotes) -> Iterator[Step]:
    with path.open("rb") as stream:
        lines = LineReader(stream, path, start, old_ends=False)
        # `[` opens an array, which is read whole, where it is not one line of several
        if path.suffix.lower() == ".json" and _begins_array(path, lines.mark):
            yield from _array(path, lines.mark, start)
            return
        for line in lines:
            if row := _json_row(line, lines.broken, f"'{path}' line {lines.place.number}"):
                yield row, lines.place


def _begins_array(path: Path, mark: int) -> bool:
    with path.open("rb") as stream:
        stream.seek(mark)
        while piece := stream.read(1024):
            if found := piece.lstrip():
                return found.startswith(b"[")
    return False


def _array(path: Path, mark: int, start: Place) -> Iterator[Step]:
    content = path.read_bytes()
    text, reason = decode_line(content)
    if reason:
        line = 1 + text[: text.find("\ufffd")].count("\n")
        raise DataError(f"'{path}' line {line}: {reason}")
    found, reason = _parse_json(text.removeprefix("\ufeff"))
    if reason:
        raise DataError(f"'{path}': {reason}")
    for number, item in enumerate(found[start.number :], start=start.number + 1):
        yield _make_row(item, f"'{path}' item {number}"), Place(mark, number)


def _json_row(text: str, reason: str, place: str) -> Row | None:
    text = text.removeprefix("\ufeff")  # of a file, or of one of those that were joined to it
    if reason:
        return Row(place, {}, reason)
    if not text.strip():
        return None
    value, reason = _parse_json(text.rstrip())
    return Row(place, {}, reason) if reason else _make_row(value, place)


def _parse_json(text: str) -> tuple[Any, str]:
    """The value of JSON, and why there is none."""
    try:
        return json.loads(text, object_pairs_hook=_refuse_duplicate_keys), ""
    except json.JSONDecodeError as error:
        # within one line the error's own line number would only mislead
        at = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        return None, f"expected JSON, got text that does not parse ({error.msg} at {at}): mend or remove it"
    except (ValueError, RecursionError) as error:
        return None, f"expected JSON, got text that does not parse ({error}): mend or remove it"


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' stands twice in an object")
    return found


def _make_row(value: Any, place: str) -> Row:
    if isinstance(value, dict):
        return Row(place, value)
    reason = f'expected an object such as {{"text": "…", "label": "…"}}, got {type_name(value)}: mend it'
    return Row(place, {}, reason)


def _parquet(path: Path, start: Place, remarks: ReadingNotes) -> Iterator[Step]:
    parquet = import_optional("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise DataError(
                    f"expected columns of different names in '{path}', got {quote_names(names)}: rename them"
                )
            classes = read_class_names(file.schema_arrow.metadata or {})
            number = 0
            groups: list[int] = []
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if not groups and number + rows <= start.number:
                    number += rows  # a group that was read before
                else:
                    groups.append(group)
            for batch in file.iter_batches(batch_size=1024, row_groups=groups):
                read = min(len(batch), max(0, start.number - number))
                number += read
                for values in batch.slice(read).to_pylist():
                    number += 1
                    named = {key: name_class(values[key], classes[key]) for key in classes if key in values}
                    yield Row(f"'{path}' row {number}", {**values, **named}, padded=True), Place(0, number)
    except (import_module("pyarrow").ArrowException, ValueError, OverflowError) as error:
        raise DataError(
            f"expected Parquet in '{path}', got a file that does not read as it ({error}): write it anew"
        ) from error


def read_class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Names of the numbers of columns of classes, as the ``datasets`` library writes them beside a table."""
    told, _ = _parse_json(metadata.get(b"huggingface", b"{}").decode(errors="replace"))
    for name in ("info", "features"):
        told = told.get(name) if isinstance(told, dict) else None
    return {
        name: [str(one) for one in kind["names"]]
        for name, kind in (told if isinstance(told, dict) else {}).items()
        if isinstance(kind, dict) and kind.get("_type") == "ClassLabel" and isinstance(kind.get("names"), list)
    }


def name_class(index: Any, names: Sequence[str]) -> Any:
    """The label that a published number stands for; ``None`` for one that is not published, and for none of them."""
    if not isinstance(index, int):
        return index
    return names[index] if 0 <= index < len(names) else None
