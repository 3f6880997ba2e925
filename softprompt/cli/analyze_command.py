"""``inspect``, ``prune``, ``similar`` and ``monitor``: what prompts have learned, and what they meet."""

import shlex
import sys
import time
from pathlib import Path
from typing import Any

from softprompt.analysis.drift.monitor import monitor
from softprompt.analysis.inspection.inspect_prompt import InspectionLimits, inspect
from softprompt.analysis.inspection.pruning import check_prunable, prune
from softprompt.analysis.inspection.score_records import judging_metric
from softprompt.cli.base_loading import load_base_of
from softprompt.cli.console import say
from softprompt.cli.option_values import pop_column_options, pop_model_options
from softprompt.cli.printing import print_result
from softprompt.data.task import Task
from softprompt.data.templates.template import Template
from softprompt.errors import ConfigError, OutputError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.report.pages.drift_page import make_drift_document
from softprompt.report.pages.inspection_page import make_inspection_document, make_pruning_document
from softprompt.report.pages.store_page import make_similar_document
from softprompt.report.report_files import write_page
from softprompt.serving.request_log.request_records import parse_span
from softprompt.serving.request_log.sample_files import read_samples
from softprompt.store.prompt_loading import load_prompt
from softprompt.store.prompt_sources import FolderSource, StoreSource
from softprompt.store.similarity import SimilarPrompt, rank_similar
from softprompt.utils.files import check_free

DRIFT = 3  # exit code: 1 is a failure of ours, 2 a mistake in what was given


def run_inspect(
    prompt_place: str,
    data: str,
    against: str | None,
    served_template: str | None,
    among: Path | None,
    limit: int | None,
    train_rows: int | None,
    metric: str | None,
    html: Path | None,
    model_name: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    model, columns = pop_model_options(options), pop_column_options(options)
    if against is not None and options["instruction"] is not None:
        raise ConfigError("--against and --instruction exclude each other: give the one to compare with")
    if html is not None and html.is_dir():
        raise OutputError(f"'{html}' is a folder: give --html the name of a file")
    # what is quickly checked comes before what takes long
    prompt = load_prompt(prompt_place).judged_by(metric)
    judging_metric(prompt.spec)
    other = None if against is None else load_prompt(against)
    if served_template is not None:
        Template(served_template, prompt.spec.columns.text)
    if among is not None:
        rank_similar(prompt, among)
    task = Task.matching(prompt.spec, data, **columns)
    if options["split"] is not None:
        _ = task.splits[options["split"]]

    for note in task.splits.notes:
        say(note)
    found = inspect(
        load_base_of(prompt, model_name, model),
        prompt,
        task,
        place=prompt_place,
        against=None if other is None else (str(against), other),
        served_template=served_template,
        among=among,
        limits=InspectionLimits.of(limit, train_rows),
        progress=say,
        **options,
    )
    document = make_inspection_document(found)
    if html is not None:
        write_page(document, html)
        say(f"page written to {html}")
    print_result(found.model_dump(mode="json"), document, as_json)


def run_prune(
    prompt_place: str,
    data: str,
    tolerance: float,
    metric: str | None,
    out: Path,
    model_name: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    model, columns = pop_model_options(options), pop_column_options(options)
    check_free(out)
    prompt = load_prompt(prompt_place).judged_by(metric)
    check_prunable(prompt)
    task = Task.matching(prompt.spec, data, **columns)

    base = load_base_of(prompt, model_name, model)
    for note in task.splits.notes:
        say(note)
    shorter, report = prune(base, prompt, task, tolerance=tolerance, place=prompt_place, progress=say)
    shorter.save(out)
    result = {"prompt": str(out), "parent": shorter.parent, "length_before": prompt.length, **report.model_dump()}
    print_result(result, make_pruning_document(report, prompt.length, out), as_json)


def run_similar(prompt_folder: str, among: Path, as_json: bool) -> None:
    prompt = load_prompt(prompt_folder)
    found = rank_similar(prompt, among)
    best = next((one for one in found if one.start), None)
    command = None if best is None else _command(prompt, best)
    result = {
        "prompt": prompt_folder,
        "among": str(among),
        "base": prompt.base_name,
        "kind": prompt.states[0].kind,
        "ranked": [one.to_dict() for one in found if one.reason is None],
        "not_comparable": [one.to_dict() for one in found if one.reason is not None],
        "command": command,
    }
    print_result(result, make_similar_document(prompt_folder, prompt, found, best, command or ""), as_json)


def _command(prompt: "Prompt", best: "SimilarPrompt") -> str:
    """The command that learns on ``prompt``'s base, starting from ``best``."""
    return shlex.join(
        ["softprompt", "train", "--model", prompt.base_name, "--data", "DATA", "--out", "OUT", *best.start]
    )


def run_monitor(
    sample_file: Path,
    store: str | None,
    prompts: tuple[str, ...],
    since: str | None,
    data: str | None,
    model_name: str | None,
    html: Path | None,
    fail_on_drift: bool,
    as_json: bool,
    **options: Any,
) -> None:
    chosen, columns = pop_model_options(options), pop_column_options(options)
    if (store is None) == (not prompts):
        got = "neither" if store is None else "both"
        raise ConfigError(f"expected a store or saved prompts, got {got}: give --store or --prompt")
    if columns and data is None:
        raise ConfigError("--text-column, --label-column and --target-column are for --data: give it too")
    if html is not None and html.is_dir():
        raise OutputError(f"'{html}' is a folder: give --html the name of a file")
    begins = 0.0 if since is None else time.time() - parse_span(since, "--since")
    read = read_samples(sample_file, begins)

    found = monitor(
        read,
        FolderSource(prompts) if store is None else StoreSource(store),
        place=str(sample_file),
        since=begins,
        data=data,
        columns=columns,
        model=_Models(model_name, chosen),
        states=model_name is not None,
        progress=say,
    )
    if html is not None:
        write_page(make_drift_document(found), html)
        say(f"page written to {html}")
    print_result(found.model_dump(mode="json"), make_drift_document(found), as_json)
    if fail_on_drift and found.drifting:
        sys.exit(DRIFT)


class _Models:
    """Base models of prompts, each loaded once."""

    def __init__(self, name: str | None, options: dict[str, Any]) -> None:
        """``name``: of the one to take for all."""
        self._name, self._options = name, options
        self._loaded: dict[tuple[str, str | None], FrozenLM] = {}

    def __call__(self, prompt: "Prompt") -> "FrozenLM":
        which = self._name or prompt.base_name, prompt.quantization
        if which not in self._loaded:
            self._loaded[which] = load_base_of(prompt, self._name, self._options)
        return self._loaded[which]
