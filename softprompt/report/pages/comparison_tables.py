"""A study's numbers as tables: quality, what learning costs, what serving costs, confusion, failures, settings."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from softprompt.experiments.comparison.study_records import Row, Study, of_seconds, speeds_of
from softprompt.inference.speed_drift import comparable, drift, warning
from softprompt.metrics.formatting import (
    MISSING,
    bytes_text,
    count_text,
    fixed,
    interval_text,
    metric_name,
    metric_text,
    percent_text,
    seconds_text,
    short_text,
    step_metric,
)
from softprompt.metrics.scores import Speed
from softprompt.report.pages.comparison_answers import confusion
from softprompt.report.render.document import Cell, Column, Table

DASH = Cell(MISSING)
TIMES = "\N{MULTIPLICATION SIGN}"
CLASSES_IN_A_MATRIX = 12
TASKS = (1, 10, 100, 1000)


def ranked(study: Study) -> list[Row]:
    """The rows, best test metric first, those without one last."""
    return sorted(study.rows, key=lambda row: -row.mean if _finite(row.mean) else math.inf)


def name_cell(study: Study, row: Row) -> Cell:
    """A method's name with what it is in this study."""
    tags = ["recommended"] if row.method == study.recommendation.deploy else []
    tags += ["in use"] if row.method == study.current else []
    return Cell(row.method, tags=tuple(tags), group=group_of(row.family))


def group_of(family: str) -> str:
    """A family as the charts and style sheets name it."""
    return family.replace(" ", "-")


def quality(study: Study) -> Table:
    """How good each method is, how sure that is, and how it holds up elsewhere."""
    metric = study.metric
    heading = metric_name(metric)
    against = ("Against the best", "Against the one in use")
    columns = ("Method", heading, "Seeds", "Deviation", *against, "ECE", "Other domain", "Forgetting")
    rows = []
    for row in ranked(study):
        seeds = Cell(count_text(len(row.seeds)), f"{row.failed} failed" if row.failed else "", len(row.seeds))
        lost = row.shift - row.mean if row.shift is not None and row.mean is not None else None
        rows.append(
            (
                name_cell(study, row),
                Cell(metric_text(metric, row.mean), interval_text(metric, row.low, row.high), row.mean)
                if row.mean is not None
                else Cell("failed" if row.failed else MISSING),
                seeds,
                _cell(row.deviation, metric_text(metric, row.deviation)),
                _difference(metric, row.against_best),
                _difference(metric, row.against_current),
                _cell(row.calibration_error, fixed(row.calibration_error, 3)),
                Cell(metric_text(metric, row.shift), f"({metric_text(metric, lost, True)})" if lost else "", row.shift)
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


def learning_cost(study: Study) -> Table:
    """What a method takes to learn, and to keep."""
    columns = ("Method", "Trained parameters", "Stored a task", "Memory a task", "Training", "Search", "Peak memory")
    rows = []
    for row in ranked(study):
        cost = row.cost
        cells = [DASH] * 6
        if cost is not None:
            share = cost.trained_parameters / study.base_parameters if study.base_parameters else 0.0
            cells = [
                Cell(
                    count_text(cost.trained_parameters),
                    f"({_share(share)} of the base)" if share and (cost.base_bytes or not cost.base_shared) else "",
                    cost.trained_parameters,
                ),
                _cell(cost.stored_bytes, bytes_text(cost.stored_bytes, aligned=True)),
                _cell(cost.task_bytes, bytes_text(cost.task_bytes, aligned=True)),
                _cell(cost.training_seconds, seconds_text(cost.training_seconds)),
                _cell(cost.search_seconds or None, seconds_text(cost.search_seconds)),
                _cell(cost.peak_memory_bytes, bytes_text(cost.peak_memory_bytes, aligned=True)),
            ]
        rows.append((name_cell(study, row), *cells))
    note = (
        f"{of_seconds(study.rows)}Stored: files that one task needs beside the base model (1 kB is 1,000 bytes). "
        "Memory a task: what one more task adds while serving. Training: the run that is reported; search: its trials, "
        "or those of its sweep. Peak memory: of the process while learning."
    )
    return _without_empty("What it takes to learn and to keep", columns, rows, note)


def serving_cost(study: Study) -> Table:
    """What a request takes; where the machine's speed changed meanwhile, as multiples of the bare request."""
    changed = drift(speeds_of(study.rows))
    latencies = ("Latency p50, ms", "Latency p95, ms", "Times the bare request", "Requests a second")
    if changed:
        latencies = ("p50, times the bare request", "p95, times the bare median", "", "Requests a second, mean speed")
    columns = ("Method", *latencies, "Added tokens", "Cost of a million")
    rows, batches = [], {row.speed.batch_size for row in study.rows if row.speed is not None}
    order = ranked(study)
    for row, speed in zip(order, comparable(speeds_of(order)), strict=True):
        rows.append((name_cell(study, row), *_speed_cells(study, speed, batches, changed is not None)))
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
    note = f"{warning(changed)} {note}" if changed else note
    return _without_empty("What a request takes", columns, rows, note)


def _speed_cells(study: Study, speed: Speed | None, batches: set[int], changed: bool) -> list[Cell]:
    """``batches``: sizes of the lists that throughput was measured with; ``changed``: see ``serving_cost``."""
    if speed is None:
        return [DASH] * 6
    fast, times = speed.examples_per_second > 0, speed.times_reference
    price = speed.cost_per_million(study.price_per_hour) if study.price_per_hour is not None and fast else None
    if not changed:
        latency = [_cell(one, short_text(one, aligned=True)) for one in (speed.p50_ms, speed.p95_ms)]
        latency.append(_cell(times, f"{TIMES}{times:.2f}" if times else ""))
    elif speed.reference_ms:
        ratios = (speed.p50_ms / speed.reference_ms, speed.p95_ms / speed.reference_ms)
        latency = [*(_cell(one, f"{TIMES}{one:.2f}") for one in ratios), DASH]
    else:
        # an engine: nothing was timed beside it
        alone = [Cell(f"{short_text(one)} ms", "timed alone") for one in (speed.p50_ms, speed.p95_ms)]
        latency = [*alone, DASH]
    return [
        *latency,
        Cell(
            short_text(speed.examples_per_second, aligned=True),
            f"in batches of {speed.batch_size:,}" if len(batches) > 1 else "",
            speed.examples_per_second,
        ),
        _cell(speed.added_tokens, short_text(round(speed.added_tokens, 1))),
        _cell(price, short_text(price, aligned=True)),
    ]


def memory(study: Study) -> Table:
    """Memory on one machine by number of tasks, with how it is computed."""
    rows = []
    for row in ranked(study):
        if (cost := row.cost) is None:
            continue
        base, task = bytes_text(cost.base_bytes), bytes_text(cost.task_bytes)
        formula = f"{base} + tasks {TIMES} {task}" if cost.base_shared else f"tasks {TIMES} ({base} + {task})"
        cells = [_cell(cost.memory_for(tasks), bytes_text(cost.memory_for(tasks), aligned=True)) for tasks in TASKS]
        rows.append((name_cell(study, row), *cells, Cell(formula)))
    columns = (Column("Method", False), *(Column(f"{tasks:,} task{'s' * (tasks > 1)}") for tasks in TASKS))
    return Table("Memory by number of tasks", (*columns, Column("Computed as", False)), tuple(rows), sortable=True)


def matrix(study: Study, method: str) -> Table:
    """Gold labels against answers; of many classes, the confusions that happen most often."""
    answers, counts = confusion(study, method)
    totals = {gold: sum(n for (one, _), n in counts.items() if one == gold) for gold in study.labels}
    if len(study.labels) > CLASSES_IN_A_MATRIX:
        wrong = sorted(((n, gold, answer) for (gold, answer), n in counts.items() if gold != answer), reverse=True)
        most = tuple(
            (Cell(gold), Cell(answer), Cell(count_text(n)), Cell(percent_text(n / totals.get(gold, n))))
            for n, gold, answer in wrong[:20]
        )
        columns = (Column("Gold label", False), Column("Answer", False), Column("Times"), Column("Of the class"))
        return Table(f"{method}: most frequent confusions", columns, most)
    rows = tuple(
        (
            Cell(gold, f"{totals[gold]:,}"),
            *(_share_cell(counts.get((gold, answer), 0), totals[gold]) for answer in answers),
        )
        for gold in study.labels
    )
    return Table(method, (Column("Gold label", False), *(Column(answer) for answer in answers)), rows)


def recall(study: Study, methods: Iterable[str]) -> Table:
    """Share of each class that each method answers rightly, coloured by what is missed."""
    methods = list(methods)
    counts = {method: confusion(study, method)[1] for method in methods}
    rows = []
    for label in study.labels:
        cells = []
        for method in methods:
            total = sum(n for (gold, _), n in counts[method].items() if gold == label)
            share = counts[method].get((label, label), 0) / total if total else None
            cells.append(DASH if share is None else Cell(percent_text(share), value=share, heat=1 - share))
        rows.append((Cell(label, f"{study.gold.count(label):,}"), *cells))
    columns = (Column("Class", False), *(Column(method) for method in methods))
    return Table("Answered rightly, by class; coloured by what is missed", columns, tuple(rows), sortable=True)


def failures(study: Study) -> Table:
    """Runs that did not end."""
    rows = tuple(
        (Cell(result.method), Cell(str(result.seed)), Cell(result.error or "no reason given"))
        for result in study.results
        if result.status == "failed"
    )
    return Table("Runs that failed", (Column("Method", False), Column("Seed"), Column("Reason", False)), rows)


def search(study: Study) -> Table:
    """Learning rates that were tried, and what a sweep tried with them."""
    metric = step_metric(study.kind, study.metric)
    swept = any(trial.settings for result in study.results for trial in result.trials)
    rows = tuple(
        (
            Cell(result.method),
            Cell(str(result.seed)),
            Cell(f"{trial.learning_rate:g}", tags=("chosen",) if trial.chosen else ()),
            Cell(metric_text(metric, trial.value)),
            Cell(fixed(trial.loss, 3)),
            *([Cell(_value(trial.settings) or MISSING)] if swept else []),
        )
        for result in study.results
        for trial in result.trials
    )
    names = ("Seed", "Learning rate", f"Validation {metric_name(metric)}", "Validation loss")
    more = [Column("With", False)] if swept else []
    return Table("Learning rates tried", (Column("Method", False), *map(Column, names), *more), rows)


def settings(caption: str, values: Mapping[str, Any]) -> Table:
    """Names and values."""
    rows = tuple((Cell(str(name)), Cell(_value(value))) for name, value in values.items())
    return Table(caption, (Column("Setting", False), Column("Value", False)), rows)


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: MISSING}[value]
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_value(one) for one in value)
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _cell(value: float | None, text: str) -> Cell:
    return DASH if value is None else Cell(text, value=value)


def _difference(metric: str, found: Mapping[str, float | int] | None) -> Cell:
    if found is None:
        return DASH
    low, high = found["low"], found["high"]
    sign = "▲" if low > 0 else "▼" if high < 0 else "≈"
    text = metric_text(metric, found["difference"], signed=True)
    return Cell(f"{sign} {text}", interval_text(metric, low, high, signed=True), found["difference"])


def _forgetting(row: Row) -> Cell:
    if (found := row.forgetting) is None:
        return DASH
    ratio = found.after / found.before if found.before else math.inf
    return Cell(f"{short_text(found.before)} → {short_text(found.after)}", f"{TIMES}{fixed(ratio, 2)}", ratio)


def _share_cell(count: int, total: int) -> Cell:
    share = count / total if total else 0.0
    return Cell(percent_text(share), f"{count:,}" if count else "", heat=share)


def _share(share: float) -> str:
    return f"{short_text(100 * share)}%"


def _without_empty(caption: str, names: Iterable[str], rows: Sequence[tuple[Cell, ...]], note: str) -> Table:
    """The table without columns in which nothing was measured; the note says which these were."""
    names = list(names)
    kept = [i for i in range(len(names)) if i == 0 or any(row[i] != DASH for row in rows)]
    left_out = [name for i, name in enumerate(names) if i not in kept and name]
    note += f" Not measured or not asked for: {', '.join(left_out)}." if left_out else ""
    columns = tuple(Column(names[i], number=i > 0) for i in kept)
    return Table(caption, columns, tuple(tuple(row[i] for i in kept) for row in rows), note, sortable=True)
