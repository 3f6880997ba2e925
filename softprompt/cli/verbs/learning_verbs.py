"""Declares the verbs that learn prompts."""

import click

from softprompt.cli.verbs.lazy_verbs import verb
from softprompt.cli.verbs.options import (
    GIVEN,
    PLACE,
    SETTING_WORDS,
    WORDS,
    column_options,
    config_option,
    data_option,
    device_map_option,
    json_option,
    method_option,
    metric_option,
    model_name_option,
    model_options,
    no_test_option,
    resume_options,
    room_option,
    setting_options,
    task_options,
)
from softprompt.config import DistillConfig, TrainConfig


@verb("demo", "learn_command:run_demo", "experiments.demo.run_demo")
@click.option("--out", type=PLACE, default="prompts", show_default=True, help="Folder, the prompt in one of its own.")
@setting_options(TrainConfig, only=["steps"], checked=True)
@model_options
@json_option
def demo() -> None:
    """Learn on the embedded model and data, in minutes.

    A frozen Gemma 3 270M reads movie reviews: first with a written prompt, then with a prompt that it learns.
    """


@verb("train", "learn_command:run_train", "fit")
@model_name_option
@data_option()
@click.option("--out", required=True, type=PLACE, help="Folder for the learned prompt.")
@task_options
@column_options
@metric_option
@room_option
@click.option("--recipe", help="default, or lester (Adafactor, 0.3, constant, batch 32).")
@config_option
@setting_options(TrainConfig, without=["method_options"])
@method_option
@click.option("--seeds", type=click.IntRange(min=1), default=1, help="Learn so many prompts together, keep the best.")
@click.option(
    "--grid", type=SETTING_WORDS, metavar="NAME=A,B;...", help="One prompt for each combination, all together."
)
@click.option("--ensemble", is_flag=True, help="With --seeds or --grid: keep all, they answer by vote.")
@click.option("--tensorboard", type=PLACE, help="Folder for TensorBoard.")
@click.option("--example", type=WORDS, help="A text to be saved with the prompt, that the server's page offers.")
@click.option("--streaming", is_flag=True, help="Read training rows as they are needed, never all of them.")
@no_test_option
@resume_options
@model_options
@device_map_option
@click.option("--sharding", help="fsdp: each of several processes holds a part of the model's layers.")
@json_option
def train() -> None:
    """Learn a prompt from data and save it."""


@verb("multitask", "learn_command:run_multitask", "fit")
@model_name_option
@click.option("--task", "tasks", multiple=True, required=True, metavar="NAME=DATA", help="Repeat for each task.")
@click.option("--teacher", "teachers", multiple=True, metavar="NAME=PROMPT", help="A prompt learned for it alone.")
@click.option(
    "--distillation", type=click.FloatRange(min=0), default=0.9, show_default=True, help="Weight of teachers."
)
@click.option("--out", required=True, type=PLACE, help="Folder; each task's prompt in its own.")
@column_options
@metric_option
@config_option
@setting_options(
    TrainConfig, without=["method", "method_options", "epochs"], batch_size="examples of each task per step"
)
@no_test_option
@resume_options
@model_options
@json_option
def multitask() -> None:
    """Learn several tasks together; where --init needs labels, they are the first task's.

    One shared prompt and a rank-one matrix for each task; batches mix the tasks; each task folds to a plain prompt,
    which eval, predict and train --init prompt:OUT/NAME take like any other (Wang et al. 2023).
    """


@verb("distill", "distill_command:run_distill", "distill")
@model_name_option
@click.option("--prompt", "text_file", type=PLACE, metavar="FILE", help="Teacher: the text of this file in front.")
@click.option("--shots", type=click.IntRange(min=1), help="Teacher: so many solved train examples, behind the text.")
@click.option("--shots-seed", default=0, show_default=True, help="Of the choice of examples.")
@click.option("--teacher", "saved", type=GIVEN, metavar="PROMPT", help="Teacher: a saved prompt, of any length.")
@click.option("--inputs", type=GIVEN, required=True, help="Rows with a text, labels not needed; as --data of train.")
@click.option("--out", required=True, type=PLACE, help="Folder for the learned prompt.")
@click.option("--lengths", type=GIVEN, metavar="N,N,...", help="Learn several lengths together; OUT/N each.")
@task_options
@column_options
@metric_option
@setting_options(DistillConfig, sample_temperature="of these", sample_seed="of these")
@config_option
@setting_options(
    TrainConfig,
    without=["method_options"],
    init="teacher (its own text, if not given), text, text:WORDS, labels, vocab, random, prompt:FOLDER",
)
@method_option
@click.option("--no-measure", is_flag=True, help="Do not time teacher and student at the end.")
@no_test_option
@resume_options
@model_options
@json_option
def distill() -> None:
    """Learn a short prompt that behaves like a long one.

    The teacher is a text, solved examples, or a saved prompt; it answers every input once. The student learns to give
    the same probabilities. Labels are not needed; where there are some, they only tell how good both are.
    """


@verb("sweep", "experiment_command:run_sweep", "sweep")
@model_name_option
@data_option()
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
@room_option
@click.option("--config", type=PLACE, help="Settings that are not searched, from a .toml or .yaml file.")
@setting_options(TrainConfig, without=["method_options"], seed="of the proposals and of each trial")
@no_test_option
@model_options
@json_option
def sweep() -> None:
    """Search over the settings of a run: the best on validation is saved, and scored on test once.

    Trials land one by one, and a second run goes on, with more trials too.
    """
