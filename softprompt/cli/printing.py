"""Results on standard output: as JSON, as a document, or in lines."""

import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

import click

from softprompt.errors import printable, printable_json
from softprompt.report.render.document import Document
from softprompt.report.render.terminal import render_terminal

Line: TypeAlias = "str | tuple[str, ...]"  # several columns have a tab between them


def print_result(result: dict[str, Any], told: Document | Sequence[Line], as_json: bool) -> None:
    """A result as JSON, or as it is ``told``: as a document, or in lines."""
    if as_json:
        print_json(result)
    elif isinstance(told, Document):
        print_document(told)
    else:
        print_lines(told)


def print_document(document: Document) -> None:
    """A document as wide as the terminal; elsewhere each row of a table is one line."""
    seen = sys.stdout.isatty()
    styled = seen and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    width = shutil.get_terminal_size().columns if seen else None
    click.echo(render_terminal(document, width, styled), color=styled)


def print_json(value: Any) -> None:
    click.echo(printable_json(value))


def print_lines(lines: Sequence[Line]) -> None:
    r"""A line each, whatever is in it: a value with a new line or a tab cannot pass for another line or column."""
    click.echo("\n".join("\t".join(map(printable, (line,) if isinstance(line, str) else line)) for line in lines))
