"""What fits: ``doctor`` tries a model's architecture, ``plan`` estimates the memory of a run."""

import os
import re
from typing import Any

import click

from softprompt.cli.options import GIVEN, json_option, load_base, model_options, print_result, say
from softprompt.errors import ConfigError

_UNITS = {"": 10**9, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


LEAST_MEMORY, MOST_MEMORY = 10**8, 10**15  # bytes; what is beyond is a slip


def bytes_of(text: str) -> int:
    """Bytes of a size as ``80GB`` or ``24GiB``, or ``80``, which are GB; raises ConfigError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if (
        found is None
        or found[2].upper() not in _UNITS
        or (size := round(float(found[1]) * _UNITS[found[2].upper()])) < 1
    ):
        raise ConfigError(f"--gpu-memory '{text}': expected a size, as in 80GB or 24GiB")
    if not LEAST_MEMORY <= size <= MOST_MEMORY:
        raise ConfigError(
            f"--gpu-memory '{text}' is {size / 1e9:.3g} GB: expected 0.1 GB to a petabyte, with its unit, as in 80GB"
        )
    return size


@click.command(name="plan")
@click.option(
    "--model", "model_name", type=GIVEN, required=True, help="Hub name, folder, .gguf file or embedded:gemma-3-270m."
)
@click.option("--gpus", type=click.IntRange(min=0), required=True, help="GPUs of the machine; 0: its processor.")
@click.option(
    "--gpu-memory",
    type=GIVEN,
    help="Of one GPU, or with --gpus 0 of the machine, in GB if no unit is given.  [default: 80GB; all of it]",
)
@click.option("--length", type=int, help="Virtual tokens.  [default: 100]")
@click.option("--method", help="As for train.  [default: prompt-tuning]")
@click.option("--batch-size", type=int, help="Examples per step.  [default: 16]")
@click.option(
    "--text-length", type=int, help="Tokens of template and text of an example, answer counted.  (default: 128)"
)
@click.option("--tasks", type=click.IntRange(min=1), help="Prompts to serve.  (default: 1000)")
@click.option("--generation", is_flag=True, help="The prompts complete texts, and do not label them.")
@click.option("--dtype", help="float32, bfloat16 or float16.  (default: bfloat16)")
@click.option("--sharding", help="fsdp or none.  (default: fsdp where one GPU does not hold the model)")
@click.option("--quantise", help="int8 (torchao), bnb-int8 or bnb-nf4 (bitsandbytes).")
@click.option("--gradient-checkpointing", is_flag=True, help="Save memory by computing layers twice.")
@click.option("--trust-remote-code", is_flag=True, help="Let the model's repository run its own code.")
@json_option
def plan_command(
    model_name: str,
    gpus: int,
    gpu_memory: str | None,
    gradient_checkpointing: bool,
    trust_remote_code: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Tell what memory a prompt and its model need.

    Reads the model's configuration, no weights: so a model of any size is planned for in seconds, on any machine.
    Each part is shown with its formula. docs/scaling.md has how near the figures come to measured ones.
    """
    from softprompt.analysis.diagnostics.memory_estimate import Wish, lines
    from softprompt.analysis.diagnostics.memory_plan import plan
    from softprompt.analysis.diagnostics.meta_model import skeleton
    from softprompt.models.devices import dtype_of

    if gpu_memory is not None:
        memory = bytes_of(gpu_memory)
    else:
        memory = 80 * 10**9 if gpus else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    given = {name: value for name, value in options.items() if value is not None}
    wish = Wish(gpus=gpus, memory=memory, checkpointing=gradient_checkpointing, **given)
    wish.check()
    made = plan(skeleton(model_name, dtype_of(wish.dtype or "bfloat16"), trust_remote_code=trust_remote_code), wish)
    print_result(made.to_dict(), list(lines(made)), as_json)


@click.command()
@click.option("--model", "model_name", type=GIVEN, help="Hub name, folder, .gguf file or embedded:gemma-3-270m.")
@click.option("--families", is_flag=True, help="A tiny model of every known family instead, as a Markdown table.")
@model_options
@json_option
def doctor(model_name: str | None, families: bool, as_json: bool, **model: Any) -> None:
    """Measure what softprompt can do with a model.

    Every way to put a prompt in front of texts (padded, shared, mixed, cached, as keys and values) is compared with
    plain concatenation through the model's own forward pass, logits and gradient. --dtype float32 shows fine faults
    too; other types round. The families are measured on the CPU unless --device names another.
    """
    if families == (model_name is not None):
        got = "both" if families else "neither"
        raise ConfigError(f"expected --model NAME or --families; got {got}: give one of them")
    device = model["device"] or "cpu"
    if families and any(value for name, value in model.items() if name != "device"):
        raise ConfigError("--dtype, --quantise and --trust-remote-code are for --model: leave them out with --families")

    from transformers.utils import logging

    from softprompt.analysis.diagnostics.doctor import diagnose, diagnosis_lines, families_markdown, families_table

    if model_name is None:
        logging.set_verbosity_error()
        rows = families_table(say, device)
        print_result({"families": [row.to_dict() for row in rows]}, families_markdown(rows), as_json)
        return
    base = load_base(model_name, model)
    say("measuring")
    diagnosis = diagnose(base)
    print_result(diagnosis.to_dict(), diagnosis_lines(diagnosis), as_json)
