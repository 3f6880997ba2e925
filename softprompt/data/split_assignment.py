"""Which rows are drawn, and which split each goes to.

A sample is drawn by a seed, each label in its proportion: the first rows of a file are none, for files are sorted. A
split is decided by a hash of what is read of the row: it stays where it is when others come, go or change places.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from softprompt.data.examples import Example
from softprompt.data.row_identity import InputKey, hash_input, input_key
from softprompt.errors import DataError

Parts = tuple[tuple[Example, ...], tuple[Example, ...], tuple[Example, ...]]
Side = int  # 0 train, 1 validation, 2 test


@dataclass(frozen=True)
class Subsample:
    """How many rows a figure is of, and of how many they were drawn."""

    rows: int
    of: int
    seed: int = 0

    def describe(self, split: str) -> str:
        """``on a sample of 5,000 of 8,600 test rows, seed 0``; nothing where it is all of them."""
        if self.rows >= self.of:
            return ""
        return f"on a sample of {self.rows:,} of {self.of:,} {describe_rows(split)}, seed {self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """``{"sample": ...}``, or nothing where it is all of them."""
        return {"sample": {"rows": self.rows, "of": self.of, "seed": self.seed}} if self.rows < self.of else {}


def describe_rows(split: str) -> str:
    """What the rows of a split are called; of all splits, just rows."""
    return "rows" if split == "all" else f"{split} rows"


def sample_indices(examples: Sequence[Example], limit: int | None, seed: int = 0) -> list[int]:
    """Indices of at most ``limit`` examples in their order, drawn by ``seed``, every label in its proportion."""
    if limit is None or len(examples) <= limit:
        return list(range(len(examples)))
    strata: defaultdict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        strata[example.label or ""].append(index)
    labels, generator = sorted(strata), random.Random(seed)
    counts = apportion(limit, [len(strata[label]) for label in labels])
    drawn = (generator.sample(strata[label], count) for label, count in zip(labels, counts, strict=True))
    return sorted(index for some in drawn for index in some)


def sample_examples(examples: Sequence[Example], limit: int | None, seed: int = 0) -> tuple[Example, ...]:
    """At most ``limit`` of ``examples`` in their order, drawn by ``seed``, every label in its proportion."""
    return tuple(examples[index] for index in sample_indices(examples, limit, seed))


def assign_split(
    example: Example, *, validation: float, test: float, seed: int, names: Collection[str] | None = None
) -> Side:
    """Where a row goes by what is read of it, whatever else there is; the held-out splits are given as shares."""
    return _side(_place(input_key(example, names), seed), validation, test)


def split_examples(
    examples: Sequence[Example],
    *,
    validation: float,
    test: float,
    seed: int,
    key: Callable[[Example], InputKey] = input_key,
    labelled: bool = True,
) -> Parts:
    """Cut ``examples`` into train, validation and test, each in the order given.

    Each row goes where a hash of what is read of it says (``assign_split``), so that sizes are about those asked for, a
    row stays on its side when others are added or change places, and rows of equal input are on one side. Two rules
    move rows of small data: every label keeps a row in train, and a held-out split that was asked for gets one, if
    train then still has as much.

    Args:
        validation, test: shares of the rows, 0 to 1.
        key: gives what is read of a row; all columns are, if not given.
        labelled: whether labels may move rows at all.

    Raises:
        DataError: shares below 0, or that leave nothing for train.
    """
    if min(validation, test) < 0 or validation + test >= 1:
        raise DataError(
            f"expected shares of validation and test that leave rows for train, got {validation} and {test}: "
            "ask for less"
        )
    groups: defaultdict[InputKey, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        groups[key(example)].append(index)
    places = {read: _place(read, seed) for read in groups}
    order = sorted(groups, key=places.__getitem__)
    sides = {read: _side(places[read], validation, test) for read in order}
    labels = {read: {examples[index].label if labelled else None for index in groups[read]} for read in order}
    kept: defaultdict[str | None, int] = defaultdict(int)  # groups in train, by label
    for read in reversed(order):
        if sides[read] and any(not kept[label] for label in labels[read]):
            # its hash is the nearest to train's of all that have this label: those in train came before
            sides[read] = 0
        for label in labels[read] if not sides[read] else ():
            kept[label] += 1
    for side, share in ((2, test), (1, validation)):
        if share and side not in sides.values():
            spare = (read for read in order if not sides[read] and all(kept[label] > 1 for label in labels[read]))
            if (moved := next(spare, None)) is not None:
                sides[moved] = side
                for label in labels[moved]:
                    kept[label] -= 1
    found: list[Side] = [0] * len(examples)
    for read, group in groups.items():
        for index in group:
            found[index] = sides[read]
    parts = [tuple(one for one, side in zip(examples, found, strict=True) if side == here) for here in range(3)]
    return parts[0], parts[1], parts[2]


def apportion(total: int, capacities: Sequence[int]) -> list[int]:
    """Share ``total`` out in proportion to ``capacities`` by largest remainders, none above its own."""
    whole = sum(capacities)
    total = min(total, whole)
    parts = [total * capacity // max(1, whole) for capacity in capacities]
    by_remainder = sorted(range(len(parts)), key=lambda index: -(total * capacities[index] % max(1, whole)))
    for index in by_remainder[: total - sum(parts)]:
        parts[index] += 1
    return parts


def _place(read: InputKey, seed: int) -> float:
    """0 to 1."""
    return hash_input(read, f"split {seed}") / 2**64


def _side(place: float, validation: float, test: float) -> Side:
    return 2 if place < test else 1 if place < test + validation else 0
