"""Declares the verbs that tell how good prompts are, what they have learned, and what fits."""

from collections.abc import Callable

import click

from softprompt.cli.verbs.lazy_verbs import verb
from softprompt.cli.verbs.options import (
    GIVEN,
    PLACE,
    WORDS,
    Command,
    among_option,
    bad_rows_option,
    column_options,
    combine_options,
    data_option,
    device_map_option,
    dtype_option,
    html_option,
    instruction_option,
    json_option,
    limit_option,
    metric_option,
    model_name_option,
    model_options,
    out_option,
    prompts_option,
    quantize_option,
    remark,
    room_option,
    sample_file_option,
    seed_option,
    seeds_option,
    setting_options,
    sharding_option,
    shots_option,
    split_option,
    stop_option,
    store_option,
    task_options,
    tolerance_option,
    track_option,
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
        data_option("with a test split"),
        click.option(
            "--methods",
            type=GIVEN,
            default=methods,
            help=remark("Comma-separated; docs/how-to/compare.md lists them.", default=methods),
        ),
        seeds_option(1000, 3, "runs of each method"),
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
        out_option("a folder; a second run goes on there"),
        instruction_option("of zero-shot and few-shot"),
        task_options,
        column_options,
        metric_option,
        room_option(),
    )


@verb(
    "compare",
    "experiment_command:run_compare",
    "compare",
    first=("model_name", "data", "out", "methods", "seeds", "steps", "budget", "template", "labels", "instruction"),
)
@model_name_option(required=True)
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
@track_option
@json_option
def compare() -> None:
    """Measure every method on a task, recommend one.

    Same splits, same steps or time, several seeds; results land one by one, and a second run goes on.
    """


@verb(
    "scale",
    "experiment_command:run_scale",
    "experiments.comparison.model_sizes.compare_sizes",
    first=("models", "data", "out", "methods", "seeds", "steps", "budget", "template", "labels", "instruction"),
)
@click.option("--models", type=GIVEN, required=True, metavar="A,B,C", help="Base models, each as for train.")
@study_options(SCALED)
@model_options
@json_option
def scale() -> None:
    """Compare methods over models of several sizes.

    How the gap between the first method and the others changes with the size of the model. A comparison on each
    model, in a folder of its own below --out; a second run goes on.
    """


@verb("plan", "diagnose_command:run_plan", "analysis.diagnostics.memory_plan.plan_memory")
@model_name_option("its configuration is read, no weights", required=True)
@click.option("--gpus", type=click.IntRange(min=0), required=True, help="GPUs of the machine; 0: its processor.")
@click.option(
    "--gpu-memory",
    type=GIVEN,
    help="Of one GPU, or with --gpus 0 of the machine, in GB if no unit is given.  [default: 80GB; all of it]",
)
@setting_options(TrainConfig, only=["length", "method", "batch_size", "gradient_checkpointing"])
@click.option(
    "--text-length", type=int, help="Tokens of template and text of an example, answer counted.  [default: 128]"
)
@click.option("--tasks", type=click.IntRange(min=1), help="Prompts to serve.  [default: 1000]")
@click.option("--generation", is_flag=True, help="The prompts complete texts, and do not label them.")
@dtype_option("bfloat16")
@sharding_option("or none", "fsdp where one GPU does not hold the model")
@quantize_option
@trust_option
@json_option
def plan_command() -> None:
    """Tell what memory a prompt and its model need.

    Reads the model's configuration, no weights: so a model of any size is planned for in seconds, on any machine.
    Each part is shown with its formula. docs/results/scaling.md has how near the figures come to measured ones.
    """


@verb("doctor", "diagnose_command:run_doctor", "analysis.diagnostics.doctor.diagnose")
@model_name_option()
@click.option("--families", is_flag=True, help="A tiny model of every known family instead, as a Markdown table.")
@model_options
@json_option
def doctor() -> None:
    """Measure what softprompt can do with a model.

    Every way to put a prompt in front of texts (padded, shared, mixed, cached, as keys and values) is compared with
    plain concatenation through the model's own forward pass, logits and gradient. --dtype float32 shows fine faults
    too; other types round. The families are measured on the CPU unless --device names another.
    """


@verb(
    "inspect",
    "analyze_command:run_inspect",
    "inspect",
    first=("data", "html", "split", "limit", "against", "instruction", "served_template", "among", "metric"),
)
@click.argument("prompt_place", type=GIVEN, metavar="PROMPT")
@data_option("best the data that it was learned on")
@split_option(None, "test, else validation")
@click.option("--against", type=GIVEN, metavar="PROMPT", help="Another saved prompt, instead of the written one.")
@instruction_option(default="made of the labels")
@click.option("--served-template", type=WORDS, help="The template that is served, to be compared with the learned one.")
@among_option("how alike they are, and which would be a start")
@limit_option("of each question: a quicker look")
@click.option(
    "--train-rows", type=click.IntRange(min=1), help="Training rows to look for mislabelled ones in.  [default: 2000]"
)
@metric_option
@html_option()
@model_name_option(default="the one the prompt was learned on")
@column_options
@model_options
@json_option
def inspect_command() -> None:
    """What a prompt has learned, fixed and broken.

    And what is wrong with it, or with its data. PROMPT is its folder, or STORE#NAME@VERSION or STORE#NAME@ALIAS
    in a store. docs/how-to/inspect.md tells how to
    read the answers.
    """


@verb("prune", "analyze_command:run_prune", "prune")
@click.argument("prompt_place", type=GIVEN, metavar="PROMPT")
@data_option("its validation split decides")
@tolerance_option("on validation; of generation without --metric, in nats a token")
@metric_option
@out_option("a folder, for the shorter prompt")
@model_name_option(default="the one the prompt was learned on")
@column_options
@model_options
@json_option
def prune() -> None:
    """Make a prompt shorter, as far as validation allows.

    Takes virtual tokens out while the metric on validation stays within a tolerance, and saves the shorter prompt.

    PROMPT is its folder, or STORE#NAME@VERSION or STORE#NAME@ALIAS in a store; the new prompt names it as its parent.
    """


@verb("similar", "analyze_command:run_similar", "store.similarity.rank_similar")
@click.argument("prompt_folder", type=GIVEN, metavar="PROMPT")
@among_option(required=True)
@json_option
def similar() -> None:
    """Rank saved prompts by their similarity to PROMPT.

    A prompt of a similar task is a good start for another (Vu et al. 2022). Looks at every saved prompt below --among
    that was learned on the same base model; nothing is loaded but the prompts.
    """


@verb(
    "eval",
    "evaluate_command:run_eval",
    "evaluate",
    first=("data", "split", "limit", "model_name", "template", "labels", "instruction", "shots", "baseline", "metric"),
)
@click.argument("prompt_folder", type=GIVEN, required=False, metavar="[PROMPT]")
@data_option()
@split_option()
@limit_option()
@model_name_option(default="the one the prompt was learned on")
@task_options
@instruction_option("without a saved prompt")
@shots_option("without a saved prompt")
@seed_option("of --limit and --shots")
@room_option()
@vote_option
@metric_option
@click.option(
    "--baseline", is_flag=True, help="Score the written prompt too, to tell the gain of the saved one over it."
)
@column_options
@model_options
@device_map_option
@json_option
def evaluate_command() -> None:
    """Score a prompt, saved or written, on data.

    PROMPT is its folder, or STORE#NAME@VERSION or STORE#NAME@ALIAS in a store.
    """


@verb(
    "monitor",
    "analyze_command:run_monitor",
    "analysis.drift.monitor.monitor",
    first=("sample_file", "store", "prompts", "since", "html", "fail_on_drift", "data", "model_name"),
)
@sample_file_option()
@store_option("that was served")
@prompts_option()
@click.option("--since", type=GIVEN, metavar="SPAN", help="Only samples of the last 7d, 12h or 30m.")
@data_option("that a prompt saved without a profile was learned on", required=False)
@model_name_option("then hidden states are compared too")
@html_option()
@click.option("--fail-on-drift", is_flag=True, help=f"End with exit code {DRIFT} if a prompt drifts.")
@column_options
@model_options
@json_option
def monitor_command() -> None:
    """Tell which prompts get other texts than they know.

    Compares samples of live requests with the profile that each prompt was saved with (docs/how-to/monitor.md).
    """


@verb(
    "predict",
    "evaluate_command:run_predict",
    "Predictor",
    first=("model_name", "max_new_tokens", "temperature", "top_p", "top_k", "stop", "seed", "as_json"),
)
@click.argument("prompt_folder", type=GIVEN, metavar="PROMPT")
@click.argument("texts", nargs=-1)
@model_name_option(default="the one the prompt was learned on")
@room_option("128, or as learned")
@click.option("--temperature", default=0.0, show_default=True, help="Of sampling; 0 is greedy.")
@click.option("--top-p", default=1.0, show_default=True, help="Sample among the likeliest with this probability.")
@click.option("--top-k", default=0, show_default=True, help="Sample among this many likeliest, 0: all.")
@stop_option()
@seed_option("of sampling")
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
