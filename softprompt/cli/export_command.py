"""``export`` and ``import``: prompts in the formats of others."""

import re
from pathlib import Path
from typing import Any

from softprompt.cli.base_loading import defer_base, load_base_of
from softprompt.cli.console import say
from softprompt.cli.option_values import parse_task_settings, pop_column_options, pop_model_options
from softprompt.cli.printing import print_result
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import ConfigError
from softprompt.export.export_formats import FORMATS
from softprompt.export.prompt_exchange import check_export, export_prompt, import_prompt, recognize_format
from softprompt.models.deferred_base import BaseCheck, DeferredBase
from softprompt.models.frozen_lm import FrozenLM
from softprompt.report.pages.training_page import make_import_document
from softprompt.store.prompt_loading import load_prompt
from softprompt.utils.files import check_free


def run_export(
    prompts: tuple[str, ...],
    form: str,
    out: Path,
    model_name: str | None,
    gguf: Path | None,
    tied: bool,
    as_json: bool,
    **model: Any,
) -> None:
    # what is quickly checked comes before what takes long
    check_export(form, len(prompts), out, gguf, tied=tied)
    folders, target = _name_prompts(prompts), FORMATS[form]
    named = {name: load_prompt(folder) for name, folder in folders.items()}

    def load(_: BaseCheck) -> FrozenLM:
        first = next(iter(named.values()))
        # weights are quantized from the precision that they are saved in, and would be others from another one
        plain = first.quantization is None and model["quantize"] is None
        dtype = model["dtype"] or (target.dtype if plain else "saved")
        return load_base_of(first, model_name, {**model, "dtype": dtype}, fixed=target.dtype not in ("saved", None))

    facts = export_prompt(DeferredBase(load), named, out, format=form, gguf=gguf, tied=tied)
    states = [prompt.state for prompt in named.values()]
    which: dict[str, Any] = {"prompts": folders} if target.several else {"prompt": prompts[0]}
    sizes = {"length": sum(state.length for state in states), "size": states[0].tensors[0].shape[-1]}
    lines = [f"{sizes['length']} virtual tokens of {sizes['size']} written to {out}"]
    lines += [f"{key.replace('_', ' ')}: {_format_fact(value)}" for key, value in facts.items()]
    print_result({**which, "format": form, "out": str(out), **sizes, **facts}, lines, as_json)


def run_import(
    source: Path,
    form: str | None,
    model_name: str,
    out: Path,
    data: str | None,
    template: str | None,
    labels: str | None,
    verbalizer: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    model, columns = pop_model_options(options), pop_column_options(options)
    if columns and data is None:
        raise ConfigError("--text-column, --label-column and --target-column are for --data: give it too")
    # what is quickly checked comes before what takes long
    check_free(out)
    settings = parse_task_settings(template, labels, verbalizer)
    task: Task | TaskSpec | None = TaskSpec.of(**settings) if settings else None
    if data is not None:
        task = Task.of(data, **settings, **columns)
        for note in task.splits.notes:
            say(note)
    form = form or recognize_format(source)
    if FORMATS[form].dtype != "saved" and model["quantize"] is None:
        model["dtype"] = model["dtype"] or FORMATS[form].dtype
    prompt = import_prompt(defer_base(model_name, model), source, format=form, task=task)
    prompt.save(out)
    result = {"prompt": str(out), **{key: prompt.manifest()[key] for key in ("length", "metrics", "training")}}
    print_result(result, make_import_document(prompt, out), as_json)


def _name_prompts(references: tuple[str, ...]) -> dict[str, str]:
    """Folders by name: that of the folder without its version, or the one in front of ``=``."""
    named: dict[str, str] = {}
    for reference in references:
        name, equals, folder = reference.partition("=")
        # a folder's own name may have an equals sign in it
        if not equals or not re.fullmatch(r"[\w.-]+", name) or Path(reference).exists():
            name, folder = Path(reference).name.rpartition("#")[2].partition("@")[0], reference
        if name in named:
            raise ConfigError(f"two prompts are called '{name}': name one of them, as in other={folder}")
        named[name] = folder
    return named


def _format_fact(value: Any) -> str:
    return ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else str(value)
