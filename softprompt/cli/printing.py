"""What the command line says: results on standard output, everything else on standard error."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import click

from softprompt.errors import ERROR_CHARACTERS, printable, printable_json

Line: TypeAlias = "str | tuple[str, ...]"  # several columns have a tab between them


def print_result(result: dict[str, Any], lines: Sequence[Line], as_json: bool) -> None:
    if as_json:
        print_json(result)
    else:
        print_lines(lines)


def print_json(value: Any) -> None:
    click.echo(printable_json(value))


def print_lines(lines: Sequence[Line]) -> None:
    r"""A line each, whatever is in it: a value with a new line or a tab cannot pass for another line or column."""
    click.echo("\n".join("\t".join(map(printable, (line,) if isinstance(line, str) else line)) for line in lines))


def say(text: str) -> None:
    """A note or an error: one line of bounded length on standard error."""
    click.echo(printable(text, ERROR_CHARACTERS), err=True)
