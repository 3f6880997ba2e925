"""An inspection's tables."""

from collections.abc import Sequence

from softprompt.analysis.inspection.inspection_records import (
    Continuation,
    Duplicates,
    Fit,
    Inspection,
    Neighbour,
    Neighbourhood,
    Reproduction,
    Suspects,
)
from softprompt.metrics.formatting import count_text, fixed, percent_text, short_text
from softprompt.metrics.scores import Mean
from softprompt.report.pages.comparison_tables import CLASSES_IN_A_MATRIX, DASH
from softprompt.report.pages.inspection_figures import token_name
from softprompt.report.render.document import Block, Cell, Column, Table, Text

SUSPECTS = 50  # rows that a page shows


def confusion(counts: Sequence[tuple[str, str, int]]) -> Table:
    """Gold labels against answers, in shares of each gold label; of many classes, the most frequent confusions."""
    gold = sorted({one for one, _, _ in counts})
    given = sorted({one for _, one, _ in counts} | set(gold))
    cells = {(a, b): n for a, b, n in counts}
    totals = {a: sum(n for one, _, n in counts if one == a) for a in gold}
    if len(given) > CLASSES_IN_A_MATRIX:
        wrong = sorted(((n, a, b) for (a, b), n in cells.items() if a != b), reverse=True)[:20]
        columns = (Column("Gold label", False), Column("Answer", False), Column("Times"), Column("Of the class"))
        return Table(
            "Most frequent confusions",
            columns,
            tuple((Cell(a), Cell(b), Cell(count_text(n)), Cell(percent_text(n / totals[a]))) for n, a, b in wrong),
        )

    def share(a: str, b: str) -> Cell:
        n = cells.get((a, b), 0)
        return Cell(percent_text(n / totals[a]), f"{n:,}" if n else "", heat=n / totals[a])

    return Table(
        "Each row is a gold label, each column an answer",
        (Column("Gold label", False), *map(Column, given)),
        tuple((Cell(a, f"{totals[a]:,}"), *(share(a, b) for b in given)) for a in gold),
    )


def virtual_tokens(found: Inspection) -> Table:
    """What is known of each."""
    names = ("Nearest by cosine", "Nearest by distance")
    numbers = ("Nearer words", "Norm", "Moved", "Without it", "Answers changed")
    columns = (Column("Virtual token", False), *(Column(name, False) for name in names), *map(Column, numbers))
    rows = tuple(
        (
            Cell(token_name(one, found), f"began as “{one.start_token.strip()}”" if one.start_token else ""),
            _near(one.by_cosine, 2),
            _near(one.by_distance, 2),
            _share(one.nearer_by_cosine),
            Cell(
                short_text(one.norm), "" if one.norm_share is None else f"above {one.norm_share:.0%} of words", one.norm
            ),
            DASH if one.moved is None else Cell(fixed(one.moved, 2), f"cosine {fixed(one.start_cosine, 2)}", one.moved),
            DASH if one.removal is None else mean_cell(one.removal, signed=True),
            _share(one.changed),
        )
        for one in found.tokens
    )
    unit = "standard deviations of the embeddings" if found.state_kind == "embeddings" else "shares of the start's norm"
    scale = found.vocabulary
    note = (
        ""
        if scale is None
        else f"Ordinary words: nearest other word at cosine {fixed(scale.cosine.median, 2)}, distance "
        f"{short_text(scale.distance.median)}; norm {short_text(scale.norm.median)} "
        f"({short_text(scale.norm.p5)} to {short_text(scale.norm.p95)} for 90% of them). Nearer words: share of "
        "ordinary words whose nearest other word is nearer than this one is to the virtual token; at 100% it is none. "
    )
    note += f"Moved: from its start, in {unit}, and the cosine to it. Without it: change of the loss, in nats."
    return Table("The virtual tokens, in the order in which the model reads them", columns, rows, note, sortable=True)


def token_attention(found: Inspection) -> Table:
    """Shares of attention, token by layer."""
    known = [one for one in found.tokens if one.attention]
    layers = len(known[0].attention)
    most = max(max(one.attention) for one in known) or 1.0
    return Table(
        "Share of attention, coloured by its size",
        (Column("Virtual token", False), *(Column(f"{layer + 1}") for layer in range(layers))),
        tuple(
            (Cell(token_name(one, found)), *(Cell(fixed(share, 3), heat=share / most) for share in one.attention))
            for one in known
        ),
        "Columns are layers, first to last.",
    )


def continuation(one: Continuation) -> tuple[Block, ...]:
    """What is said, and the likeliest next tokens."""
    rows = [
        (Cell("behind the prompt"), Cell(one.text.strip() or "(nothing)")),
        (Cell("behind nothing"), Cell(one.without.strip() or "(nothing)")),
    ]
    said = Table("The likeliest continuation", (Column("Where", False), Column("The model says", False)), tuple(rows))
    about = Text(
        "Asked to go on behind the prompt, without any text, the model says this. It is a glimpse, not a translation: "
        "the prompt was learned for what it does to texts."
    )
    if not one.next:
        return (about, said)
    pairs = zip(one.next, one.without_next, strict=False)
    likeliest = Table(
        "Likeliest next tokens",
        (
            Column("Behind the prompt", False),
            Column("Probability"),
            Column("Behind nothing", False),
            Column("Probability"),
        ),
        tuple(
            tuple(cell for one in pair for cell in (Cell(f"“{one.token}”"), Cell(fixed(one.probability, 3))))
            for pair in pairs
        ),
    )
    return (about, said, likeliest) if one.without_next else (about, said)


def fit(one: Fit) -> Table:
    """Training against validation."""
    rows = (
        (
            Cell("training rows"),
            mean_cell(one.train_loss),
            Cell(fixed(one.train_metric, 3)),
            Cell(f"{one.train_loss.n:,}"),
        ),
        (
            Cell("validation rows"),
            mean_cell(one.validation_loss),
            Cell(fixed(one.validation_metric, 3)),
            Cell(f"{one.validation_loss.n:,}"),
        ),
    )
    difference = f"Difference of the losses: {fixed(one.gap.value, 3, True)} [{fixed(one.gap.low, 3, True)}, "
    return Table(
        "Rows it learned from, and rows it did not",
        (Column("Rows", False), Column("Loss"), Column("Metric"), Column("Rows looked at")),
        rows,
        f"{difference}{fixed(one.gap.high, 3, True)}].",
    )


def suspects(found: Suspects) -> Table:
    """Rows to look at."""
    return Table(
        "Rows to look at, most suspicious first",
        (Column("Row", False), Column("Text", False), Column("Why", False), Column("Score")),
        tuple(
            (Cell(f"{one.index + 1:,}"), Cell(one.text), Cell(one.reason), Cell(fixed(one.score, 2), value=one.score))
            for one in found.listed[:SUSPECTS]
        ),
        "Rows are counted from 1 in the training split."
        + (f" {found.found - SUSPECTS:,} more are in the output of --json." if found.found > SUSPECTS else ""),
    )


def twins(found: Duplicates) -> Table:
    """Groups of near duplicates, a line for each row."""
    rows = []
    for number, group in enumerate(found.listed, start=1):
        tags = ("labels differ",) if group.conflicting else ()
        for place, row in enumerate(group.rows):
            name = Cell(f"{number}", f"{group.size} rows" if not place else "", tags=tags if not place else ())
            rows.append((name, Cell(f"{row.split} {row.index + 1:,}"), Cell(row.answer), Cell(row.text)))
    columns = (Column("Group", False), Column("Row", False), Column("Answer", False), Column("Text", False))
    return Table("Near duplicates", columns, tuple(rows))


def starts(found: Neighbourhood) -> Table:
    """Which saved prompts would be a start."""
    rows = tuple(
        (
            Cell(one.place),
            Cell(fixed(one.average_tokens, 3), value=one.average_tokens),
            Cell({True: "yes", False: "no", None: "?"}[one.same_start]),
            DASH if one.loss is None else mean_cell(one.loss),
            Cell(" ".join(one.options)),
        )
        for one in found.starts
    )
    own = found.own_loss
    note = (
        "Loss here: on this task's rows behind that prompt as it is, before any learning; the least is the best start. "
        + ("" if own is None else f"This prompt has {fixed(own.value, 3)}. ")
        + "Same start: began at the same words, hence alike for that reason too."
    )
    columns = (
        Column("Prompt", False),
        Column("Similarity"),
        Column("Same start", False),
        Column("Loss here"),
        Column("Options of train", False),
    )
    return Table("Starts for this task", columns, rows, note, sortable=True)


def similarities(found: Neighbourhood) -> Table:
    """The matrix."""
    short = [f"{index + 1}" for index in range(len(found.names))]
    rows = tuple(
        (
            Cell(f"{number} {name}"),
            *(Cell(fixed(value, 2), value=value, heat=max(0.0, min(1.0, value))) for value in values),
        )
        for number, name, values in zip(short, found.names, found.matrix, strict=True)
    )
    left = f" {found.left_out} more are not shown, or cannot be compared." if found.left_out else ""
    return Table(
        "Cosine of average virtual tokens",
        (Column("Prompt", False), *map(Column, short)),
        rows,
        f"1: the same direction.{left}",
    )


def reproduction(found: Sequence[Reproduction]) -> Table:
    """What the manifest says, and what is measured now."""
    rows = tuple(
        (
            Cell(one.split),
            Cell(fixed(one.saved.value, 3), f"n={one.saved.n:,}", one.saved.value),
            Cell(fixed(one.now.value, 3), f"n={one.now.n:,}", one.now.value),
            Cell("yes" if one.same_data else "no"),
        )
        for one in found
    )
    columns = (Column("Split", False), Column("Saved"), Column("Now"), Column("Same data", False))
    return Table("Accuracy as saved, and now", columns, rows)


def mean_cell(one: Mean, signed: bool = False) -> Cell:
    return Cell(fixed(one.value, 3, signed), f"[{fixed(one.low, 3, signed)}, {fixed(one.high, 3, signed)}]", one.value)


def _near(neighbours: Sequence[Neighbour], digits: int) -> Cell:
    if not neighbours:
        return DASH
    first, *others = neighbours
    rest = ", ".join(f"“{one.token}”" for one in others[:3])
    return Cell(f"“{first.token}” {fixed(first.value, digits)}", rest)


def _share(share: float | None) -> Cell:
    return DASH if share is None else Cell(percent_text(share), value=share)
