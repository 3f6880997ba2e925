"""The parts of the data where a prompt is worse than elsewhere: by label, length and the user's own columns.

Looking at many parts finds some bad ones by chance alone. So every part that is judged counts: its p-value (of doing at
least as much worse than the rest by chance) is adjusted for the number of parts (Holm 1979).
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from softprompt.data import Example
from softprompt.examples import written
from softprompt.inspection import Slice
from softprompt.metrics import Floats
from softprompt.probe import statistics

LEAST = 20  # examples of a part that is judged
MOST_VALUES = 20  # of a column that is a category; of one with more that are no numbers, the most frequent


def slices(
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
            low, high = statistics.wilson(float(own.sum()), n)
            p_value = statistics.chance_of_so_few(int(own.sum()), n, int(values.sum()), len(values))
        else:
            found = statistics.mean(own)
            low, high = found.low, found.high
            p_value = statistics.chance_of_so_low(values, inside)
        judged.append((by, name, n, float(own.mean()), low, high, float(rest.mean()), p_value))
    adjusted = statistics.holm([one[-1] for one in judged])
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
        cells = [written(example.columns.get(column)) for example in examples]
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
