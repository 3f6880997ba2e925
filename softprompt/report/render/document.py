"""What a result says, apart from how it looks: sections of text, tables, figures and examples.

A result is told once, as a ``Document``, which becomes HTML, Markdown and text for the terminal.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias
from xml.etree.ElementTree import Element

from softprompt.utils.messages import excerpt

LONGEST = 2000  # of anything else: sentences, headings, descriptions of charts, which may quote such texts


def replace_unprintable(text: str, most: int = LONGEST) -> str:
    """``text``, cut, with a visible stand-in for control characters and for those that turn the direction of writing.

    XML forbids the first; the second would let a text in the user's data reorder what stands around it.
    """
    return "".join("\ufffd" if _unseen(letter) else letter for letter in excerpt(text, most))


def bracket(detail: str) -> str:
    """What goes with a number, behind it: in brackets, its own or new ones."""
    return f" {detail if detail[0] in '[(' else f'({detail})'}" if detail else ""


def _cut(block: object, *names: str) -> None:
    """Texts of the user's data, a model or a file, whatever their length, become what a page shows."""
    for name in names:
        object.__setattr__(block, name, excerpt(getattr(block, name)))


def _unseen(letter: str) -> bool:
    code = ord(letter)
    return (
        (code < 0x20 and letter not in "\t\n\r")
        or 0x7F <= code < 0xA0
        or 0x202A <= code <= 0x202E
        or 0x2066 <= code <= 0x2069
        or 0xD800 <= code <= 0xDFFF
        or code in (0xFFFE, 0xFFFF)
    )


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table.

    Attributes:
        text: shown.
        detail: shown smaller, behind it.
        value: to sort by.
        tags: short words behind a name.
        group: whose mark stands before it.
        heat: how strongly the cell is coloured, 0 to 1.
    """

    text: str
    detail: str = ""
    value: float | None = None
    tags: tuple[str, ...] = ()
    group: str = ""
    heat: float | None = None

    def __post_init__(self) -> None:
        _cut(self, "text", "detail")


@dataclass(frozen=True)
class Column:
    """The heading of a column.

    Attributes:
        number: aligned to the right.
        data: texts of the user's data; a terminal shows their beginnings.
    """

    name: str
    number: bool = True
    data: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under columns; the first cell of a row names it.

    Attributes:
        sortable: by a reader of the page.
        ranked_by: the column whose largest values, up or down, a terminal shows first.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    sortable: bool = False
    ranked_by: int | None = None

    @classmethod
    def of(
        cls,
        caption: str,
        columns: Iterable[object],
        rows: Iterable[Iterable[object]],
        note: str = "",
        *,
        words: int = 1,
        sortable: bool = False,
        ranked_by: int | None = None,
    ) -> "Table":
        """A table of cells and columns, or of what stands in them; the first ``words`` hold words, others numbers."""
        named = (one if isinstance(one, Column) else Column(str(one), at >= words) for at, one in enumerate(columns))
        cells = (tuple(one if isinstance(one, Cell) else Cell(str(one)) for one in row) for row in rows)
        return cls(caption, tuple(named), tuple(cells), note, sortable, ranked_by)


@dataclass(frozen=True)
class Figure:
    """A chart, what to read out of it, and its numbers.

    Attributes:
        name: of the file, and in links; unique on a page.
        description: what a reader who cannot see it is told.
        draw: the chart at a width in pixels.
        page_only: its numbers are not for a terminal, where others tell the same.
    """

    kind: ClassVar[str] = "figure"
    name: str
    title: str
    caption: str
    description: str
    draw: Callable[[int], Element]
    table: Table
    page_only: bool = False


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    kind: ClassVar[str] = "points"
    points: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """What to type."""

    kind: ClassVar[str] = "code"
    code: str


@dataclass(frozen=True)
class Fact:
    """A number that counts, with its name and what goes with it."""

    name: str
    text: str
    detail: str = ""

    def __post_init__(self) -> None:
        _cut(self, "text", "detail")


@dataclass(frozen=True)
class Statement:
    """The answer that a page gives, in a sentence and a few numbers."""

    kind: ClassVar[str] = "statement"
    sentence: str
    facts: tuple[Fact, ...] = ()
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """One answer to an example and who gave it; ``right`` is ``None`` where answers are not simply right or wrong."""

    text: str
    right: bool | None
    methods: tuple[str, ...]

    def __post_init__(self) -> None:
        _cut(self, "text")


@dataclass(frozen=True)
class Example:
    """One text, what is right, and what was answered."""

    number: int
    text: str
    gold: str
    answers: tuple[Answer, ...]

    def __post_init__(self) -> None:
        _cut(self, "text", "gold")


@dataclass(frozen=True)
class Examples:
    """Texts with their answers."""

    kind: ClassVar[str] = "examples"
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Fold:
    """Blocks that a reader opens; what is ``page_only`` is not for a terminal."""

    kind: ClassVar[str] = "fold"
    title: str
    blocks: tuple["Block", ...]
    page_only: bool = False


Block: TypeAlias = Table | Figure | Text | Points | Code | Statement | Examples | Fold


@dataclass(frozen=True)
class Section:
    """A part of a page, with its place in links; what is ``page_only`` is not for a terminal."""

    name: str
    title: str
    blocks: tuple[Block, ...]
    page_only: bool = False


@dataclass(frozen=True)
class Document:
    """A result.

    Attributes:
        kind: of page, over its title.
        facts: a line each, under its title.
        created: when what it reports was measured.
        closing: a line each, at the end: where things lie, and what to do next.
    """

    kind: str
    title: str
    facts: tuple[str, ...]
    sections: tuple[Section, ...]
    created: str = ""
    closing: tuple[str, ...] = ()
