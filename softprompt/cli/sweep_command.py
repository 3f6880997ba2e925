"""``softprompt sweep``: search over the settings of a run, the best on validation is kept."""

from pathlib import Path
from typing import Any

import click

from softprompt.cli.options import (
    GIVEN,
    INIT_WORDS,
    LABEL_NAMES,
    LABEL_WORDS,
    PLACE,
    SETTING_WORDS,
    WORDS,
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


@click.command()
@click.option("--model", "model_name", type=GIVEN, required=True, help="As for train.")
@click.option("--data", type=GIVEN, required=True, help="As for train.")
@click.option(
    "--space",
    type=SETTING_WORDS,
    required=True,
    help="'learning-rate=0.03..0.3:log;length=20,50;method=...', any settings of train; or a .toml or .yaml file.",
)
@click.option("--trials", type=click.IntRange(1, 100_000), default=20, show_default=True, help="In all.")
@click.option("--out", type=PLACE, required=True, help="Folder; a second run goes on there.")
@click.option(
    "--engine",
    type=click.Choice(["optuna", "ray"]),
    default="optuna",
    show_default=True,
    help="optuna: this machine; ray: Ray Tune, on the cluster of RAY_ADDRESS if that is set.",
)
@click.option("--workers", type=click.IntRange(1, 1024), default=1, show_default=True, help="Trials at a time.")
@click.option(
    "--pruning",
    type=click.Choice(["median", "asha", "none"]),
    default="median",
    show_default=True,
    help="When to give a trial up, judged by validation.",
)
@click.option("--config", type=PLACE, help="Settings that are not searched, from a .toml or .yaml file.")
@click.option("--method", help="As for train, if it is not searched; so are the following.  [default: prompt-tuning]")
@click.option("--length", type=int, help="Virtual tokens.  [default: 100]")
@click.option("--init", type=INIT_WORDS, help="As for train.  [default: examples]")
@click.option("--steps", type=int, help="Optimiser steps.  [default: 300]")
@click.option("--batch-size", type=int, help="Examples per step.  [default: 16]")
@click.option("--learning-rate", type=float, help="In standard deviations of the embeddings.  [default: 0.1]")
@click.option("--eval-every", type=int, help="Steps between validations, at which trials are judged.  [default: 100]")
@click.option("--max-length", type=int, help="Tokens of template and text.  [default: 512]")
@click.option("--seed", type=int, help="Of the proposals and of each trial.  [default: 0]")
@click.option("--no-test", is_flag=True, help="Do not score the winner on the test split.")
@click.option("--template", type=WORDS, help="As for train.")
@click.option("--labels", type=LABEL_NAMES, help="As for train.")
@click.option("--verbalizer", type=LABEL_WORDS, multiple=True, metavar="LABEL=WORDS", help="As for train. Repeatable.")
@metric_option
@room_option
@column_options
@model_options
@json_option
def sweep(
    model_name: str,
    data: str,
    space: str,
    trials: int,
    out: Path,
    engine: Any,
    workers: int,
    pruning: Any,
    config: Path | None,
    no_test: bool,
    template: str | None,
    labels: str | None,
    verbalizer: tuple[str, ...],
    metric: str | None,
    max_new_tokens: int | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Search over the settings of a run: the best on validation is saved, and scored on test once.

    Trials land one by one, and a second run goes on, with more trials too.
    """
    from softprompt.config import TrainConfig

    model, columns = model_of(settings), columns_of(settings)
    fixed = TrainConfig.load(config, **settings) if config else TrainConfig.build(**settings)

    from softprompt.experiments.sweep.search import check_sweep
    from softprompt.experiments.sweep.search import sweep as run
    from softprompt.experiments.sweep.search_space import Space
    from softprompt.experiments.sweep.sweep_folder import SweepFolder

    # what is quickly checked comes before what takes long
    searched = Space.parse(space)
    check_sweep(searched, fixed, engine)
    SweepFolder.check(out)

    from softprompt.data.task import Task
    from softprompt.report.pages.comparison_text import sweep_lines
    from softprompt.training.loop import check_trainable

    task = Task.of(
        data,
        **task_settings(template, labels, verbalizer, metric),
        **given(max_length=settings["max_length"]),
        **columns,
    )
    task = task.with_room(max_new_tokens)
    check_trainable(task)
    for note in task.splits.notes:
        say(note)
    base = load_base(model_name, model)
    summary, made = run(
        base,
        task,
        searched,
        out,
        fixed=fixed,
        trials=trials,
        pruning=pruning,
        engine=engine,
        workers=workers,
        options=model,
        evaluate_test=not no_test,
        callback=make_callback(as_json),
    )
    result = {
        **summary.model_dump(mode="json"),
        "prompt": str(out / "prompt"),
        "trials": [trial.model_dump(mode="json", exclude={"versions"}) for trial in made],
        "out": str(out),
    }
    print_result(result, sweep_lines(summary, made, out), as_json)
