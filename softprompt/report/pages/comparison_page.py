"""A comparison: the recommendation first, then what it rests on."""

import shlex
from collections import Counter

from softprompt.experiments.comparison.study_records import Row, Study, collect_speeds
from softprompt.inference.speed_drift import find_speed_drift
from softprompt.metrics.formatting import (
    format_bytes,
    format_count,
    format_interval,
    format_metric,
    format_short,
    metric_heading,
)
from softprompt.metrics.scores import Speed
from softprompt.report.pages import comparison_answers, comparison_figures, comparison_tables
from softprompt.report.pages.cells import make_settings_table
from softprompt.report.render.document import (
    Block,
    Code,
    Document,
    Examples,
    Fact,
    Figure,
    Fold,
    Points,
    Section,
    Statement,
    Table,
    Text,
)

EXAMPLES_SHOWN = 12
AGREED_SHOWN = 5


def make_comparison_document(study: Study, closing: tuple[str, ...] = ()) -> Document:
    """Everything that a comparison found; ``closing``: where it lies."""
    seeds = sorted(Counter(result.method for result in study.results).values()) or [0]
    each = f"{seeds[0]} to {seeds[-1]}" if seeds[0] < seeds[-1] else f"{seeds[0]}"
    runs = f"{len(study.rows)} methods with {each} seed{'' if each == '1' else 's'} each"
    return Document(
        kind="Comparison",
        title=study.title,
        facts=(
            f"{study.base}, {format_count(study.base_parameters)} parameters",
            f"{study.data}: {', '.join(f'{size:,} {name}' for name, size in study.sizes.items())}",
            f"{runs}, judged by {metric_heading(study.metric)}",
        ),
        sections=tuple(
            Section(name, title, blocks, page_only)
            for name, title, blocks, page_only in (
                ("recommendation", "Recommendation", _recommendation(study), False),
                ("methods", "The methods", _methods(study), False),
                (
                    "cost",
                    "Quality against cost",
                    _present(comparison_figures.plot_stored(study), comparison_figures.plot_latency(study)),
                    True,
                ),
                ("memory", "Memory for many tasks", _present(comparison_figures.plot_memory(study)), False),
                ("learning", "Learning", _learning(study), True),
                ("classes", "Classes", _classes(study), True),
                ("examples", "Where the methods part", _examples(study), True),
                ("failures", "Failures", _failures(study), False),
                ("notes", "Notes", (Points(study.notes),) if study.notes else (), False),
                ("measured", "How it was measured", _measured(study), True),
            )
            if blocks
        ),
        created=study.created,
        closing=closing,
    )


def _recommendation(study: Study) -> tuple[Block, ...]:
    found = study.recommendation
    rows = {row.method: row for row in study.rows}
    facts = _facts(study, rows[found.deploy]) if found.deploy in rows else ()
    alike = f" Level with the best, best first: {', '.join(found.candidates)}." if found.candidates[1:] else ""
    return (Statement(found.sentence, facts, found.reasons), Text(f"Decided by the rule “{found.rule}”.{alike}"))


def _facts(study: Study, row: Row) -> tuple[Fact, ...]:
    facts = [
        Fact(
            f"{metric_heading(study.metric)} on test",
            format_metric(study.metric, row.mean),
            format_interval(study.metric, row.low, row.high),
        )
    ]
    for name, found in ((f"Against {study.current}", row.against_current), ("Against the best", row.against_best)):
        if found is not None and len(facts) < 2:
            text = format_metric(study.metric, found["difference"], signed=True)
            facts.append(Fact(name, text, format_interval(study.metric, found["low"], found["high"], signed=True)))
    if row.cost is not None:
        facts.append(Fact("Stored a task", format_bytes(row.cost.stored_bytes)))
    if row.speed is not None:
        facts.append(_latency(study, row.speed))
    return tuple(facts)


def _latency(study: Study, speed: Speed) -> Fact:
    """In milliseconds; as a multiple of the bare request, where the machine's speed changed."""
    if find_speed_drift(collect_speeds(study.rows)) and speed.reference_ms:
        p50, p95 = (f"{comparison_tables.TIMES}{one / speed.reference_ms:.2f}" for one in (speed.p50_ms, speed.p95_ms))
        return Fact("Latency p50, in bare requests", p50, f"p95 {p95}; the machine's speed changed")
    return Fact("Latency p50", f"{format_short(speed.p50_ms)} ms", f"p95 {format_short(speed.p95_ms)} ms")


def _methods(study: Study) -> tuple[Block, ...]:
    made = (
        comparison_tables.tabulate_quality(study),
        comparison_tables.tabulate_learning_cost(study),
        comparison_tables.tabulate_serving_cost(study),
    )
    return (*_present(comparison_figures.plot_quality(study)), *(table for table in made if len(table.columns) > 1))


def _learning(study: Study) -> tuple[Block, ...]:
    tried = comparison_tables.tabulate_search(study)
    return (
        *comparison_figures.plot_curves(study),
        *([Fold("Learning rates that were tried", (tried,))] if tried.rows else []),
    )


def _classes(study: Study) -> tuple[Block, ...]:
    given = comparison_answers.vote_by_method(study)
    methods = [row.method for row in comparison_tables.rank_rows(study) if row.method in given]
    if study.kind != "classification" or not study.labels or not methods:
        return ()
    shown = [name for name in (study.recommendation.deploy, study.current) if name in methods] or methods[:1]
    shown = list(dict.fromkeys(shown))
    others = tuple(comparison_tables.tabulate_matrix(study, method) for method in methods if method not in shown)
    return (
        comparison_tables.tabulate_recall(study, methods),
        Text(
            "Confusion, over all seeds: each row is a gold label, each column what was answered, in shares of the row."
        ),
        *(comparison_tables.tabulate_matrix(study, method) for method in shown),
        *([Fold(f"Confusion of the other {len(others)} methods", others)] if others else []),
    )


def _examples(study: Study) -> tuple[Block, ...]:
    given = comparison_answers.vote_by_method(study)
    if len(given) < 2:
        return ()
    judged = comparison_answers.is_judged(study)
    shown, count = comparison_answers.find_disagreements(study, given, EXAMPLES_SHOWN)
    agreed, wrong = comparison_answers.find_shared_errors(study, given, AGREED_SHOWN) if judged else ([], 0)
    points = [f"On {count:,} of {len(study.gold):,} test examples the {len(given)} methods do not all answer the same."]
    new, old = study.recommendation.deploy, study.current
    if judged and new is not None and old is not None and new != old and {new, old} <= given.keys():
        fixed, broken = comparison_answers.count_changes(study, given, new, old)
        points.append(f"{new} is right on {fixed:,} where {old} is wrong, and wrong on {broken:,} where it is right.")
    if wrong:
        points.append(
            f"On {wrong:,} all give the same answer, and it is not the gold one: look there for mistakes in the labels."
        )
    blocks: list[Block] = [Points(tuple(points))]
    if shown:
        first = "that split the methods most evenly into right and wrong" if judged else "with most different answers"
        order = f"The most telling first: those {first}. A method's answer is that of most of its seeds."
        blocks += [Text(order), Examples(tuple(shown))]
    if agreed:
        blocks.append(Fold("Examples on which all agree, against the gold label", (Examples(tuple(agreed)),)))
    return tuple(blocks)


def _failures(study: Study) -> tuple[Block, ...]:
    table = comparison_tables.tabulate_failures(study)
    return (table,) if table.rows else (Text("Every run ended."),)


def _measured(study: Study) -> tuple[Block, ...]:
    versions: dict[str, dict[str, None]] = {}
    for result in study.results:
        for name, version in result.versions.items():
            versions.setdefault(name, {})[version] = None
    study_facts = {
        "base model": study.base,
        "parameters of the base model": study.base_parameters,
        "data": study.data,
        "examples": ", ".join(f"{size:,} {name}" for name, size in study.sizes.items()),
        "task": study.kind,
        "labels": study.labels,
        "main metric": metric_heading(study.metric),
        "method in use": study.current,
        "price an hour": study.price_per_hour,
        "machine": study.machine,
        "measured": study.created,
    }
    blocks: list[Block] = [make_settings_table("The study", study_facts)]
    if rest := {name: value for name, value in study.settings.items() if name != "command"}:
        blocks.append(make_settings_table("Settings", rest))
    if versions:
        blocks.append(make_settings_table("Versions", {name: ", ".join(found) for name, found in versions.items()}))
    if methods := _method_settings(study):
        blocks.append(Fold("Settings of each method", methods))
    blocks += [
        Text(
            "To measure it again, with the settings above; results that are there already are kept, another --out "
            "measures all of it anew:"
        ),
        Code(_command(study)),
        Text("report.json, beside this page, holds every number and answer."),
    ]
    return tuple(blocks)


def _method_settings(study: Study) -> tuple[Table, ...]:
    """Settings of each method's first seed."""
    first: dict[str, dict[str, object]] = {}
    for result in study.results:
        if result.settings:
            first.setdefault(result.method, dict(result.settings))
    return tuple(make_settings_table(method, values) for method, values in first.items())


def _command(study: Study) -> str:
    """What was typed, where the study knows it, else what is equal to it."""
    if typed := study.settings.get("command"):
        return str(typed)
    seeds = len({result.seed for result in study.results})
    methods = ",".join(dict.fromkeys(result.method for result in study.results)) or ",".join(
        row.method for row in study.rows
    )
    parts = ["softprompt", "compare", "--model", study.base, "--data", study.data, "--methods", methods]
    return shlex.join([*parts, "--seeds", str(max(seeds, 1)), "--out", "DIR"])


def _present(*found: Figure | None) -> tuple[Figure, ...]:
    return tuple(figure for figure in found if figure is not None)
