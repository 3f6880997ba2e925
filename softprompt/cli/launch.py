"""Verbs under a launcher: `torchrun` or `accelerate launch` start the command several times at once.

Nothing heavy is imported here: every command comes by, and few are launched.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from softprompt.errors import ConfigError

Command = TypeVar("Command", bound=Callable[..., Any])

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


def over_processes(command: Command) -> Command:
    """Run a verb, which has ``device`` among its options, as one of the processes that a launcher has started.

    The verb gets the option ``sharding`` too.
    """

    @click.option("--sharding", help="fsdp: each of several processes holds a part of the model's layers.")
    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        if not launched():
            return command(*arguments, **options)
        from softprompt.models.distributed import joined

        try:
            with joined(options["device"]) as processes:
                click.get_current_context().obj = processes
                return command(*arguments, **options)
        except BaseException:
            # the one process that says what went wrong may be another than the main one
            sys.stderr = sys.__stderr__
            raise

    return run  # type: ignore[return-value]
