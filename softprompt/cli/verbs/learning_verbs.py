"""Declares the verbs that learn prompts."""

import click

from softprompt.cli.verbs.lazy_verbs import verb
from softprompt.cli.verbs.options import (
    GIVEN,
    ROOM,
    SEED,
    SETTING_WORDS,
    STOP,
    WORDS,
    column_options,
    config_option,
    data_option,
    device_map_option,
    json_option,
    make_task_options,
    method_option,
    metric_option,
    model_name_option,
    model_options,
    no_baseline_option,
    no_test_option,
    out_option,
    remark,
    resume_options,
    room_option,
    seeds_option,
    setting_options,
    sharding_option,
    shots_option,
    task_options,
    teacher_option,
    track_option,
)
from softprompt.config import DistillConfig, TrainConfig

TRAINING_SEED = remark(SEED, "initialisation and data order")
BATCH_OF_EACH = remark("Examples per optimiser step.", "of each task")


@verb("demo", "learn_command:run_demo", "experiments.demo.run_demo")
@out_option("a folder, the prompt in one of its own", "prompts")
@setting_options(TrainConfig, only=["steps"], checked=True, steps=remark("Optimiser steps.", default="150"))
@model_options
@json_option
def demo() -> None:
    """Learn on the embedded model and data, in minutes.

    A frozen Gemma 3 270M reads movie reviews: first with a written prompt, then with a prompt that it learns.
    """


@verb(
    "train",
    "learn_command:run_train",
    "fit",
    first=("model_name", "data", "out", "template", "labels", "length", "steps", "epochs", "init", "method"),
)
@model_name_option(required=True)
@data_option()
@out_option("a folder, for the learned prompt")
@task_options
@column_options
@metric_option
@room_option()
@click.option("--recipe", help="default, or lester (Adafactor, 0.3, constant, batch 32).")
@config_option()
@setting_options(TrainConfig, without=["method_options"], seed=TRAINING_SEED)
@method_option
@seeds_option(None, 1, "so many prompts learn together, the best is kept")
@click.option(
    "--grid", type=SETTING_WORDS, metavar="NAME=A,B;...", help="One prompt for each combination, all together."
)
@click.option("--ensemble", is_flag=True, help="With --seeds or --grid: keep all, they answer by vote.")
@track_option
@click.option("--example", type=WORDS, help="A text to be saved with the prompt, that the server's page offers.")
@click.option("--streaming", is_flag=True, help="Read training rows as they are needed, never all of them.")
@no_test_option
@no_baseline_option
@resume_options
@model_options
@device_map_option
@sharding_option()
@json_option
def train() -> None:
    """Learn a prompt from data, say what it gains, save it."""


@verb(
    "multitask",
    "learn_command:run_multitask",
    "fit",
    first=("model_name", "tasks", "out", "length", "steps", "init", "seed", "batch_size", "teachers", "distillation"),
)
@model_name_option(required=True)
@click.option("--task", "tasks", multiple=True, required=True, metavar="NAME=DATA", help="Repeat for each task.")
@teacher_option("teachers", "learned for that task alone; repeatable", several=True)
@click.option(
    "--distillation", type=click.FloatRange(min=0), default=0.9, show_default=True, help="Weight of teachers."
)
@out_option("a folder; each task's prompt in its own")
@column_options
@metric_option
@config_option()
@setting_options(
    TrainConfig, without=["method", "method_options", "epochs"], batch_size=BATCH_OF_EACH, seed=TRAINING_SEED
)
@no_test_option
@no_baseline_option
@resume_options
@model_options
@json_option
def multitask() -> None:
    """Learn several tasks together.

    Where --init needs labels, they are the first task's. One shared prompt and a rank-one matrix for each task;
    batches mix the tasks; each task folds to a plain prompt,
    which eval, predict and train --init prompt:OUT/NAME take like any other (Wang et al. 2023).
    """


@verb(
    "distill",
    "distill_command:run_distill",
    "distill",
    first=("model_name", "system", "data", "out", "shots", "teacher", "labels", "length", "lengths", "steps"),
)
@model_name_option(required=True)
@shots_option("of the teacher, behind its text; in chats as turns")
@click.option("--shots-seed", default=0, show_default=True, help="Of the choice of those examples.")
@teacher_option("teacher", "of any length, instead of text and examples")
@data_option("labels are not needed")
@out_option("a folder, for the learned prompt")
@click.option("--lengths", type=GIVEN, metavar="N,N,...", help="Learn several lengths together; OUT/N each.")
@make_task_options("what is distilled; text in front where the model has no chat template")
@click.option(
    "--keep-system", type=WORDS, help="A system prompt that stays beside the virtual tokens, or a file of it."
)
@column_options
@metric_option
@setting_options(
    DistillConfig,
    sample_temperature="of these completions",
    sample_seed="of these completions",
    max_new_tokens=remark(ROOM, default="128, more where a reference is longer"),
    stop=remark(STOP, "the teacher's"),
)
@config_option()
@setting_options(
    TrainConfig,
    without=["method_options"],
    init=remark(f"{TrainConfig.model_fields['init'].description}.", "or teacher, its own text, which is the default"),
    seed=TRAINING_SEED,
)
@method_option
@click.option("--no-measure", is_flag=True, help="Do not time teacher and student at the end.")
@track_option
@no_test_option
@resume_options
@model_options
@json_option
def distill() -> None:
    """Learn a short prompt that behaves like a long one.

    The teacher has a system prompt (of a model without a chat template, a text in front), solved examples, or a saved
    prompt. It answers every input once; conversations are read along the turns that they bring. The student learns to
    give the same probabilities without these words. Without --system it is the system message that all chats begin
    with. Labels are not needed; where there are some, they only tell how good both are.
    """


@verb(
    "sweep",
    "experiment_command:run_sweep",
    "sweep",
    first=("model_name", "data", "out", "space", "trials", "template", "labels", "metric", "backend", "workers"),
)
@model_name_option(required=True)
@data_option()
@click.option(
    "--space",
    type=SETTING_WORDS,
    required=True,
    help="'learning-rate=0.03..0.3:log;length=20,50;method=...', any settings of train; or a .toml or .yaml file.",
)
@click.option("--trials", type=click.IntRange(1, 100_000), default=20, show_default=True, help="In all.")
@out_option("a folder; a second run goes on there")
@click.option(
    "--backend",
    type=click.Choice(["optuna", "ray"]),
    default="optuna",
    show_default=True,
    help="optuna: this machine; ray: actors of Ray, on the cluster of RAY_ADDRESS if that is set.",
)
@click.option("--workers", type=click.IntRange(1, 1024), default=1, show_default=True, help="Trials at a time.")
@click.option(
    "--pruning",
    type=click.Choice(["median", "asha", "none"]),
    default="median",
    show_default=True,
    help="When to give a trial up, judged by validation.",
)
@task_options
@column_options
@metric_option
@room_option()
@config_option("of what is not searched")
@setting_options(TrainConfig, without=["method_options"], seed=remark(SEED, "of the proposals and of each trial"))
@track_option
@no_test_option
@model_options
@json_option
def sweep() -> None:
    """Search over the settings of a run, keep the best.

    The best on validation is saved, and scored on test once. Trials land one by one, and a second run goes on,
    with more trials too.
    """
