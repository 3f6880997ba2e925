"""``softprompt distill``: a long written prompt, solved examples or a saved prompt to a short soft prompt."""

from pathlib import Path
from typing import Any

import click

from softprompt.cli.options import (
    GIVEN,
    LABEL_NAMES,
    LABEL_WORDS,
    PLACE,
    WORDS,
    column_options,
    columns_of,
    compile_option,
    json_option,
    load_base,
    make_callback,
    metric_option,
    model_of,
    model_options,
    pairs,
    print_result,
    room_option,
    run_options_from,
    task_settings,
)
from softprompt.errors import ConfigError

HOW = ("temperature", "top_k", "greedy", "samples", "sample_temperature", "sample_seed", "max_new_tokens", "stop")


@click.command()
@click.option("--model", "model_name", type=GIVEN, required=True, help="As for train.")
@click.option("--prompt", "text_file", type=PLACE, metavar="FILE", help="Teacher: the text of this file in front.")
@click.option("--shots", type=click.IntRange(min=1), help="Teacher: so many solved train examples, behind the text.")
@click.option("--shots-seed", default=0, show_default=True, help="Of the choice of examples.")
@click.option("--teacher", "saved", type=GIVEN, metavar="PROMPT", help="Teacher: a saved prompt, of any length.")
@click.option("--inputs", type=GIVEN, required=True, help="Rows with a text, labels not needed; as --data of train.")
@click.option("--out", required=True, type=PLACE, help="Folder for the learned prompt.")
@click.option("--lengths", type=GIVEN, metavar="N,N,...", help="Learn several lengths together; OUT/N each.")
@click.option("--template", type=WORDS, help="As for train; it stands behind the teacher too.")
@click.option("--labels", type=LABEL_NAMES, help="Label names, comma-separated; for classification of unlabelled rows.")
@click.option(
    "--verbalizer", type=LABEL_WORDS, multiple=True, metavar="LABEL=WORDS", help="Words for a label. Repeatable."
)
@column_options
@metric_option
@click.option("--temperature", type=float, help="That logits are divided by while learning.  [default: 1]")
@click.option("--top-k", type=int, help="Generation: likeliest tokens kept of the teacher.  [default: 64]")
@click.option("--samples", type=int, help="Generation: sampled completions of each input, too.  [default: 0]")
@click.option("--sample-temperature", type=float, help="Of these.  [default: 1]")
@click.option("--sample-seed", type=int, help="Of these.  [default: 0]")
@click.option("--greedy/--no-greedy", default=None, help="Generation: learn the greedy completion (it does).")
@room_option
@click.option("--stop", type=WORDS, multiple=True, help="A string that ends the teacher's completions. Repeatable.")
@click.option("--method", help="As for train.  [default: prompt-tuning]")
@click.option("--method-option", multiple=True, metavar="NAME=VALUE", help="As for train. Repeatable.")
@click.option("--batch-size", type=int, help="Inputs per step.  [default: 16]")
@click.option("--micro-batch-size", type=int, help="Inputs per forward pass, to save memory.")
@click.option("--max-length", type=int, help="Tokens of template and text; the text is cut.  [default: 512]")
@click.option("--patience", type=int, help="Validations without gain before stopping, 0: never.  [default: 4]")
@click.option("--gradient-checkpointing", is_flag=True, default=None, help="Save memory by computing layers twice.")
@compile_option("a long run")
@click.option("--no-measure", is_flag=True, help="Do not time teacher and student at the end.")
@run_options_from("teacher (its own text, if not given), text, text:WORDS, labels, vocab, random, prompt:FOLDER.")
@model_options
@json_option
def distill(
    model_name: str,
    text_file: Path | None,
    shots: int | None,
    shots_seed: int,
    saved: str | None,
    inputs: str,
    out: Path,
    lengths: str | None,
    template: str | None,
    labels: str | None,
    verbalizer: tuple[str, ...],
    metric: str | None,
    method_option: tuple[str, ...],
    no_measure: bool,
    config: Path | None,
    resume: bool,
    restart: bool,
    no_test: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Learn a short prompt that behaves like a long one.

    The teacher is a text, solved examples, or a saved prompt; it answers every input once. The student learns to give
    the same probabilities. Labels are not needed; where there are some, they only tell how good both are.
    """
    from softprompt.config import DistillConfig, TrainConfig

    model, columns = model_of(settings), columns_of(settings)
    settings["stop"] = settings["stop"] or None
    how = DistillConfig.build(**{name: settings.pop(name) for name in HOW})
    settings["method_options"] = pairs("--method-option", method_option, "NAME=VALUE", "encoder=lstm") or None
    if lengths is not None and settings["length"] is not None:
        raise ConfigError("--length and --lengths exclude each other: give one of them")
    chosen = TrainConfig.load(config, **settings) if config else TrainConfig.build(**settings)
    if saved is not None and (text_file or shots or template or labels or verbalizer):
        raise ConfigError(
            "--teacher brings its own task, --prompt, --shots, --template, --labels and --verbalizer are for text: "
            "leave them or --teacher out"
        )
    if saved is None and text_file is None and shots is None:
        raise ConfigError("expected a teacher: --prompt FILE, --shots N or --teacher PROMPT; got none")

    from softprompt.data.examples import keep_answered
    from softprompt.data.task import Task
    from softprompt.prompts.methods.method_registry import check_method
    from softprompt.prompts.written_prompt import choose_shots
    from softprompt.report.pages.distillation_text import distill_lines
    from softprompt.store.prompt_loading import load_prompt
    from softprompt.training.distillation.distill import check_init, distill_together, of_lengths
    from softprompt.training.distillation.teacher import Teacher, read_text
    from softprompt.training.fit import check_out
    from softprompt.training.initialization import check_init as check_start
    from softprompt.training.initialization import check_init_fits
    from softprompt.training.loop import check_there

    # what is quickly checked comes before what takes long
    members = {"": chosen} if lengths is None else of_lengths(chosen, _numbers(lengths))
    check_method(chosen.method, chosen.method_options)
    check_start(chosen.init, taught=True)
    check_init(chosen)
    text = "" if text_file is None else read_text(text_file)
    prompt = None if saved is None else load_prompt(saved).judged_by(metric)
    check_out(out, resume=resume, restart=restart)
    task = Task.of_inputs(
        inputs,
        spec=None if prompt is None else prompt.spec,
        max_length=chosen.max_length,
        **task_settings(template, labels, verbalizer, metric),
        **columns,
    )
    check_there(task)
    check_init_fits(chosen.init, task.spec)
    solved = choose_shots(keep_answered(task.train), shots, shots_seed) if shots else []
    base = load_base(model_name, model, None if prompt is None else prompt.check_base)
    teacher = Teacher.written(base, task.spec, text, solved) if prompt is None else Teacher.saved(base, prompt)
    done = distill_together(
        base,
        task,
        members,
        teacher,
        how,
        out=out,
        callback=make_callback(as_json),
        resume=resume,
        restart=restart,
        evaluate_test=not no_test,
        measure=not no_measure,
    )
    reports = {name: one.report for name, one in done.items()}
    described = {
        name: {"prompt": str(out / name), "metrics": one.prompt.metrics, **reports[name].model_dump()}
        for name, one in done.items()
    }
    result = described[""] if lengths is None else {"prompts": described}
    print_result(result, distill_lines(reports, out), as_json)


def _numbers(lengths: str) -> list[int]:
    try:
        return [int(part) for part in lengths.split(",")]
    except ValueError as error:
        raise ConfigError(f"--lengths '{lengths}': expected numbers with commas between them, as in 4,8,16") from error
