"""Verbs of the versioned store: ``list``, ``show``, ``push``, ``pull``, ``promote``, ``rollback``, ``diff``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softprompt.cli.options import (
    GIVEN,
    PLACE,
    column_options,
    columns_of,
    given,
    json_option,
    load_base_of,
    metric_option,
    model_of,
    model_options,
    print_result,
    room_option,
    say,
)
from softprompt.errors import ConfigError, GateError, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from softprompt.data.examples import Example
    from softprompt.models.frozen_lm import FrozenLM
    from softprompt.prompts.saved_prompt import Prompt


@click.command(name="list")
@click.argument("store", type=GIVEN, required=False, metavar="[STORE]")
@click.option("--name", type=GIVEN, help="The versions of this name.")
@json_option
def list_command(store: str | None, name: str | None, as_json: bool) -> None:
    """Tell what a store holds.

    STORE is a folder or a URL of fsspec, as s3://bucket/prompts.  [default: $SOFTPROMPT_STORE]
    """
    from softprompt.report.pages.store_text import names_lines, versions_lines
    from softprompt.store.version_store import Store

    opened = Store(store)
    if name is None:
        names = opened.list()
        result: dict[str, Any] = {
            "names": {one.name: {"versions": list(one.numbers), "aliases": one.aliases} for one in names}
        }
        lines = names_lines(opened.url, names)
    else:
        versions, aliases = opened.versions(name), opened.aliases(name)
        manifests = {one.number: opened.manifest(str(one)) for one in versions}
        records = [one.model_dump(mode="json") | {"metrics": manifests[one.number]["metrics"]} for one in versions]
        result = {"name": name, "versions": records, "aliases": aliases}
        lines = versions_lines(versions, manifests, aliases)
    print_result({"store": opened.url, **result}, lines, as_json)


@click.command()
@click.argument("prompt_place", type=GIVEN, metavar="PROMPT")
@json_option
def show(prompt_place: str, as_json: bool) -> None:
    """Tell what is known of a saved prompt.

    PROMPT is its folder, or STORE#NAME@VERSION or STORE#NAME@ALIAS; then its place in the store is told too.
    """
    from softprompt.report.pages.store_text import place_lines
    from softprompt.report.pages.training_text import prompt_lines
    from softprompt.store.prompt_loading import load_prompt
    from softprompt.store.references import LATEST, Reference, is_reference

    prompt = load_prompt(prompt_place)
    result, lines = prompt.manifest(), prompt_lines(prompt)
    if is_reference(prompt_place):
        from softprompt.store.version_store import Store

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
        lines += ["", *place_lines(store.url, version, aliases, lineage, history)]
    print_result(result, lines, as_json)


@click.command()
@click.argument("prompt_place", type=GIVEN, metavar="PROMPT")
@click.argument("target", type=GIVEN, metavar="TARGET")
@click.option("--public", is_flag=True, help="A new repository on the Hub is for everybody.  [default: private]")
@json_option
def push(prompt_place: str, target: str, public: bool, as_json: bool) -> None:
    """Put a saved prompt into a store, or on the Hugging Face Hub.

    TARGET is [STORE#]NAME, where it becomes the next version, or hf:OWNER/NAME, where it becomes a commit.
    """
    from softprompt.store import hub
    from softprompt.store.references import check_name, split_store
    from softprompt.store.version_store import Store, saved_files

    if hub.is_on_hub(target):
        commit = hub.push(saved_files(prompt_place), target, public=public)
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


@click.command()
@click.argument("source", type=GIVEN, metavar="SOURCE")
@click.option("--out", required=True, type=PLACE, help="Folder for the saved prompt.")
@json_option
def pull(source: str, out: Path, as_json: bool) -> None:
    """Write a prompt of a store, or of the Hugging Face Hub, as a folder.

    SOURCE is [STORE#]NAME@VERSION or [STORE#]NAME@ALIAS, or hf:OWNER/NAME, with @REVISION if you like.
    """
    from softprompt.store import hub
    from softprompt.store.references import Reference
    from softprompt.store.version_store import Store
    from softprompt.utils.files import check_free, write_folder

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


@click.command()
@click.argument("version", type=GIVEN, metavar="[STORE#]NAME@VERSION")
@click.argument("alias", type=GIVEN, metavar="ALIAS")
@click.option("--data", type=GIVEN, help="As for train: refuse if the version is worse on it than the one in place.")
@click.option("--split", default="test", show_default=True, help="train, validation, test or all.")
@click.option("--limit", type=click.IntRange(min=1), help="Only this many examples, drawn, each label in proportion.")
@click.option("--gate", "gate_file", type=PLACE, help="Thresholds from a .toml or .yaml file.")
@click.option("--significance", type=float, help="Largest p-value that counts as worse.  [default: 0.05]")
@click.option("--tolerance", type=float, help="Loss that is accepted, in units of the metric.  [default: 0.0]")
@click.option("--force", is_flag=True, help="Promote even so; the history keeps that it was forced.")
@click.option("--model", "model_name", type=GIVEN, help="The base model.  [default: the one the prompt was learned on]")
@room_option
@metric_option
@column_options
@model_options
@json_option
def promote(
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
    """Move an alias to a version.

    With --data both versions answer it first, and one that is significantly worse (paired bootstrap) is not promoted.
    """
    from softprompt.config import GateConfig
    from softprompt.report.pages.store_text import move_lines, verdict_lines
    from softprompt.store.references import Reference, check_alias
    from softprompt.store.version_store import Store

    thresholds = {"significance": significance, "tolerance": tolerance}
    config = GateConfig.load(gate_file, **thresholds) if gate_file else GateConfig.build(**thresholds)
    model, columns = model_of(options), columns_of(options)
    if data is None and (columns or limit or gate_file or given(**thresholds)):
        raise ConfigError("--limit, thresholds and columns are for --data: give it too, or leave them out")
    check_alias(alias)
    reference = Reference.parse(version)
    store = Store(reference.store)
    found = store.version(f"{reference.name}@{reference.which}")
    gate: Any = None
    told: dict[str, Any] = {}
    if data is not None:
        from softprompt.data.task import Task
        from softprompt.inference.generation import Sampling
        from softprompt.store.gate import Gate

        spec = store.get(str(found)).judged_by(metric).spec
        task = Task.matching(spec, data, **columns)
        for note in task.splits.notes:
            say(note)
        base_of = _Bases(model_name, model)
        sampling = None if max_new_tokens is None else Sampling(max_new_tokens=max_new_tokens)
        gate = Gate(base_of, task.splits[split], config, limit=limit, sampling=sampling, metric=spec.metric)
        in_place = store.aliases(found.name).get(alias)
        compared = [str(found), *([f"{found.name}@{in_place}"] if in_place is not None else [])]
        told["known_rows"] = {which: _known(f"{store.url}#{which}", which, gate.examples, split) for which in compared}
        told["precisions"] = base_of.precisions
    try:
        move = store.promote(str(found), alias, gate=gate, force=force)
    except GateError as error:
        refused = {"store": store.url, "promoted": False, **error.verdict.to_dict(), **told}
        print_result(refused, verdict_lines(error.verdict), as_json)
        raise
    result = {"store": store.url, "promoted": True, **move.model_dump(mode="json"), **told}
    print_result(result, move_lines(move), as_json)


def _known(place: str, which: str, examples: "Sequence[Example]", split: str) -> dict[str, int] | None:
    """How many of the examples a version was learned from, said where there are any; ``None``: it kept no record."""
    from softprompt.store.learned_rows import read_learned

    learned = read_learned(place)
    if learned is None:
        return None
    known = learned.among(examples)
    if words := known.words(split):
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


@click.command()
@click.argument("alias", type=GIVEN, metavar="[STORE#]NAME@ALIAS")
@json_option
def rollback(alias: str, as_json: bool) -> None:
    """Move an alias back to where it was before its last promotion."""
    from softprompt.report.pages.store_text import move_lines
    from softprompt.store.references import Reference
    from softprompt.store.version_store import Store

    reference = Reference.parse(alias)
    if reference.number is not None:
        raise StoreError(f"expected [STORE#]NAME@ALIAS, got the version '{alias}': versions do not move, aliases do")
    store = Store(reference.store)
    move = store.rollback(f"{reference.name}@{reference.which}")
    print_result({"store": store.url, **move.model_dump(mode="json")}, move_lines(move), as_json)


@click.command()
@click.argument("a", type=GIVEN, metavar="PROMPT")
@click.argument("b", type=GIVEN, metavar="OTHER")
@json_option
def diff(a: str, b: str, as_json: bool) -> None:
    """Tell what differs between two saved prompts: settings, results, vectors.

    Each is a folder, or [STORE#]NAME@VERSION or [STORE#]NAME@ALIAS.
    """
    from softprompt.report.pages.store_text import difference_lines
    from softprompt.store.prompt_loading import load_prompt
    from softprompt.store.version_diff import difference

    found = difference(load_prompt(a), load_prompt(b))
    print_result({"a": a, "b": b, **found.to_dict()}, difference_lines(a, b, found), as_json)


STORE_VERBS = (list_command, show, push, pull, promote, rollback, diff)
