"""Names beside what they name, without one covering another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_NARROW, _WIDE = frozenset("iljtfrI.,:;'|!()[] -"), frozenset("mwMW@%…")


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "Box") -> float:
        """Area that two rectangles share, in square pixels."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)

    def within(self, other: "Box") -> bool:
        """Whether no part lies outside ``other``."""
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )


@dataclass(frozen=True)
class Placed:
    """Where a label went: its box, how it is anchored, and how far from its point."""

    box: Box
    anchor: str
    x: float
    baseline: float
    distance: float


def measure_text(text: str, size: float) -> float:
    """Width of ``text`` in pixels at a font size, rather too large: the reader's font is not known here."""
    widths = (0.38 if letter in _NARROW else 0.95 if letter in _WIDE or letter > "\u2e80" else 0.62 for letter in text)
    return size * sum(widths)


def shorten_label(text: str, most: int = 26) -> str:
    """``text`` in at most so many characters."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def place_labels(
    points: Sequence[tuple[float, float]], widths: Sequence[float], size: float, bounds: Box, avoid: Sequence[Box] = ()
) -> list[Placed]:
    """A place for the label of each point, near it, within ``bounds``, off the points and the other labels.

    ``avoid`` are further boxes (error bars) that a label goes over only where it must. Each label in turn takes its
    best place given the others, a few times round: a search, which may leave an overlap where labels are many.
    """
    marks = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    crowded = sorted(range(len(points)), key=lambda i: sum(math.dist(points[i], other) for other in points))
    choices: list[list[tuple[float, Placed]]] = []
    for (x, y), width in zip(points, widths, strict=True):
        choices.append([])
        for choice in _candidates(x, y, width, size):
            hard = sum(choice.box.overlap(mark) for mark in marks)
            soft = sum(choice.box.overlap(box) for box in avoid)
            outside = 0.0 if choice.box.within(bounds) else 1e4
            choices[-1].append((100 * hard + 0.3 * soft + outside + choice.distance, choice))
    found: dict[int, Placed] = {}
    for _ in range(4):
        for own in crowded:
            others = [placed.box for index, placed in found.items() if index != own]
            costs = [cost + 100 * sum(choice.box.overlap(box) for box in others) for cost, choice in choices[own]]
            found[own] = choices[own][costs.index(min(costs))][1]
    return [found[index] for index in range(len(points))]


def spread_labels(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least ``gap`` apart, in the order of ``wanted`` and near it, between ``low`` and ``high``.

    Where there is no room for all, they go beyond ``high``.
    """
    order, steps = np.argsort(wanted, kind="stable"), gap * np.arange(len(wanted))
    # a cluster that would overlap is laid out around its middle
    from scipy.optimize import isotonic_regression  # a second, for pages that mostly have no such names

    offsets = isotonic_regression(np.asarray(wanted)[order] - steps).x
    positions = np.empty(len(wanted))
    positions[order] = offsets.clip(low, max(high - gap * (len(wanted) - 1), low)) + steps
    return [float(one) for one in positions]


def _candidates(x: float, y: float, width: float, size: float) -> list[Placed]:
    found = []
    for distance in (10.0, 17.0, 26.0, 38.0, 52.0, 70.0):
        for step in range(12):
            angle = math.pi / 6 * step
            at_x, at_y = x + distance * math.cos(angle), y + distance * math.sin(angle)
            anchor = "start" if math.cos(angle) > 0.1 else "end" if math.cos(angle) < -0.1 else "middle"
            left = at_x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            box = Box(left, at_y - 0.6 * size, left + width, at_y + 0.6 * size)
            preference = 0.0 if step == 0 else 2.0  # right of its point, as one reads
            found.append(Placed(box, anchor, at_x, at_y + 0.35 * size, distance + preference))
    return found
