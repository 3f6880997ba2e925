"""What monitoring found, as lines of plain text: drifting prompts first, each with what it means and what to try."""

from collections.abc import Iterator

from softprompt.analysis.drift.drift_records import Monitoring, PromptDrift, Signal, Witness
from softprompt.errors import shorten
from softprompt.report.pages.training_text import table

WIDEST = 72  # characters of a text of the user's
SHOWN = 3  # samples of a signal

VERDICTS = {
    "drift": "drift",
    "small": "differs, but little",
    "none": "no drift seen",
    "too few": "too few samples to tell",
}


def monitoring_lines(found: Monitoring) -> list[str]:
    """What a terminal shows."""
    lines = [f"{found.read:,} samples in {found.samples}" + (f" since {found.since}" if found.since else "")]
    if found.damaged:
        lines.append(f"{found.damaged:,} rows are no samples and were left out")
    if found.left_out:
        lines.append(f"{found.left_out:,} older samples were not read")
    for one in found.prompts:
        lines += ["", *_prompt(one)]
    if found.notes:
        lines += ["", "left out", *(f"  {note}" for note in found.notes)]
    lines += ["", _rule(found)]
    return lines


def number_texts(signal: Signal) -> tuple[str, str]:
    """Both sides, in the digits that they deserve; of answers, the label that moved most."""
    if signal.moved is not None:
        label, before, now = signal.moved
        return f"{label[:20]} {before:.1%}", f"{now:.1%}"
    trained, live = ("-" if value is None else _number(signal, value) for value in (signal.trained, signal.live))
    return trained, live


def _number(signal: Signal, value: float) -> str:
    return f"{value:.1%}" if signal.name == "rare" else f"{value:.0f}" if signal.name == "length" else f"{value:.3f}"


def sure_text(value: float | None) -> str:
    """A p-value."""
    return "-" if value is None else "<0.0001" if value < 1e-4 else f"{value:.4f}"


def _prompt(one: PromptDrift) -> Iterator[str]:
    yield f"== {one.prompt}: {VERDICTS[one.verdict]} ({one.samples:,} samples, {one.first} to {one.last} UTC)"
    for each in one.findings:
        yield f"[{each.severity}] {each.title}"
        yield f"    seen:  {each.evidence}"
        yield f"    means: {each.meaning}"
        yield from (f"    try:   {advice}" for advice in each.advice)
    rows = [("signal", "validation", "live", "n", "effect", "p, adjusted", "verdict")]
    rows += [
        (
            signal.title,
            *number_texts(signal),
            f"{signal.trained_n:,} / {signal.live_n:,}",
            "-" if signal.effect is None else f"{signal.measure} {signal.effect:.2f}",
            sure_text(signal.adjusted),
            VERDICTS[signal.verdict],
        )
        for signal in one.signals
    ]
    yield from ("", *table(rows))
    for finding in one.findings:
        name = finding.name.removeprefix("drift-")
        shown = [witness for witness in one.witnesses if witness.signal == name][:SHOWN]
        if shown:
            yield from ("", f"shown most by ({finding.title[0].lower()}{finding.title[1:]}):")
            yield from (f"  {_witness(witness)}" for witness in shown)
    yield from (f"note: {note}" for note in (*_errors(one), f"profile: {one.profile}", *one.notes))


def _errors(one: PromptDrift) -> Iterator[str]:
    if one.errors:
        told = ", ".join(f"{code} {count:,}" for code, count in one.errors.items())
        yield f"requests that ended in an error: {told}"


def _witness(one: Witness) -> str:
    text = f"request {one.request}" if one.text is None else one.text
    return f"{one.time}  {one.why}: {shorten(text, WIDEST)}"


def _rule(found: Monitoring) -> str:
    return (
        f"drift: adjusted p below {found.significance:g} (Holm), and a population stability index (PSI) of 0.1, or "
        f"Cohen's h of 0.2, at least; below {found.least} samples or {found.least_trained} validation rows: too few"
    )
