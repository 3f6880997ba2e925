"""``softprompt doctor``: what softprompt can do with a model, or with each family of models."""

from typing import Any

import click

from softprompt.cli_common import GIVEN, json_option, load_base, model_options, print_result, say
from softprompt.errors import ConfigError


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

    from softprompt.doctor import diagnose, diagnosis_lines, families_markdown, families_table

    if model_name is None:
        logging.set_verbosity_error()
        rows = families_table(say, device)
        print_result({"families": [row.to_dict() for row in rows]}, families_markdown(rows), as_json)
        return
    base = load_base(model_name, model)
    say("measuring")
    diagnosis = diagnose(base)
    print_result(diagnosis.to_dict(), diagnosis_lines(diagnosis), as_json)
