"""The command line: one command a verb. Results go to stdout, everything else to stderr.

Exit code 0 is success, 2 a mistake in what the user gave (one line says which), 1 a failure of ours.
"""

import errno
import io
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softprompt import __version__
from softprompt.cli.compare_command import compare, scale
from softprompt.cli.diagnose_command import doctor, plan_command
from softprompt.cli.distill_command import distill
from softprompt.cli.export_command import export, import_command
from softprompt.cli.inspect_command import inspect_command, prune, similar
from softprompt.cli.launch import check_spreads, hush, is_main, over_processes
from softprompt.cli.monitor_command import monitor_command
from softprompt.cli.multitask_command import multitask
from softprompt.cli.options import (
    GIVEN,
    LABEL_NAMES,
    LABEL_WORDS,
    PLACE,
    SETTING_WORDS,
    WORDS,
    bounded,
    column_options,
    columns_of,
    compile_option,
    device_map_option,
    json_option,
    load_base,
    load_base_of,
    make_callback,
    metric_option,
    model_of,
    model_options,
    pairs,
    print_result,
    room_option,
    run_options,
    say,
    task_settings,
    vote_option,
)
from softprompt.cli.predict_command import predict
from softprompt.cli.serve_command import keys, serve
from softprompt.cli.store_command import STORE_VERBS
from softprompt.cli.sweep_command import sweep
from softprompt.errors import ConfigError, SoftpromptError

if TYPE_CHECKING:
    from softprompt.inference.evaluation import Evaluation

# how to go on after an interruption
RESUMING = {
    **dict.fromkeys(("train", "multitask", "distill"), "; --resume goes on from the last checkpoint"),
    **dict.fromkeys(("compare", "scale", "sweep"), "; the same command again goes on"),
}


def main() -> None:
    """Entry point of ``softprompt``."""
    # closed by whoever started us; what is said is then said to nobody, not to the other stream
    sys.stdout, sys.stderr = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()
    hush()
    try:
        cli.main(prog_name="softprompt", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError:
        _fail(f"expected a verb, one of {', '.join(sorted(cli.commands))}; got none (softprompt --help explains)", 2)
    except click.ClickException as error:
        _fail(f"{error.format_message()} (softprompt {_verb()}--help explains)", 2)
    except SoftpromptError as error:
        _fail(str(error), 2)
    except (click.Abort, KeyboardInterrupt):
        _fail(f"interrupted{RESUMING.get(_verb().strip(), '')}", 130)
    except BrokenPipeError:
        # whoever read our output has closed it
        _drop_output()
        sys.exit(1)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            _drop_output()
            _fail("no space left to write the output: free some space", 2)
        if os.environ.get("SOFTPROMPT_TRACEBACK"):
            raise
        _fail(
            f"a failure of softprompt itself: {type(error).__name__}: {error} (SOFTPROMPT_TRACEBACK=1 shows where)", 1
        )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="softprompt")
@click.pass_context
def cli(context: click.Context) -> None:
    """Learn a few virtual tokens for a task on a frozen language model, see what they gain, use them."""
    check_spreads(context.invoked_subcommand)


@cli.command()
@click.option("--out", type=PLACE, default="prompts", show_default=True, help="Folder, the prompt in one of its own.")
@click.option("--steps", type=click.IntRange(min=1), help="Optimiser steps.  [default: 300]")
@model_options
@json_option
def demo(out: Path, steps: int | None, as_json: bool, **model: Any) -> None:
    """Learn on the embedded model and data, in minutes.

    A frozen Gemma 3 270M reads movie reviews: first with a written prompt, then with a prompt that it learns.
    """
    from softprompt.data.task import Task
    from softprompt.experiments.demo import STEPS, TEMPLATE, free_folder, run_demo
    from softprompt.models.builtin_models import MODEL_NAME, rotten_tomatoes
    from softprompt.report.pages.training_text import demo_lines
    from softprompt.utils.files import check_free

    folder = free_folder(out, "demo")
    check_free(folder)
    task = Task.classification(rotten_tomatoes(), template=TEMPLATE)
    base = load_base(MODEL_NAME, model)
    result = run_demo(base, task, folder, make_callback(as_json), say, steps or STEPS)
    print_result(result.to_dict(), demo_lines(result), as_json)


@cli.command()
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
@over_processes
def train(
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
    tensorboard: Path | None,
    sharding: str | None,
    streaming: bool,
    no_test: bool,
    example: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Learn a prompt from data and save it."""
    from softprompt.config import TrainConfig, population
    from softprompt.report.pages.training_text import training_lines

    model, columns = {**model_of(settings), "sharding": sharding}, columns_of(settings)
    settings["method_options"] = pairs("--method-option", method_option, "NAME=VALUE", "encoder=lstm") or None
    chosen = TrainConfig.load(config, **settings) if config else TrainConfig.build(**settings)
    members = population(chosen, seeds, grid or "")
    if ensemble and len(members) == 1:
        raise ConfigError("--ensemble keeps several prompts, expected --seeds or --grid beside it")

    from softprompt.data.task import Task
    from softprompt.data.templates.template import reader_options
    from softprompt.prompts.methods.method_registry import check_method
    from softprompt.training.fit import check_out, fit_together
    from softprompt.training.initialization import check_init, check_init_base, check_init_fits
    from softprompt.training.loop import check_together, check_trainable

    # what is quickly checked comes before what takes long
    for member in members.values():
        check_method(member.method, member.method_options)
        check_init(member.init)
    check_together(members, sharded=sharding is not None)
    if is_main():
        check_out(out, resume=resume, restart=restart)
    callback = make_callback(as_json, tensorboard)
    source: Any = data
    if streaming:
        from softprompt.data.streaming import read_streamed

        source, columns = read_streamed(data, **reader_options(template, columns.get("text_column")), **columns), {}
    task = Task.of(
        source, max_length=chosen.max_length, **task_settings(template, labels, verbalizer, metric), **columns
    )
    task = task.with_room(max_new_tokens)
    check_trainable(task)
    for member in members.values():
        check_init_fits(member.init, task.spec)
    base = load_base(model_name, model, partial(check_init_base, [member.init for member in members.values()]))
    prompt = fit_together(
        base,
        task,
        members,
        ensemble=ensemble,
        out=out,
        callback=callback,
        resume=resume,
        restart=restart,
        evaluate_test=not no_test,
        example=example,
    )
    result = {
        "prompt": str(out),
        **{key: prompt.manifest()[key] for key in ("method", "length", "metrics", "training")},
    }
    print_result(result, training_lines(prompt, out), as_json)


@cli.command(name="eval")
@click.argument("prompt_folder", type=GIVEN, required=False, metavar="[PROMPT]")
@click.option("--data", type=GIVEN, required=True, help="As for train.")
@click.option("--split", default="test", show_default=True, help="train, validation, test or all.")
@click.option("--limit", type=click.IntRange(min=1), help="Only this many examples, drawn, each label in proportion.")
@click.option("--model", "model_name", type=GIVEN, help="The base model.  [default: the one the prompt was learned on]")
@click.option("--template", type=WORDS, help="Without a saved prompt: the template.")
@click.option("--labels", type=LABEL_NAMES, help="Without a saved prompt: as for train.")
@click.option(
    "--verbalizer", type=LABEL_WORDS, multiple=True, metavar="LABEL=WORDS", help="Without a saved prompt: as for train."
)
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
def evaluate_command(
    prompt_folder: str | None,
    data: str,
    split: str,
    limit: int | None,
    model_name: str | None,
    template: str | None,
    labels: str | None,
    verbalizer: tuple[str, ...],
    instruction: str,
    shots: int,
    seed: int,
    max_new_tokens: int | None,
    vote: Any,
    metric: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Score a prompt, saved or written, on data.

    PROMPT is its folder, or STORE#NAME@VERSION or STORE#NAME@ALIAS in a store.
    """
    from softprompt.data.split_assignment import Subsample, sample_examples
    from softprompt.data.task import Task
    from softprompt.report.pages.training_text import evaluation_lines

    model, columns = model_of(options), columns_of(options)
    if prompt_folder is None and model_name is None:
        raise ConfigError("expected a saved prompt, or --model for the written prompt; got neither")
    if prompt_folder is not None and (template or labels or verbalizer or instruction or shots):
        raise ConfigError(
            "--template, --labels, --verbalizer, --instruction and --shots are for the written prompt: "
            "leave them or PROMPT out"
        )
    if prompt_folder is not None:
        from softprompt.store.prompt_loading import load_prompt

        prompt = load_prompt(prompt_folder).judged_by(metric)
        task = Task.matching(prompt.spec, data, **columns)
    else:
        task = Task.of(data, **task_settings(template, labels, verbalizer, metric), **columns)
    whole = task.splits[split]
    examples = sample_examples(whole, limit, seed)

    from softprompt.inference.evaluation import evaluate
    from softprompt.inference.generation import Sampling
    from softprompt.prompts.written_prompt import choose_shots, written_prompt

    sampling = None if max_new_tokens is None else Sampling(max_new_tokens=max_new_tokens)
    examples_in_front = choose_shots(task.train, shots, seed)
    base = load_base(str(model_name), model) if prompt_folder is None else load_base_of(prompt, model_name, model)
    for note in task.splits.notes:
        say(note)
    result: Evaluation
    if prompt_folder is not None:
        result = evaluate(base, examples, prompt, sampling=sampling, vote=vote)
    else:
        state = written_prompt(base, task.spec, instruction, examples_in_front)
        result = evaluate(base, examples, state, spec=task.spec, sampling=sampling)
    result = replace(result, drawn=Subsample(len(examples), len(whole), seed))
    notes: dict[str, Any] = {}
    if prompt_folder is not None:
        from softprompt.store.learned_rows import read_learned

        same = prompt.data.get("fingerprint") == task.splits.fingerprint
        learned = read_learned(prompt_folder)
        known = None if learned is None else learned.among(examples)
        if not same:
            say("these are not the data that this prompt was learned on (another fingerprint)")
        if known is not None and (words := known.words(split)):
            say(words)
        notes = {"same_data": same, "known_rows": None if known is None else known.to_dict()}
        if precisions := prompt.precisions(base):
            notes["precision"] = precisions
    facts = {"prompt": prompt_folder, "model": base.name, "data": data, "split": split}
    print_result({**result.to_dict(), **facts, **notes}, evaluation_lines(result, facts), as_json)


for verb in (
    compare,
    distill,
    doctor,
    export,
    import_command,
    inspect_command,
    keys,
    multitask,
    plan_command,
    predict,
    prune,
    monitor_command,
    scale,
    serve,
    similar,
    sweep,
    *STORE_VERBS,
):
    cli.add_command(verb)
for verb in cli.commands.values():
    bounded(verb)


def _verb() -> str:
    return f"{sys.argv[1]} " if len(sys.argv) > 1 and sys.argv[1] in cli.commands else ""


def _drop_output() -> None:
    # what could not be written is still in the buffer; keep the interpreter from trying again at exit
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> None:
    say(f"error: {' '.join(message.split())}")
    sys.exit(code)
