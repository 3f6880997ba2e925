"""A document as GitHub-flavoured Markdown: the same words and numbers as the page."""

import html
import re
from collections.abc import Iterable, Iterator

from softprompt.report.render.document import (
    Block,
    Cell,
    Code,
    Document,
    Examples,
    Figure,
    Fold,
    Points,
    Statement,
    Table,
    Text,
    bracket,
    replace_unprintable,
)

_MARKS = {True: "✓ ", False: "✗ ", None: ""}


def render_markdown(document: Document, figures: bool = False) -> str:
    """The document; with ``figures`` it shows ``figures/NAME.svg`` over each figure's numbers."""
    lines = [f"# {escape_markdown(document.title)}"]
    lines += ["", *(f"- {escape_markdown(fact)}" for fact in document.facts)] if document.facts else []
    for section in document.sections:
        lines += ["", f"## {escape_markdown(section.title)}"] if len(document.sections) > 1 else []
        for block in section.blocks:
            lines += ["", *_block(block, figures)]
    for line in document.closing:
        lines += ["", escape_markdown(line)]
    if document.created:
        lines += ["", f"Measured {escape_markdown(document.created)}."]
    return "\n".join(lines) + "\n"


def escape_markdown(text: str) -> str:
    """Text that means itself: no Markdown, no HTML, on one line."""
    one_line = " ".join(replace_unprintable(text).split())
    safe = html.escape(one_line, quote=False)
    # an underscore within a word, and a sign within a sentence, is text already
    safe = re.sub(r"([\\`*\[\]|~$#])|(?<!\w)_|_(?!\w)", lambda found: "\\" + found[0], safe)
    safe = re.sub(r"^(?:[-+=]|\d+[.)](?=\s|$))", lambda found: f"{found[0][:-1]}\\{found[0][-1]}", safe)
    # a word joiner keeps GitHub from making links of addresses in the data
    return re.sub(r"(?i)(https?|ftp)(://)|\b(www)(\.)", lambda f: (f[1] or f[3]) + "\u2060" + (f[2] or f[4]), safe)


def _block(block: Block, figures: bool) -> Iterator[str]:
    match block:
        case Text(text):
            yield escape_markdown(text)
        case Points(points):
            yield from (f"- {escape_markdown(point)}" for point in points)
        case Code(code):
            yield from (f"    {replace_unprintable(line, len(line))}" for line in code.splitlines())
        case Statement():
            yield from _statement(block)
        case Table():
            yield from _table(block)
        case Figure():
            yield from (f"### {escape_markdown(block.title)}", "")
            if figures:
                yield from (f"![{escape_markdown(block.description)}](figures/{block.name}.svg)", "")
            yield from (escape_markdown(block.caption), "", *_table(block.table, captioned=False))
        case Examples(examples):
            yield from _row(("Text", "Gold", "Answers"))
            yield "| --- | --- | --- |"
            for example in examples:
                answers = (
                    f"{_MARKS[answer.right]}{_answer(answer.text)}: {escape_markdown(', '.join(answer.methods))}"
                    for answer in example.answers
                )
                yield from _row((escape_markdown(example.text), _answer(example.gold), "<br>".join(answers)))
        case Fold(title, blocks):
            yield from ("<details>", f"<summary>{_in_html(title)}</summary>")
            for inner in blocks:
                yield from ("", *_block(inner, figures))
            yield from ("", "</details>")


def _statement(statement: Statement) -> Iterator[str]:
    yield f"**{escape_markdown(statement.sentence)}**"
    if statement.facts:
        yield ""
        yield from _row(escape_markdown(fact.name) for fact in statement.facts)
        yield from _row("---" for _ in statement.facts)
        yield from _row(f"{escape_markdown(fact.text)}{_behind(fact.detail)}" for fact in statement.facts)
    if statement.reasons:
        yield from ("", *(f"- {escape_markdown(reason)}" for reason in statement.reasons))


def _table(table: Table, captioned: bool = True) -> Iterator[str]:
    if captioned and table.caption:
        yield from (f"### {escape_markdown(table.caption)}", "")
    yield from _row(escape_markdown(column.name) for column in table.columns)
    yield from _row("---:" if column.number else "---" for column in table.columns)
    for row in table.rows:
        yield from _row(map(_cell, row))
    if table.note:
        yield from ("", escape_markdown(table.note))


def _row(cells: Iterable[str]) -> Iterator[str]:
    yield f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    tags = "".join(f" ({escape_markdown(tag)})" for tag in cell.tags)
    return f"{escape_markdown(cell.text)}{tags}{_behind(cell.detail)}"


def _behind(detail: str) -> str:
    return f" {escape_markdown(bracket(detail))}" if detail else ""


def _answer(text: str) -> str:
    return escape_markdown(text) or "(empty)"


def _in_html(text: str) -> str:
    return html.escape(replace_unprintable(text), quote=False)
