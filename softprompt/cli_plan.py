"""``softprompt plan``: what training and serving need in memory, before any weight is loaded."""

import os
import re
from typing import Any

import click

from softprompt.cli_common import GIVEN, json_option, print_result
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
    from softprompt.device import dtype_of
    from softprompt.plan import plan
    from softprompt.plan_parts import Wish, lines
    from softprompt.skeleton import skeleton

    if gpu_memory is not None:
        memory = bytes_of(gpu_memory)
    else:
        memory = 80 * 10**9 if gpus else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    given = {name: value for name, value in options.items() if value is not None}
    wish = Wish(gpus=gpus, memory=memory, checkpointing=gradient_checkpointing, **given)
    wish.check()
    made = plan(skeleton(model_name, dtype_of(wish.dtype or "bfloat16"), trust_remote_code=trust_remote_code), wish)
    print_result(made.to_dict(), list(lines(made)), as_json)
