"""Declares the verbs that tell how good prompts are, what they have learned, and what fits."""

from collections.abc import Callable

import click

from softprompt.cli.verbs.lazy_verbs import verb
from softprompt.cli.verbs.options import (
    GIVEN,
    PLACE,
    WORDS,
    Command,
    bad_rows_option,
    column_options,
    combine_options,
    data_option,
    device_map_option,
    json_option,
    metric_option,
    model_name_option,
    model_options,
    prompt_model_option,
    quantize_option,
    room_option,
    setting_options,
    task_options,
    trust_option,
    vote_option,
)
from softprompt.config import TrainConfig

DRIFT = 3  # exit code: 1 is a failure of ours, 2 a mistake in what was given


METHODS = "zero-shot,few-shot:8,tfidf,linear-probe,prompt-tuning,prefix-tuning,lora,full"
SCALED = "prompt-tuning,lora,full"


def study_options(methods: str) -> Callable[[Command], Command]:
    """What both verbs take, with the methods that each compares by default."""
    return combine_options(
        data_option("With a test split."),
        click.option(
            "--methods", type=GIVEN, default=methods, help=f"Comma-separated (docs/how-to/compare.md).  [{methods}]"
        ),
        click.option("--seeds", type=click.IntRange(1, 1000), default=3, show_default=True, help="Runs of each."),
        setting_options(TrainConfig, only=["steps"], checked=True),
        click.option("--budget", type=GIVEN, metavar="TIME", help="Instead of --steps: 90s, 10m, 1h a run."),
        click.option(
            "--rates",
            type=click.IntRange(1, 9),
            default=1,
            show_default=True,
            help="Learning rates tried for each trained method, its own among them; 1: no search.",
        ),
        setting_options(TrainConfig, only=["batch_size", "max_length"], checked=True),
        click.option("--out", type=PLACE, required=True, help="Folder; a second run goes on there."),
        click.option("--instruction", type=WORDS, help="Words in front of everything, for zero-shot and few-shot."),
        task_options,
        column_options,
        metric_option,
        room_option,
    )


@verb("compare", "experiment_command:run_compare", "compare")
@model_name_option
@study_options(METHODS)
@click.option("--shift-data", type=GIVEN, help="Data of another domain with the same labels, to be scored too.")
@click.option("--current", type=GIVEN, metavar="METHOD", help="The one of the methods that is in use now.")
@click.option("--price-per-hour", type=click.FloatRange(min=0, min_open=True), help="Of the machine, in your currency.")
@click.option(
    "--engine-python", type=PLACE, help="Python of an environment with vLLM or llama.cpp, to time exported prompts in."
)
@click.option("--engine-gguf", type=PLACE, help="GGUF file of the base model, for llama.cpp.")
@click.option("--keep", is_flag=True, help="Keep what the best seed of each method needs to be deployed.")
@model_options
@json_option
def compare() -> None:
    """Which method to deploy for a task: measure them all, recommend one.

    Same splits, same steps or time, several seeds; results land one by one, and a second run goes on.
    """


@verb("scale", "experiment_command:run_scale", "experiments.comparison.model_sizes.compare_sizes")
@click.option("--models", type=GIVEN, required=True, metavar="A,B,C", help="Base models, each as for train.")
@study_options(SCALED)
@model_options
@json_option
def scale() -> None:
    """How the gap between the first method and the others changes with the size of the model.

    A comparison on each model, in a folder of its own below --out; a second run goes on.
    """


@verb("plan", "diagnose_command:run_plan", "analysis.diagnostics.memory_plan.plan_memory")
@model_name_option
@click.option("--gpus", type=click.IntRange(min=0), required=True, help="GPUs of the machine; 0: its processor.")
@click.option(
    "--gpu-memory",
    type=GIVEN,
    help="Of one GPU, or with --gpus 0 of the machine, in GB if no unit is given.  [default: 80GB; all of it]",
)
@setting_options(TrainConfig, only=["length", "method", "batch_size", "gradient_checkpointing"])
@click.option(
    "--text-length", type=int, help="Tokens of template and text of an example, answer counted.  (default: 128)"
)
@click.option("--tasks", type=click.IntRange(min=1), help="Prompts to serve.  (default: 1000)")
@click.option("--generation", is_flag=True, help="The prompts complete texts, and do not label them.")
@click.option("--dtype", help="float32, bfloat16 or float16.  (default: bfloat16)")
@click.option("--sharding", help="fsdp or none.  (default: fsdp where one GPU does not hold the model)")
@quantize_option
@trust_option
@json_option
def plan_command() -> None:
    """Tell what memory a prompt and its model need.

    Reads the model's configuration, no weights: so a model of any size is planned for in seconds, on any machine.
    Each part is shown with its formula. docs/results/scaling.md has how near the figures come to measured ones.
    """


@verb("doctor", "diagnose_command:run_doctor", "analysis.diagnostics.doctor.diagnose")
@click.option("--model", "model_name", type=GIVEN, help="Hub name, folder, .gguf file or embedded:gemma-3-270m.")
@click.option("--families", is_flag=True, help="A tiny model of every known family instead, as a Markdown table.")
@model_options
@json_option
def doctor() -> None:
    """Measure what softprompt can do with a model.

    Every way to put a prompt in front of texts (padded, shared, mixed, cached, as keys and values) is compared with
    plain concatenation through the model's own forward pass, logits and gradient. --dtype float32 shows fine faults
    too; other types round. The families are measured on the CPU unless --device names another.
    """


@verb("inspect", "analyze_command:run_inspect", "inspect")
@click.argument("prompt_place", type=GIVEN, metavar="PROMPT")
@data_option("Best the data that it was learned on.")
@click.option("--split", type=GIVEN, help="Whose answers are judged.  [default: test, else validation]")
@click.option("--against", type=GIVEN, metavar="PROMPT", help="Another saved prompt, instead of the written one.")
@click.option("--instruction", type=WORDS, help="Words of the written prompt.  [default: made of the labels]")
@click.option("--template", type=WORDS, help="The template that is served, to be compared with the learned one.")
@click.option("--store", type=PLACE, help="Folder of saved prompts: similarities, and which would be a start.")
@click.option("--limit", type=click.IntRange(min=1), help="Examples of each question, at most: a quicker look.")
@click.option(
    "--train-rows", type=click.IntRange(min=1), help="Training rows to look for mislabelled ones in.  [default: 2000]"
)
@metric_option
@click.option("--html", type=PLACE, metavar="FILE", help="Write a page, complete in one file.")
@prompt_model_option
@column_options
@model_options
@json_option
def inspect_command() -> None:
    """What a prompt has learned, what it changed, and what is wrong with it.

    PROMPT is its folder, or STORE#NAME@VERSION or STORE#NAME@ALIAS in a store. docs/how-to/inspect.md tells how to
    read the answers.
    """


@verb("prune", "analyze_command:run_prune", "prune")
@click.argument("prompt_place", type=GIVEN, metavar="PROMPT")
@data_option("Its validation split decides.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.01,
    show_default=True,
    help="How much the metric on validation may fall: the task's own, or nats a token for generation.",
)
@metric_option
@click.option("--out", required=True, type=PLACE, help="Folder for the shorter prompt.")
@prompt_model_option
@column_options
@model_options
@json_option
def prune() -> None:
    """Take virtual tokens out of a prompt while validation stays within a tolerance; save the shorter one.

    PROMPT is its folder, or STORE#NAME@VERSION or STORE#NAME@ALIAS in a store; the new prompt names it as its parent.
    """


@verb("similar", "analyze_command:run_similar", "store.similarity.rank_similar")
@click.argument("prompt_folder", type=GIVEN, metavar="PROMPT")
@click.option("--store", required=True, type=PLACE, help="Folder that holds saved prompts.")
@json_option
def similar() -> None:
    """Rank saved prompts by their similarity to PROMPT.

    A prompt of a similar task is a good start for another (Vu et al. 2022). Looks at every saved prompt below --store
    that was learned on the same base model; nothing is loaded but the prompts.
    """


@verb("eval", "evaluate_command:run_eval", "evaluate")
@click.argument("prompt_folder", type=GIVEN, required=False, metavar="[PROMPT]")
@data_option()
@click.option("--split", default="test", show_default=True, help="train, validation, test or all.")
@click.option("--limit", type=click.IntRange(min=1), help="Only this many examples, drawn, each label in proportion.")
@prompt_model_option
@task_options
@click.option("--instruction", type=WORDS, default="", help="Without a saved prompt: words in front.")
@click.option("--shots", type=click.IntRange(min=0), default=0, help="Without a saved prompt: examples in front.")
@click.option("--seed", default=0, help="Of what --limit draws; without a saved prompt, of --shots too.")
@room_option
@vote_option
@metric_option
@column_options
@model_options
@device_map_option
@json_option
def evaluate_command() -> None:
    """Score a prompt, saved or written, on data.

    PROMPT is its folder, or STORE#NAME@VERSION or STORE#NAME@ALIAS in a store.
    """


@verb("monitor", "analyze_command:run_monitor", "analysis.drift.monitor.monitor")
@click.option("--samples", type=PLACE, required=True, metavar="FILE", help="What serve --sample-file wrote.")
@click.option("--store", type=GIVEN, help="Folder or URL of the store that was served.")
@click.option(
    "--prompt", "prompts", type=GIVEN, multiple=True, metavar="[NAME=]FOLDER", help="A saved prompt, or more, instead."
)
@click.option("--since", type=GIVEN, metavar="SPAN", help="Only samples of the last 7d, 12h or 30m.")
@data_option("What a prompt saved without a profile was learned on.", required=False)
@click.option("--model", "model_name", type=GIVEN, help="The base model; then hidden states are compared too.")
@click.option("--report", type=PLACE, metavar="FILE", help="Write a page, complete in one file.")
@click.option("--fail-on-drift", is_flag=True, help=f"End with exit code {DRIFT} if a prompt drifts.")
@column_options
@model_options
@json_option
def monitor_command() -> None:
    """Tell which prompts get other texts than they were measured on.

    Compares samples of live requests with the profile that each prompt was saved with (docs/how-to/monitor.md).
    """


@verb("predict", "evaluate_command:run_predict", "Predictor")
@click.argument("prompt_folder", type=GIVEN, metavar="PROMPT")
@click.argument("texts", nargs=-1)
@prompt_model_option
@click.option("--max-new-tokens", type=int, help="Of a completion.  [default: 128, or as learned]")
@click.option("--temperature", default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-p", default=1.0, show_default=True, help="Sample among the likeliest with this probability.")
@click.option("--top-k", default=0, show_default=True, help="Sample among this many likeliest, 0: all.")
@click.option("--stop", type=WORDS, multiple=True, help="A string that ends a completion. Repeatable.")
@click.option("--seed", default=0, show_default=True, help="Of sampling.")
@bad_rows_option
@vote_option
@model_options
@device_map_option
@json_option
def predict() -> None:
    """Answer texts, or JSONL on standard input.

    PROMPT is its folder, or STORE#NAME@VERSION or STORE#NAME@ALIAS in a store.

    A row of JSONL has "text", or the column that the prompt learned from, and whatever other columns the template
    uses.

    From standard input, answers stream out as JSONL, in the same order, as soon as rows arrive. Otherwise a line for
    each text. With --json all answers come at the end, in one object.
    """
