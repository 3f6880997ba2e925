"""A sweep as lines of plain text."""

from collections.abc import Sequence
from pathlib import Path

from softprompt.report_text import figure, table
from softprompt.sweep.folder import PROMPT, SweepSummary, SweepTrial

SHOWN = 20  # trials, the best first


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
