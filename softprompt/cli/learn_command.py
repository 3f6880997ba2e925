"""``demo``, ``train`` and ``multitask``: prompts that are learned from data."""

from pathlib import Path
from typing import Any

from softprompt.cli.base_loading import defer_base, join_processes, load_base, make_callback
from softprompt.cli.console import say
from softprompt.cli.option_values import parse_pairs, parse_task_settings, pop_column_options, pop_model_options
from softprompt.cli.printing import print_result
from softprompt.config import DataOptions, TrainConfig, make_population
from softprompt.data.builtin_data import rotten_tomatoes
from softprompt.data.streaming import stream_splits
from softprompt.data.task import Task
from softprompt.data.templates.template import reader_options
from softprompt.errors import ConfigError
from softprompt.experiments.demo import STEPS, TEMPLATE, free_folder
from softprompt.experiments.demo import run_demo as tell_story
from softprompt.models.builtin_models import MODEL_NAME
from softprompt.report.pages.training_page import make_demo_document, make_training_document
from softprompt.training.fit import fit
from softprompt.utils.files import check_free


def run_demo(out: Path, steps: int | None, as_json: bool, **model: Any) -> None:
    folder = free_folder(out, "demo")
    check_free(folder)
    task = Task.classification(rotten_tomatoes(), template=TEMPLATE)
    base = load_base(MODEL_NAME, model)
    result = tell_story(base, task, folder, make_callback(as_json), say, steps or STEPS)
    print_result(result.to_dict(), make_demo_document(result), as_json)


@join_processes
def run_train(
    model_name: str,
    data: str,
    out: Path,
    template: str | None,
    labels: str | None,
    verbalizer: tuple[str, ...],
    metric: str | None,
    max_new_tokens: int | None,
    config: Path | None,
    method_option: tuple[str, ...],
    seeds: int,
    grid: str | None,
    ensemble: bool,
    resume: bool,
    restart: bool,
    track: tuple[str, ...],
    sharding: str | None,
    streaming: bool,
    no_test: bool,
    no_baseline: bool,
    example: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    model, columns = {**pop_model_options(settings), "sharding": sharding}, pop_column_options(settings)
    settings["method_options"] = parse_pairs("--method-option", method_option, "NAME=VALUE", "encoder=lstm") or None
    chosen = TrainConfig.load(config, **settings)
    members = make_population(chosen, seeds, grid or "")
    if ensemble and len(members) == 1:
        raise ConfigError("--ensemble keeps several prompts, expected --seeds or --grid beside it")
    callback = make_callback(as_json)
    source: Any = data
    if streaming:
        read = {name: columns.pop(name) for name in DataOptions.model_fields if name in columns}
        source = stream_splits(data, **reader_options(template, read.get("text_column")), **read)
    limit = chosen.max_length if "max_length" in chosen.model_fields_set else None
    task = Task.of(source, max_length=limit, **parse_task_settings(template, labels, verbalizer, metric), **columns)
    task = task.with_room(max_new_tokens)
    prompt = fit(
        defer_base(model_name, model),
        task,
        config=members,
        ensemble=ensemble,
        out=out,
        callback=callback,
        track=track,
        resume=resume,
        restart=restart,
        evaluate_test=not no_test,
        baseline=not no_baseline,
        example=example,
    )
    result = {
        "prompt": str(out),
        **{key: prompt.manifest()[key] for key in ("method", "length", "metrics", "training")},
    }
    print_result(result, make_training_document({"": prompt}, out), as_json)


def run_multitask(
    model_name: str,
    tasks: tuple[str, ...],
    teachers: tuple[str, ...],
    distillation: float,
    out: Path,
    config: Path | None,
    resume: bool,
    restart: bool,
    no_test: bool,
    no_baseline: bool,
    metric: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    model, columns = pop_model_options(settings), pop_column_options(settings)
    chosen = TrainConfig.load(config, **settings)
    sources = parse_pairs("--task", tasks, "NAME=DATA", "reviews=data/reviews")
    taught = parse_pairs("--teacher", teachers, "NAME=PROMPT", "reviews=prompts/reviews")
    limit = chosen.max_length if "max_length" in chosen.model_fields_set else None
    read = {name: Task.of(data, max_length=limit, metric=metric, **columns) for name, data in sources.items()}
    prompts = fit(
        defer_base(model_name, model),
        read,
        out=out,
        config=chosen,
        teachers=taught,
        distillation=distillation,
        callback=make_callback(as_json),
        resume=resume,
        restart=restart,
        evaluate_test=not no_test,
        baseline=not no_baseline,
    )
    if not as_json:
        say("")
    result = {name: {"prompt": str(out / name), "metrics": prompt.metrics} for name, prompt in prompts.items()}
    print_result({"prompts": result}, make_training_document(prompts, out), as_json)
