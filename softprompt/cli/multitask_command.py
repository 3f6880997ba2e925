"""``softprompt multitask``: several tasks learn together, each ends with a prompt of its own."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softprompt.cli.options import (
    GIVEN,
    PLACE,
    column_options,
    columns_of,
    json_option,
    load_base,
    make_callback,
    model_of,
    model_options,
    pairs,
    print_result,
    run_options,
    say,
)

if TYPE_CHECKING:
    from softprompt.models.fingerprint import Outline


@click.command()
@click.option("--model", "model_name", type=GIVEN, required=True, help="As for train.")
@click.option("--task", "tasks", multiple=True, required=True, metavar="NAME=DATA", help="Repeat for each task.")
@click.option("--teacher", "teachers", multiple=True, metavar="NAME=PROMPT", help="A prompt learned for it alone.")
@click.option(
    "--distillation", type=click.FloatRange(min=0), default=0.9, show_default=True, help="Weight of teachers."
)
@click.option("--out", required=True, type=PLACE, help="Folder; each task's prompt in its own.")
@click.option("--batch-size", type=int, help="Examples of each task per step.")
@column_options
@run_options
@model_options
@json_option
def multitask(
    model_name: str,
    tasks: tuple[str, ...],
    teachers: tuple[str, ...],
    distillation: float,
    out: Path,
    config: Path | None,
    resume: bool,
    restart: bool,
    no_test: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Learn several tasks together; where --init needs labels, they are the first task's.

    One shared prompt and a rank-one matrix for each task; batches mix the tasks; each task folds to a plain prompt,
    which eval, predict and train --init prompt:OUT/NAME take like any other (Wang et al. 2023).
    """
    from softprompt.config import TrainConfig

    model, columns = model_of(settings), columns_of(settings)
    chosen = TrainConfig.load(config, **settings) if config else TrainConfig.build(**settings)
    sources = pairs("--task", tasks, "NAME=DATA", "reviews=data/reviews")
    taught = pairs("--teacher", teachers, "NAME=PROMPT", "reviews=prompts/reviews")

    from softprompt.data.task import Task
    from softprompt.report.pages.training_text import training_lines
    from softprompt.store.prompt_loading import load_prompt
    from softprompt.training.fit import check_out
    from softprompt.training.fit_multitask import check_names, fit_multitask
    from softprompt.training.initialization import check_init, check_init_base, check_init_fits
    from softprompt.training.multitask import check_tasks

    # what is quickly checked comes before what takes long
    check_names(sources)
    check_tasks(sources, chosen, taught, distillation)
    check_init(chosen.init)
    check_out(out, resume=resume, restart=restart)
    loaded = {name: load_prompt(folder) for name, folder in taught.items()}
    for teacher in loaded.values():
        teacher.state  # noqa: B018 (an ensemble is refused before the model is loaded)
    read = {name: Task.of(data, max_length=chosen.max_length, **columns) for name, data in sources.items()}
    check_init_fits(chosen.init, next(iter(read.values())).spec)

    def check(base: "Outline") -> None:
        check_init_base([chosen.init], base)
        for teacher in loaded.values():
            teacher.check_base(base)

    base = load_base(model_name, model, check)
    prompts = fit_multitask(
        base,
        read,
        out=out,
        config=chosen,
        teachers=loaded,
        distillation=distillation,
        callback=make_callback(as_json),
        resume=resume,
        restart=restart,
        evaluate_test=not no_test,
    )
    if not as_json:
        say("")
    lines = [line for name, prompt in prompts.items() for line in (name, *training_lines(prompt, out / name), "")]
    result = {name: {"prompt": str(out / name), "metrics": prompt.metrics} for name, prompt in prompts.items()}
    print_result({"prompts": result}, lines, as_json)
