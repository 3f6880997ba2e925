"""Declares the verbs that learn prompts."""

import click

from softprompt.cli.verbs.lazy_verbs import verb
from softprompt.cli.verbs.options import (
    GIVEN,
    INIT_WORDS,
    LABEL_NAMES,
    LABEL_WORDS,
    PLACE,
    SETTING_WORDS,
    WORDS,
    column_options,
    compile_option,
    device_map_option,
    json_option,
    metric_option,
    model_options,
    room_option,
    run_options,
    run_options_from,
    schedule_option,
)


@verb("distill", "distill_command:run_distill")
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
def distill() -> None:
    """Learn a short prompt that behaves like a long one.

    The teacher is a text, solved examples, or a saved prompt; it answers every input once. The student learns to give
    the same probabilities. Labels are not needed; where there are some, they only tell how good both are.
    """


@verb("demo", "learn_command:run_demo")
@click.option("--out", type=PLACE, default="prompts", show_default=True, help="Folder, the prompt in one of its own.")
@click.option("--steps", type=click.IntRange(min=1), help="Optimiser steps.  [default: 300]")
@model_options
@json_option
def demo() -> None:
    """Learn on the embedded model and data, in minutes.

    A frozen Gemma 3 270M reads movie reviews: first with a written prompt, then with a prompt that it learns.
    """


@verb("train", "learn_command:run_train")
@click.option(
    "--model", "model_name", type=GIVEN, required=True, help="Hub name, folder, .gguf file or embedded:gemma-3-270m."
)
@click.option(
    "--data", type=GIVEN, required=True, help="Folder with train.jsonl, ...; a .jsonl/.csv/.tsv/.parquet file; hf:NAME."
)
@click.option("--out", required=True, type=PLACE, help="Folder for the learned prompt.")
@click.option(
    "--template",
    type=WORDS,
    help="Words around {{ text }} or other columns, as in Jinja2; \\n is a new line.  "
    "[default: '{{ text }}\\nLabel:' or '...Output:']",
)
@click.option("--labels", type=LABEL_NAMES, help="Label names, comma-separated.  [default: those of the training data]")
@click.option(
    "--verbalizer", type=LABEL_WORDS, multiple=True, metavar="LABEL=WORDS", help="Words for a label. Repeatable."
)
@column_options
@metric_option
@room_option
@click.option("--recipe", help="default, or lester (Adafactor, 0.3, constant, batch 32).")
@click.option("--method", help="prompt-tuning, p-tuning, residual or prefix-tuning.  [default: prompt-tuning]")
@click.option(
    "--method-option",
    multiple=True,
    metavar="NAME=VALUE",
    help="What only this method has, as encoder=lstm. Repeatable.",
)
@click.option("--batch-size", type=int, help="Examples per step.  [default: 16]")
@click.option("--micro-batch-size", type=int, help="Examples per forward pass, to save memory.")
@click.option("--max-length", type=int, help="Tokens of template and text; the text is cut.  [default: 512]")
@click.option("--patience", type=int, help="Validations without gain before stopping, 0: never.  [default: 4]")
@click.option("--seeds", type=click.IntRange(min=1), default=1, help="Learn so many prompts together, keep the best.")
@click.option(
    "--grid", type=SETTING_WORDS, metavar="NAME=A,B;...", help="One prompt for each combination, all together."
)
@click.option("--ensemble", is_flag=True, help="With --seeds or --grid: keep all, they answer by vote.")
@click.option("--gradient-checkpointing", is_flag=True, default=None, help="Save memory by computing layers twice.")
@compile_option("a long run")
@click.option("--tensorboard", type=PLACE, help="Folder for TensorBoard.")
@click.option("--example", type=WORDS, help="A text to be saved with the prompt, that the server's page offers.")
@click.option("--streaming", is_flag=True, help="Read training rows as they are needed, never all of them.")
@run_options
@model_options
@device_map_option
@json_option
@click.option("--sharding", help="fsdp: each of several processes holds a part of the model's layers.")
def train() -> None:
    """Learn a prompt from data and save it."""


@verb("multitask", "learn_command:run_multitask")
@click.option("--model", "model_name", type=GIVEN, required=True, help="As for train.")
@click.option("--task", "tasks", multiple=True, required=True, metavar="NAME=DATA", help="Repeat for each task.")
@click.option("--teacher", "teachers", multiple=True, metavar="NAME=PROMPT", help="A prompt learned for it alone.")
@click.option(
    "--distillation", type=click.FloatRange(min=0), default=0.9, show_default=True, help="Weight of teachers."
)
@click.option("--out", required=True, type=PLACE, help="Folder; each task's prompt in its own.")
@click.option("--batch-size", type=int, help="Examples of each task per step.")
@metric_option
@column_options
@run_options
@model_options
@json_option
def multitask() -> None:
    """Learn several tasks together; where --init needs labels, they are the first task's.

    One shared prompt and a rank-one matrix for each task; batches mix the tasks; each task folds to a plain prompt,
    which eval, predict and train --init prompt:OUT/NAME take like any other (Wang et al. 2023).
    """


@verb("sweep", "experiment_command:run_sweep")
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
@schedule_option
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
def sweep() -> None:
    """Search over the settings of a run: the best on validation is saved, and scored on test once.

    Trials land one by one, and a second run goes on, with more trials too.
    """
