"""A comparison, and one over model sizes, as lines of plain text."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from softprompt.experiments.comparison.study_records import Row, SizeStudy, Study, of_seconds, speeds_of
from softprompt.experiments.sweep.sweep_folder import PROMPT, SweepSummary, SweepTrial
from softprompt.inference.speed_drift import comparable, drift, warning
from softprompt.metrics.formatting import bytes_text
from softprompt.metrics.registry import metric_digits
from softprompt.metrics.scores import Speed
from softprompt.report.pages.comparison_tables import TASKS
from softprompt.report.pages.training_text import figure, table

SHOWN = 20  # trials, the best first


def study_lines(study: Study, out: Path) -> list[str]:
    """The recommendation, what was measured, and where it lies."""
    advice = study.recommendation
    scored = [row for row in study.rows if row.mean is not None]
    lines = [
        study.title,
        "",
        advice.sentence,
        *(f"  {reason}" for reason in advice.reasons),
        "",
        *table(_quality(study)),
        "",
        *table(_measured(_beyond(study, scored))),
        "",
        *table(_measured(_cost(study, scored))),
        *([warning(changed), of_seconds(study.rows).strip()] if (changed := drift(speeds_of(study.rows))) else []),
        "",
        *table(_memory(scored)),
        "memory = base + tasks x task where tasks share the base model, tasks x all of it where each has a model of "
        "its own",
    ]
    lines += [f"{row.method} failed ({row.failed} of its seeds): {row.error}" for row in study.rows if row.failed]
    return [
        *lines,
        "",
        *(f"note: {note}" for note in study.notes),
        f"the report is in {out}: report.html, report.md, report.json",
    ]


def _measured(rows: list[list[str]]) -> list[list[str]]:
    """The table without columns in which no method has anything."""
    kept = [place for place in range(len(rows[0])) if any(row[place] != "-" for row in rows[1:])]
    return [[row[place] for place in kept] for row in rows]


def _quality(study: Study) -> list[list[str]]:
    heading = ["method", f"{study.metric} [95% interval]", "seeds", "deviation", "minus the best", "p"]
    found = [heading + ["minus the current"] * (study.current is not None)]
    for row in study.rows:
        cells = [row.method, _figure(study.metric, row), str(len(row.seeds)), _value(study.metric, row.deviation)]
        cells.append(_gap(study.metric, row.against_best))
        cells.append(f"{row.against_best['p_value']:.3f}" if row.against_best else "-")
        if study.current is not None:
            cells.append(_gap(study.metric, row.against_current))
        found.append(cells)
    return found


def _beyond(study: Study, rows: Sequence[Row]) -> list[list[str]]:
    found = [["method", "calibration error", "other domain", "perplexity of neutral text, before -> after"]]
    for row in rows:
        kept = row.forgetting
        error = "-" if row.calibration_error is None else f"{row.calibration_error:.3f}"
        perplexity = f"{kept.before:.2f} -> {kept.after:.2f}" if kept else "-"
        found.append([row.method, error, _value(study.metric, row.shift), perplexity])
    return found


def _cost(study: Study, rows: Sequence[Row]) -> list[list[str]]:
    price, changed = study.price_per_hour, drift(speeds_of(study.rows)) is not None
    heading = ["method", "learned", "stored", "training s", "search s", "peak memory", "added tokens"]
    heading += (
        ["p50 / bare", "p95 / bare", "examples/s at mean speed"] if changed else ["p50 ms", "p95 ms", "examples/s"]
    )
    found = [heading + ["per million"] * (price is not None)]
    for row, speed in zip(rows, comparable(speeds_of(rows)), strict=True):
        cost, cells = row.cost, [row.method]
        if cost is None:
            cells += ["-"] * 5
        else:
            peak = "-" if cost.peak_memory_bytes is None else bytes_text(cost.peak_memory_bytes)
            cells += [f"{cost.trained_parameters:,}", bytes_text(cost.stored_bytes), f"{cost.training_seconds:.1f}"]
            cells += [f"{cost.search_seconds:.1f}", peak]
        found.append([*cells, *_speed(speed, price, changed)])
        if row.engine is not None:
            engine = _speed(row.engine.speed, price, changed)
            found.append([f"{row.method} in {row.engine.engine}", *["-"] * 5, *engine])
    return found


def _speed(speed: Speed | None, price: float | None, changed: bool) -> list[str]:
    """The columns of a speed, the price's only if there is one; in bare requests where the machine's speed changed."""
    if speed is None:
        return ["-"] * (4 if price is None else 5)
    unit = speed.reference_ms if changed else None
    latencies = (speed.p50_ms, speed.p95_ms)
    # an engine has nothing timed beside it
    told = [f"{one / unit:.2f}" if unit else f"{one:.1f}" + " ms" * changed for one in latencies]
    cells = [f"{speed.added_tokens:.0f}", *told, f"{speed.examples_per_second:.0f}"]
    return cells if price is None else [*cells, f"{speed.cost_per_million(price):.2f}"]


def _memory(rows: Sequence[Row]) -> list[list[str]]:
    counted = [f"{count:,} task{'s' if count > 1 else ''}" for count in TASKS]
    sizes = [[row.method, *(bytes_text(row.cost.memory_for(n)) for n in TASKS)] for row in rows if row.cost is not None]
    return [["memory for", *counted], *sizes]


def scale_lines(scale: SizeStudy, out: Path) -> list[str]:
    """Each model's scores, and how far the first method is from the others."""
    others = [name for name in scale.methods if name != scale.methods[0]]
    rows = [["model", "parameters", *scale.methods, *(f"{scale.methods[0]} minus {name}" for name in others)]]
    for point in scale.points:
        figures = [_figure(scale.metric, point.rows[name]) for name in scale.methods]
        gaps = [_gap(scale.metric, point.gaps.get(name)) for name in others]
        rows.append([point.model, f"{point.parameters:,}", *figures, *gaps])
    return [
        *table(rows),
        "",
        scale.sentence,
        f"the report is in {out}: scale.html, scale.md, scale.json; each model has a folder of its own there",
    ]


def _figure(metric: str, row: Row) -> str:
    if row.mean is None:
        return "failed"
    return f"{_value(metric, row.mean)} [{_value(metric, row.low)}, {_value(metric, row.high)}]"


def _gap(metric: str, gap: Mapping[str, float | int] | None) -> str:
    if gap is None:
        return "-"
    value, low, high = (_value(metric, gap[key], "+") for key in ("difference", "low", "high"))
    return f"{value} [{low}, {high}]"


def _value(metric: str, value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.{metric_digits(metric)}f}"


def sweep_lines(summary: SweepSummary, trials: Sequence[SweepTrial], out: Path) -> list[str]:
    """The trials, the winner, what it gains, and where it lies."""
    reached = [trial for trial in trials if trial.value is not None]
    ranked = sorted(reached, key=lambda trial: (trial.rank, -trial.number), reverse=True)
    metric = next((trial.metric for trial in trials if trial.metric), "metric")
    names = list(summary.settings)
    rows = [["trial", *names, f"validation {metric}", "loss", "step", "status"]]
    for trial in [*ranked, *(trial for trial in trials if trial.value is None)][:SHOWN]:
        figures = ["-", "-"] if trial.value is None else [f"{trial.value:.4f}", f"{trial.loss:.4f}"]
        step = "-" if trial.best_step is None else str(trial.best_step)
        rows.append([str(trial.number), *(str(trial.settings[name]) for name in names), *figures, step, _status(trial)])
    lines = ["", *table(rows)]
    if len(trials) > SHOWN:
        lines.append(f"and {len(trials) - SHOWN} more in {out}/trials")
    counts = ", ".join(f"{count} {status}" for status, count in summary.trials.items())
    lines += ["", f"{sum(summary.trials.values())} trials in {summary.seconds:.0f} seconds of learning: {counts}"]
    settings = ", ".join(f"{name} {value}" for name, value in summary.settings.items())
    lines.append(f"best on validation: trial {summary.winner}, {settings}")
    usual = next((trial for trial in trials if trial.number == summary.usual and trial.value is not None), None)
    if usual is not None and usual.number != summary.winner:
        without = f"validation {metric} {usual.value:.4f}, loss {usual.loss:.4f}"
        lines.append(f"the settings of a run without a sweep (trial {usual.number}): {without}")
    elif usual is not None:
        lines.append("these are the settings of a run without a sweep: searching gained nothing")
    rows = [["the winner on", "metric", "value [95% interval]", "n"]]
    for split, found in (("validation", summary.validation), ("test", summary.test)):
        if found is not None:
            rows.append([split, found.metric, figure(found.model_dump()), f"{found.n:,}"])
    lines += ["", *table(rows)]
    lines.append("validation chose it among many, so its figure there is too high; the test split chose nothing")
    return [*lines, f"saved in {out}/{PROMPT}"]


def _status(trial: SweepTrial) -> str:
    if trial.status == "repeated":
        return f"as trial {trial.same_as}"
    return f"failed: {trial.error}" if trial.status == "failed" else trial.status
