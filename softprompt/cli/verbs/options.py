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
from softprompt.config import ChatOptions, DataOptions
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
    /,
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
    help += "" if help.endswith(("]", ".")) or ".  (" in help else "."
    if isinstance(default, bool):
        return click.option(f"{flag}/--no-{flag[2:]}" if default else flag, name, is_flag=True, default=None, help=help)
    if default not in (None, ()) and "[default: " not in help:
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
_TYPES = {"init": INIT_WORDS, "prompts": GIVEN, "system": WORDS}  # where words for the model are expected or not


def remark(told: str, here: str = "", default: str = "") -> str:
    """Help of an option that many verbs have: what it means everywhere, then what there is to say of it in this one."""
    told += f"  ({here})" if here else ""
    return f"{told}  [default: {default}]" if default else told


def model_name_option(here: str = "", default: str = "", *, required: bool = False) -> Callable[[Command], Command]:
    """``--model``."""
    told = remark("Base model: Hub name, folder, .gguf file or embedded:gemma-3-270m.", here, default)
    return click.option("--model", "model_name", type=GIVEN, required=required, help=told)


def out_option(here: str, default: str | None = None) -> Callable[[Command], Command]:
    """``--out``; required, if there is no default."""
    told = remark("Where it is written.", here)
    return click.option(
        "--out", type=PLACE, required=default is None, default=default, show_default=default is not None, help=told
    )


def html_option() -> Callable[[Command], Command]:
    """``--html``."""
    return click.option("--html", type=PLACE, metavar="FILE", help="Write a page, complete in one file.")


def limit_option(here: str = "") -> Callable[[Command], Command]:
    """``--limit``."""
    told = remark("Only so many examples, drawn, each label in proportion.", here)
    return click.option("--limit", type=click.IntRange(min=1), help=told)


def split_option(default: str | None = "test", told: str = "") -> Callable[[Command], Command]:
    """``--split``; ``told`` is the default in words, where there is none in one."""
    text = remark("train, validation, test or all.", default=told)
    return click.option("--split", type=GIVEN, default=default, show_default=default is not None, help=text)


def seed_option(here: str) -> Callable[[Command], Command]:
    """``--seed`` of a verb that does not learn."""
    return click.option("--seed", type=int, default=0, show_default=True, help=remark(SEED, here))


def instruction_option(here: str = "", default: str = "") -> Callable[[Command], Command]:
    """``--instruction``."""
    return click.option("--instruction", type=WORDS, help=remark("Words of the written prompt.", here, default))


def shots_option(here: str = "") -> Callable[[Command], Command]:
    """``--shots``."""
    told = remark("Solved training examples in the written prompt, behind its words.", here)
    return click.option("--shots", type=click.IntRange(min=0), default=0, show_default=True, help=told)


def seeds_option(most: int | None, default: int, here: str) -> Callable[[Command], Command]:
    """``--seeds``."""
    told = remark("How many seeds, counted up.", here)
    return click.option("--seeds", type=click.IntRange(1, most), default=default, show_default=True, help=told)


def stop_option(here: str = "") -> Callable[[Command], Command]:
    """``--stop`` of a verb without settings for it."""
    return click.option("--stop", type=WORDS, multiple=True, help=remark(STOP, here))


def teacher_option(name: str, here: str = "", *, several: bool = False) -> Callable[[Command], Command]:
    """``--teacher``."""
    return click.option(
        "--teacher",
        name,
        type=GIVEN,
        multiple=several,
        metavar="NAME=PROMPT" if several else "PROMPT",
        help=remark("A saved prompt to learn from.", here),
    )


def sample_file_option() -> Callable[[Command], Command]:
    """``--sample-file`` of a verb that reads it."""
    told = remark(SAMPLE_FILE, "that serve --sample-file wrote")
    return click.option("--sample-file", type=PLACE, required=True, metavar="FILE", help=told)


def prompts_option() -> Callable[[Command], Command]:
    """``--prompt`` of a verb without settings for it."""
    return click.option("--prompt", "prompts", type=GIVEN, multiple=True, help=PROMPTS)


def store_option(here: str = "") -> Callable[[Command], Command]:
    """``--store`` of a verb without settings for it."""
    return click.option("--store", type=GIVEN, help=remark(STORE, here))


def among_option(here: str = "", *, required: bool = False) -> Callable[[Command], Command]:
    """``--among``."""
    told = remark("Folder that holds saved prompts, at any depth.", here)
    return click.option("--among", type=PLACE, required=required, help=told)


def tolerance_option(here: str) -> Callable[[Command], Command]:
    """``--tolerance`` of a verb without settings for it."""
    told = remark(TOLERANCE, here)
    return click.option("--tolerance", type=click.FloatRange(min=0), default=0.01, show_default=True, help=told)


SEED = "Seed of what is drawn at random."
STOP = "A string that ends a completion. Repeatable."
SAMPLE_FILE = "File of samples of requests: SQLite, or JSON lines if it ends with .jsonl."
PROMPTS = "A saved prompt instead of a store, as [NAME=]FOLDER. Repeatable."
STORE = "Folder or URL of a store."
TOLERANCE = "How much worse the metric may become."


def dtype_option(default: str = "what is fast here") -> Callable[[Command], Command]:
    """``--dtype``."""
    return click.option("--dtype", help=remark("float32, bfloat16 or float16.", default=default))


trust_option = click.option("--trust-remote-code", is_flag=True, help="Let the model's repository run its own code.")
quantize_option = click.option(
    "--quantize", help="int8 (torchao), bnb-int8 or bnb-nf4 (bitsandbytes).  [default: weights as saved]"
)
model_options = combine_options(
    click.option("--device", help="cpu, cuda, cuda:1, mps.  [default: a GPU if there is one]"),
    dtype_option(),
    quantize_option,
    trust_option,
)
device_map_option = click.option(
    "--device-map", help="auto: the model over all devices, and over memory and disk if it must be."
)


bad_rows_option = setting_options(DataOptions, only=("bad_rows",))
column_options = setting_options(DataOptions)
track_option = click.option(
    "--track",
    type=GIVEN,
    multiple=True,
    metavar="TOOL",
    help="Write the run down in wandb, mlflow, trackio, tensorboard or tensorboard:FOLDER; several with commas.",
)
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


def room_option(default: str = "128, more where a reference is longer") -> Callable[[Command], Command]:
    """``--max-new-tokens``."""
    return click.option("--max-new-tokens", type=int, help=remark(ROOM, default=default))


ROOM = "Tokens of a completion, at most."


def data_option(here: str = "", *, required: bool = True) -> Callable[[Command], Command]:
    """``--data``."""
    told = remark("Folder with train.jsonl, ...; a .jsonl/.csv/.tsv/.parquet file; hf:NAME.", here)
    return click.option("--data", type=GIVEN, required=required, help=told)


def make_task_options(of_system: str = "kept beside the virtual tokens") -> Callable[[Command], Command]:
    """How rows become a task; ``of_system``: what there is to say of the system prompt in a verb."""
    system = remark("The written system prompt, or a file of it.", of_system)
    return combine_options(*_ROW_OPTIONS, setting_options(ChatOptions, system=system), _CHAT_ARGUMENTS)


_ROW_OPTIONS = (
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
_CHAT_ARGUMENTS = click.option(
    "--chat-template-arg",
    type=GIVEN,
    multiple=True,
    metavar="NAME=VALUE",
    help="What the chat template is given, as enable_thinking=false. Repeatable.",
)
task_options = make_task_options()


def config_option(here: str = "") -> Callable[[Command], Command]:
    """``--config``."""
    told = remark("Settings from a .toml, .yaml or .json file; options win over it.", here)
    return click.option("--config", type=PLACE, help=told)


def sharding_option(here: str = "", default: str = "") -> Callable[[Command], Command]:
    """``--sharding``."""
    told = remark("fsdp: each of several processes holds a part of the model's layers.", here, default)
    return click.option("--sharding", help=told)


no_test_option = click.option("--no-test", is_flag=True, help="Do not score the test split at the end.")
no_baseline_option = click.option(
    "--no-baseline", is_flag=True, help="Do not score the written prompt at the end, to tell the gain over it."
)
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
