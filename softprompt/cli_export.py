"""``softprompt export`` and ``softprompt import``: prompts in the formats of others."""

from pathlib import Path
from typing import Any

import click

from softprompt.cli_common import (
    column_options,
    given,
    json_option,
    load_base,
    model_options,
    print_result,
    say,
    task_settings,
)
from softprompt.errors import ConfigError

FORM = click.Choice(["npy"])


@click.command()
@click.argument("prompt_folder", metavar="PROMPT")
@click.option("--format", "form", required=True, type=FORM, help="npy: one NumPy array of the virtual tokens.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where it is written.")
@json_option
def export(prompt_folder: str, form: str, out: Path, as_json: bool) -> None:
    """Write a saved prompt in the format of others.

    PROMPT is its folder, or STORE#NAME@VERSION or STORE#NAME@ALIAS in a store.

    npy: float32, one row a virtual token, in the scale in which the model's first layer sees token embeddings.
    """
    from softprompt.export import FORMATS
    from softprompt.store import load_prompt

    prompt = load_prompt(prompt_folder)
    FORMATS[form].write(prompt, out)
    size = prompt.state.tensor.shape[1]
    result = {"prompt": prompt_folder, "format": form, "out": str(out), "length": prompt.length, "size": size}
    print_result(result, [f"{prompt.length} virtual tokens of {size} written to {out}"], as_json)


@click.command(name="import")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--format", "form", default="npy", show_default=True, type=FORM, help="Of FILE.")
@click.option("--model", "model_name", required=True, help="The model that it was learned on, named as for train.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the saved prompt.")
@click.option("--data", help="As for train: labels come from it, and its validation and test splits are scored.")
@click.option("--template", help="As for train; write it as it was when the prompt was learned.")
@click.option("--labels", help="As for train. With neither --labels nor --data it is a generation task.")
@click.option("--verbalizer", multiple=True, metavar="LABEL=WORDS", help="Words for a label. Repeatable.")
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
    text_column: str | None,
    label_column: str | None,
    target_column: str | None,
    as_json: bool,
    **model: Any,
) -> None:
    """Save a prompt that was learned elsewhere as one of ours.

    npy: a NumPy array, one row a virtual token, as google-research/prompt-tuning publishes prompts. The rows are taken
    as they are, as what the model's first layer sees in place of token embeddings.
    """
    from softprompt.export import FORMATS, imported
    from softprompt.folders import check_free
    from softprompt.task import Task, TaskSpec

    columns = given(text_column=text_column, label_column=label_column, target_column=target_column)
    if columns and data is None:
        raise ConfigError("--text-column, --label-column and --target-column are for --data: give it too")
    # what is quickly checked comes before what takes long
    check_free(out)
    state = FORMATS[form].read(source)
    settings = task_settings(template, labels, verbalizer)
    task = None if data is None else Task.of(data, **settings, **columns)
    spec = TaskSpec.of(**settings) if task is None else task.spec
    base = load_base(model_name, model)

    from softprompt.fit import with_metrics
    from softprompt.report_text import imported_lines

    prompt = imported(base, spec, state, source, form)
    if task is not None:
        for note in task.splits.notes:
            say(note)
        prompt = with_metrics(prompt, base, task, evaluate_test=True)
    prompt.save(out)
    result = {"prompt": str(out), **{key: prompt.manifest()[key] for key in ("length", "metrics", "training")}}
    print_result(result, imported_lines(prompt, out), as_json)
