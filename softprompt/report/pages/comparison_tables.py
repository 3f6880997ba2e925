"""A comparison's numbers as tables: quality, what learning costs, what serving costs, confusion, failures."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeGuard

from softprompt.experiments.comparison.study_records import Row, Study, collect_speeds, warn_of_seconds
from softprompt.inference.speed_drift import describe_drift, find_speed_drift, make_comparable
from softprompt.metrics.formatting import (
    MISSING,
    choose_step_metric,
    format_bytes,
    format_count,
    format_fixed,
    format_interval,
    format_metric,
    format_percent,
    format_seconds,
    format_short,
    metric_heading,
)
from softprompt.metrics.scores import Speed
from softprompt.report.pages.cells import DASH, format_setting, make_confusion_table, make_number_cell
from softprompt.report.pages.comparison_answers import count_confusion
from softprompt.report.render.document import Cell, Column, Table

TIMES = "\N{MULTIPLICATION SIGN}"
TASKS = (1, 10, 100, 1000)


def rank_rows(study: Study) -> list[Row]:
    """The rows, best test metric first, those without one last."""
    return sorted(study.rows, key=lambda row: -row.mean if _finite(row.mean) else math.inf)


def make_name_cell(study: Study, row: Row) -> Cell:
    """A method's name with what it is in this study."""
    tags = ["recommended"] if row.method == study.recommendation.deploy else []
    tags += ["in use"] if row.method == study.current else []
    return Cell(row.method, tags=tuple(tags), group=name_group(row.family))


def name_group(family: str) -> str:
    """A family as the charts and style sheets name it."""
    return family.replace(" ", "-")


def tabulate_quality(study: Study) -> Table:
    """How good each method is, how sure that is, and how it holds up elsewhere."""
    metric = study.metric
    heading = metric_heading(metric)
    against = ("Against the best", "p", "Against the one in use")
    columns = ("Method", heading, "Seeds", "Deviation", *against, "ECE", "Other domain", "Forgetting")
    rows = []
    for row in rank_rows(study):
        seeds = Cell(format_count(len(row.seeds)), f"{row.failed} failed" if row.failed else "", len(row.seeds))
        p_value = None if row.against_best is None else row.against_best["p_value"]
        lost = row.shift - row.mean if row.shift is not None and row.mean is not None else None
        rows.append(
            (
                make_name_cell(study, row),
                Cell(format_metric(metric, row.mean), format_interval(metric, row.low, row.high), row.mean)
                if row.mean is not None
                else Cell("failed" if row.failed else MISSING),
                seeds,
                make_number_cell(row.deviation, format_metric(metric, row.deviation)),
                _difference(metric, row.against_best),
                make_number_cell(p_value, format_fixed(p_value, 3)),
                _difference(metric, row.against_current),
                make_number_cell(row.calibration_error, format_fixed(row.calibration_error, 3)),
                Cell(
                    format_metric(metric, row.shift),
                    f"({format_metric(metric, lost, True)})" if lost else "",
                    row.shift,
                )
                if row.shift is not None
                else DASH,
                _forgetting(row),
            )
        )
    note = (
        f"{heading}: mean over seeds on the test split with its 95% interval over seeds and examples. Deviation: "
        "standard deviation over seeds. Differences are paired on the same examples: ▲ better, ▼ worse, ≈ the "
        "interval includes zero, so these data do not tell the two apart. ECE: expected calibration error, 0 is best. "
        "Other domain: the same metric on the shift data. Forgetting: perplexity of the base model on neutral text, "
        "before → after learning."
    )
    return _without_empty("Quality on the test split", columns, rows, note)


def tabulate_learning_cost(study: Study) -> Table:
    """What a method takes to learn, and to keep."""
    columns = ("Method", "Trained parameters", "Stored a task", "Memory a task", "Training", "Search", "Peak memory")
    rows = []
    for row in rank_rows(study):
        cost = row.cost
        cells = [DASH] * 6
        if cost is not None:
            share = cost.trained_parameters / study.base_parameters if study.base_parameters else 0.0
            cells = [
                Cell(
                    format_count(cost.trained_parameters),
                    f"({_share(share)} of the base)" if share and (cost.base_bytes or not cost.base_shared) else "",
                    cost.trained_parameters,
                ),
                make_number_cell(cost.stored_bytes, format_bytes(cost.stored_bytes, aligned=True)),
                make_number_cell(cost.task_bytes, format_bytes(cost.task_bytes, aligned=True)),
                make_number_cell(cost.training_seconds, format_seconds(cost.training_seconds)),
                make_number_cell(cost.search_seconds or None, format_seconds(cost.search_seconds)),
                make_number_cell(cost.peak_memory_bytes, format_bytes(cost.peak_memory_bytes, aligned=True)),
            ]
        rows.append((make_name_cell(study, row), *cells))
    note = (
        f"{warn_of_seconds(study.rows)}Stored: files that one task needs beside the base model (1 kB is 1,000 bytes). "
        "Memory a task: what one more task adds while serving. Training: the run that is reported; search: its trials, "
        "or those of its sweep. Peak memory: of the process while learning."
    )
    return _without_empty("What it takes to learn and to keep", columns, rows, note)


def tabulate_serving_cost(study: Study) -> Table:
    """What a request takes; where the machine's speed changed meanwhile, as multiples of the bare request."""
    changed = find_speed_drift(collect_speeds(study.rows))
    latencies = ("Latency p50, ms", "Latency p95, ms", "Times the bare request", "Requests a second")
    if changed:
        latencies = ("p50, times the bare request", "p95, times the bare median", "", "Requests a second, mean speed")
    columns = ("Method", *latencies, "Added tokens", "Cost of a million")
    rows, batches = [], {row.speed.batch_size for row in study.rows if row.speed is not None}
    order = rank_rows(study)
    for row, speed in zip(order, make_comparable(collect_speeds(order)), strict=True):
        rows.append((make_name_cell(study, row), *_speed_cells(study, speed, batches, changed is not None)))
        if row.engine is not None:
            name = Cell(f"{row.method} in {row.engine.engine}", "exported, in a process of its own")
            rows.append((name, *_speed_cells(study, row.engine.speed, batches, changed is not None)))
    price_note = (
        f" Cost: of a million requests at full batches, {study.price_per_hour:g} an hour."
        if study.price_per_hour is not None
        else ""
    )
    size = f" of {max(batches):,}" if len(batches) == 1 else ""
    note = f"Latency of single requests, throughput of batches{size}, in one process on {study.machine}.{price_note}"
    note = f"{describe_drift(changed)} {note}" if changed else note
    return _without_empty("What a request takes", columns, rows, note)


def _speed_cells(study: Study, speed: Speed | None, batches: set[int], changed: bool) -> list[Cell]:
    """``batches``: sizes of the lists that throughput was measured with; ``changed``: see ``serving_cost``."""
    if speed is None:
        return [DASH] * 6
    fast, times = speed.examples_per_second > 0, speed.times_reference
    price = speed.cost_per_million(study.price_per_hour) if study.price_per_hour is not None and fast else None
    if not changed:
        latency = [make_number_cell(one, format_short(one, aligned=True)) for one in (speed.p50_ms, speed.p95_ms)]
        latency.append(make_number_cell(times, f"{TIMES}{times:.2f}" if times else ""))
    elif speed.reference_ms:
        ratios = (speed.p50_ms / speed.reference_ms, speed.p95_ms / speed.reference_ms)
        latency = [*(make_number_cell(one, f"{TIMES}{one:.2f}") for one in ratios), DASH]
    else:
        # an engine: nothing was timed beside it
        alone = [Cell(f"{format_short(one)} ms", "timed alone") for one in (speed.p50_ms, speed.p95_ms)]
        latency = [*alone, DASH]
    return [
        *latency,
        Cell(
            format_short(speed.examples_per_second, aligned=True),
            f"in batches of {speed.batch_size:,}" if len(batches) > 1 else "",
            speed.examples_per_second,
        ),
        make_number_cell(speed.added_tokens, format_short(round(speed.added_tokens, 1))),
        make_number_cell(price, format_short(price, aligned=True)),
    ]


def tabulate_memory(study: Study) -> Table:
    """Memory on one machine by number of tasks, with how it is computed."""
    rows = []
    for row in rank_rows(study):
        if (cost := row.cost) is None:
            continue
        base, task = format_bytes(cost.base_bytes), format_bytes(cost.task_bytes)
        formula = f"{base} + tasks {TIMES} {task}" if cost.base_shared else f"tasks {TIMES} ({base} + {task})"
        cells = [
            make_number_cell(cost.memory_for(tasks), format_bytes(cost.memory_for(tasks), aligned=True))
            for tasks in TASKS
        ]
        rows.append((make_name_cell(study, row), *cells, Cell(formula)))
    columns = ("Method", *(f"{tasks:,} task{'s' * (tasks > 1)}" for tasks in TASKS), Column("Computed as", False))
    return Table.of("Memory by number of tasks", columns, rows, sortable=True)


def tabulate_matrix(study: Study, method: str) -> Table:
    """Gold labels against answers."""
    answers, counts = count_confusion(study, method)
    return make_confusion_table(method, f"{method}: most frequent confusions", study.labels, answers, counts)


def tabulate_recall(study: Study, methods: Iterable[str]) -> Table:
    """Share of each class that each method answers rightly, coloured by what is missed."""
    methods = list(methods)
    counts = {method: count_confusion(study, method)[1] for method in methods}
    rows = []
    for label in study.labels:
        cells = []
        for method in methods:
            total = sum(n for (gold, _), n in counts[method].items() if gold == label)
            share = counts[method].get((label, label), 0) / total if total else None
            cells.append(DASH if share is None else Cell(format_percent(share), value=share, heat=1 - share))
        rows.append((Cell(label, f"{study.gold.count(label):,}"), *cells))
    caption = "Answered rightly, by class; coloured by what is missed"
    return Table.of(caption, ("Class", *methods), rows, sortable=True)


def tabulate_failures(study: Study) -> Table:
    """Runs that did not end."""
    rows = (
        (result.method, str(result.seed), result.error or "no reason given")
        for result in study.results
        if result.status == "failed"
    )
    return Table.of("Runs that failed", ("Method", "Seed", Column("Reason", False)), rows)


def tabulate_search(study: Study) -> Table:
    """Learning rates that were tried, and what a sweep tried with them."""
    metric = choose_step_metric(study.kind, study.metric)
    swept = any(trial.settings for result in study.results for trial in result.trials)
    rows = (
        (
            result.method,
            str(result.seed),
            Cell(f"{trial.learning_rate:g}", tags=("chosen",) if trial.chosen else ()),
            format_metric(metric, trial.value),
            format_fixed(trial.loss, 3),
            *([format_setting(trial.settings) or MISSING] if swept else []),
        )
        for result in study.results
        for trial in result.trials
    )
    names = ("Method", "Seed", "Learning rate", f"Validation {metric_heading(metric)}", "Validation loss")
    return Table.of("Learning rates tried", (*names, *([Column("With", False)] if swept else [])), rows)


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _difference(metric: str, found: Mapping[str, float | int] | None) -> Cell:
    if found is None:
        return DASH
    low, high = found["low"], found["high"]
    sign = "▲" if low > 0 else "▼" if high < 0 else "≈"
    text = format_metric(metric, found["difference"], signed=True)
    return Cell(f"{sign} {text}", format_interval(metric, low, high, signed=True), found["difference"])


def _forgetting(row: Row) -> Cell:
    if (found := row.forgetting) is None:
        return DASH
    ratio = found.after / found.before if found.before else math.inf
    return Cell(
        f"{format_short(found.before)} → {format_short(found.after)}", f"{TIMES}{format_fixed(ratio, 2)}", ratio
    )


def _share(share: float) -> str:
    return f"{format_short(100 * share)}%"


def _without_empty(caption: str, names: Iterable[str], rows: Sequence[tuple[Cell, ...]], note: str) -> Table:
    """The table without columns in which nothing was measured; the note says which these were."""
    names = list(names)
    kept = [i for i in range(len(names)) if i == 0 or any(row[i] != DASH for row in rows)]
    left_out = [name for i, name in enumerate(names) if i not in kept and name]
    note += f" Not measured or not asked for: {', '.join(left_out)}." if left_out else ""
    return Table.of(caption, [names[i] for i in kept], ([row[i] for i in kept] for row in rows), note, sortable=True)
