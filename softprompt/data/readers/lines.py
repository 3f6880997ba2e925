"""What every reader of rows is made of: a row with its place, the lines of a file, and what there is to say of it."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from softprompt.errors import DataError

_MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32"}
_MARKS |= {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


class Row(NamedTuple):
    """A row of data: its values by column, or why it cannot be used.

    Attributes:
        place: where it stands, for messages.
        reason: what was expected, what was got, what to do; empty for a sound row.
        ends: the rows behind it cannot be read either.
        padded: its objects have the fields of all objects of their column, null where they had none, as in Arrow.
    """

    place: str
    values: dict[str, Any]
    reason: str = ""
    ends: bool = False
    padded: bool = False


class Place(NamedTuple):
    """Where a reader of a file stands: bytes in front of it (of text), and lines, or rows, in front of it."""

    offset: int = 0
    number: int = 0


Step = tuple[Row, Place]  # a row, and where the next one begins


@dataclass
class ReadingNotes:
    """What a reader of ``path`` did that its user did not say, counted.

    Attributes:
        separator: of the fields, where it is not what the ending tells.
        literal: lines with a quote that opens no field, hence is a character like others; and the first of them.
        longest: lines of the longest record, and the line where it begins.
        doubtful: lines where records of several lines begin, each line of which could be a row by itself.
    """

    path: Path
    separator: str = ""
    literal: list[int] = field(default_factory=list)
    several: int = 0
    longest: tuple[int, int] = (1, 0)
    doubtful: list[int] = field(default_factory=list)

    def notes(self) -> Iterator[str]:
        """A sentence for each."""
        if self.separator:
            name = {"\t": "a tab", ";": "a semicolon", "|": "|", ",": "a comma"}.get(self.separator, self.separator)
            yield f"The fields of '{self.path}' are separated by {name}."
        if self.literal:
            yield (
                f"'{self.path}': a quote that opens no quoted field was read as a character, in {_lines(self.literal)}."
            )
        if self.several:
            lines, at = self.longest
            yield (
                f"'{self.path}': {self.several:,} record{'s' * (self.several > 1)} with line breaks within quotes; the "
                f"longest has {lines:,} lines, from line {at} on."
            )
        if self.doubtful:
            yield (
                f"'{self.path}': each line of the record that begins at {_lines(self.doubtful)} could be a row by "
                "itself: is a quote there never closed, several rows are one; double the quotes inside fields."
            )


def _lines(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:10]))
    more = f" and {len(numbers) - 10:,} more" if len(numbers) > 10 else ""
    return f"line{'s' * (len(numbers) > 1)} {shown}{more}"


class LineReader:
    """The lines of a UTF-8 file from a place on, as text with their ends.

    Attributes:
        place: where the next one begins.
        broken: why the last one is no text.
        record: number of the line that the last record of a table began with.
    """

    def __init__(self, stream: BinaryIO, path: Path, place: Place, *, old_ends: bool) -> None:
        """``old_ends``: a carriage return alone ends a line too, as in tables of old systems."""
        head = stream.read(4)
        if (found := next((name for mark, name in _MARKS.items() if head.startswith(mark)), "")) or b"\0" in head:
            raise DataError(
                f"'{path}' line 1: expected UTF-8, got {found or 'UTF-16 or another coding'}: save the file as UTF-8"
            )
        self.mark = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
        self.place, self.broken, self.record = max(place, Place(self.mark)), "", 0
        self._stream, self._old_ends = stream, old_ends
        self._waiting: list[bytes] = []
        stream.seek(self.place.offset)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if not self._waiting:
            line = self._stream.readline()
            if not line:
                raise StopIteration
            self._waiting = line.splitlines(keepends=True)[::-1] if self._old_ends and b"\r" in line else [line]
        line = self._waiting.pop()
        self.place = Place(self.place.offset + len(line), self.place.number + 1)
        text, self.broken = decode_line(line)
        return text.removeprefix("\ufeff")  # of a file that was joined to another

    def seek(self, place: Place) -> None:
        """Stand at an earlier place."""
        self.place, self._waiting = place, []
        self._stream.seek(place.offset)


def decode_line(line: bytes) -> tuple[str, str]:
    """A line as text, and why it is none."""
    try:
        return line.decode(), ""
    except UnicodeDecodeError as error:
        got = f"the byte 0x{line[error.start]:02x}"
        return line.decode(errors="replace"), f"expected UTF-8, got {got}: save the file as UTF-8"
