"""What fits: what softprompt can do with a model or a family, and the memory that a prompt and its model need."""

from collections.abc import Iterator, Sequence

from softprompt.analysis.diagnostics.doctor import KEYS_AND_VALUES, MEANINGS, Diagnosis, FamilyDiagnosis, format_error
from softprompt.analysis.diagnostics.memory_estimate import GB, ROOM, MemoryEstimate, MemoryPlan
from softprompt.analysis.diagnostics.parity_cases import LONG_TEXT
from softprompt.report.pages.cells import make_settings_table
from softprompt.report.render.document import Block, Code, Column, Document, Points, Section, Table


def make_diagnosis_document(diagnosis: Diagnosis) -> Document:
    """What softprompt can do with a model."""
    working = [name for name, reason in diagnosis.methods.items() if not reason]
    facts = {
        "model": f"{diagnosis.model} ({diagnosis.family}, {diagnosis.dtype}, {diagnosis.device})",
        "runs with": diagnosis.way + (f": {diagnosis.reason}" if diagnosis.reason else ""),
        "methods": ", ".join(working) or "none",
    }
    blocks: list[Block] = [make_settings_table("", facts, ("", ""))]
    if diagnosis.checks:
        rows = [
            (c.name, c.verdict, format_error(c.error), format_error(c.gradient_error), c.meaning)
            for c in diagnosis.checks
        ]
        columns = ("Check", "Verdict", Column("Error"), Column("Gradient"), "What it asks")
        reasons = [f"{check.name}: {check.reason}" for check in diagnosis.checks if check.reason]
        blocks.append(Table.of("", columns, rows, words=len(columns)))
        blocks.append(Points((*reasons, *_small_print(diagnosis))))
    return Document("Diagnosis", diagnosis.model, (), (Section("checks", "What works", tuple(blocks)),))


def make_families_document(rows: Sequence[FamilyDiagnosis]) -> Document:
    """The families side by side, and the reasons for what is not exact."""
    cells = []
    for row in rows:
        verdicts = {check.name: check.verdict for check in row.diagnosis.checks} if row.diagnosis else {}
        error = format_error(row.diagnosis.largest_error if row.diagnosis else None)
        cells.append((row.family, row.way, *(verdicts.get(name, "-") for name in MEANINGS), error))
    columns = ("family", "runs with", *MEANINGS, "largest error")
    reasons = tuple(f"{row.family}: {'; '.join(why)}" for row in rows if (why := _reasons(row)))
    table = Table.of("Each family", columns, cells, words=len(columns))
    return Document(
        "Diagnosis",
        "Model families",
        (),
        (Section("families", "What works", (table, *([Points(reasons)] if reasons else []))),),
    )


def make_plan_document(plan: MemoryPlan) -> Document:
    """The memory of training a prompt and of serving many, each part with its formula, and the commands."""
    facts, workload = plan.facts, plan.workload
    gpus = f"{workload.gpus} GPU{'s' if workload.gpus > 1 else ''} of" if workload.gpus else "the processor,"
    return Document(
        "Plan",
        f"{facts['name']}: {facts['parameters']:,} parameters, {facts['layers']} layers, {facts['dtype']}, "
        f"{facts['architecture']}",
        (
            f"{workload.length} virtual tokens, texts of {workload.text_length} tokens, on {gpus} "
            f"{workload.memory / GB:.0f} GB",
        ),
        tuple(
            Section(f"bill-{number}", estimate.title, tuple(_bill(plan, estimate)))
            for number, estimate in enumerate((plan.training, *plan.serving))
        ),
    )


def _bill(plan: MemoryPlan, estimate: MemoryEstimate) -> Iterator[Block]:
    gpus, memory = plan.workload.gpus, plan.workload.memory
    verdict = "fits" if estimate.fits and estimate.at_once else "does not fit"
    room = f"{estimate.room / GB:.1f} GB" + (f" ({ROOM:.0%} of {memory / GB:.0f})" if gpus else "")
    rows = [(part.name, f"{part.bytes / GB:.2f} GB", part.formula) for part in estimate.parts]
    rows.append(("all", f"{estimate.bytes / GB:.2f} GB", f"of {room}: {verdict}"))
    columns = ("Part", Column("Per GPU" if gpus else "Memory"), "Formula")
    yield Table.of("", columns, rows, words=3)
    what = "texts in one pass" if estimate is plan.training else "requests at once"
    if notes := (*([f"at most {estimate.at_once:,} {what}"] if estimate.at_once else []), *estimate.notes):
        yield Points(notes)
    if estimate.commands:
        yield Code("\n".join(f"$ {command}" for command in estimate.commands))


def _reasons(row: FamilyDiagnosis) -> list[str]:
    """Why the family does not share a prefix, and what else it is refused."""
    checks = row.diagnosis.checks if row.diagnosis else ()
    refused = {check.name: f"{check.name}: {check.reason}" for check in checks if check.verdict == "refused"}
    # without a cache, there are no keys and values to give
    if row.way == "concatenation (fallback)":
        refused.pop(KEYS_AND_VALUES, None)
    return [*([row.reason] if row.reason else []), *(why for why in refused.values() if why != row.reason)]


def _small_print(diagnosis: Diagnosis) -> Iterator[str]:
    yield (
        "errors are relative to plain concatenation, one text at a time; exact is up to "
        f"{format_error(diagnosis.tolerance)} (gradient {format_error(diagnosis.gradient_tolerance)}); "
        f"texts of up to {diagnosis.longest_text} tokens"
    )
    if diagnosis.dtype != "float32":
        yield (
            f"{diagnosis.dtype}: rounding alone does a quarter of that, so only gross faults show; "
            "--dtype float32 shows fine ones"
        )
    if diagnosis.sliding_window is not None and diagnosis.longest_text <= diagnosis.sliding_window:
        yield f"no text was longer than the sliding window of {diagnosis.sliding_window} tokens"
    if (most := diagnosis.batch_independent_length) is not None:
        yield (
            f"beyond {most:,} tokens this model reads all texts of a batch by the longest (longrope, dynamic NTK, "
            "sparse blocks): texts with their prompt and answer are cut to that"
            + ("" if diagnosis.longest_text + LONG_TEXT > most else "; no text here was nearly as long")
        )
