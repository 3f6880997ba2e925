"""Notes on standard error, of one process where `torchrun` or `accelerate launch` start the command several times.

Nothing heavy is imported here: every command comes by, ``--help`` too.
"""

import os
import sys
from pathlib import Path

import click

from softprompt.errors import ERROR_CHARACTERS, ConfigError, printable

_SPREADS = {"train"}


def launched() -> bool:
    """Whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def is_main() -> bool:
    """Whether this process writes and prints."""
    return not launched() or os.environ["RANK"] == "0"


def hush() -> None:
    """Let the main process alone print."""
    if not is_main():
        sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (open to the end)


def check_spreads(verb: str | None) -> None:
    """Raise ConfigError for a verb that several processes would each do whole."""
    if launched() and verb not in _SPREADS:
        raise ConfigError(f"several processes are for softprompt {', '.join(sorted(_SPREADS))}: start one of '{verb}'")


def say(text: str) -> None:
    """A note or an error: one line of bounded length on standard error."""
    click.echo(printable(text, ERROR_CHARACTERS), err=True)
