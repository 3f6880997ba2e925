"""A sweep: the trials, the winner, what it gains, and where it lies."""

from collections.abc import Sequence
from pathlib import Path

from softprompt.experiments.sweep.sweep_folder import PROMPT, SweepSummary, SweepTrial
from softprompt.metrics.formatting import MISSING, format_count, format_fixed
from softprompt.report.pages.cells import make_metric_cell
from softprompt.report.render.document import Block, Column, Document, Section, Table, Text

SHOWN = 20  # trials, the best first


def make_sweep_document(summary: SweepSummary, trials: Sequence[SweepTrial], out: Path | None = None) -> Document:
    """Everything that a sweep into ``out`` found; where that is not known, without saying where things lie."""
    metric = next((trial.metric for trial in trials if trial.metric), "metric")
    counts = ", ".join(f"{count} {status}" for status, count in summary.trials.items())
    settings = ", ".join(f"{name} {value}" for name, value in summary.settings.items())
    won = [
        (split, found.metric, make_metric_cell(found.model_dump()), format_count(found.n))
        for split, found in (("validation", summary.validation), ("test", summary.test))
        if found is not None
    ]
    winner: list[Block] = [Text(f"best on validation: trial {summary.winner}, {settings}")]
    usual = next((trial for trial in trials if trial.number == summary.usual and trial.value is not None), None)
    if usual is not None:
        without = f"validation {metric} {format_fixed(usual.value, 4)}, loss {format_fixed(usual.loss, 4)}"
        winner.append(
            Text("these are the settings of a run without a sweep: searching gained nothing")
            if usual.number == summary.winner
            else Text(f"the settings of a run without a sweep (trial {usual.number}): {without}")
        )
    note = "validation chose it among many, so its figure there is too high; the test split chose nothing"
    winner.append(Table.of("", ("The winner on", "Metric", "Value [95% interval]", "n"), won, note, words=2))
    return Document(
        "Sweep",
        f"{sum(summary.trials.values())} trials in {summary.seconds:.0f} seconds of learning: {counts}",
        (),
        (
            Section("winner", "The winner", tuple(winner)),
            Section("trials", "The trials, best first", (_trials(summary, trials, metric, out),)),
        ),
        closing=()
        if out is None
        else (f"saved in {out}/{PROMPT}", f"the report is in {out}: sweep.html, sweep.md, sweep.json"),
    )


def _trials(summary: SweepSummary, trials: Sequence[SweepTrial], metric: str, out: Path | None) -> Table:
    reached = [trial for trial in trials if trial.value is not None]
    ranked = sorted(reached, key=lambda trial: (trial.rank, -trial.number), reverse=True)
    ranked += [trial for trial in trials if trial.value is None]
    names = list(summary.settings)
    rows = [
        (
            str(trial.number),
            *(str(trial.settings[name]) for name in names),
            format_fixed(trial.value, 4),
            format_fixed(None if trial.value is None else trial.loss, 4),
            MISSING if trial.best_step is None else str(trial.best_step),
            _status(trial),
        )
        for trial in ranked[:SHOWN]
    ]
    where = "" if out is None else f" in {out}/trials"
    more = f"and {len(trials) - SHOWN} more{where}" if len(trials) > SHOWN else ""
    columns = ("Trial", *names, f"Validation {metric}", "Loss", "Step", Column("Status", False))
    return Table.of("", columns, rows, more)


def _status(trial: SweepTrial) -> str:
    if trial.status == "repeated":
        return f"as trial {trial.same_as}"
    return f"failed: {trial.error}" if trial.status == "failed" else trial.status
