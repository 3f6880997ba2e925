"""Verbs that are declared apart from what they do: the module that does it is imported when a verb is run.

So ``--help`` is answered without PyTorch, and the modules of the verbs import what they need at their top.
"""

import functools
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import click

from softprompt.cli.console import check_spreads
from softprompt.cli.verbs.help_pages import GroupedCommand, GroupedVerbs
from softprompt.cli.verbs.shell_completion import add_completion_options
from softprompt.config import MOST
from softprompt.errors import ConfigError, MissingExtraError
from softprompt.utils.version import describe_version

# packages that verbs import at their top
EXTRAS = {"serve": ("fastapi", "uvicorn", "prometheus_client", "httpx", "pydantic_settings")}


def tell_version(context: click.Context, option: click.Parameter, asked: bool) -> None:
    """Print the versions of this and of what it runs on, and end."""
    if asked and not context.resilient_parsing:
        import_module("softprompt.cli.printing").print_lines([describe_version()])
        context.exit()


@click.group(cls=GroupedVerbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=tell_version,
    help="Show the versions and exit.",
)
@add_completion_options
@click.pass_context
def cli(context: click.Context) -> None:
    """Learn a few virtual tokens for a task on a frozen language model, see what they gain, use them."""
    check_spreads(context.invoked_subcommand)


def verb(
    name: str,
    runs: str,
    in_python: str,
    *,
    group: click.Group = cli,
    extra: str | None = None,
    help_text: str | None = None,
    first: Sequence[str] = (),
) -> Callable[[Callable[..., Any]], click.Command]:
    """Declare a verb by a function that has its options as decorators and its help as docstring, and no body.

    Args:
        runs: ``MODULE:FUNCTION`` of this package, called with the options by name.
        in_python: what does the same from Python, within ``softprompt``; the help ends with it.
        extra: of this package's, without which it cannot be run.
        help_text: in place of the docstring.
        first: names of the options that matter first, in order, where a verb has many.
    """
    module, function = runs.split(":")

    def declared(declaration: Callable[..., Any]) -> click.Command:
        @functools.wraps(declaration)
        def run(**options: Any) -> Any:
            check_bounded(options)
            check_extra(extra)
            return getattr(import_module(f"softprompt.cli.{module}"), function)(**options)

        epilog = f"In Python: softprompt.{in_python}"
        return group.command(name=name, cls=GroupedCommand, first=first, help=help_text, epilog=epilog)(run)

    return declared


def check_bounded(options: dict[str, Any]) -> None:
    """Refuse numbers that nothing could be counted up to, whatever their options say of themselves."""
    for name, value in options.items():
        # seeds are not counted up to, nor are fractions
        most = 2**63 - 1 if name.endswith("seed") else MOST
        if isinstance(value, int) and abs(value) > most:
            raise ConfigError(f"--{name.replace('_', '-')}: expected a number of at most {most:,}, got {value!r}")


def check_extra(extra: str | None) -> None:
    """Raise MissingExtraError where a package of ``extra`` is not installed."""
    for package in EXTRAS.get(extra or "", ()):
        if find_spec(package) is None:
            raise MissingExtraError(package.replace("_", "-"), str(extra))
