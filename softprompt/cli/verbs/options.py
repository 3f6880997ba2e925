"""What the verbs of the command line share: options, loading, printing."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from softprompt.utils.files import expand_user

if TYPE_CHECKING:
    pass

Command = TypeVar("Command", bound=Callable[..., Any])


class _Given(click.ParamType[Any]):
    """A value with something in it: that of an unset shell variable has not, and must not mean ``.`` or a default."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if not str(value).strip():
            self.fail("expected a value, got an empty one: is a shell variable not set?", param, context)
        return value


class _Place(_Given):
    """A file or folder; ``~`` is the home folder behind ``--out=`` too, where shells leave it alone."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Path:
        return expand_user(super().convert(value, param, context))


class _Words(_Given):
    r"""Text for the model, or with some: ``\n`` and ``\t`` in it are a new line and a tab, which are hard to type in a
    shell, and ``\\`` is a backslash."""

    def __init__(self, only: str = "", json: str = "", empty: bool = False) -> None:
        """``only``: how text with words begins; ``json``: how JSON does, which has its own way of it."""
        self._only, self._json, self._empty = only, json, empty

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> str:
        text = str(value if self._empty else super().convert(value, param, context))
        if not text.startswith(self._only) or (self._json and text.lstrip().startswith(self._json)):
            return text
        return re.sub(r"\\([\\nt])", lambda found: {"n": "\n", "t": "\t"}.get(found[1], found[1]), text)


GIVEN, PLACE = _Given(), _Place()
WORDS, SETTING_WORDS, LABEL_NAMES, LABEL_WORDS = _Words(empty=True), _Words(), _Words(json="["), _Words(json="{")
INIT_WORDS = _Words(only="text:")


def model_options(command: Command) -> Command:
    for option in (
        click.option("--trust-remote-code", is_flag=True, help="Let the model's repository run its own code."),
        click.option(
            "--quantise", help="int8 (torchao), bnb-int8 or bnb-nf4 (bitsandbytes). Default: weights as saved."
        ),
        click.option("--dtype", help="float32, bfloat16 or float16. Default: what is fast here."),
        click.option("--device", help="cpu, cuda, cuda:1, mps. Default: a GPU if there is one."),
    ):
        command = option(command)
    return command


device_map_option = click.option(
    "--device-map", help="auto: the model over all devices, and over memory and disk if it must be."
)


bad_rows_option = click.option(
    "--bad-rows",
    type=click.Choice(["refuse", "skip"]),
    help="skip: leave out rows that cannot be used, and say so.  [default: refuse]",
)


def column_options(command: Command) -> Command:
    for option in (
        bad_rows_option,
        click.option("--target-column", type=GIVEN, help="Column of the text to generate.  [default: target]"),
        click.option("--label-column", type=GIVEN, help="Column of the label.  [default: label]"),
        click.option("--text-column", type=GIVEN, help="Column of the text.  [default: text]"),
    ):
        command = option(command)
    return command


def run_options(command: Command) -> Command:
    """What every verb that learns has; tests/cli/test_help.py holds the defaults told here to those of TrainConfig."""
    starts = "examples, text, text:WORDS, labels, vocab, random, prompt:FOLDER.  [default: examples]"
    return run_options_from(starts)(command)


def run_options_from(init: str) -> Callable[[Command], Command]:
    """``run_options`` for a verb whose prompts start as ``init`` says."""

    def added(command: Command) -> Command:
        for option in _run_options(init):
            command = option(command)
        return command

    return added


schedule_option = click.option(
    "--schedule", help="Of the rate behind the warm-up: cosine, constant, linear, ...  [default: cosine]"
)


def _run_options(init: str) -> tuple[Callable[[Command], Command], ...]:
    return (
        click.option("--no-test", is_flag=True, help="Do not score the test split at the end."),
        click.option("--restart", is_flag=True, help="Drop the unfinished run of --out and begin anew."),
        click.option("--resume", is_flag=True, help="Go on with the unfinished run of --out."),
        click.option("--seed", type=int, help="Of initialisation and data order.  [default: 0]"),
        click.option("--eval-every", type=int, help="Steps between validations.  [default: 100]"),
        click.option("--learning-rate", type=float, help="In standard deviations of the embeddings.  [default: 0.1]"),
        schedule_option,
        click.option("--steps", type=int, help="Optimiser steps.  [default: 300]"),
        click.option("--init", type=INIT_WORDS, help=init),
        click.option("--length", type=int, help="Virtual tokens.  [default: 100]"),
        click.option("--config", type=PLACE, help="Settings from a .toml or .yaml file."),
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else.")


def compile_option(what: str) -> Callable[[Command], Command]:
    """``--compile``, which makes ``what`` faster."""
    told = f"Compile what makes {what} faster, on a CPU.  [default: auto]"
    return click.option("--compile", type=click.Choice(["auto", "always", "never"]), help=told)


vote_option = click.option(
    "--vote",
    type=click.Choice(["mean", "majority"]),
    default="mean",
    show_default=True,
    help="How an ensemble answers: mean probability, or most votes.",
)


metric_option = click.option(
    "--metric",
    type=GIVEN,
    metavar="NAME",
    help="What to judge by, as macro_f1 or bleu, or a function of yours: package.module:function.  [default: accuracy; "
    "exact_match for short outputs, else chrf]",
)


room_option = click.option(
    "--max-new-tokens",
    type=int,
    help="Of a completion.  [default: 128, more where a reference is longer]",
)
