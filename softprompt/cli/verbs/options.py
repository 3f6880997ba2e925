"""What the verbs of the command line share: options, loading, printing."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from click.shell_completion import CompletionItem
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from softprompt.cli.verbs.shell_completion import complete_value
from softprompt.config import DataOptions
from softprompt.utils.files import expand_user

Command = TypeVar("Command", bound=Callable[..., Any])


class _Given(click.ParamType):  # type: ignore[type-arg]  # click 8.5 made it generic
    """A value with something in it: that of an unset shell variable has not, and must not mean ``.`` or a default."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if not str(value).strip():
            self.fail("expected a value, got an empty one: is a shell variable not set?", param, context)
        return value

    def shell_complete(self, context: click.Context, param: click.Parameter, typed: str) -> "list[CompletionItem[str]]":
        return complete_value(param, typed)


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


def combine_options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator of several, whose options are shown in this order."""

    def added(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return added


def setting_options(
    model: type[BaseModel],
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    *,
    checked: bool = False,
    flags: Mapping[str, str] | None = None,
    **told: str,
) -> Callable[[Command], Command]:
    """An option for each field of ``model``, with its type, its description and its default; not given, it is None.

    Args:
        only: of these fields alone, if there are any.
        without: not of these.
        checked: numbers out of a field's range are refused here, for a verb that builds no ``model`` of them.
        flags: options of fields that have another name on the command line.
        told: what the help says of a field in place of its description.
    """
    names = [name for name in only or model.model_fields if name not in without]
    return combine_options(
        *(
            _setting_option(name, (flags or {}).get(name), model.model_fields[name], told.get(name), checked)
            for name in names
        )
    )


def _setting_option(
    name: str, flag: str | None, field: FieldInfo, told: str | None, checked: bool
) -> Callable[[Command], Command]:
    flag, kinds = flag or f"--{name.replace('_', '-')}", get_args(field.annotation)
    help = told or str(field.description)
    default = field.get_default(call_default_factory=True)
    if help.partition(",")[0] != default:  # else it begins with the names of values
        help = help[0].upper() + help[1:]
    help += "" if help.endswith("]") else "."
    if isinstance(default, bool):
        return click.option(f"{flag}/--no-{flag[2:]}" if default else flag, name, is_flag=True, default=None, help=help)
    if default not in (None, ()):
        help += f"  [default: {default}]"
    if get_origin(field.annotation) is Literal:
        return click.option(flag, name, type=click.Choice(kinds), help=help)
    kind: Any
    if get_origin(field.annotation) is tuple:
        kind = _TYPES.get(name, WORDS)
        return click.option(flag, name, type=kind, multiple=True, callback=lambda *given: given[2] or None, help=help)
    kind = next((kind for kind in kinds if kind is not type(None)), field.annotation)
    if checked and kind is int:
        least, most = (
            next((getattr(one, end) for one in field.metadata if hasattr(one, end)), None) for end in ("ge", "le")
        )
        kind = click.IntRange(least, most)
    return click.option(
        flag, *_ALIASES.get(name, ()), name, type=_TYPES.get(name, GIVEN if kind is str else kind), help=help
    )


_ALIASES = {"learning_rate": ("--lr",)}  # further flags of a setting
_TYPES = {"init": INIT_WORDS, "prompts": GIVEN}  # where words for the model are expected or not

model_name_option = click.option(
    "--model", "model_name", type=GIVEN, required=True, help="Hub name, folder, .gguf file or embedded:gemma-3-270m."
)
prompt_model_option = click.option(
    "--model", "model_name", type=GIVEN, help="The base model.  [default: the one the prompt was learned on]"
)
trust_option = click.option("--trust-remote-code", is_flag=True, help="Let the model's repository run its own code.")
quantize_option = click.option(
    "--quantize", help="int8 (torchao), bnb-int8 or bnb-nf4 (bitsandbytes). Default: weights as saved."
)
model_options = combine_options(
    click.option("--device", help="cpu, cuda, cuda:1, mps. Default: a GPU if there is one."),
    click.option("--dtype", help="float32, bfloat16 or float16. Default: what is fast here."),
    quantize_option,
    trust_option,
)
device_map_option = click.option(
    "--device-map", help="auto: the model over all devices, and over memory and disk if it must be."
)


bad_rows_option = setting_options(DataOptions, only=("bad_rows",))
column_options = setting_options(DataOptions)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else.")


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


def data_option(told: str = "", *, required: bool = True) -> Callable[[Command], Command]:
    """``--data``, of which ``told`` says what it is for."""
    what = "Folder with train.jsonl, ...; a .jsonl/.csv/.tsv/.parquet file; hf:NAME."
    return click.option("--data", type=GIVEN, required=required, help=f"{what} {told}".rstrip())


task_options = combine_options(
    click.option(
        "--template",
        type=WORDS,
        help="Words around {{ text }} or other columns, as in Jinja2; \\n is a new line.  "
        "[default: '{{ text }}\\nLabel:' or '...Output:']",
    ),
    click.option(
        "--labels", type=LABEL_NAMES, help="Label names, comma-separated.  [default: those of the training data]"
    ),
    click.option(
        "--verbalizer", type=LABEL_WORDS, multiple=True, metavar="LABEL=WORDS", help="Words for a label. Repeatable."
    ),
)
config_option = click.option("--config", type=PLACE, help="Settings from a .toml or .yaml file.")
no_test_option = click.option("--no-test", is_flag=True, help="Do not score the test split at the end.")
method_option = click.option(
    "--method-option",
    multiple=True,
    metavar="NAME=VALUE",
    help="What only this method has, as encoder=lstm. Repeatable.",
)
resume_options = combine_options(
    click.option("--resume", is_flag=True, help="Go on with the unfinished run of --out."),
    click.option("--restart", is_flag=True, help="Drop the unfinished run of --out and begin anew."),
)
