"""An inspection as a page: the findings first, then what they rest on."""

from collections.abc import Sequence
from pathlib import Path

from softprompt.analysis.finding_rules import Finding
from softprompt.analysis.inspection.inspection_records import SUSPECTED, ChangedAnswer, Comparison, Inspection, Pruning
from softprompt.metrics.formatting import format_count, format_fixed, format_interval, format_metric, metric_heading
from softprompt.report.pages import inspection_figures as figures
from softprompt.report.pages import inspection_tables as tables
from softprompt.report.pages.cells import make_mean_cell, make_settings_table
from softprompt.report.render.document import (
    Answer,
    Block,
    Document,
    Example,
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


def make_inspection_document(found: Inspection) -> Document:
    """Everything that an inspection found."""
    members = f"{found.members} times " if found.members > 1 else ""
    form = (
        "keys and values in every layer" if found.state_kind == "key_values" else f"{found.embedding_size} numbers each"
    )
    return Document(
        kind="Inspection of a prompt",
        title=found.place,
        facts=(
            f"{members}{found.length} virtual tokens, {form}, in front of every text of a {found.kind}; {found.base} "
            "itself is unchanged",
            f"{found.data}: {', '.join(f'{size:,} {name}' for name, size in found.sizes.items())}",
        ),
        sections=tuple(
            Section(name, title, tuple(blocks))
            for name, title, blocks in (
                ("recommendation", "Health", _health(found)),
                ("answers", "What it changed", _answers(found)),
                ("slices", "Where it is worst", _slices(found)),
                ("tokens", "What it has learned", _tokens(found)),
                ("attention", "Where the model looks", _attention(found)),
                ("alone", "What it says alone", _alone(found)),
                ("rows", "The training data", _rows(found)),
                ("privacy", "Privacy", _privacy(found)),
                ("others", "Other prompts", _others(found)),
                ("measured", "How it was made and measured", _measured(found)),
            )
            if blocks
        ),
        created=found.created,
    )


def make_pruning_document(report: Pruning, before: int, out: Path) -> Document:
    """What was taken out of a prompt of ``before`` virtual tokens, and what that costs."""
    rows = [
        (
            "validation",
            format_fixed(report.before, 4),
            format_fixed(report.after, 4),
            make_mean_cell(report.difference, signed=True),
        )
    ]
    if report.test_difference is not None:
        difference = make_mean_cell(report.test_difference, signed=True)
        rows.append(("test", format_fixed(report.test_before, 4), format_fixed(report.test_after, 4), difference))
    note = f"chosen on validation with a tolerance of {report.tolerance:g}, so its figure flatters; test took no part"
    table = Table.of("", (metric_heading(report.metric), "Before", "After", "Difference [95% interval]"), rows, note)
    return Document(
        "Pruning",
        f"{before} virtual tokens, {report.length} stay: {', '.join(map(str, report.kept))}",
        (),
        (Section("results", "What it costs", (table,)),),
        closing=(f"saved in {out}",),
    )


def _health(found: Inspection) -> list[Block]:
    answers = found.answers
    facts = []
    if answers is not None:
        metric = answers.metric
        value, interval = (
            format_metric(metric.metric, metric.value),
            format_interval(metric.metric, metric.low, metric.high),
        )
        facts.append(Fact(f"{metric_heading(metric.metric)} on {answers.split}", value, f"{interval} n={metric.n:,}"))
        facts.append(Fact("Loss", format_fixed(answers.loss.value, 3), make_mean_cell(answers.loss).detail))
        if answers.comparison is not None:
            one = answers.comparison.difference
            interval = format_interval(metric.metric, one.low, one.high, signed=True)
            facts.append(Fact("Against the reference", format_metric(metric.metric, one.value, signed=True), interval))
    facts.append(Fact("Virtual tokens", format_count(found.length)))
    if answers is not None and answers.calibration is not None:
        error = make_mean_cell(answers.calibration.error)
        facts.append(Fact("Calibration error", error.text, f"{error.detail}, 0 is best"))
    reasons = tuple(f"{one.title}: {one.evidence}." for one in found.findings if one.severity != "note")
    blocks: list[Block] = [Statement(_sentence(found.findings), tuple(facts), reasons)]
    return [*blocks, *map(make_finding_fold, found.findings)]


def make_finding_fold(one: Finding) -> Fold:
    """What was seen, what it means, and what to try."""
    seen = (Text(f"Seen: {one.evidence}."), Text(f"Means: {one.meaning}"), Points(one.advice))
    return Fold(f"{one.severity.capitalize()}: {one.title}", seen)


def _sentence(findings: Sequence[Finding]) -> str:
    counts = {name: sum(one.severity == name for one in findings) for name in ("problem", "warning", "note")}
    if not findings:
        return "Nothing that was looked at seems wrong."
    told = [f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items() if count]
    return f"{', '.join(told)}: {findings[0].title[0].lower()}{findings[0].title[1:]}."


def _answers(found: Inspection) -> list[Block]:
    answers = found.answers
    if answers is None:
        return []
    blocks: list[Block] = _present(figures.plot_quality(found))
    if (one := answers.comparison) is not None:
        right = found.kind == "classification"
        blocks.append(
            Text(
                f"Against the reference, it is right on {one.fixed:,} rows where that was wrong, and wrong on "
                f"{one.broken:,} where that was right."
                if right
                else f"Against the reference, the loss of {one.fixed:,} rows fell by more than a tenth of a nat a "
                f"token, and that of {one.broken:,} rose."
            )
        )
        blocks += _changes(one, right)
    if answers.confusion:
        blocks.append(tables.tabulate_confusion(answers.confusion))
    return blocks + _present(figures.plot_calibration(found))


def _changes(one: Comparison, judged: bool) -> list[Block]:
    """Fixed examples open, broken ones too: both are what a reader came for."""
    blocks: list[Block] = []
    for title, changes, now_right in (
        ("Fixed, those that gained most:", one.fixed_examples, True),
        ("Broken, those that lost most:", one.broken_examples, False),
    ):
        if changes:
            shown = tuple(_example(change, now_right if judged else None) for change in changes)
            blocks += [Text(title), Examples(shown)]
    return blocks


def _example(change: ChangedAnswer, now_right: bool | None) -> Example:
    before_right = None if now_right is None else not now_right
    answers = (Answer(change.now, now_right, ("this prompt",)), Answer(change.before, before_right, ("reference",)))
    return Example(change.index, change.text, change.gold, answers)


def _slices(found: Inspection) -> list[Block]:
    return _present(figures.plot_slices(found))


def _tokens(found: Inspection) -> list[Block]:
    if not found.tokens:
        return []
    explained = (
        "A soft prompt is a few vectors in the place where words enter the model. They were learned, and need not be "
        "any word's. So they are looked at in three ways: what happens without one, how near words are, how far it is."
    )
    return [
        Text(explained),
        *_present(figures.plot_ablation(found), figures.plot_nearness(found)),
        tables.tabulate_virtual_tokens(found),
    ]


def _attention(found: Inspection) -> list[Block]:
    blocks = _present(figures.plot_attention(found))
    if blocks and any(token.attention for token in found.tokens):
        blocks.append(
            Fold("Attention to each virtual token, by layer", (tables.tabulate_token_attention(found),), page_only=True)
        )
    return blocks


def _alone(found: Inspection) -> list[Block]:
    return [] if found.continuation is None else list(tables.tabulate_continuation(found.continuation))


def _rows(found: Inspection) -> list[Block]:
    blocks: list[Block] = _present(figures.plot_history(found.history))
    if found.fit is not None:
        blocks.append(tables.tabulate_fit(found.fit))
    if (label_errors := found.label_errors) is not None:
        blocks.append(
            Text(
                f"{label_errors.found:,} of {label_errors.looked_at:,} training rows look mislabelled: "
                f"{SUSPECTED[found.kind]}. Read from the top; hard rows are among them."
            )
        )
        if label_errors.listed:
            blocks.append(tables.tabulate_label_errors(label_errors))
    if (twins := found.duplicates) is not None:
        blocks.append(
            Text(
                f"Near duplicates: {twins.groups:,} groups among {twins.rows:,} rows. {twins.redundant:,} training "
                f"rows add nothing to another one, {twins.leaked:,} of {twins.held_out:,} held-out rows stand in train "
                f"too, and {twins.conflicting:,} groups disagree on the label."
            )
        )
        if twins.listed:
            blocks.append(Fold("Groups of near duplicates", (tables.tabulate_twins(twins),), page_only=True))
    return blocks


def _privacy(found: Inspection) -> list[Block]:
    blocks: list[Block] = _present(figures.plot_memorization(found))
    one = found.memorization
    if one is not None:
        same = "" if one.same_data else " The rows given are not those it was learned on: this says nothing about them."
        blocks.append(
            Text(
                f"By this gain, a training row is told from a held-out one {one.auc:.0%} of the time (area "
                f"{one.auc:.2f}); 50% is a guess."
                f"{same}"
            )
        )
    return blocks


def _others(found: Inspection) -> list[Block]:
    one = found.neighbors
    return [] if one is None else [tables.tabulate_starts(one), tables.tabulate_similarities(one)]


def _measured(found: Inspection) -> list[Block]:
    blocks: list[Block] = [Fold("The prompt", (make_settings_table("Settings", found.training),), page_only=True)]
    if found.reproduction:
        blocks.append(tables.tabulate_reproduction(found.reproduction))
    if found.notes:
        blocks += [Text("Left out, and why:"), Points(found.notes)]
    return blocks


def _present(*found: Figure | Table | None) -> list[Block]:
    return [block for block in found if block is not None]
