"""What the verbs of the command line share: options, loading, printing."""

import csv
import functools
import json
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import click

from softprompt.config import MOST
from softprompt.errors import ERROR_CHARACTERS, ConfigError, printable, printable_json
from softprompt.utils.files import expand_user

if TYPE_CHECKING:
    from softprompt.models.fingerprint import Outline
    from softprompt.models.frozen_lm import FrozenLM
    from softprompt.prompts.saved_prompt import Prompt
    from softprompt.training.callbacks import Callback

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


def _run_options(init: str) -> tuple[Callable[[Command], Command], ...]:
    return (
        click.option("--no-test", is_flag=True, help="Do not score the test split at the end."),
        click.option("--restart", is_flag=True, help="Drop the unfinished run of --out and begin anew."),
        click.option("--resume", is_flag=True, help="Go on with the unfinished run of --out."),
        click.option("--seed", type=int, help="Of initialisation and data order.  [default: 0]"),
        click.option("--eval-every", type=int, help="Steps between validations.  [default: 100]"),
        click.option("--learning-rate", type=float, help="In standard deviations of the embeddings.  [default: 0.1]"),
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
    help="What to judge by, as macro_f1 or bleu.  [default: accuracy; exact_match for short outputs, else chrf]",
)


room_option = click.option(
    "--max-new-tokens",
    type=int,
    help="Of a completion.  [default: 128, more where a reference is longer]",
)


def model_of(options: dict[str, Any]) -> dict[str, Any]:
    """What ``model_options`` gave, and ``device_map_option`` where a verb has it, taken out of ``options``."""
    model = {name: options.pop(name) for name in ("device", "dtype", "quantise", "trust_remote_code")}
    return {**model, "device_map": options.pop("device_map", None)}


def columns_of(options: dict[str, Any]) -> dict[str, Any]:
    """What ``column_options`` gave, where it was given, taken out of ``options``."""
    return given(**{name: options.pop(name) for name in ("text_column", "label_column", "target_column", "bad_rows")})


def load_base(name: str, options: dict[str, Any], check: "Callable[[Outline], None] | None" = None) -> "FrozenLM":
    """The model called ``name``; ``check`` raises for one that is not wanted, before its weights are loaded."""
    from transformers.utils import logging

    from softprompt.models.distributed import ALONE, Processes
    from softprompt.models.loading import load

    logging.set_verbosity_error()
    say(f"loading {name}")
    context = click.get_current_context(silent=True)
    processes = context.find_object(Processes) if context else None
    return load(name, progress=say, processes=processes or ALONE, check=check, **options)


def load_base_of(prompt: "Prompt", name: str | None, options: dict[str, Any], *, fixed: bool = False) -> "FrozenLM":
    """The model that a saved prompt was learned on, quantised as it was; or the one called ``name``, if given.

    Says so if it is loaded in another precision than the prompt was learned in; ``fixed``: what is made takes no other.
    """
    from softprompt.models.quantization import SCHEMES

    known = prompt.quantisation if prompt.quantisation in SCHEMES else None
    options = {**options, "quantise": options["quantise"] or known}
    base = load_base(name or prompt.base_name, options, prompt.check_base)
    if (note := prompt.precision_note(base, fixed=fixed)) is not None:
        say(note)
    return base


def make_callback(as_json: bool, tensorboard: Path | None = None) -> "Callback":
    from softprompt.training.callbacks import CallbackList, ProgressBar, ProgressPrinter, TensorBoardLogger

    callback: Callback = ProgressBar() if sys.stderr.isatty() and not as_json else ProgressPrinter()
    return callback if tensorboard is None else CallbackList([callback, TensorBoardLogger(tensorboard)])


def pairs(flag: str, options: tuple[str, ...], form: str, example: str) -> dict[str, str]:
    """``NAME=VALUE`` options by name; raises ConfigError for one that is not of this ``form``, or given twice."""
    found: dict[str, str] = {}
    for option in options:
        name, _, value = option.partition("=")
        complete = name.strip() and value.strip()
        if not complete or name in found:
            what = "another name" if complete else form
            raise ConfigError(f"{flag} '{option}': expected {what}, as in {example}")
        found[name] = value
    return found


def task_settings(
    template: str | None, labels: str | None, verbalizer: tuple[str, ...], metric: str | None = None
) -> dict[str, Any]:
    """What ``Task.of`` and ``TaskSpec.of`` take of them: those that were given."""
    return given(
        template=template,
        metric=metric,
        labels=None if labels is None else _label_names(labels),
        verbalizers=_verbalizers(verbalizer) or None,
    )


def _label_names(labels: str) -> list[str]:
    """Names with commas between them; one that holds a comma stands in quotes, or all of them in a list of JSON."""
    told = _json_of(labels, list)
    # numbers and booleans are named as the reader names them
    names = [one if isinstance(one, str) else json.dumps(one) for one in told or ()]
    if told is None:
        with suppress(csv.Error):  # a line break outside of quotes
            names = [name.strip() for name in next(csv.reader([labels], skipinitialspace=True), [])]
    if not names or not all(name.strip() for name in names):
        raise ConfigError(
            f"--labels '{labels}': expected names with commas between them, as in negative,positive (one with a comma "
            'in it in double quotes), or a list of JSON, as in ["yes, please", "no"]'
        )
    return names


def _verbalizers(options: tuple[str, ...]) -> dict[str, str]:
    """``LABEL=WORDS``, or an object of JSON for labels with an equals sign."""
    found: dict[str, str] = {}
    for option in options:
        told = _json_of(option, dict)
        if told is None:
            told = pairs("--verbalizer", (option,), "LABEL=WORDS", '1=good, or {"a=b": "good"} for a label with =')
        for name, words in told.items():
            if not isinstance(words, str) or name in found:
                what = "another label" if name in found else "words"
                raise ConfigError(f"--verbalizer '{option}': expected {what}, as in 1=good")
            found[name] = words
    return found


def _json_of(option: str, kind: type) -> Any:
    """The value of JSON that an option is, if it is one of this kind."""
    try:
        value = json.loads(option)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, kind) else None


def given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


Line: TypeAlias = "str | tuple[str, ...]"  # several columns have a tab between them


def bounded(verb: click.Command) -> click.Command:
    """``verb``, which refuses numbers that nothing could be counted up to, whatever its options say of themselves."""
    run = verb.callback
    for inner in verb.commands.values() if isinstance(verb, click.Group) else ():
        bounded(inner)
    if run is None:
        return verb

    @functools.wraps(run)
    def checked(*arguments: Any, **options: Any) -> Any:
        for name, value in options.items():
            # seeds are not counted up to, nor are fractions
            most = 2**63 - 1 if name.endswith("seed") else MOST
            if isinstance(value, int) and abs(value) > most:
                raise ConfigError(f"--{name.replace('_', '-')}: expected a number of at most {most:,}, got {value!r}")
        return run(*arguments, **options)

    verb.callback = checked
    return verb


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
