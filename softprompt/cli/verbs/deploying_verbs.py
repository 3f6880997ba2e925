"""Declares the verbs that keep, export and serve prompts."""

from pathlib import Path

import click

from softprompt.cli.verbs.lazy_verbs import cli, verb
from softprompt.cli.verbs.options import (
    GIVEN,
    PLACE,
    PROMPTS,
    SAMPLE_FILE,
    STORE,
    TOLERANCE,
    column_options,
    combine_options,
    config_option,
    data_option,
    json_option,
    limit_option,
    metric_option,
    model_name_option,
    model_options,
    out_option,
    remark,
    room_option,
    setting_options,
    split_option,
    task_options,
)
from softprompt.config import GateConfig
from softprompt.export.export_formats import FORMATS
from softprompt.serving.http.server_settings import ServerSettings

FORMAT = "Of the other program's file or folder."
FORM = click.Choice(list(FORMATS))
IMPORTED_FORM = click.Choice([name for name, one in FORMATS.items() if one.imported])
SEVERAL = [name for name, one in FORMATS.items() if one.several]
# settings of the server that are options too
SERVER_OPTIONS = ["model", "store", "prompts", "engine_kind", "engine_url", "engine_prompts"]
SERVER_OPTIONS += ["host", "port", "keys", "no_auth"]
SERVER_OPTIONS += ["requests_per_minute", "tokens_per_minute"]
SERVER_OPTIONS += ["base_name", "refresh", "timeout", "drain_delay", "shutdown_timeout", "log_text"]
SERVER_OPTIONS += ["sample_file", "sample_rate", "sample_text", "sample_keep", "compile"]
A_MINUTE = "a number, unlimited, or default for the server's"
REQUESTS, TOKENS = "Requests of an API key in a minute.", "Tokens of an API key in a minute."
FILE = click.option("--file", "path", type=PLACE, required=True, help="The file of keys.")


@cli.group()
def keys() -> None:
    """API keys for softprompt serve."""


@verb(
    "export",
    "export_command:run_export",
    "export_prompt",
    help_text="\n".join(
        [
            "Write saved prompts in the format of others.\n",
            "PROMPT is its folder, or STORE#NAME@VERSION or STORE#NAME@ALIAS in a store.\n",
            "\b",
            *(f"{name:<11}  {one.summary}" for name, one in FORMATS.items()),
            f"\n{', '.join(SEVERAL[:-1])} and {SEVERAL[-1]} take several prompts; each has the name of its folder, or "
            "give NAME=FOLDER.",
        ]
    ),
)
@click.argument("prompts", type=GIVEN, metavar="PROMPT...", nargs=-1, required=True)
@click.option("--format", "form", required=True, type=FORM, help=remark(FORMAT, "above"))
@out_option("a file or folder; nothing may be there yet")
@model_name_option(default="the one the prompt was learned on")
@click.option("--gguf", type=PLACE, help="Your GGUF file of the base model, which is copied and extended.")
@click.option(
    "--tied",
    is_flag=True,
    help="vocab, gguf: keep the output layer tied. Smaller; clients must forbid the new tokens.",
)
@model_options
@json_option
def export() -> None:
    """Of ``FORMATS``."""


@verb(
    "import",
    "export_command:run_import",
    "import_prompt",
    first=("model_name", "out", "form", "data", "template", "labels"),
)
@click.argument("source", metavar="SOURCE", type=click.Path(path_type=Path))
@click.option("--format", "form", type=IMPORTED_FORM, help=remark(FORMAT, "of SOURCE", "what SOURCE looks like"))
@model_name_option("that it was learned on", required=True)
@out_option("a folder, for the saved prompt")
@data_option("labels come from it, and its validation and test splits are scored", required=False)
@task_options
@column_options
@model_options
@json_option
def import_command() -> None:
    """Save a prompt that was learned elsewhere as one here.

    SOURCE is looked at, and --format need not be given.

    npy: a NumPy array, one row a virtual token, as google-research/prompt-tuning publishes prompts. The rows are taken
    as they are, as what the model's first layer sees in place of token embeddings.

    peft: an adapter folder of prompt tuning, P-tuning or prefix tuning. It stands in front of BOS, where PEFT puts it;
    one that softprompt exported comes back as it was, with its task.
    """


@verb(
    "serve",
    "serve_command:run_serve",
    "serve",
    extra="serve",
    first=("model", "store", "prompts", "host", "port", "keys", "no_auth", "engine_kind", "sample_file", "config"),
)
@config_option("docs/how-to/serve.md lists them")
@setting_options(
    ServerSettings,
    only=SERVER_OPTIONS,
    flags={"prompts": "--prompt", "engine_kind": "--engine"},
    model=remark("Base model: Hub name, folder, .gguf file or embedded:gemma-3-270m.", "or a baked checkpoint"),
    store=remark(STORE, "its prompts come and go while the server runs"),
    prompts=PROMPTS,
    sample_file=SAMPLE_FILE,
    requests_per_minute=remark(REQUESTS, "of one that has no limit of its own", "any"),
    tokens_per_minute=remark(TOKENS, "of one that has no limit of its own", "any"),
)
@model_options
def serve() -> None:
    """Serve prompts over HTTP: many tasks on one frozen model.

    An OpenAI-compatible API (docs/how-to/serve.md). Settings also come from --config and from the environment, as
    SOFTPROMPT_PORT; options win over the environment, the environment over the file.
    """


patterns_option = click.option(
    "--prompts", type=GIVEN, multiple=True, metavar="PATTERN", help="Names it may ask, as 'spam-*'. Repeatable."
)
key_options = combine_options(
    click.option("--expires", type=GIVEN, metavar="WHEN", help="In 90d or 12h, on a date as 2030-01-31, or never."),
    click.option("--requests-per-minute", type=GIVEN, metavar="N", help=remark(REQUESTS, A_MINUTE)),
    click.option("--tokens-per-minute", type=GIVEN, metavar="N", help=remark(TOKENS, A_MINUTE)),
)


@verb("add", "keys_command:run_keys_add", "serving.http.api_keys.add_key", group=keys)
@click.argument("name", type=GIVEN)
@FILE
@patterns_option
@click.option("--admin", is_flag=True, help="It may reload and read the metrics too.")
@key_options
@json_option
def add() -> None:
    """Make a key and print it; only its hash is kept."""


@verb("update", "keys_command:run_keys_update", "serving.http.api_keys.update_key", group=keys)
@click.argument("name", type=GIVEN)
@FILE
@patterns_option
@key_options
@json_option
def update() -> None:
    """Change what a key may do; the key itself stays, and a running server sees it at its next look."""


@verb("list", "keys_command:run_keys_list", "serving.http.api_keys.read_keys", group=keys)
@FILE
@json_option
def list_keys() -> None:
    """Tell which keys there are."""


@verb("remove", "keys_command:run_keys_remove", "serving.http.api_keys.remove_key", group=keys)
@click.argument("name", type=GIVEN)
@FILE
@json_option
def remove() -> None:
    """Take a key out; a running server sees it at its next look at the store."""


@verb("list", "store_command:run_list", "Store.list")
@click.argument("store", type=GIVEN, required=False, metavar="[STORE]")
@click.option("--name", type=GIVEN, help="The versions of this name.")
@json_option
def list_command() -> None:
    """Tell what a store holds.

    STORE is a folder or a URL of fsspec, as s3://bucket/prompts.  [default: $SOFTPROMPT_STORE]
    """


@verb("show", "store_command:run_show", "load_prompt")
@click.argument("prompt_place", type=GIVEN, metavar="PROMPT")
@json_option
def show() -> None:
    """Tell what is known of a saved prompt.

    PROMPT is its folder, or STORE#NAME@VERSION or STORE#NAME@ALIAS; then its place in the store is told too.
    """


@verb("push", "store_command:run_push", "Store.put")
@click.argument("prompt_place", type=GIVEN, metavar="PROMPT")
@click.argument("target", type=GIVEN, metavar="TARGET")
@click.option("--public", is_flag=True, help="A new repository on the Hub is for everybody.  [default: private]")
@json_option
def push() -> None:
    """Put a saved prompt into a store, or on the Hub.

    TARGET is [STORE#]NAME, where it becomes the next version, or hf:OWNER/NAME, where it becomes a commit.
    """


@verb("pull", "store_command:run_pull", "Store.pull")
@click.argument("source", type=GIVEN, metavar="SOURCE")
@out_option("a folder, for the saved prompt")
@json_option
def pull() -> None:
    """Write a prompt of a store, or of the Hub, as a folder.

    SOURCE is [STORE#]NAME@VERSION or [STORE#]NAME@ALIAS, or hf:OWNER/NAME, with @REVISION if you like.
    """


@verb(
    "promote",
    "store_command:run_promote",
    "Store.promote",
    first=("data", "split", "limit", "gate_file", "significance", "tolerance", "force", "metric"),
)
@click.argument("version", type=GIVEN, metavar="[STORE#]NAME@VERSION")
@click.argument("alias", type=GIVEN, metavar="ALIAS")
@data_option("refuse if the version is worse on it than the one in place", required=False)
@split_option()
@limit_option()
@click.option("--gate", "gate_file", type=PLACE, help="Thresholds from a .toml or .yaml file.")
@setting_options(
    GateConfig, only=["significance", "tolerance"], tolerance=remark(TOLERANCE, "than that of the version in place")
)
@click.option("--force", is_flag=True, help="Promote even so; the history keeps that it was forced.")
@model_name_option(default="the one the prompt was learned on")
@room_option()
@metric_option
@column_options
@model_options
@json_option
def promote() -> None:
    """Move an alias, as prod, to a version.

    With --data both versions answer it first, and one that is significantly worse (paired bootstrap) is not promoted.
    """


@verb("rollback", "store_command:run_rollback", "Store.rollback")
@click.argument("alias", type=GIVEN, metavar="[STORE#]NAME@ALIAS")
@json_option
def rollback() -> None:
    """Move an alias back to before its last promotion."""


@verb("diff", "store_command:run_diff", "store.version_diff.compare_prompts")
@click.argument("a", type=GIVEN, metavar="PROMPT")
@click.argument("b", type=GIVEN, metavar="OTHER")
@json_option
def diff() -> None:
    """Tell what differs between two saved prompts.

    Settings, results, vectors. Each is a folder, or [STORE#]NAME@VERSION or [STORE#]NAME@ALIAS.
    """
