"""How the prompt does on data: against a reference, by label, by confidence, and in the parts where it is worst."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from softprompt.analysis.inspection.inspection_records import (
    Answers,
    Calibration,
    ChangedAnswer,
    Comparison,
    ReliabilityBin,
    Slice,
)
from softprompt.analysis.inspection.score_records import (
    PromptScores,
    compare_metric,
    gold_labels,
    judging_metric,
    measure_metric,
    score_ensemble,
    score_examples,
    score_states,
)
from softprompt.data.column_values import format_value
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.errors import ConfigError
from softprompt.metrics import hypothesis_tests
from softprompt.metrics.bootstrap import Floats
from softprompt.metrics.calibration import calibration_error
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.prompts.written_prompt import check_instruction, choose_instruction, write_prompt
from softprompt.store.prompt_loading import resolve_saved_prompt

LEAST = 20  # examples of a part that is judged
MOST_VALUES = 20  # of a column that is a category; of one with more that are no numbers, the most frequent
SHOWN = 8  # fixed and broken examples
BINS = 10
_MOVED = 0.1  # nats a token: what counts as fixed or broken in generation


class ComparedReference:
    """What the prompt is compared with: a task's wording and the states that answer it."""

    def __init__(self, name: str, spec: TaskSpec, states: Sequence[PromptState | None]) -> None:
        self.name, self.spec, self.states = name, spec, tuple(states)

    def scored(self, base: FrozenLM, examples: Sequence[Example]) -> PromptScores:
        if len(self.states) == 1:
            return score_states(base, self.spec, self.states, examples)
        return score_ensemble(base, self.spec, [state for state in self.states if state is not None], examples)


def make_written_reference(
    base: FrozenLM, spec: TaskSpec, instruction: str | None = None, examples: Sequence[Example] = ()
) -> ComparedReference:
    """The written prompt: the instruction given, or a plain one made of the labels, in front of the same template.

    In chats it is the system message, by default that which is kept. ``examples``: what is answered.
    """
    check_instruction(instruction or "", examples)
    words = choose_instruction(spec, examples) if instruction is None else instruction
    written, state = write_prompt(base, spec, words)
    name = f"written prompt '{words}'" if words or spec.chat is None else "no system message"
    return ComparedReference(name, written, [state])


def make_reference(
    base: FrozenLM, spec: TaskSpec, against: Prompt | str | Path | tuple[str, Prompt]
) -> ComparedReference:
    """Another saved prompt, its place, or both; ConfigError if it answers another task, PromptFileError if on another
    base."""
    if isinstance(against, tuple):
        place, other = against
    else:
        place = str(against) if isinstance(against, str | Path) else "the other prompt"
        other = resolve_saved_prompt(against)
    other.check_base(base)
    if (other.spec.kind, set(other.spec.labels)) != (spec.kind, set(spec.labels)):
        expected = f"{spec.kind} with the labels {', '.join(spec.labels)}" if spec.labels else spec.kind
        got = f"{other.spec.kind} with {', '.join(other.spec.labels)}" if other.spec.labels else other.spec.kind
        raise ConfigError(f"--against '{place}': expected a prompt for {expected}, got one for {got}")
    return ComparedReference(place, other.spec, other.states)


def analyze_answers(
    base: FrozenLM,
    spec: TaskSpec,
    scored: PromptScores,
    examples: Sequence[Example],
    split: str,
    reference: ComparedReference | None = None,
) -> Answers:
    """Everything about the answers to ``examples``, which ``scored`` has the scores of (one prompt, or an ensemble)."""
    values, metric = score_examples(spec, scored, examples), judging_metric(spec)
    lengths = [len(example.text.split()) for example in examples]
    found, small, unsliced = judge_slices(examples, values, lengths, exact=metric is not None and metric.is_binary)
    return Answers(
        split=split,
        metric=measure_metric(spec, scored, examples),
        loss=hypothesis_tests.bootstrap_mean(scored.losses[0]),
        comparison=None if reference is None else _against(base, spec, scored, examples, reference),
        confusion=_confusion(spec, scored, examples),
        calibration=_calibration(spec, scored, examples),
        slices=tuple(found),
        small_slices=small,
        least_slice=LEAST,
        unsliced=tuple(unsliced),
        truncated=scored.truncated,
    )


def _right(scored: PromptScores, examples: Sequence[Example]) -> Floats:
    """1 where the label is the right one."""
    return np.array([float(a == b) for a, b in zip(scored.predicted, gold_labels(examples), strict=True)])


def expected_answer(example: Example) -> str:
    """The label, or the output that is learned."""
    return example.label if example.label is not None else example.references[0]


def _against(
    base: FrozenLM, spec: TaskSpec, scored: PromptScores, examples: Sequence[Example], reference: ComparedReference
) -> Comparison:
    other = reference.scored(base, examples)
    difference, p_value = compare_metric(spec, scored, other, examples)
    gains = other.losses[0] - scored.losses[0]
    if spec.kind == "classification":
        now, before = (_right(one, examples) for one in (scored, other))
        better, worse = now > before, now < before
        answers, earlier = scored.predicted, other.predicted
    else:
        better, worse = gains > _MOVED, gains < -_MOVED
        answers, earlier = ([f"{loss:.2f} nats a token" for loss in one.losses[0]] for one in (scored, other))

    def changes(which: NDArray[np.bool_], sign: int) -> tuple[ChangedAnswer, ...]:
        found = [int(i) for i in np.argsort(-sign * gains, kind="stable") if which[i]][:SHOWN]
        return tuple(
            ChangedAnswer(
                index=i,
                text=examples[i].text,
                gold=expected_answer(examples[i]),
                now=answers[i],
                before=earlier[i],
                gain=float(gains[i]),
            )
            for i in found
        )

    return Comparison(
        reference=reference.name,
        before=measure_metric(spec, other, examples),
        difference=difference,
        p_value=p_value,
        fixed=int(better.sum()),
        broken=int(worse.sum()),
        fixed_examples=changes(better, 1),
        broken_examples=changes(worse, -1),
    )


def _confusion(spec: TaskSpec, scored: PromptScores, examples: Sequence[Example]) -> tuple[tuple[str, str, int], ...]:
    if spec.kind == "generation":
        return ()
    counts = Counter(zip(gold_labels(examples), scored.predicted, strict=True))
    return tuple((gold, answer, n) for (gold, answer), n in sorted(counts.items()))


def _calibration(spec: TaskSpec, scored: PromptScores, examples: Sequence[Example]) -> Calibration | None:
    if scored.log_probabilities is None:
        return None
    confidence = np.minimum(np.exp(scored.log_probabilities[0].max(axis=1)), 1.0)
    right = _right(scored, examples)
    edges = np.linspace(0, 1, BINS + 1)
    places = np.searchsorted(edges[1:-1], confidence, side="left")
    bins = []
    for place in range(BINS):
        inside = places == place
        if n := int(inside.sum()):
            share = float(right[inside].mean())
            low, high = hypothesis_tests.wilson_interval(right[inside].sum(), n)
            bins.append(
                ReliabilityBin(
                    low=edges[place],
                    high=edges[place + 1],
                    n=n,
                    confidence=float(confidence[inside].mean()),
                    right=share,
                    right_low=low,
                    right_high=high,
                )
            )
    return Calibration(
        error=calibration_error(confidence.tolist(), (right > 0).tolist(), BINS),
        excess=hypothesis_tests.bootstrap_mean(confidence - right),
        bins=tuple(bins),
    )


def judge_slices(
    examples: Sequence[Example], values: Floats, lengths: Sequence[int], *, exact: bool
) -> tuple[list[Slice], int, list[str]]:
    """Parts with at least ``LEAST`` examples, the worst first; how many were smaller; and columns that have none.

    Args:
        values: what the metric is the mean of, one an example.
        lengths: words of each text.
        exact: the values are 0 and 1, so that tests and intervals can be exact.
    """
    judged, small = [], 0
    left_out: list[str] = []
    for by, name, inside in _parts(examples, lengths, left_out):
        n = int(inside.sum())
        if n == len(examples):
            continue
        if n < LEAST:
            small += 1
            continue
        own, rest = values[inside], values[~inside]
        if exact:
            low, high = hypothesis_tests.wilson_interval(float(own.sum()), n)
            p_value = hypothesis_tests.hypergeometric_p_value(int(own.sum()), n, int(values.sum()), len(values))
        else:
            found = hypothesis_tests.bootstrap_mean(own)
            low, high = found.low, found.high
            p_value = hypothesis_tests.subset_mean_p_value(values, inside)
        judged.append((by, name, n, float(own.mean()), low, high, float(rest.mean()), p_value))
    adjusted = hypothesis_tests.holm_adjust([one[-1] for one in judged])
    names = ("by", "name", "n", "value", "low", "high", "rest", "p_value")
    made = [Slice(**dict(zip(names, one, strict=True)), adjusted=p) for one, p in zip(judged, adjusted, strict=True)]
    return sorted(made, key=lambda one: (one.adjusted, one.value - one.rest)), small, left_out


def _parts(
    examples: Sequence[Example], lengths: Sequence[int], left_out: list[str]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """What cuts a part out, its name, and which examples are in it ``[n]``; ``left_out`` is told of columns."""
    labels = [example.label for example in examples]
    if None not in labels:
        names = [str(label) for label in labels]
        yield from _categories("label", names, sorted(set(names)))
    yield from _quarters("length", np.array(lengths, dtype=np.float64), "words")
    columns = sorted({name for example in examples for name in example.columns})
    for column in columns:
        cells = [format_value(example.columns.get(column)) for example in examples]
        if len(set(cells)) <= MOST_VALUES:
            yield from _categories(column, cells, sorted(set(cells)))
        elif (numbers := _numbers(cells)) is not None:
            yield from _quarters(column, numbers, "")
        elif frequent := [value for value, n in Counter(cells).most_common(MOST_VALUES) if n >= LEAST]:
            yield from _categories(column, cells, frequent)
        else:
            left_out.append(column)


def _categories(by: str, cells: Sequence[str], values: Sequence[str]) -> Iterator[tuple[str, str, np.ndarray]]:
    for value in values:
        yield by, value or "(empty)", np.array([cell == value for cell in cells])


def _quarters(by: str, numbers: Floats, unit: str) -> Iterator[tuple[str, str, np.ndarray]]:
    """Four parts of about equal size, fewer where many numbers are equal."""
    edges = np.unique(np.quantile(numbers, (0.25, 0.5, 0.75), method="lower"))
    places = np.searchsorted(edges, numbers, side="left")
    for place in np.unique(places):
        inside = places == place
        low, high = numbers[inside].min(), numbers[inside].max()
        name = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        yield by, f"{name} {unit}".strip(), inside


def _numbers(cells: Sequence[str]) -> Floats | None:
    try:
        found = np.array([float(cell) for cell in cells])
    except ValueError:
        return None
    return found if np.isfinite(found).all() else None
