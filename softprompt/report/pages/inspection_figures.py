"""An inspection's figures, each with what to read out of it and its numbers as a table."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from softprompt.analysis.inspection.inspection_records import Inspection, Slice, VirtualToken
from softprompt.metrics.formatting import format_count, format_fixed, format_short, metric_heading
from softprompt.metrics.registry import METRICS
from softprompt.metrics.scores import Mean, Score
from softprompt.report.pages.cells import (
    describe_items,
    format_mean,
    make_interval_figure,
    make_mean_cell,
    make_metric_axis,
    make_share_axis,
)
from softprompt.report.render import charts
from softprompt.report.render.axes import Axis
from softprompt.report.render.document import Cell, Figure, Table

_GROUP, _OTHER = "soft-prompt", "written"
MOST_TOKENS = 40  # rows of a chart: of more, those whose removal changes most


def plot_quality(found: Inspection) -> Figure | None:
    """The metric of prompt and reference."""
    answers = found.answers
    if answers is None or answers.comparison is None:
        return None
    metric = answers.metric.metric
    pairs = [("this prompt", _GROUP, answers.metric), ("reference", _OTHER, answers.comparison.before)]
    rows = [_interval(*pair) for pair in pairs]
    axis = make_metric_axis(metric, f"{metric_heading(metric)} on {answers.split}")
    return make_interval_figure(
        "quality",
        "The prompt and its reference",
        f"Lines are 95% intervals over examples. The reference is: {answers.comparison.reference}. The difference is "
        "measured on the same examples, so it can be sure where the two lines overlap.",
        metric_heading(metric),
        rows,
        axis,
    )


def plot_calibration(found: Inspection) -> Figure | None:
    """How often answers are right, by how sure the prompt is of them."""
    one = found.answers.calibration if found.answers else None
    if one is None or len(one.bins) < 2:
        return None
    xs = tuple(a.confidence for a in one.bins)
    observed = charts.Series(
        "this prompt",
        _GROUP,
        xs,
        tuple(a.right for a in one.bins),
        tuple(a.right_low for a in one.bins),
        tuple(a.right_high for a in one.bins),
    )
    ideal = charts.Series("as it should be", _GROUP, (xs[0], xs[-1]), (xs[0], xs[-1]))
    table = Table.of(
        "Calibration",
        ("Confidence", "Examples", "Mean confidence", "Right"),
        (
            (
                f"{a.low:.1f} to {a.high:.1f}",
                format_count(a.n),
                format_fixed(a.confidence, 3),
                Cell(format_fixed(a.right, 3), f"[{format_fixed(a.right_low, 3)}, {format_fixed(a.right_high, 3)}]"),
            )
            for a in one.bins
        ),
    )
    return Figure(
        "calibration",
        "Is it as sure as it is right?",
        "Each mark is the answers of one range of confidence. Below the dashed line it is too sure, above it not sure "
        f"enough; the band is the 95% interval. Calibration error {format_mean(one.error)}, 0 is best.",
        describe_items("Share right by mean confidence", [f"{a.confidence:.2f}: {a.right:.2f}" for a in one.bins]),
        partial(
            charts.draw_lines,
            [observed, ideal],
            make_share_axis("Mean confidence"),
            make_share_axis("Share of right answers"),
            legend=False,
        ),
        table,
    )


def plot_slices(found: Inspection, most: int = 12) -> Figure | None:
    """The worst slices."""
    answers = found.answers
    if answers is None or not answers.slices:
        return None
    # what is no mean over rows is told of rows by themselves, which the figure of all rows is not
    known = METRICS.get(answers.metric.metric)
    is_mean = known is None or known.is_mean
    heading = metric_heading(answers.metric.metric) if is_mean else "Mean score of a row"
    rows = [_interval("all", _OTHER, answers.metric)] if is_mean else []
    rows += [
        _interval(f"{one.by}: {one.name}", _GROUP, one, strong=one.adjusted < 0.05) for one in answers.slices[:most]
    ]
    table = Table.of(
        "Slices",
        ("Slice", "Rows", heading, "Elsewhere", "p", "p, adjusted"),
        (
            (
                f"{one.by}: {one.name}",
                Cell(format_count(one.n), value=one.n),
                make_mean_cell(one),
                *(Cell(format_fixed(number, 3), value=number) for number in (one.rest, one.p_value, one.adjusted)),
            )
            for one in answers.slices
        ),
        sortable=True,
    )
    small = f" {answers.small_slices} more have fewer than {answers.least_slice} rows." if answers.small_slices else ""
    return Figure(
        "slices",
        "Parts of the data, the worst first",
        f"Of {len(answers.slices)} slices looked at, some look bad by chance: names in bold are worse than the rest "
        f"even when that is counted in (Holm, 5%).{small}",
        describe_items("Metric by slice, the worst first", [f"{row.name} {row.text}" for row in rows]),
        partial(charts.draw_intervals, rows, Axis(heading, partial(format_fixed, digits=2))),
        table,
    )


def plot_ablation(found: Inspection) -> Figure | None:
    """What the loss does without each virtual token."""
    known = [one for one in found.tokens if one.ablation is not None]
    if not known:
        return None
    shown = _shown(known)
    rows = [
        replace(_interval(name_token(one, found), _GROUP, effect), text=format_fixed(effect.value, 3, signed=True))
        for one in shown
        if (effect := one.ablation) is not None
    ]
    left = f" Shown are the {len(shown)} of {len(known)} with the largest effect." if len(shown) < len(known) else ""
    return make_interval_figure(
        "ablation",
        "What each virtual token is good for",
        "The loss without a token minus the loss with it, on the same examples, with its 95% interval. Right of 0 it "
        f"is of use; at 0 it could go (softprompt prune); left of 0 it does harm.{left}",
        "Change of the loss",
        rows,
        Axis("Change of the loss without it, nats", format_short),
        page_only=True,
    )


def plot_nearness(found: Inspection) -> Figure | None:
    """Cosine of each virtual token to its nearest word, beside what words have."""
    scale, known = found.vocabulary, [one for one in found.tokens if one.by_cosine]
    if scale is None or not known:
        return None
    words = scale.cosine
    rows = [
        charts.Interval("ordinary words", _OTHER, words.median, words.p5, words.p95, (), format_fixed(words.median, 2))
    ]
    rows += [
        charts.Interval(
            name_token(one, found), _GROUP, one.by_cosine[0].value, text=format_fixed(one.by_cosine[0].value, 2)
        )
        for one in _shown(known)
    ]
    return make_interval_figure(
        "nearness",
        "How near is the nearest word?",
        "The cosine between each virtual token and the word nearest to it. The first line is the same for ordinary "
        f"words and their own nearest other word (median, and 5% to 95% of {scale.sampled} words): only a virtual "
        "token at or right of it is as near to a word as words are to each other. Left of it, the name is a label to "
        "tell tokens apart, no translation.",
        "Cosine to the nearest word",
        rows,
        Axis("Cosine to the nearest word", partial(format_fixed, digits=2)),
        page_only=True,
    )


def plot_attention(found: Inspection) -> Figure | None:
    """What the position that answers looks at, by layer."""
    one = found.attention
    if one is None or len(one.prompt) < 2:
        return None
    layers = tuple(float(layer) for layer in range(1, len(one.prompt) + 1))
    parts = [("prompt", _GROUP, one.prompt), ("start of text", _OTHER, one.bos), ("text", "classical", one.text)]
    series = [charts.Series(name, group, layers, shares) for name, group, shares in parts if any(shares)]
    table = Table.of(
        "Attention by layer",
        ("Layer", *(name for name, _, _ in parts)),
        (
            (f"{layer:.0f}", *(format_fixed(shares[index], 3) for _, _, shares in parts))
            for index, layer in enumerate(layers)
        ),
    )
    return Figure(
        "attention",
        "What the answer looks at",
        "Shares of attention at the position that answers, mean over heads and "
        f"{one.examples} examples. Spread evenly, the prompt would get {format_fixed(one.even, 2)}. Much goes to the "
        "start of text in most models, whatever the prompt. Attention says where a layer reads, not what that does.",
        describe_items("Mean over layers", [f"{name} {sum(shares) / len(shares):.2f}" for name, _, shares in parts]),
        partial(
            charts.draw_lines,
            [charts.Series(one.name, _GROUP, one.xs, one.ys) for one in series],
            Axis("Layer", format_count),
            make_share_axis("Share of attention"),
            legend=False,
        ),
        table,
    )


_FORMERLY = 50  # steps that the training loss of a record is the mean of, where it does not say


def plot_history(history: Iterable[Mapping[str, float]]) -> Figure | None:
    """Loss while it learned."""
    names = ("train_loss", "validation_loss")
    kept = [one for one in history if {"step", *names} <= one.keys()]
    if len(kept) < 2:
        return None
    # a mean over steps stands in their middle; records of earlier releases do not say over how many
    over = [one.get("train_loss_steps", min(one["step"], _FORMERLY)) for one in kept]
    steps = {
        "train_loss": tuple(max(0.0, one["step"] - (n - 1) / 2) for one, n in zip(kept, over, strict=True)),
        "validation_loss": tuple(one["step"] for one in kept),
    }
    series = [
        charts.Series(label, _GROUP, steps[name], tuple(one[name] for one in kept))
        for name, label in zip(names, ("training", "validation"), strict=True)
    ]
    table = Table.of(
        "Loss while it learned",
        ("Step", "Training, mean of the steps before", "Validation"),
        ((format_count(one["step"]), *(format_fixed(one[name], 3) for name in names)) for one in kept),
    )
    return Figure(
        "history",
        "How it learned",
        "Validation loss at each evaluation, and the mean training loss of the steps before it, at most "
        f"{max(over):g}, drawn in the middle of them: while both fall the mean lags behind. Both falling: good. "
        "Validation rising alone: overfitting. Training rising or jumping: the learning rate is too high.",
        describe_items("At the end", [f"{one.name} {one.ys[-1]:.3f}" for one in series]),
        partial(charts.draw_lines, series, Axis("Step", format_count), Axis("Loss, nats", format_short), legend=False),
        table,
        page_only=True,
    )


def plot_memorization(found: Inspection) -> Figure | None:
    """Gains of training and held-out texts."""
    one = found.memorization
    if one is None:
        return None
    named: Sequence[tuple[str, str, Mean]] = (
        (f"training {one.what}", _GROUP, one.trained),
        (f"held-out {one.what}", _OTHER, one.held_out),
        ("difference", _GROUP, one.difference),
    )
    rows = [_interval(*one, signed=True) for one in named]
    return make_interval_figure(
        "memorization",
        f"Are training {one.what} known by heart?",
        "Gain of the log-likelihood a token, prompt minus no prompt. The prompt changes how well all texts are "
        "continued; what training texts gain more than held-out ones, the difference, is what it knows of them in "
        "particular. An interval that includes 0 shows no memorisation; it is no proof that there is none.",
        "Gain, nats a token",
        rows,
        Axis("Gain of the log-likelihood, nats a token", format_short),
    )


def name_token(token: VirtualToken, found: Inspection) -> str:
    """Its number, and the word nearest to it."""
    number = f"{token.member}.{token.index}" if found.members > 1 else str(token.index)
    return f"{number} “{token.by_cosine[0].token.strip()}”" if token.by_cosine else number


def _shown(tokens: Sequence[VirtualToken]) -> list[VirtualToken]:
    if len(tokens) <= MOST_TOKENS:
        return list(tokens)
    most = sorted(tokens, key=lambda one: -abs(one.ablation.value if one.ablation else 0.0))[:MOST_TOKENS]
    return sorted(most, key=lambda one: (one.member, one.index))


def _interval(
    name: str, group: str, one: Mean | Score | Slice, *, signed: bool = False, strong: bool = False
) -> charts.Interval:
    return charts.Interval(name, group, one.value, one.low, one.high, (), format_mean(one, signed), strong)
