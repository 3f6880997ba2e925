"""Which method to deploy: rules, tried in the order of ``RULES``; the first that applies decides.

Words used in all of them. *Clearly*: the 95% interval of the paired difference lies on one side of zero. *Level* with
the best: not clearly worse, or surely worse by no more than ``MARGIN``. *Sure*: level, and the interval leaves no room
for being worse by more than ``TOO_WIDE``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from softprompt.experiments.comparison.study_records import Cost, Recommendation, Row, collect_speeds
from softprompt.inference.speed_drift import describe_drift, find_speed_drift, make_comparable, normalize_speeds
from softprompt.metrics.formatting import format_bytes
from softprompt.metrics.registry import metric_format
from softprompt.metrics.scores import Speed

MARGIN = 0.01  # of the metric's scale: a loss that is too small to matter
TOO_WIDE = 0.03  # of the metric's scale: a loss that would matter, and must be ruled out
FEWEST_EXAMPLES = 50  # of the test split
SAME_SPEED = 1.25  # throughputs that differ by less than this factor count as equal
SLOW = 2.0  # a written prompt is not kept, and a latency is pointed out, from this factor on
TASKS = 100  # tasks on one machine whose memory is compared
MANY_TASKS = 1000  # whose memory is pointed out


@dataclass(frozen=True)
class Evidence:
    """What the rules look at.

    Attributes:
        rows: one a method.
        examples: of the test split, scored.
        guessing: share of the most frequent label there; ``None`` for generation.
        current: the method in use now.
    """

    rows: tuple[Row, ...]
    metric: str
    examples: int
    guessing: float | None = None
    current: str | None = None
    price_per_hour: float | None = None

    @property
    def scale(self) -> float:
        """The metric's largest value."""
        return metric_format(self.metric).limits[1]

    @property
    def scored(self) -> list[Row]:
        """The rows with a result, best first."""
        return sorted((row for row in self.rows if row.mean is not None), key=lambda row: -(row.mean or 0.0))

    @property
    def best(self) -> Row:
        return self.scored[0]

    @property
    def level(self) -> list[Row]:
        """The rows that are level with the best, best first."""
        return [row for row in self.scored if self._is_level(row)]

    def _is_level(self, row: Row) -> bool:
        against = row.against_best
        return against is None or against["high"] >= 0 or against["low"] >= -MARGIN * self.scale

    def is_sure(self, row: Row) -> bool:
        """Whether the data rule out that ``row`` is much worse than the best."""
        return row.against_best is None or row.against_best["low"] >= -TOO_WIDE * self.scale

    @property
    def preferred(self) -> Row:
        """Of those level with the best, the one that asks least of a team."""
        level = self.level
        in_use = [row for row in level if row.method == self.current]
        written = [row for row in level if row.family == "written" and not is_slow(row, level)]
        without_model = [row for row in level if needs_no_model(row)]
        for group in (in_use, written, without_model):
            if group:
                return choose_cheapest(group)
        return choose_cheapest(level)


def choose_cheapest(rows: Sequence[Row]) -> Row:
    """Among the fastest, to ``SAME_SPEED``, the least memory for ``TASKS`` tasks, then the smallest files, then the
    shortest training."""
    speeds = measure_throughputs(rows)
    fast = [row for row, speed in zip(rows, speeds, strict=True) if speed * SAME_SPEED >= max(speeds)]

    def price(row: Row) -> tuple[float, float, float]:
        if row.cost is None:
            return math.inf, math.inf, math.inf
        return row.cost.memory_for(TASKS), row.cost.stored_bytes, row.cost.training_seconds

    return min(fast, key=price)


def measure_throughputs(rows: Sequence[Row]) -> list[float]:
    """Examples a second, 0 where it was not measured; where every speed has its reference, at the machine's mean speed:
    they are measured one after another, on machines that others use too."""
    return [0.0 if speed is None else speed.examples_per_second for speed in normalize_speeds(collect_speeds(rows))]


def is_slow(row: Row, rows: Sequence[Row]) -> bool:
    """Whether others, ``row`` among ``rows``, answer ``SLOW`` times as many examples a second."""
    speeds = measure_throughputs(rows)
    return speeds[list(rows).index(row)] * SLOW < max(speeds)


def needs_no_model(row: Row) -> bool:
    """Whether it answers without the language model; a model of its own, as after full fine-tuning, is one too."""
    return row.cost is not None and row.cost.base_shared and row.cost.base_bytes == 0


def recommend(evidence: Evidence) -> Recommendation:
    """The first rule that applies."""
    return next(found for rule in RULES if (found := rule(evidence)) is not None)


def nothing_finished(e: Evidence) -> Recommendation | None:
    if e.scored:
        return None
    errors = tuple(f"{row.method}: {row.error}" for row in e.rows)
    return Recommendation(
        deploy=None, rule="nothing finished", sentence="No method gave a result: nothing to deploy.", reasons=errors
    )


def too_few_examples(e: Evidence) -> Recommendation | None:
    if e.examples >= FEWEST_EXAMPLES:
        return None
    return _decide_nothing(
        e,
        "too few examples",
        f"Not enough data to tell: the test split has {e.examples} examples, {FEWEST_EXAMPLES} is the least.",
        (f"with {e.examples} examples one answer moves a score by {100 / e.examples:.1f} points",),
    )


def no_better_than_guessing(e: Evidence) -> Recommendation | None:
    if e.guessing is None or e.best.low is None or e.best.low > e.guessing:
        return None
    return _decide_nothing(
        e,
        "no better than guessing",
        "Deploy none of them: no method is clearly better than always giving the most frequent label.",
        (_format_score(e, e.best), f"the most frequent label alone: {_format_value(e, e.guessing)}"),
    )


def intervals_too_wide(e: Evidence) -> Recommendation | None:
    row = e.preferred
    if e.is_sure(row):
        return None
    assert row.against_best is not None
    wanted = count_examples_to_settle(row.against_best, e.examples, TOO_WIDE * e.scale)
    return _decide_nothing(
        e,
        "not enough data",
        f"Not enough data to tell whether '{row.method}', the least costly, is as good as '{e.best.method}'.",
        (
            _format_difference(e, row),
            f"a loss of more than {_format_points(e, TOO_WIDE * e.scale)} is not ruled out; about "
            f"{_round_up(wanted):,} test examples would settle it",
        ),
    )


def count_examples_to_settle(against: Mapping[str, float | int], examples: int, loss: float) -> int:
    """How many examples it takes to tell, if the difference stays what it is: always more than there are.

    An interval shrinks with the root of their number. It is to end either before a ``loss`` that matters, at its lower
    end, or before zero, at its upper end: whichever comes first.
    """
    difference, low, high = against["difference"], against["low"], against["high"]
    ways = [(difference - low, loss + difference), (high - difference, -difference)]
    ratios = [width / allowed for width, allowed in ways if allowed > 0]
    return max(examples + 1, math.ceil(examples * min(ratios) ** 2)) if ratios else examples + 1


def keep_current(e: Evidence) -> Recommendation | None:
    row = e.preferred
    if row.method != e.current:
        return None
    sentence = f"Keep '{row.method}': nothing that was tried is {_say_no_better(e, row)}."
    return _deploy(e, row, "keep what is in use", sentence)


def keep_written(e: Evidence) -> Recommendation | None:
    row = e.preferred
    if row.family != "written":
        return None
    sentence = f"Keep the written prompt ('{row.method}'): nothing that was learned is {_say_no_better(e, row)}."
    return _deploy(e, row, "keep the written prompt", sentence)


def no_model_needed(e: Evidence) -> Recommendation | None:
    row = e.preferred
    if not needs_no_model(row):
        return None
    sentence = f"'{row.method}' is enough: nothing that uses the language model is {_say_no_better(e, row)}."
    return _deploy(e, row, "no language model needed", sentence)


def weights_clearly_better(e: Evidence) -> Recommendation | None:
    """LoRA or full fine-tuning, where every soft prompt that was tried is clearly worse."""
    row = e.preferred
    prompts = [one for one in e.scored if one.family == "soft prompt"]
    if row.family not in ("adapter", "full") or not prompts or any(one.family == "soft prompt" for one in e.level):
        return None
    sentence = f"Use '{row.method}': it is clearly better than the best soft prompt ('{prompts[0].method}')."
    return _deploy(e, row, "changed weights are clearly better", sentence, (_format_difference(e, prompts[0]),))


def cheapest_of_the_best(e: Evidence) -> Recommendation | None:
    row = e.preferred
    others = [one.method for one in e.level if one is not row]
    if not others:
        sentence = f"Use '{row.method}': clearly better than everything else that was tried."
    elif row is e.best:
        sentence = (
            f"Use '{row.method}': the best here, and the least costly of those that these data do not tell apart from "
            f"it ({', '.join(map(repr, others))})."
        )
    elif _is_clearly_worse(row):
        sentence = (
            f"Use '{row.method}': the least costly, and behind '{e.best.method}', the best here, by no more than "
            f"{_format_points(e, MARGIN * e.scale)}."
        )
    else:
        sentence = (
            f"Use '{row.method}': the least costly of those that these data do not tell apart from the best here, "
            f"'{e.best.method}'."
        )
    return _deploy(e, row, "cheapest of the best", sentence)


RULES: tuple[Callable[[Evidence], Recommendation | None], ...] = (
    nothing_finished,
    too_few_examples,
    no_better_than_guessing,
    intervals_too_wide,
    keep_current,
    keep_written,
    no_model_needed,
    weights_clearly_better,
    cheapest_of_the_best,
)


def _is_clearly_worse(row: Row) -> bool:
    """Than the best; of a row that is level with it, by no more than ``MARGIN``."""
    return row.against_best is not None and row.against_best["high"] < 0


def _say_no_better(e: Evidence, row: Row) -> str:
    """What nothing is that was held against ``row``, which is level with the best."""
    return f"better by more than {_format_points(e, MARGIN * e.scale)}" if _is_clearly_worse(row) else "clearly better"


def _decide_nothing(e: Evidence, rule: str, sentence: str, reasons: tuple[str, ...]) -> Recommendation:
    candidates = tuple(row.method for row in e.level)
    return Recommendation(deploy=None, rule=rule, sentence=sentence, reasons=reasons, candidates=candidates)


def _deploy(e: Evidence, row: Row, rule: str, sentence: str, more: tuple[str, ...] = ()) -> Recommendation:
    """The numbers that decided: its score, how it stands to the best and to what is in use, and what it costs."""
    reasons = [_format_score(e, row), *more]
    if row.against_best is not None:
        reasons.append(_format_difference(e, row))
    if row.against_current is not None and e.current is not None:
        reasons.append(_format_against(e, row.method, e.current, row.against_current))
    reasons += _list_costs(e, row)
    return Recommendation(
        deploy=row.method,
        rule=rule,
        sentence=sentence,
        reasons=tuple(dict.fromkeys(reasons)),
        candidates=tuple(one.method for one in e.level),
    )


def _list_costs(e: Evidence, row: Row) -> list[str]:
    told: list[str] = []
    rivals = [one for one in e.level if one is not row]
    if row.cost is not None:
        largest = max(
            (one for one in rivals if one.cost is not None), key=lambda one: _count_memory(one.cost), default=None
        )
        told.append(f"memory: {_format_memory(row.cost)}")
        if largest is not None and _count_memory(largest.cost) > SAME_SPEED * _count_memory(row.cost):
            assert largest.cost is not None
            told[-1] += f"; '{largest.method}' needs {_format_memory(largest.cost)}"
    changed = find_speed_drift(collect_speeds(e.rows))
    found = zip(e.rows, make_comparable(collect_speeds(e.rows)), strict=True)
    speeds = {one.method: speed for one, speed in found if speed is not None}
    if (own := speeds.get(row.method)) is not None:
        told.append(f"speed: {_format_speed(own, changed is not None)}{_format_price(e, own)}")
        others = [one.method for one in rivals if one.method in speeds]
        quickest = min(others, key=lambda name: speeds[name].p95_ms, default=None)
        if quickest is not None and own.p95_ms > SLOW * speeds[quickest].p95_ms:
            theirs, ours = (_format_latency(one, changed is not None) for one in (speeds[quickest], own))
            told.append(
                f"if latency matters, look at '{quickest}' too: 95 of 100 single requests within {theirs}, with this "
                f"one within {ours}"
            )
        if changed:
            told.append(describe_drift(changed))
    return told


def _count_memory(cost: Cost | None) -> int:
    return cost.memory_for(MANY_TASKS) if cost else 0


def _format_memory(cost: Cost) -> str:
    one, many = (format_bytes(cost.memory_for(tasks)) for tasks in (1, MANY_TASKS))
    return f"{one} for one task, {many} for {MANY_TASKS:,}"


def _format_speed(speed: Speed, changed: bool) -> str:
    """``changed``: the machine's speed did, so that only ratios can be compared."""
    rate = f"{speed.examples_per_second:.0f} examples a second in batches"
    if changed and speed.times_reference:
        return (
            f"{speed.times_reference:.2f} times the request with the bare template (median), {rate} at the mean speed"
        )
    return f"{speed.p50_ms:.1f} ms a request (median), {rate}"


def _format_latency(speed: Speed, changed: bool) -> str:
    if changed and speed.reference_ms:
        return f"{speed.p95_ms / speed.reference_ms:.1f} times the bare request"
    return f"{speed.p95_ms:.0f} ms"


def _format_price(e: Evidence, speed: Speed) -> str:
    if e.price_per_hour is None:
        return ""
    return f", {speed.cost_per_million(e.price_per_hour):.2f} for a million requests at {e.price_per_hour:g} an hour"


def _format_score(e: Evidence, row: Row) -> str:
    mean, low, high = (_format_value(e, value or 0.0) for value in (row.mean, row.low, row.high))
    return f"'{row.method}': {e.metric} {mean} [{low}, {high}], n={e.examples:,}, seeds: {len(row.seeds)}"


def _format_difference(e: Evidence, row: Row) -> str:
    assert row.against_best is not None
    return _format_against(e, row.method, e.best.method, row.against_best)


def _format_against(e: Evidence, one: str, other: str, difference: dict[str, float | int]) -> str:
    value, low, high = (f"{100 * difference[key] / e.scale:+.1f}" for key in ("difference", "low", "high"))
    return f"'{one}' minus '{other}': {value} points [{low}, {high}], p={difference['p_value']:.3f}"


def _format_value(e: Evidence, value: float) -> str:
    return f"{value:.1f}" if e.scale == 100 else f"{value:.3f}"


def _format_points(e: Evidence, value: float) -> str:
    """A difference in hundredths of the scale."""
    return f"{100 * value / e.scale:.1f} points"


def _round_up(number: int) -> int:
    """To two digits, upwards."""
    unit = int(10 ** max(0, len(str(number)) - 2))
    return -(-number // unit) * unit
