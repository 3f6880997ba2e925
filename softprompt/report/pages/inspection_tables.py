"""An inspection's tables."""

from collections.abc import Sequence

from softprompt.analysis.inspection.inspection_records import (
    Continuation,
    Duplicates,
    Inspection,
    LabelErrors,
    Neighbor,
    Quantiles,
    Reproduction,
    StoreNeighbors,
    TrainingFit,
)
from softprompt.metrics.formatting import format_fixed, format_percent, format_short, metric_heading
from softprompt.report.pages.cells import DASH, format_mean, make_confusion_table, make_mean_cell
from softprompt.report.pages.inspection_figures import name_token
from softprompt.report.render.document import Block, Cell, Column, Table, Text

SUSPECTS = 50  # rows that a page shows


def tabulate_confusion(counts: Sequence[tuple[str, str, int]]) -> Table:
    """Gold labels against answers."""
    gold = sorted({one for one, _, _ in counts})
    given = sorted({one for _, one, _ in counts} | set(gold))
    caption = "Each row is a gold label, each column an answer"
    return make_confusion_table(caption, "Most frequent confusions", gold, given, {(a, b): n for a, b, n in counts})


def tabulate_virtual_tokens(found: Inspection) -> Table:
    """What is known of each."""
    names = ("Virtual token", "Nearest by cosine", "Nearest by distance")
    numbers = ("Nearer words", "Norm", "Moved", "Without it", "Answers changed")
    rows = (
        (
            Cell(name_token(one, found), f"began as “{one.start_token.strip()}”" if one.start_token else ""),
            _near(one.by_cosine, 2),
            _near(one.by_distance, 2),
            _share(one.nearer_by_cosine),
            Cell(
                format_short(one.norm),
                "" if one.norm_share is None else f"above {one.norm_share:.0%} of words",
                one.norm,
            ),
            DASH
            if one.moved is None
            else Cell(format_fixed(one.moved, 2), f"cosine {format_fixed(one.start_cosine, 2)}", one.moved),
            make_mean_cell(one.ablation, signed=True),
            _share(one.changed),
        )
        for one in found.tokens
    )
    unit = "standard deviations of the embeddings" if found.state_kind == "embeddings" else "shares of the start's norm"
    scale = found.vocabulary
    note = (
        ""
        if scale is None
        else f"Ordinary words: nearest other word at cosine {format_fixed(scale.cosine.median, 2)} "
        f"({format_fixed(scale.cosine.p5, 2)} to {format_fixed(scale.cosine.p95, 2)} for 90% of them), distance "
        f"{_ranged(scale.distance)}; norm {_ranged(scale.norm)}. Nearer words: share of "
        "ordinary words whose nearest other word is nearer than this one is to the virtual token; at 100% it is none. "
    )
    note += f"Moved: from its start, in {unit}, and the cosine to it. Without it: change of the loss, in nats."
    caption = "The virtual tokens, in the order in which the model reads them"
    return Table.of(caption, (*names, *numbers), rows, note, words=3, sortable=True, ranked_by=6)


def tabulate_token_attention(found: Inspection) -> Table:
    """Shares of attention, token by layer."""
    known = [one for one in found.tokens if one.attention]
    layers = len(known[0].attention)
    most = max(max(one.attention) for one in known) or 1.0
    return Table.of(
        "Share of attention, coloured by its size",
        ("Virtual token", *(f"{layer + 1}" for layer in range(layers))),
        (
            (name_token(one, found), *(Cell(format_fixed(share, 3), heat=share / most) for share in one.attention))
            for one in known
        ),
        "Columns are layers, first to last.",
    )


def tabulate_continuation(one: Continuation) -> tuple[Block, ...]:
    """What is said, and the likeliest next tokens."""
    texts = (("behind the prompt", one.text), ("behind nothing", one.without))
    columns = ("Where", Column("The model says", False, data=True))
    said = Table.of(
        "The likeliest continuation", columns, ((where, text.strip() or "(nothing)") for where, text in texts)
    )
    about = Text(
        "Asked to go on behind the prompt, without any text, the model says this. It is a glimpse, not a translation: "
        "the prompt was learned for what it does to texts."
    )
    if not one.next:
        return (about, said)
    pairs = zip(one.next, one.without_next, strict=False)
    likeliest = Table.of(
        "Likeliest next tokens",
        ("Behind the prompt", Column("Probability"), "Behind nothing", Column("Probability")),
        (
            tuple(text for one in pair for text in (f"“{one.token}”", format_fixed(one.probability, 3)))
            for pair in pairs
        ),
        words=3,
    )
    return (about, said, likeliest) if one.without_next else (about, said)


def tabulate_fit(one: TrainingFit) -> Table:
    """Training against validation."""
    return Table.of(
        "Rows it learned from, and rows it did not",
        ("Rows", "Loss", "Metric", "Rows looked at"),
        (
            (name, make_mean_cell(loss), format_fixed(metric, 3), f"{loss.n:,}")
            for name, loss, metric in (
                ("training rows", one.train_loss, one.train_metric),
                ("validation rows", one.validation_loss, one.validation_metric),
            )
        ),
        f"Difference of the losses: {format_mean(one.gap, signed=True)}.",
    )


def tabulate_label_errors(found: LabelErrors) -> Table:
    """Rows to look at."""
    return Table.of(
        "Rows to look at, most suspicious first",
        ("Row", Column("Text", False, data=True), Column("Why", False), "Score"),
        (
            (f"{one.index + 1:,}", one.text, one.reason, Cell(format_fixed(one.score, 2), value=one.score))
            for one in found.listed[:SUSPECTS]
        ),
        "Rows are counted from 1 in the training split."
        + (f" {found.found - SUSPECTS:,} more are in the output of --json." if found.found > SUSPECTS else ""),
    )


def tabulate_twins(found: Duplicates) -> Table:
    """Groups of near duplicates, a line for each row."""
    rows = []
    for number, group in enumerate(found.listed, start=1):
        tags = ("labels differ",) if group.conflicting else ()
        for place, row in enumerate(group.rows):
            name = Cell(f"{number}", f"{group.size} rows" if not place else "", tags=tags if not place else ())
            rows.append((name, f"{row.split} {row.index + 1:,}", row.answer, row.text))
    return Table.of("Near duplicates", ("Group", "Row", "Answer", Column("Text", False, data=True)), rows, words=3)


def tabulate_starts(found: StoreNeighbors) -> Table:
    """Which saved prompts would be a start."""
    rows = (
        (
            one.place,
            Cell(format_fixed(one.average_tokens, 3), value=one.average_tokens),
            {True: "yes", False: "no", None: "?"}[one.same_start],
            make_mean_cell(one.loss),
            " ".join(one.options),
        )
        for one in found.starts
    )
    own = found.own_loss
    note = (
        "Loss here: on this task's rows behind that prompt as it is, before any learning; the least is the best start. "
        + ("" if own is None else f"This prompt has {format_mean(own)}. ")
        + "Same start: began at the same words, hence alike for that reason too."
    )
    columns = ("Prompt", "Similarity", Column("Same start", False), "Loss here", Column("Options of train", False))
    return Table.of("Starts for this task", columns, rows, note, sortable=True)


def tabulate_similarities(found: StoreNeighbors) -> Table:
    """The matrix."""
    short = [f"{index + 1}" for index in range(len(found.names))]
    rows = (
        (
            f"{number} {name}",
            *(Cell(format_fixed(value, 2), value=value, heat=max(0.0, min(1.0, value))) for value in values),
        )
        for number, name, values in zip(short, found.names, found.matrix, strict=True)
    )
    left = f" {found.left_out} more are not shown, or cannot be compared." if found.left_out else ""
    note = f"1: the same direction.{left}"
    return Table.of("Cosine of average virtual tokens", ("Prompt", *short), rows, note)


def tabulate_reproduction(found: Sequence[Reproduction]) -> Table:
    """What the manifest says, and what is measured now."""
    rows = (
        (
            one.split,
            *(Cell(format_fixed(of.value, 3), f"n={of.n:,}", of.value) for of in (one.saved, one.now)),
            "yes" if one.same_data else "no",
        )
        for one in found
    )
    return Table.of(
        f"{metric_heading(found[0].now.metric)} as saved, and now",
        ("Split", "Saved", "Now", Column("Same data", False)),
        rows,
    )


def _ranged(one: Quantiles) -> str:
    return f"{format_short(one.median)} ({format_short(one.p5)} to {format_short(one.p95)})"


def _near(neighbours: Sequence[Neighbor], digits: int) -> Cell:
    if not neighbours:
        return DASH
    first, *others = neighbours
    rest = ", ".join(f"“{one.token}”" for one in others[:3])
    return Cell(f"“{first.token}” {format_fixed(first.value, digits)}", rest)


def _share(share: float | None) -> Cell:
    return DASH if share is None else Cell(format_percent(share), value=share)
