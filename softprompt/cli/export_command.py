"""``softprompt export`` and ``softprompt import``: prompts in the formats of others."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softprompt.cli.options import (
    GIVEN,
    LABEL_NAMES,
    LABEL_WORDS,
    PLACE,
    WORDS,
    column_options,
    columns_of,
    json_option,
    load_base,
    load_base_of,
    model_of,
    model_options,
    print_result,
    say,
    task_settings,
)
from softprompt.errors import ConfigError

if TYPE_CHECKING:
    from softprompt.export.export_formats import Format

FORM = click.Choice(["peft", "vocab", "vllm-embeds", "gguf", "npy"])
IMPORTED_FORM = click.Choice(["peft", "npy"])


@click.command()
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True)
@click.option("--format", "form", required=True, type=FORM, help="See above.")
@click.option("--out", required=True, type=PLACE, help="Where it is written; nothing may be there yet.")
@click.option(
    "--model", "model_name", type=GIVEN, help="The base model, if it lies elsewhere now.  [default: the prompt's]"
)
@click.option("--gguf", type=PLACE, help="Your GGUF file of the base model, which is copied and extended.")
@click.option(
    "--tied", is_flag=True, help="vocab: keep the output layer tied. Smaller; clients must forbid the new tokens."
)
@model_options
@json_option
def export(
    prompts: tuple[str, ...],
    form: str,
    out: Path,
    model_name: str | None,
    gguf: Path | None,
    tied: bool,
    as_json: bool,
    **model: Any,
) -> None:
    """Write saved prompts in the format of others.

    PROMPT is its folder, or STORE#NAME@VERSION or STORE#NAME@ALIAS in a store.

    \b
    peft         an adapter folder of Hugging Face PEFT; of keys and values too
    vocab        a plain checkpoint with the prompts as new tokens, for transformers, vLLM and others
    vllm-embeds  input embeddings, for vLLM with --enable-prompt-embeds on the model itself
    gguf         your GGUF file with the prompts as new tokens, for llama.cpp
    npy          one NumPy array, float32, as google-research/prompt-tuning has it

    vocab, vllm-embeds and gguf take several prompts; each has the name of its folder, or give NAME=FOLDER.
    """
    from softprompt.export.export_formats import FORMATS, Export
    from softprompt.store.prompt_loading import load_prompt
    from softprompt.utils.files import check_free

    # what is quickly checked comes before what takes long
    check_free(out)
    _check_options(form, FORMATS[form], prompts, gguf, tied)
    folders = _named(prompts)
    named = {name: load_prompt(folder) for name, folder in folders.items()}
    FORMATS[form].check(named)
    base = None
    if FORMATS[form].needs_base:
        first = next(iter(named.values()))
        # weights are quantised from the precision that they are saved in, and would be others from another one
        plain = first.quantisation is None and model["quantise"] is None
        model["dtype"] = model["dtype"] or (FORMATS[form].dtype if plain else "saved")
        base = load_base_of(first, model_name, model, fixed=FORMATS[form].dtype != "saved")
    facts = FORMATS[form].write(Export(named, out, base, gguf, tied))

    states = [prompt.state for prompt in named.values()]
    which: dict[str, Any] = {"prompts": folders} if FORMATS[form].several else {"prompt": prompts[0]}
    sizes = {"length": sum(state.length for state in states), "size": states[0].tensors[0].shape[-1]}
    lines = [f"{sizes['length']} virtual tokens of {sizes['size']} written to {out}"]
    lines += [f"{key.replace('_', ' ')}: {_told(value)}" for key, value in facts.items()]
    print_result({**which, "format": form, "out": str(out), **sizes, **facts}, lines, as_json)


def _check_options(form: str, format_: "Format", prompts: tuple[str, ...], gguf: Path | None, tied: bool) -> None:
    """Raise ConfigError for options that do not go together."""
    if len(prompts) > 1 and not format_.several:
        raise ConfigError(f"--format {form} holds one prompt, got {len(prompts)}: export them one by one")
    if (gguf is None) == (form == "gguf"):
        raise ConfigError(
            "--format gguf extends a GGUF file of the base model: give yours with --gguf FILE"
            if gguf is None
            else f"--gguf is for --format gguf, got --format {form}: leave it out"
        )
    if tied and form != "vocab":
        raise ConfigError(f"--tied is for --format vocab, got --format {form}: leave it out")


def _named(references: tuple[str, ...]) -> dict[str, str]:
    """Folders by name: that of the folder without its version, or the one in front of ``=``."""
    named: dict[str, str] = {}
    for reference in references:
        name, equals, folder = reference.partition("=")
        # a folder's own name may have an equals sign in it
        if not equals or not re.fullmatch(r"[\w.-]+", name) or Path(reference).exists():
            name, folder = Path(reference).name.rpartition("#")[2].partition("@")[0], reference
        if name in named:
            raise ConfigError(f"two prompts are called '{name}': name one of them, as in other={folder}")
        named[name] = folder
    return named


def _told(value: Any) -> str:
    return ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else str(value)


@click.command(name="import")
@click.argument("source", metavar="SOURCE", type=click.Path(path_type=Path))
@click.option("--format", "form", default="npy", show_default=True, type=IMPORTED_FORM, help="Of SOURCE.")
@click.option(
    "--model", "model_name", type=GIVEN, required=True, help="The model that it was learned on, named as for train."
)
@click.option("--out", required=True, type=PLACE, help="Folder for the saved prompt.")
@click.option(
    "--data", type=GIVEN, help="As for train: labels come from it, and its validation and test splits are scored."
)
@click.option("--template", type=WORDS, help="As for train; write it as it was when the prompt was learned.")
@click.option(
    "--labels", type=LABEL_NAMES, help="As for train. With neither --labels nor --data it is a generation task."
)
@click.option(
    "--verbalizer", type=LABEL_WORDS, multiple=True, metavar="LABEL=WORDS", help="Words for a label. Repeatable."
)
@column_options
@model_options
@json_option
def import_command(
    source: Path,
    form: str,
    model_name: str,
    out: Path,
    data: str | None,
    template: str | None,
    labels: str | None,
    verbalizer: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Save a prompt that was learned elsewhere as one of ours.

    npy: a NumPy array, one row a virtual token, as google-research/prompt-tuning publishes prompts. The rows are taken
    as they are, as what the model's first layer sees in place of token embeddings.

    peft: an adapter folder of prompt tuning, P-tuning or prefix tuning. It stands in front of BOS, where PEFT puts it;
    one that softprompt exported comes back as it was, with its task.
    """
    from softprompt.data.task import Task, TaskSpec
    from softprompt.export.export_formats import FORMATS, imported
    from softprompt.utils.files import check_free

    model, columns = model_of(options), columns_of(options)
    if columns and data is None:
        raise ConfigError("--text-column, --label-column and --target-column are for --data: give it too")
    # what is quickly checked comes before what takes long
    check_free(out)
    read = FORMATS[form].read
    assert read is not None
    found = read(source)
    settings = task_settings(template, labels, verbalizer)
    task = None if data is None else Task.of(data, **settings, **columns)
    spec = task.spec if task is not None else found.spec if found.spec and not settings else TaskSpec.of(**settings)
    if form == "peft" and model["quantise"] is None:
        model["dtype"] = model["dtype"] or FORMATS[form].dtype
    base = load_base(model_name, model)

    from softprompt.report.pages.training_text import imported_lines
    from softprompt.training.fit import with_metrics

    prompt = imported(base, spec, found.on(base), source, form, found.file)
    if task is not None:
        for note in task.splits.notes:
            say(note)
        prompt = with_metrics(prompt, base, task, evaluate_test=True)
    prompt.save(out)
    result = {"prompt": str(out), **{key: prompt.manifest()[key] for key in ("length", "metrics", "training")}}
    print_result(result, imported_lines(prompt, out), as_json)
