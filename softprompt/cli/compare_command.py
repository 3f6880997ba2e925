"""``softprompt compare`` and ``softprompt scale``: which method to deploy, and how that changes with model size."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softprompt.cli.options import (
    GIVEN,
    LABEL_NAMES,
    LABEL_WORDS,
    PLACE,
    WORDS,
    Command,
    column_options,
    columns_of,
    given,
    json_option,
    load_base,
    make_callback,
    metric_option,
    model_of,
    model_options,
    print_result,
    room_option,
    say,
    task_settings,
)
from softprompt.errors import ConfigError

if TYPE_CHECKING:
    from softprompt.data.task import Task
    from softprompt.experiments.comparison.candidates import Contestant
    from softprompt.experiments.comparison.compare import Terms

METHODS = "zero-shot,few-shot:8,tfidf,linear-probe,prompt-tuning,prefix-tuning,lora,full"
SCALED = "prompt-tuning,lora,full"


def study_options(methods: str) -> Callable[[Command], Command]:
    """What both verbs take, with the methods that each compares by default."""

    def decorated(command: Command) -> Command:
        for option in reversed(
            (
                click.option("--data", type=GIVEN, required=True, help="As for train, with a test split."),
                click.option(
                    "--methods", type=GIVEN, default=methods, help=f"Comma-separated (docs/compare.md).  [{methods}]"
                ),
                click.option(
                    "--seeds", type=click.IntRange(1, 1000), default=3, show_default=True, help="Runs of each."
                ),
                click.option(
                    "--steps", type=click.IntRange(min=1), help="Optimiser steps of each learning run.  [default: 300]"
                ),
                click.option("--budget", type=GIVEN, metavar="TIME", help="Instead of --steps: 90s, 10m, 1h a run."),
                click.option(
                    "--rates",
                    type=click.IntRange(1, 9),
                    default=1,
                    show_default=True,
                    help="Learning rates tried for each trained method, its own among them; 1: no search.",
                ),
                click.option("--batch-size", type=click.IntRange(min=1), help="Examples per step.  [default: 16]"),
                click.option("--out", type=PLACE, required=True, help="Folder; a second run goes on there."),
                click.option("--template", type=WORDS, help="As for train."),
                click.option(
                    "--instruction", type=WORDS, help="Words that zero-shot and few-shot have in front of everything."
                ),
                click.option("--labels", type=LABEL_NAMES, help="As for train."),
                click.option(
                    "--verbalizer",
                    type=LABEL_WORDS,
                    multiple=True,
                    metavar="LABEL=WORDS",
                    help="As for train. Repeatable.",
                ),
                click.option("--max-length", type=click.IntRange(min=8), help="As for train.  [default: 512]"),
                metric_option,
                room_option,
            )
        ):
            command = option(command)
        return command

    return decorated


@click.command()
@click.option("--model", "model_name", type=GIVEN, required=True, help="As for train.")
@study_options(METHODS)
@click.option("--shift-data", type=GIVEN, help="Data of another domain with the same labels, to be scored too.")
@click.option("--current", type=GIVEN, metavar="METHOD", help="The one of the methods that is in use now.")
@click.option("--price-per-hour", type=click.FloatRange(min=0, min_open=True), help="Of the machine, in your currency.")
@click.option(
    "--engine-python", type=PLACE, help="Python of an environment with vLLM or llama.cpp, to time exported prompts in."
)
@click.option("--engine-gguf", type=PLACE, help="GGUF file of the base model, for llama.cpp.")
@click.option("--keep", is_flag=True, help="Keep what the best seed of each method needs to be deployed.")
@column_options
@model_options
@json_option
def compare(
    model_name: str,
    shift_data: str | None,
    current: str | None,
    price_per_hour: float | None,
    engine_python: Path | None,
    engine_gguf: Path | None,
    keep: bool,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Which method to deploy for a task: measure them all, recommend one.

    Same splits, same steps or time, several seeds; results land one by one, and a second run goes on.
    """
    columns = columns_of(options)
    from softprompt.experiments.comparison.engine_benchmark import find_engine

    find_engine(engine_python, engine_gguf)  # refuses what is wrong before anything takes long
    asked: dict[str, Any] = {"keep": keep, "current": current, "price_per_hour": price_per_hour}
    asked |= {"engine_python": engine_python, "engine_gguf": engine_gguf}
    methods, terms, task = _prepared(options, columns, out, **asked)
    if shift_data is not None:
        terms = _shifted(terms, task, shift_data, columns)

    from softprompt.experiments.comparison.compare import compare as run
    from softprompt.report.pages.comparison_text import study_lines
    from softprompt.report.report_files import write_report

    base = load_base(model_name, model_of(options))
    study = run(base, task, methods, out, terms, make_callback(as_json))
    write_report(study, out, figures=True)
    summary = study.model_dump(mode="json", exclude={"results", "gold", "texts"})
    print_result({**summary, "out": str(out)}, study_lines(study, out), as_json)


@click.command()
@click.option("--models", type=GIVEN, required=True, metavar="A,B,C", help="Base models, each as for train.")
@study_options(SCALED)
@column_options
@model_options
@json_option
def scale(
    models: str,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """How the gap between the first method and the others changes with the size of the model.

    A comparison on each model, in a folder of its own below --out; a second run goes on.
    """
    from softprompt.experiments.comparison.model_sizes import check_models
    from softprompt.experiments.comparison.model_sizes import scale as run
    from softprompt.report.pages.comparison_text import scale_lines
    from softprompt.report.report_files import write_report, write_scale

    names = check_models(models)
    methods, terms, task = _prepared(options, columns_of(options), out, folder_of_folders=True)
    model = model_of(options)
    found, studies = run(names, lambda name: load_base(name, model), task, methods, out, terms, make_callback(as_json))
    for folder, study in studies.items():
        write_report(study, folder, figures=True)
    write_scale(found, out)
    print_result({**found.model_dump(mode="json"), "out": str(out)}, scale_lines(found, out), as_json)


def _prepared(
    options: dict[str, Any], columns: dict[str, Any], out: Path, *, folder_of_folders: bool = False, **more: Any
) -> tuple[list["Contestant"], "Terms", "Task"]:
    """Methods, terms and task of the options; what is quickly checked comes before what takes long."""
    from softprompt.experiments.comparison.time_budget import seconds_of

    if options["budget"] is not None and options["steps"] is not None:
        raise ConfigError("--steps and --budget exclude each other: give one of them")
    budget = None if options["budget"] is None else seconds_of(options["budget"])

    from softprompt.data.task import Task
    from softprompt.experiments.comparison.candidates import contestants
    from softprompt.experiments.comparison.compare import Terms, check_terms
    from softprompt.experiments.comparison.study_folder import StudyFolder
    from softprompt.training.loop import check_trainable

    methods = contestants(options["methods"])
    common = {name: options[name] for name in ("seeds", "steps", "rates", "batch_size", "instruction")}
    terms = Terms(**given(**common, budget=budget, **more), command=shlex.join(["softprompt", *sys.argv[1:]]))
    check_terms(methods, terms)
    if not folder_of_folders:
        StudyFolder.check(out)
    settings = task_settings(options["template"], options["labels"], options["verbalizer"], options["metric"])
    task = Task.of(options["data"], **settings, **given(max_length=options["max_length"]), **columns)
    task = task.with_room(options["max_new_tokens"])
    check_trainable(task)
    for note in task.splits.notes:
        say(note)
    return methods, terms, task


def _shifted(terms: "Terms", task: "Task", source: str, columns: dict[str, Any]) -> "Terms":
    """The terms with the examples of another domain: its test split, or all of it where there is none."""
    from dataclasses import replace

    from softprompt.data.task import Task

    other = Task.matching(task.spec, source, **columns)
    return replace(terms, shift=other.test or other.splits["all"])
