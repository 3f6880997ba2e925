"""What a store holds: its names, versions and moves, what tells two prompts apart, and which are alike."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from softprompt.data.task import TaskSpec
from softprompt.errors import shorten
from softprompt.metrics.baseline_gain import format_gain
from softprompt.metrics.formatting import MISSING, format_count, format_fixed
from softprompt.prompts.saved_prompt import Prompt
from softprompt.report.pages.cells import format_saved_metric, format_subsample
from softprompt.report.pages.training_page import make_prompt_document
from softprompt.report.render.document import Block, Code, Column, Document, Points, Section, Table, Text
from softprompt.store.metadata import AliasChange, Version
from softprompt.store.similarity import SimilarPrompt
from softprompt.store.verdict import Verdict
from softprompt.store.version_diff import PromptDifference
from softprompt.store.version_store import PromptListing

WIDEST = 60  # characters of a value


def make_names_document(url: str, names: Sequence[PromptListing]) -> Document:
    """The names of a store."""
    rows = [
        (one.name, format_count(len(one.numbers)), f"{one.name}@{one.numbers[-1]}", _aliases(one.aliases) or MISSING)
        for one in names
    ]
    columns = ("Name", "Versions", Column("Newest", False), Column("Aliases", False))
    return _document(url if names else f"{url} is empty", *([Table.of("", columns, rows)] if names else []))


def make_versions_document(
    versions: Sequence[Version], manifests: Mapping[int, Mapping[str, Any]], aliases: Mapping[str, int]
) -> Document:
    """The versions of a name; ``manifests`` by number."""
    rows = []
    for one in versions:
        found = manifests[one.number].get("metrics")
        metrics = found if isinstance(found, Mapping) else {}
        figures = [_metric(metrics.get(split)) for split in ("validation", "test")]
        figures.append(
            next(filter(None, (format_gain(metrics.get(split)) for split in ("test", "validation"))), MISSING)
        )
        created = f"{one.created:%Y-%m-%d %H:%M}"
        rows.append((str(one), created, one.by, one.parent or MISSING, *figures, _here(one, aliases)))
    scores = ("Validation [95% interval]", "Test [95% interval]", "Gain over the written prompt")
    columns = ("Version", "Created", "By", "Parent", *scores, "Aliases")
    return _document(versions[0].name if versions else "", Table.of("", columns, rows, words=len(columns)))


def make_version_document(
    prompt: Prompt,
    url: str,
    version: Version,
    aliases: Mapping[str, int],
    lineage: Sequence[str],
    history: Sequence[AliasChange],
) -> Document:
    """A prompt, and where it stands in its store."""
    facts = {
        "store": url,
        "version": f"{version}, made {version.created:%Y-%m-%d %H:%M} UTC by {version.by}",
        "aliases": _here(version, aliases),
        "lineage": " <- ".join(lineage),
    }
    moves = list(facts.items())
    moves += [(f"{move.action} {move.alias}", _moved(move)) for move in history]
    place = Section("store", "Store", (Table.of("", ("", ""), moves, words=2),))
    document = make_prompt_document(prompt)
    return replace(document, title=str(version), sections=(*document.sections, place))


def make_move_document(move: AliasChange) -> Document:
    """A move of an alias."""
    return _document(
        f"{move.name}@{move.alias}: {_moved(move)}", *([] if move.gate is None else [Text(f"gate: {_gate(move.gate)}")])
    )


def make_verdict_document(verdict: Verdict) -> Document:
    """Why a version was not promoted: by how much it is worse, and on which examples."""
    rows = [(format_count(one.index + 1), one.expected, one.before, one.now, one.text) for one in verdict.lost]
    words = (Column(name, False, data=True) for name in ("Expected", "In place", "New", "Text"))
    return _document(str(verdict), Table.of("Examples it lost", ("Example", *words), rows))


def make_difference_document(a: str, b: str, found: PromptDifference) -> Document:
    """What tells two prompts apart."""
    settings = [(name, _value(x), _value(y)) for name, (x, y) in found.settings.items()]
    metrics = [(name, _metric(x), _metric(y)) for name, (x, y) in found.metrics.items()]
    alike = (
        f"vectors: not comparable, {found.reason}"
        if found.average_tokens is None or found.nearest_tokens is None
        else f"vectors: similarity of average tokens {found.average_tokens:.3f}, of each token to the other's "
        f"nearest one {found.nearest_tokens:.3f} (1: the same)"
    )
    return _document(
        f"{a} and {b}",
        Table.of("", ("Setting", a, b), settings, words=3) if settings else Text("the settings are the same"),
        Table.of("", ("Metric", a, b), metrics, words=3) if metrics else Text("neither has results"),
        Text(alike),
    )


def make_similar_document(
    place: str, prompt: Prompt, found: Sequence[SimilarPrompt], best: SimilarPrompt | None, command: str
) -> Document:
    """Prompts that are like ``prompt``, the likest first; ``command`` starts from the ``best`` of them."""
    ranked = [one for one in found if one.reason is None]
    own = _task(prompt.spec, str(prompt.training.get("init", MISSING)))
    blocks: list[Block] = []
    if ranked:
        figures = [
            (
                f"{one.folder}" + (f" (ensemble of {one.members})" if one.members != 1 else ""),
                format_fixed(one.average_tokens, 3),
                format_fixed(one.per_token, 3),
                {True: "yes", False: "no", None: "?"}[one.same_start],
                _validation(one.validation),
            )
            for one in ranked
        ]
        tasks = [(str(one.folder), *_task(one.spec, one.init)) for one in ranked if one.spec is not None]
        note = (
            "same start: began at the same words or numbers, hence alike for that reason too; ? where it is not known"
        )
        words = (Column("Same start", False), Column("Validation [95% interval]", False))
        blocks.append(Table.of("", ("Prompt", "Average tokens", "Per token", *words), figures, note))
        blocks.append(Table.of("", ("Prompt", "Labels", "Template", "Init"), tasks, words=4))
    else:
        blocks.append(Text("none can be compared with it"))
    if rest := [f"{one.folder}: {one.reason}" for one in found if one.reason is not None]:
        blocks += [Text("not comparable:"), Points(tuple(rest))]
    if any(not one.start for one in ranked):
        blocks.append(Text("an ensemble cannot be a start: training starts from a single prompt"))
    if best is not None:
        blocks += [Text(f"to start from {best.folder}, with your DATA, OUT, --template and --labels:"), Code(command)]
    title = "{}: labels {}; template {}; init {}".format(place, *own)
    return _document(title, *blocks)


def _document(title: str, *blocks: Block) -> Document:
    return Document("Store", title, (), (Section("store", "Store", blocks),))


def _task(spec: TaskSpec, init: str | None) -> tuple[str, ...]:
    texts = (", ".join(spec.labels), repr(spec.template) + ("" if spec.chat is None else f", {spec.chat}"), init or "")
    return tuple(shorten(text, WIDEST) or MISSING for text in texts)


def _validation(metric: Mapping[str, Any] | None) -> str:
    try:
        return MISSING if metric is None else f"{metric['metric']} {format_saved_metric(metric)}"
    except (KeyError, TypeError):
        return "?"


def _aliases(aliases: Mapping[str, int]) -> str:
    return ", ".join(f"{alias} @{number}" for alias, number in aliases.items())


def _here(version: Version, aliases: Mapping[str, int]) -> str:
    return ", ".join(alias for alias, number in aliases.items() if number == version.number) or MISSING


def _moved(move: AliasChange) -> str:
    before = "nothing" if move.before is None else f"{move.name}@{move.before}"
    forced = ", forced against the gate" if move.forced else ""
    return f"{before} -> {move.name}@{move.to}, {move.when:%Y-%m-%d %H:%M} UTC by {move.by}{forced}"


def _gate(figures: Mapping[str, Any]) -> str:
    try:
        value, low, high = (f"{figures[key]:.3f}" for key in ("difference", "low", "high"))
        drawn = format_subsample("given", figures)
        sample = f", {drawn}" if drawn else ""
        return f"{figures['metric']}, difference {value} [{low}, {high}], n={figures['n']:,}{sample}"
    except (KeyError, TypeError, ValueError):
        return MISSING


def _metric(metric: Any) -> str:
    if metric is None:
        return MISSING
    return format_saved_metric(metric, str(metric.get("metric", "")) or "-") if isinstance(metric, Mapping) else "?"


def _value(value: Any) -> str:
    if value is None:
        return MISSING
    return shorten(str(value) if isinstance(value, int | float) else repr(value), WIDEST)
