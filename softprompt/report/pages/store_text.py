"""What is known of a store as lines of plain text."""

from collections.abc import Mapping, Sequence
from typing import Any

from softprompt.errors import shorten
from softprompt.report.pages.training_text import aligned, drawn_words, figure, table
from softprompt.store.gate import Verdict
from softprompt.store.metadata import Move, Version
from softprompt.store.version_diff import Difference
from softprompt.store.version_store import Listing

WIDEST = 60  # characters of a value
EXAMPLES = 10  # lost examples that are shown


def names_lines(url: str, names: Sequence[Listing]) -> list[str]:
    """The names of a store."""
    if not names:
        return [f"{url} is empty"]
    rows = [("name", "versions", "newest", "aliases")]
    rows += [
        (one.name, str(len(one.numbers)), f"{one.name}@{one.numbers[-1]}", _aliases(one.aliases) or "-")
        for one in names
    ]
    return table(rows)


def versions_lines(
    versions: Sequence[Version], manifests: Mapping[int, Mapping[str, Any]], aliases: Mapping[str, int]
) -> list[str]:
    """The versions of a name."""
    rows: list[tuple[str, ...]] = [
        ("version", "created", "by", "parent", "validation [95% interval]", "test [95% interval]", "aliases")
    ]
    for one in versions:
        found = manifests[one.number].get("metrics")
        metrics = found if isinstance(found, Mapping) else {}
        figures = [_metric(metrics.get(split)) for split in ("validation", "test")]
        here = ", ".join(alias for alias, number in aliases.items() if number == one.number)
        created = f"{one.created:%Y-%m-%d %H:%M}"
        rows.append((str(one), created, one.by, one.parent or "-", *figures, here or "-"))
    return table(rows)


def place_lines(
    url: str, version: Version, aliases: Mapping[str, int], lineage: Sequence[str], history: Sequence[Move]
) -> list[str]:
    """Where a prompt stands in its store."""
    here = ", ".join(alias for alias, number in aliases.items() if number == version.number)
    facts = [
        ("store", url),
        ("version", f"{version}, made {version.created:%Y-%m-%d %H:%M} UTC by {version.by}"),
        ("aliases", here or "-"),
        ("lineage", " <- ".join(lineage)),
        *((f"{move.action} {move.alias}", _moved(move)) for move in history),
    ]
    return aligned(facts)


def move_lines(move: Move) -> list[str]:
    """A move of an alias."""
    gate = [] if move.gate is None else [f"gate: {_gate(move.gate)}"]
    return [f"{move.name}@{move.alias}: {_moved(move)}", *gate]


def verdict_lines(verdict: Verdict) -> list[str]:
    """Why a version was not promoted: by how much it is worse, and on which examples."""
    rows: list[tuple[str, ...]] = [("example", "expected", "in place", "new", "text")]
    rows += [
        (str(one.index + 1), *(_cut(text) for text in (one.expected, one.before, one.now, one.text)))
        for one in verdict.lost[:EXAMPLES]
    ]
    more = len(verdict.lost) - EXAMPLES
    return [str(verdict), "", *table(rows), *([f"and {more} more"] if more > 0 else [])]


def difference_lines(a: str, b: str, found: Difference) -> list[str]:
    """What tells two prompts apart."""
    settings = [("setting", a, b), *((name, _value(x), _value(y)) for name, (x, y) in found.settings.items())]
    metrics = [("metric", a, b), *((name, _metric(x), _metric(y)) for name, (x, y) in found.metrics.items())]
    alike = (
        f"vectors: not comparable, {found.reason}"
        if found.average_tokens is None or found.nearest_tokens is None
        else f"vectors: similarity of average tokens {found.average_tokens:.3f}, of each token to the other's "
        f"nearest one {found.nearest_tokens:.3f} (1: the same)"
    )
    return [
        *(table(settings) if found.settings else ["the settings are the same"]),
        "",
        *(table(metrics) if found.metrics else ["neither has results"]),
        "",
        alike,
    ]


def _aliases(aliases: Mapping[str, int]) -> str:
    return ", ".join(f"{alias} @{number}" for alias, number in aliases.items())


def _moved(move: Move) -> str:
    before = "nothing" if move.before is None else f"{move.name}@{move.before}"
    forced = ", forced against the gate" if move.forced else ""
    return f"{before} -> {move.name}@{move.to}, {move.when:%Y-%m-%d %H:%M} UTC by {move.by}{forced}"


def _gate(figures: Mapping[str, Any]) -> str:
    try:
        value, low, high = (f"{figures[key]:.3f}" for key in ("difference", "low", "high"))
        drawn = drawn_words("given", figures)
        sample = f", {drawn}" if drawn else ""
        return f"{figures['metric']}, difference {value} [{low}, {high}], n={figures['n']:,}{sample}"
    except (KeyError, TypeError, ValueError):
        return "-"


def _metric(metric: Any) -> str:
    try:
        return "-" if metric is None else f"{figure({'metric': '', **metric})} n={metric['n']:,}"
    except (KeyError, TypeError, ValueError):
        return "?"


def _value(value: Any) -> str:
    return "-" if value is None else _cut(str(value) if isinstance(value, int | float) else repr(value))


def _cut(text: str) -> str:
    return shorten(text, WIDEST)
