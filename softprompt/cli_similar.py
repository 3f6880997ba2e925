"""``softprompt similar``: which saved prompts are good starts for the task of another."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softprompt.cli_common import GIVEN, PLACE, json_option, print_result
from softprompt.shown import brief

if TYPE_CHECKING:
    from softprompt.similar import Similar
    from softprompt.store import Prompt

WIDEST = 48  # characters of labels, template and init in a line for people


@click.command()
@click.argument("prompt_folder", type=GIVEN, metavar="PROMPT")
@click.option("--store", required=True, type=PLACE, help="Folder that holds saved prompts.")
@json_option
def similar(prompt_folder: str, store: Path, as_json: bool) -> None:
    """Rank saved prompts by their similarity to PROMPT.

    A prompt of a similar task is a good start for another (Vu et al. 2022). Looks at every saved prompt below --store
    that was learned on the same base model; nothing is loaded but the prompts.
    """
    from softprompt.similar import rank_similar
    from softprompt.store import load_prompt

    prompt = load_prompt(prompt_folder)
    found = rank_similar(prompt, store)
    best = next((one for one in found if one.start), None)
    command = None if best is None else _command(prompt, best)
    lines = _lines(prompt_folder, prompt, found)
    if best is not None:
        lines += [f"to start from {best.folder}, with your DATA, OUT, --template and --labels:", f"  {command}"]
    result = {
        "prompt": prompt_folder,
        "store": str(store),
        "base": prompt.base_name,
        "kind": prompt.states[0].kind,
        "ranked": [one.to_dict() for one in found if one.reason is None],
        "not_comparable": [one.to_dict() for one in found if one.reason is not None],
        "command": command,
    }
    print_result(result, lines, as_json)


def _command(prompt: "Prompt", best: "Similar") -> str:
    """The command that learns on ``prompt``'s base, starting from ``best``."""
    return shlex.join(
        ["softprompt", "train", "--model", prompt.base_name, "--data", "DATA", "--out", "OUT", *best.start]
    )


def _lines(prompt_folder: str, prompt: "Prompt", found: Sequence["Similar"]) -> list[str]:
    from softprompt.report_text import table

    ranked = [one for one in found if one.reason is None]
    spec, init = prompt.spec, str(prompt.training.get("init", "-"))
    lines = [
        f"{prompt_folder}: labels {_labels(spec.labels)}; template {_cut(repr(spec.template))}; init {_cut(init)}",
        "",
    ]
    if ranked:
        figures = [("prompt", "average tokens", "per token", "same start", "validation [95% interval]")]
        figures += [
            (
                f"{one.folder}" + (f" (ensemble of {one.members})" if one.members != 1 else ""),
                f"{one.average_tokens:.3f}",
                f"{one.per_token:.3f}",
                {True: "yes", False: "no", None: "?"}[one.same_start],
                _validation(one.validation),
            )
            for one in ranked
        ]
        tasks = [("prompt", "labels", "template", "init")]
        tasks += [
            (str(one.folder), _labels(one.spec.labels), _cut(repr(one.spec.template)), _cut(one.init or "-"))
            for one in ranked
            if one.spec is not None
        ]
        lines += [
            *table(figures),
            "",
            *table(tasks),
            "",
            "same start: began at the same words or numbers, hence alike for that reason too; ? where it is not known",
        ]
    else:
        lines.append("none can be compared with it")
    if rest := [one for one in found if one.reason is not None]:
        lines += ["not comparable:", *(f"  {one.folder}: {one.reason}" for one in rest)]
    if any(not one.start for one in ranked):
        lines.append("an ensemble cannot be a start: training starts from a single prompt")
    return lines


def _labels(labels: Sequence[str]) -> str:
    return _cut(", ".join(labels)) or "-"


def _cut(text: str) -> str:
    return brief(text, WIDEST)


def _validation(metric: Mapping[str, Any] | None) -> str:
    from softprompt.report_text import figure

    try:
        return "-" if metric is None else f"{metric['metric']} {figure(metric)} n={metric['n']:,}"
    except (KeyError, TypeError, ValueError):
        return "-"
