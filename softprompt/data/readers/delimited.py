"""CSV and TSV, record by record, from any record on.

The header tells the separator. In CSV a quote is what RFC 4180 says. Many programs write TSV without any quoting,
others as they write CSV; there a field is quoted only if its quote closes as such a program would close it, and a quote
that would make several rows one, while each of its lines is a row, is a character.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from softprompt.data.readers.lines import LineReader, Place, ReadingNotes, Row, Step
from softprompt.errors import DataError

SEPARATORS = ",;\t|"
_LONGEST_FIELD = 2**31 - 1  # characters; the largest limit that every platform takes
_LOOKED_AHEAD = 200  # lines that a quoted field of TSV may have


def read_table(path: Path, start: Place, remarks: ReadingNotes) -> Iterator[Step]:
    """The rows of a table from ``start`` on."""
    with path.open("rb") as stream:
        lines = LineReader(stream, path, Place(), old_ends=True)
        separator, header = _header(lines, path, remarks)
        if start.number:
            lines.seek(start)
        while True:
            record, reason, ends = _record(lines, separator, len(header), remarks)
            if record is None:
                return
            place = f"'{path}' line {lines.record}"
            if not reason and len(record) != len(header):
                if not "".join(record).strip() and len(record) <= 1:
                    continue
                reason = f"expected {len(header)} fields, got {len(record)}: quote fields with a separator in them"
            yield Row(place, {} if reason else dict(zip(header, record, strict=True)), reason, ends), lines.place


def _header(lines: LineReader, path: Path, remarks: ReadingNotes) -> tuple[str, list[str]]:
    expected = "\t" if path.suffix.lower() == ".tsv" else ","
    for line in lines:
        number = lines.place.number
        if lines.broken:
            raise DataError(f"'{path}' line {number}: {lines.broken}")
        if number == 1 and (told := re.fullmatch(r'"?sep=(.)"?\s*', line)):  # as spreadsheets say it
            expected = told[1]
        elif line.strip("\r\n"):
            lines.seek(Place(lines.place.offset - len(line.encode()), number - 1))
            break
    else:
        return expected, []
    begins = lines.place

    def names(separator: str) -> list[str]:
        lines.seek(begins)
        record, reason, _ = _record(lines, separator, 0, ReadingNotes(path))
        return [] if reason or record is None else record

    best = max((expected, *SEPARATORS), key=lambda separator: len(names(separator)))
    lines.seek(begins)
    header, reason, _ = _record(lines, best, 0, remarks)
    if reason or header is None:
        raise DataError(f"'{path}' line {begins.number + 1}: {reason}")
    if best != ("\t" if path.suffix.lower() == ".tsv" else ","):
        remarks.separator = best
    if len(set(header)) < len(header):
        quoted = ", ".join(f"'{name}'" for name in header)
        raise DataError(
            f"'{path}' line {begins.number + 1}: expected columns of different names, got {quoted}: rename them"
        )
    return best, header


def _record(lines: LineReader, separator: str, width: int, remarks: ReadingNotes) -> tuple[list[str] | None, str, bool]:
    """The next record past blank lines, ``None`` at the end; why it cannot be used, and whether all ends here."""
    for first in lines:
        begins, broken = lines.place, lines.broken
        content = first.rstrip("\r\n")
        if not content:
            continue
        lines.record = begins.number
        if broken:
            return [], broken, False
        if '"' not in content:
            return content.split(separator), "", False
        taken = [first]
        record, reason, ends = _quoted(taken, lines, separator, _LOOKED_AHEAD if separator == "\t" else None)
        as_they_stand = [line.rstrip("\r\n").split(separator) for line in taken]
        # where quotes were doubled, as programs do that quote, one line break and one tab make two rows by chance
        chance = width == len(taken) == 2 and any('"' in field and field.splitlines()[1:] for field in record)
        rows = width > 1 and not chance and all(len(fields) == width for fields in as_they_stand)
        if separator == "\t" and (reason or (len(taken) > 1 and (rows or len(record) != width))):
            if broken := lines.broken if len(taken) == 1 else "":
                return [], broken, False
            lines.seek(begins)
            remarks.literal.append(begins.number)
            return as_they_stand[0], "", False
        if not reason and len(taken) > 1:
            remarks.several += 1
            remarks.longest = max(remarks.longest, (len(taken), begins.number), key=lambda one: one[0])
            if rows:
                remarks.doubtful.append(begins.number)
        return record, reason, ends
    return None, "", False


def _quoted(taken: list[str], lines: LineReader, separator: str, most: int | None) -> tuple[list[str], str, bool]:
    """The record that begins with the line in ``taken``, which gets those that it goes on over."""
    broken = ""

    def following() -> Iterable[str]:
        nonlocal broken
        yield taken[0]
        for line in lines:
            if most is not None and len(taken) >= most:
                return
            broken = broken or lines.broken
            taken.append(line)
            yield line

    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        record = next(csv.reader(following(), delimiter=separator, strict=True))
    except csv.Error as error:
        ends = "unexpected end" in str(error)
        return [], f"expected CSV, got {error}: double the quotes inside quoted fields", ends
    finally:
        csv.field_size_limit(limit)
    return record, broken, False
