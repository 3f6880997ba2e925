"""``compare``, ``compare_sizes`` and ``sweep``: which method to deploy, how that changes with size, which settings."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from softprompt.cli.base_loading import defer_base, make_callback
from softprompt.cli.console import say
from softprompt.cli.option_values import drop_unset, parse_task_settings, pop_column_options, pop_model_options
from softprompt.cli.printing import print_result
from softprompt.config import TrainConfig
from softprompt.data.task import Task
from softprompt.errors import ConfigError
from softprompt.experiments.comparison.candidates import Candidate, parse_methods
from softprompt.experiments.comparison.compare import compare
from softprompt.experiments.comparison.comparison_run import ComparisonSettings
from softprompt.experiments.comparison.model_sizes import check_models, compare_sizes
from softprompt.experiments.comparison.time_budget import parse_seconds
from softprompt.experiments.sweep.search import sweep as run
from softprompt.report.pages.comparison_page import make_comparison_document
from softprompt.report.pages.model_sizes_page import make_model_sizes_document
from softprompt.report.pages.sweep_page import make_sweep_document
from softprompt.report.report_files import write_document, write_report


def run_compare(
    model_name: str,
    shift_data: str | None,
    current: str | None,
    price_per_hour: float | None,
    engine_python: Path | None,
    engine_gguf: Path | None,
    keep: bool,
    track: tuple[str, ...],
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    columns = pop_column_options(options)

    asked: dict[str, Any] = {"keep": keep, "current": current, "price_per_hour": price_per_hour}
    asked |= {"engine_python": engine_python, "engine_gguf": engine_gguf}
    methods, terms, task = _prepare_comparison(options, columns, **asked)
    if shift_data is not None:
        terms = _add_shift(terms, task, shift_data, columns)

    base = defer_base(model_name, pop_model_options(options))
    study = compare(base, task, methods, out, terms, make_callback(as_json), track=track)
    write_report(study, out, figures=True)
    summary = study.model_dump(mode="json", exclude={"results", "gold", "texts"})
    closing = f"the report is in {out}: report.html, report.md, report.json"
    print_result({**summary, "out": str(out)}, make_comparison_document(study, (closing,)), as_json)


def run_scale(
    models: str,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    names = check_models(models)
    methods, terms, task = _prepare_comparison(options, pop_column_options(options))
    model = pop_model_options(options)
    found, studies = compare_sizes(
        names, lambda name: defer_base(name, model), task, methods, out, terms, make_callback(as_json)
    )
    for folder, study in studies.items():
        write_report(study, folder, figures=True)
    write_report(found, out, figures=True)
    closing = f"the report is in {out}: scale.html, scale.md, scale.json; each model has a folder of its own there"
    print_result(
        {**found.model_dump(mode="json"), "out": str(out)}, make_model_sizes_document(found, (closing,)), as_json
    )


def _prepare_comparison(
    options: dict[str, Any], columns: dict[str, Any], **more: Any
) -> tuple[list[Candidate], ComparisonSettings, Task]:
    """Methods, terms and task of the options."""
    if options["budget"] is not None and options["steps"] is not None:
        raise ConfigError("--steps and --budget exclude each other: give one of them")
    budget = None if options["budget"] is None else parse_seconds(options["budget"])

    methods = parse_methods(options["methods"])
    common = {name: options[name] for name in ("seeds", "steps", "rates", "batch_size", "instruction")}
    terms = ComparisonSettings(
        **drop_unset(**common, budget=budget, **more), command=shlex.join(["softprompt", *sys.argv[1:]])
    )
    settings = parse_task_settings(options["template"], options["labels"], options["verbalizer"], options["metric"])
    task = Task.of(options["data"], **settings, **drop_unset(max_length=options["max_length"]), **columns)
    task = task.with_room(options["max_new_tokens"])
    for note in task.splits.notes:
        say(note)
    return methods, terms, task


def _add_shift(terms: ComparisonSettings, task: Task, source: str, columns: dict[str, Any]) -> ComparisonSettings:
    """The terms with the examples of another domain: its test split, or all of it where there is none."""
    other = Task.matching(task.spec, source, **columns)
    return replace(terms, shift=other.test or other.splits["all"])


def run_sweep(
    model_name: str,
    data: str,
    space: str,
    trials: int,
    out: Path,
    backend: Any,
    workers: int,
    pruning: Any,
    config: Path | None,
    no_test: bool,
    track: tuple[str, ...],
    template: str | None,
    labels: str | None,
    verbalizer: tuple[str, ...],
    metric: str | None,
    max_new_tokens: int | None,
    as_json: bool,
    **settings: Any,
) -> None:
    model, columns = pop_model_options(settings), pop_column_options(settings)
    fixed = TrainConfig.load(config, **settings)
    task = Task.of(
        data,
        **parse_task_settings(template, labels, verbalizer, metric),
        **drop_unset(max_length=settings["max_length"]),
        **columns,
    )
    task = task.with_room(max_new_tokens)
    for note in task.splits.notes:
        say(note)
    summary, made = run(
        defer_base(model_name, model),
        task,
        space,
        out,
        fixed=fixed,
        trials=trials,
        pruning=pruning,
        backend=backend,
        workers=workers,
        options=model,
        evaluate_test=not no_test,
        callback=make_callback(as_json),
        track=track,
    )
    result = {
        **summary.model_dump(mode="json"),
        "prompt": str(out / "prompt"),
        "trials": [trial.model_dump(mode="json", exclude={"versions"}) for trial in made],
        "out": str(out),
    }
    document = make_sweep_document(summary, made, out)
    write_document(document, out, "sweep")
    print_result(result, document, as_json)
