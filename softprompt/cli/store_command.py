"""Verbs of the versioned store: ``list``, ``show``, ``push``, ``pull``, ``promote``, ``rollback``, ``diff``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from softprompt.cli.base_loading import load_base_of
from softprompt.cli.console import say
from softprompt.cli.option_values import drop_unset, pop_column_options, pop_model_options
from softprompt.cli.printing import print_result
from softprompt.config import GateConfig
from softprompt.data.examples import Example
from softprompt.data.task import Task
from softprompt.errors import ConfigError, GateError, StoreError
from softprompt.inference.gate import Gate
from softprompt.inference.generation import GenerationConfig
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.report.pages.store_page import (
    make_difference_document,
    make_move_document,
    make_names_document,
    make_verdict_document,
    make_version_document,
    make_versions_document,
)
from softprompt.report.pages.training_page import make_prompt_document
from softprompt.store import hub
from softprompt.store.learned_rows import read_learned
from softprompt.store.prompt_loading import load_prompt
from softprompt.store.references import LATEST, Reference, check_alias, check_name, is_reference, split_store
from softprompt.store.version_diff import compare_prompts
from softprompt.store.version_store import Store, read_saved_files
from softprompt.utils.files import check_free, write_folder


def run_list(store: str | None, name: str | None, as_json: bool) -> None:
    opened = Store(store)
    if name is None:
        names = opened.list()
        result: dict[str, Any] = {
            "names": {one.name: {"versions": list(one.numbers), "aliases": one.aliases} for one in names}
        }
        document = make_names_document(opened.url, names)
    else:
        versions, aliases = opened.versions(name), opened.aliases(name)
        manifests = {one.number: opened.manifest(str(one)) for one in versions}
        records = [one.model_dump(mode="json") | {"metrics": manifests[one.number]["metrics"]} for one in versions]
        result = {"name": name, "versions": records, "aliases": aliases}
        document = make_versions_document(versions, manifests, aliases)
    print_result({"store": opened.url, **result}, document, as_json)


def run_show(prompt_place: str, as_json: bool) -> None:
    prompt = load_prompt(prompt_place)
    result, document = prompt.manifest(), make_prompt_document(prompt)
    if is_reference(prompt_place):
        reference = Reference.parse(prompt_place)
        store = Store(reference.store)
        version = store.version(f"{reference.name}@{reference.which}")
        aliases = store.aliases(version.name)
        moves = aliases if reference.which == LATEST or reference.number else {reference.which: 0}
        history = [move for alias in moves for move in store.history(f"{version.name}@{alias}")]
        lineage = store.lineage(str(version))
        result["store"] = {
            "store": store.url,
            **version.model_dump(mode="json"),
            "aliases": [alias for alias, number in aliases.items() if number == version.number],
            "lineage": list(lineage),
            "history": [move.model_dump(mode="json") for move in history],
        }
        document = make_version_document(prompt, store.url, version, aliases, lineage, history)
    print_result(result, document, as_json)


def run_push(prompt_place: str, target: str, public: bool, as_json: bool) -> None:
    if hub.is_on_hub(target):
        commit = hub.push(read_saved_files(prompt_place), target, public=public)
        print_result({"prompt": prompt_place, **vars(commit)}, [f"pushed to {commit}"], as_json)
        return
    if public:
        raise ConfigError("--public is for hf:OWNER/NAME: leave it out")
    url, name = split_store(target)
    check_name(name)
    store = Store(url)
    version = store.put(prompt_place, name)
    result = {"prompt": prompt_place, "store": store.url, "version": str(version)}
    print_result(result, [f"{version} in {store.url}"], as_json)


def run_pull(source: str, out: Path, as_json: bool) -> None:
    check_free(out)
    if hub.is_on_hub(source):
        commit, files = hub.pull(source)
        write_folder(out, files)
        origin = str(commit)
    else:
        reference = Reference.parse(source)
        store = Store(reference.store)
        version = store.version(f"{reference.name}@{reference.which}")
        store.pull(str(version), out)
        origin = f"{store.url}#{version}"
    print_result({"prompt": str(out), "from": origin}, [f"{origin} written to {out}"], as_json)


def run_promote(
    version: str,
    alias: str,
    data: str | None,
    split: str,
    limit: int | None,
    gate_file: Path | None,
    significance: float | None,
    tolerance: float | None,
    force: bool,
    model_name: str | None,
    max_new_tokens: int | None,
    metric: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    thresholds = {"significance": significance, "tolerance": tolerance}
    config = GateConfig.load(gate_file, **thresholds) if gate_file else GateConfig.build(**thresholds)
    model, columns = pop_model_options(options), pop_column_options(options)
    if data is None and (columns or limit or gate_file or drop_unset(**thresholds)):
        raise ConfigError("--limit, thresholds and columns are for --data: give it too, or leave them out")
    check_alias(alias)
    reference = Reference.parse(version)
    store = Store(reference.store)
    found = store.version(f"{reference.name}@{reference.which}")
    gate: Any = None
    told: dict[str, Any] = {}
    if data is not None:
        spec = store.get(str(found)).judged_by(metric).spec
        task = Task.matching(spec, data, **columns)
        for note in task.splits.notes:
            say(note)
        base_of = _Bases(model_name, model)
        generation = None if max_new_tokens is None else GenerationConfig(max_new_tokens=max_new_tokens)
        gate = Gate(base_of, task.splits[split], config, limit=limit, generation=generation, metric=metric)
        in_place = store.aliases(found.name).get(alias)
        compared = [str(found), *([f"{found.name}@{in_place}"] if in_place is not None else [])]
        told["known_rows"] = {
            which: _count_known_rows(f"{store.url}#{which}", which, gate.examples, split) for which in compared
        }
        told["precisions"] = base_of.precisions
    try:
        move = store.promote(str(found), alias, gate=gate, force=force)
    except GateError as error:
        refused = {"store": store.url, "promoted": False, **error.verdict.to_dict(), **told}
        print_result(refused, make_verdict_document(error.verdict), as_json)
        raise
    result = {"store": store.url, "promoted": True, **move.model_dump(mode="json"), **told}
    print_result(result, make_move_document(move), as_json)


def run_rollback(alias: str, as_json: bool) -> None:
    reference = Reference.parse(alias)
    if reference.number is not None:
        raise StoreError(f"expected [STORE#]NAME@ALIAS, got the version '{alias}': versions do not move, aliases do")
    store = Store(reference.store)
    move = store.rollback(f"{reference.name}@{reference.which}")
    print_result({"store": store.url, **move.model_dump(mode="json")}, make_move_document(move), as_json)


def run_diff(a: str, b: str, as_json: bool) -> None:
    found = compare_prompts(load_prompt(a), load_prompt(b))
    print_result({"a": a, "b": b, **found.to_dict()}, make_difference_document(a, b, found), as_json)


def _count_known_rows(place: str, which: str, examples: "Sequence[Example]", split: str) -> dict[str, int] | None:
    """How many of the examples a version was learned from, said where there are any; ``None``: it kept no record."""
    learned = read_learned(place)
    if learned is None:
        return None
    known = learned.among(examples)
    if words := known.describe(split):
        say(f"{which}: {words}")
    return known.to_dict()


class _Bases:
    """Base models of prompts, one in memory at a time."""

    def __init__(self, name: str | None, options: dict[str, Any]) -> None:
        """``name``: of the one to take for all."""
        self._name, self._options = name, options
        self._loaded: dict[tuple[str, ...], FrozenLM] = {}
        self.precisions: list[dict[str, str]] = []

    def __call__(self, prompt: "Prompt") -> "FrozenLM":
        key = tuple(sorted(prompt.base_fingerprint.values()))
        if key not in self._loaded:
            self._loaded.clear()
            self._loaded[key] = load_base_of(prompt, self._name, self._options)
        elif (note := prompt.precision_note(self._loaded[key])) is not None:
            say(note)
        if found := prompt.precisions(self._loaded[key]):
            self.precisions.append(found)
        return self._loaded[key]
