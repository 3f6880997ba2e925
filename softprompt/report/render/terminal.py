"""A document as text for a terminal or a log: the words and numbers of the page, without its drawings."""

from collections.abc import Iterator
from io import StringIO

from rich.box import Box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text as Styled

from softprompt.errors import printable, shorten
from softprompt.metrics.formatting import MISSING
from softprompt.report.render.document import (
    Block,
    Cell,
    Code,
    Column,
    Document,
    Examples,
    Figure,
    Fold,
    Points,
    Statement,
    Table,
    Text,
    bracket,
)

MOST_ROWS = 24  # of a table
MOST_EXAMPLES = 5
LONGEST_TEXT = 72  # characters of a text of the data
_ENDLESS = 100_000  # columns of a log, where each row of a table is a line
_RULED = Box("    \n    \n -  \n    \n    \n    \n    \n    \n", ascii=True)
_PLAIN = {ord("\N{MINUS SIGN}"): "-"}  # as other programs read numbers
_MARKS = {True: "right: ", False: "wrong: ", None: ""}


def render_terminal(document: Document, width: int | None = None, styled: bool = False) -> str:
    r"""The document as lines; whatever a terminal would act on is spelled out, as ``\x1b``.

    Args:
        width: columns of the terminal; ``None``: lines are as long as they need to be, as ``grep`` wants them.
        styled: with escape codes that make headings bold.
    """
    out = StringIO()
    console = Console(
        file=out,
        width=width or _ENDLESS,
        force_terminal=styled,
        color_system="standard" if styled else None,
        highlight=False,
        legacy_windows=False,
    )
    parts: list[list[Styled | Grid]] = [
        [_styled(line, "bold" if not at else "") for at, line in enumerate((document.title, *document.facts))]
    ]
    for section in document.sections:
        shown = [list(_block(block, console)) for block in section.blocks if not section.page_only]
        for at, block in enumerate(block for block in shown if block):
            headed = at == 0 and len(document.sections) > 1
            parts.append([_styled(f"== {section.title}", "bold"), *block] if headed else block)
    parts.append([_styled(line) for line in document.closing])
    for at, part in enumerate(part for part in parts if part):
        console.print(*([""] if at else []), *part, sep="\n")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _block(block: Block, console: Console) -> Iterator[Styled | Grid]:
    match block:
        case Text(text):
            yield _styled(text)
        case Points(points):
            yield from (_styled(f"- {point}") for point in points)
        case Code(code):
            yield from (_styled(f"  {line}") for line in code.splitlines())
        case Statement(sentence, facts, reasons):
            yield _styled(sentence)
            yield from (_styled(f"- {reason}") for reason in reasons)
            for fact in facts:
                yield _styled(f"{fact.name}: {fact.text}{bracket(fact.detail)}")
        case Table():
            yield from _table(block, console)
        case Figure(title=title, caption=caption, table=table) if not block.page_only:
            yield _styled(title, "bold")
            yield from _rows(table, console)
            yield _styled(caption, "dim")
        case Examples(examples):
            rows = tuple(
                (
                    Cell(one.text),
                    Cell(one.gold),
                    Cell(
                        "; ".join(
                            f"{_MARKS[a.right]}{a.text or '(empty)'} ({', '.join(a.methods)})" for a in one.answers
                        )
                    ),
                )
                for one in examples[:MOST_EXAMPLES]
            )
            columns = (Column("Text", False, data=True), Column("Gold", False, data=True), Column("Answers", False))
            yield from _rows(Table("", columns, rows), console)
        case Fold(title, blocks) if not block.page_only:
            yield _styled(title, "bold")
            for inner in blocks:
                yield from _block(inner, console)


def _table(table: Table, console: Console) -> Iterator[Styled | Grid]:
    if table.caption:
        yield _styled(table.caption, "bold")
    yield from _rows(table, console)
    if table.note:
        yield _styled(table.note, "dim")


def _rows(table: Table, console: Console) -> Iterator[Styled | Grid]:
    """A grid; where its longest words do not fit, each row as lines of name and value."""
    shown = table.rows
    if table.ranked_by is not None:
        shown = tuple(sorted(shown, key=lambda row: -abs(row[table.ranked_by or 0].value or 0.0)))
    rows = [[_cell(cell, column) for cell, column in zip(row, table.columns, strict=True)] for row in shown[:MOST_ROWS]]
    names = [column.name for column in table.columns]
    widths = _widths([names, *rows], console.width)
    if widths:
        grid = Grid(box=_RULED, show_header=any(names), show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for column, width in zip(table.columns, widths, strict=True):
            grid.add_column(_styled(column.name), justify="right" if column.number else "left", width=width)
        for row in rows:
            grid.add_row(*map(_styled, row))
        yield grid
    else:
        for first, *others in rows:
            yield _styled(first)
            yield from (
                _styled(f"  {column.name}: {text}")
                for column, text in zip(table.columns[1:], others, strict=True)
                if text not in ("", "-")
            )
    if len(table.rows) > MOST_ROWS:
        yield _styled(f"and {len(table.rows) - MOST_ROWS:,} more")


def _widths(rows: list[list[str]], room: int) -> list[int]:
    """Of each column: as wide as its longest text, or, where ``room`` lacks, nearer to its longest word; or none."""
    columns = [[printable(text) for text in column] for column in zip(*rows, strict=True)]
    least = [max(cell_len(word) for text in column for word in (text.split() or [""])) for column in columns]
    most = [max(map(cell_len, column)) for column in columns]
    left = room - 2 * (len(columns) - 1) - sum(least)
    if left < 0:
        return []
    wanted = sum(most) - sum(least)
    share = min(1.0, left / wanted) if wanted else 0.0
    return [low + int(share * (high - low)) for low, high in zip(least, most, strict=True)]


def _cell(cell: Cell, column: Column) -> str:
    text = shorten(cell.text, LONGEST_TEXT) if column.data else cell.text
    tags = f" ({', '.join(cell.tags)})" if cell.tags else ""
    return ("-" if text == MISSING else text) + tags + bracket(cell.detail)


def _styled(text: str, style: str = "") -> Styled:
    return Styled(printable(text).translate(_PLAIN), style)
