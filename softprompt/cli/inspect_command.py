"""``softprompt inspect`` and ``softprompt prune``: what a prompt has learned, and a shorter one that does as well."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softprompt.cli.options import GIVEN, PLACE, json_option, print_result
from softprompt.errors import shorten

if TYPE_CHECKING:
    from softprompt.prompts.saved_prompt import Prompt
    from softprompt.store.similarity import Similar

from dataclasses import replace
from typing import TYPE_CHECKING

from softprompt.cli.options import WORDS, column_options, columns_of, load_base_of, model_of, model_options, say
from softprompt.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from softprompt.prompts.saved_prompt import Prompt


WIDEST = 48  # characters of labels, template and init in a line for people


@click.command(name="inspect")
@click.argument("prompt_place", type=GIVEN, metavar="PROMPT")
@click.option("--data", type=GIVEN, required=True, help="As for train; best the data that it was learned on.")
@click.option("--split", type=GIVEN, help="Whose answers are judged.  [default: test, else validation]")
@click.option("--against", type=GIVEN, metavar="PROMPT", help="Another saved prompt, instead of the written one.")
@click.option("--instruction", type=WORDS, help="Words of the written prompt.  [default: made of the labels]")
@click.option("--template", type=WORDS, help="The template that is served, to be compared with the learned one.")
@click.option("--store", type=PLACE, help="Folder of saved prompts: similarities, and which would be a start.")
@click.option("--limit", type=click.IntRange(min=1), help="Examples of each question, at most: a quicker look.")
@click.option(
    "--train-rows", type=click.IntRange(min=1), help="Training rows to look for mislabelled ones in.  [default: 2000]"
)
@click.option("--html", type=PLACE, metavar="FILE", help="Write a page, complete in one file.")
@click.option("--model", "model_name", type=GIVEN, help="The base model.  [default: the one the prompt was learned on]")
@column_options
@model_options
@json_option
def inspect_command(
    prompt_place: str,
    data: str,
    split: str | None,
    against: str | None,
    instruction: str | None,
    template: str | None,
    store: Path | None,
    limit: int | None,
    train_rows: int | None,
    html: Path | None,
    model_name: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """What a prompt has learned, what it changed, and what is wrong with it.

    PROMPT is its folder, or STORE#NAME@VERSION or STORE#NAME@ALIAS in a store. docs/inspect.md tells how to read the
    answers.
    """
    from softprompt.data.task import Task
    from softprompt.data.templates.template import Template
    from softprompt.report.pages.inspection_text import inspection_lines
    from softprompt.store.learned_rows import read_learned
    from softprompt.store.prompt_loading import load_prompt
    from softprompt.store.similarity import rank_similar

    model, columns = model_of(options), columns_of(options)
    if against is not None and instruction is not None:
        raise ConfigError("--against and --instruction exclude each other: give the one to compare with")
    if html is not None and html.is_dir():
        raise OutputError(f"'{html}' is a folder: give --html the name of a file")
    # what is quickly checked comes before what takes long
    prompt = load_prompt(prompt_place)
    other = None if against is None else load_prompt(against)
    if template is not None:
        Template(template, prompt.spec.columns.text)
    if store is not None:
        rank_similar(prompt, store)
    task = Task.matching(prompt.spec, data, **columns)
    if split is not None:
        _ = task.splits[split]

    from softprompt.analysis.inspection.inspect_prompt import Limits, inspect, reference_of, written_reference

    for note in task.splits.notes:
        say(note)
    base = load_base_of(prompt, model_name, model)
    reference = None
    if other is not None and against is not None:
        reference = reference_of(base, prompt.spec, against, other)
    elif instruction is not None:
        reference = written_reference(base, prompt.spec, instruction)
    found = inspect(
        base,
        prompt,
        task,
        place=prompt_place,
        split=split,
        reference=reference,
        template=template,
        store=store,
        history=_history(prompt_place, prompt),
        learned=read_learned(prompt_place),
        limits=Limits.of(limit, train_rows),
        progress=say,
    )
    if html is not None:
        from softprompt.report.pages.inspection_page import write_inspection

        write_inspection(found, html)
        say(f"page written to {html}")
    print_result(found.model_dump(mode="json"), inspection_lines(found), as_json)


@click.command()
@click.argument("prompt_place", type=GIVEN, metavar="PROMPT")
@click.option("--data", type=GIVEN, required=True, help="As for train; its validation split decides.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.01,
    show_default=True,
    help="How much the metric on validation may fall: accuracy (0..1), or nats a token for generation.",
)
@click.option("--out", required=True, type=PLACE, help="Folder for the shorter prompt.")
@click.option("--model", "model_name", type=GIVEN, help="The base model.  [default: the one the prompt was learned on]")
@column_options
@model_options
@json_option
def prune(
    prompt_place: str,
    data: str,
    tolerance: float,
    out: Path,
    model_name: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Take virtual tokens out of a prompt while validation stays within a tolerance; save the shorter one.

    PROMPT is its folder, or STORE#NAME@VERSION or STORE#NAME@ALIAS in a store; the new prompt names it as its parent.
    """
    from softprompt.data.task import Task
    from softprompt.report.pages.inspection_text import pruning_lines
    from softprompt.store.learned_rows import ROWS_FILE
    from softprompt.store.prompt_loading import load_prompt, pinned
    from softprompt.store.version_store import saved_files
    from softprompt.utils.files import check_free

    model, columns = model_of(options), columns_of(options)
    check_free(out)
    prompt = load_prompt(prompt_place)

    from softprompt.analysis.inspection.pruning import check_prunable
    from softprompt.analysis.inspection.pruning import prune as run

    check_prunable(prompt)
    task = Task.matching(prompt.spec, data, **columns)

    from softprompt.training.fit import with_metrics

    base = load_base_of(prompt, model_name, model)
    for note in task.splits.notes:
        say(note)
    shorter, report = run(base, prompt, task, tolerance=tolerance, parent=pinned(prompt_place), progress=say)
    kept = {name: read.decode() for name, read in saved_files(prompt_place).items() if name == ROWS_FILE}
    with_metrics(replace(shorter, extra_files=kept), base, task, evaluate_test=True).save(out)
    result = {"prompt": str(out), "parent": shorter.parent, "length_before": prompt.length, **report.model_dump()}
    print_result(result, pruning_lines(report, prompt.length, out), as_json)


def _history(place: str, prompt: "Prompt") -> list[dict[str, float]]:
    """How it learned, where that is kept beside it."""
    from softprompt.analysis.inspection.inspect_prompt import read_history
    from softprompt.prompts.saved_prompt import HISTORY_FILE, prompt_of
    from softprompt.store.version_store import saved_files

    files = saved_files(place)
    prompt_of(files, place)  # its digest is in the manifest
    return read_history(files.get(HISTORY_FILE, b""), prompt)


@click.command()
@click.argument("prompt_folder", type=GIVEN, metavar="PROMPT")
@click.option("--store", required=True, type=PLACE, help="Folder that holds saved prompts.")
@json_option
def similar(prompt_folder: str, store: Path, as_json: bool) -> None:
    """Rank saved prompts by their similarity to PROMPT.

    A prompt of a similar task is a good start for another (Vu et al. 2022). Looks at every saved prompt below --store
    that was learned on the same base model; nothing is loaded but the prompts.
    """
    from softprompt.store.prompt_loading import load_prompt
    from softprompt.store.similarity import rank_similar

    prompt = load_prompt(prompt_folder)
    found = rank_similar(prompt, store)
    best = next((one for one in found if one.start), None)
    command = None if best is None else _command(prompt, best)
    lines = _lines(prompt_folder, prompt, found)
    if best is not None:
        lines += [f"to start from {best.folder}, with your DATA, OUT, --template and --labels:", f"  {command}"]
    result = {
        "prompt": prompt_folder,
        "store": str(store),
        "base": prompt.base_name,
        "kind": prompt.states[0].kind,
        "ranked": [one.to_dict() for one in found if one.reason is None],
        "not_comparable": [one.to_dict() for one in found if one.reason is not None],
        "command": command,
    }
    print_result(result, lines, as_json)


def _command(prompt: "Prompt", best: "Similar") -> str:
    """The command that learns on ``prompt``'s base, starting from ``best``."""
    return shlex.join(
        ["softprompt", "train", "--model", prompt.base_name, "--data", "DATA", "--out", "OUT", *best.start]
    )


def _lines(prompt_folder: str, prompt: "Prompt", found: Sequence["Similar"]) -> list[str]:
    from softprompt.report.pages.training_text import table

    ranked = [one for one in found if one.reason is None]
    spec, init = prompt.spec, str(prompt.training.get("init", "-"))
    lines = [
        f"{prompt_folder}: labels {_labels(spec.labels)}; template {_cut(repr(spec.template))}; init {_cut(init)}",
        "",
    ]
    if ranked:
        figures = [("prompt", "average tokens", "per token", "same start", "validation [95% interval]")]
        figures += [
            (
                f"{one.folder}" + (f" (ensemble of {one.members})" if one.members != 1 else ""),
                f"{one.average_tokens:.3f}",
                f"{one.per_token:.3f}",
                {True: "yes", False: "no", None: "?"}[one.same_start],
                _validation(one.validation),
            )
            for one in ranked
        ]
        tasks = [("prompt", "labels", "template", "init")]
        tasks += [
            (str(one.folder), _labels(one.spec.labels), _cut(repr(one.spec.template)), _cut(one.init or "-"))
            for one in ranked
            if one.spec is not None
        ]
        lines += [
            *table(figures),
            "",
            *table(tasks),
            "",
            "same start: began at the same words or numbers, hence alike for that reason too; ? where it is not known",
        ]
    else:
        lines.append("none can be compared with it")
    if rest := [one for one in found if one.reason is not None]:
        lines += ["not comparable:", *(f"  {one.folder}: {one.reason}" for one in rest)]
    if any(not one.start for one in ranked):
        lines.append("an ensemble cannot be a start: training starts from a single prompt")
    return lines


def _labels(labels: Sequence[str]) -> str:
    return _cut(", ".join(labels)) or "-"


def _cut(text: str) -> str:
    return shorten(text, WIDEST)


def _validation(metric: Mapping[str, Any] | None) -> str:
    from softprompt.report.pages.training_text import figure

    try:
        return "-" if metric is None else f"{metric['metric']} {figure(metric)} n={metric['n']:,}"
    except (KeyError, TypeError, ValueError):
        return "-"
