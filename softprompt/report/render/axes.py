"""Where a number lies on an axis, and which numbers the axis names."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from softprompt.metrics.formatting import format_short

_LEAST_SPAN = 1e-12  # of a linear axis: values closer than this are drawn as one


@dataclass(frozen=True)
class Axis:
    """What an axis says.

    Attributes:
        title: with its unit.
        show: a value as text.
        log: steps of equal ratio; zero then has a place of its own at the lower end.
        limits: values that the axis does not go beyond.
    """

    title: str
    show: Callable[[float], str] = format_short
    log: bool = False
    limits: tuple[float, float] = (-math.inf, math.inf)


@dataclass(frozen=True)
class Scale:
    """An axis over its data, from pixel ``start`` (its low end) to pixel ``end``.

    ``zero`` is the pixel of value 0 on a logarithmic axis, where the data has one.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    zero: float | None = None

    def at(self, value: float) -> float:
        """The pixel of a value; what lies beyond the ends is drawn at the end."""
        if self.log and value <= 0:
            return self.start if self.zero is None else self.zero
        low, high, value = (math.log10(one) if self.log else one for one in (self.low, self.high, value))
        share = (value - low) / (high - low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round values within the axis, at most about ``most``; first 0, where that has a place of its own."""
        if not self.log:
            return choose_linear_ticks(self.low, self.high, most)
        return [*([] if self.zero is None else [0.0]), *choose_log_ticks(self.low, self.high, most)]


def make_scale(axis: Axis, values: Iterable[float], start: float, end: float) -> Scale:
    """The scale on which all finite ``values`` can be seen, with some room around them."""
    finite = [value for value in values if math.isfinite(value)]
    if axis.log:
        positive = [value for value in finite if value > 0] or [1.0]
        low, high = math.log10(min(positive)), math.log10(max(positive))
        room = max(0.06 * (high - low), 0.1)
        low, high = 10 ** (low - room), 10 ** (high + room)
        if not any(value <= 0 for value in finite):
            return Scale(low, high, start, end, log=True)
        gap = 0.09 * (end - start)
        return Scale(low, high, start + gap, end, log=True, zero=start + 0.25 * gap)
    least, most = min(finite, default=0.0), max(finite, default=1.0)
    room = 0.06 * (most - least) or 0.05 * (abs(most) or 1.0)
    # what lies beyond the limits, though nothing should, is drawn where it is
    low, high = max(least - room, min(axis.limits[0], least)), min(most + room, max(axis.limits[1], most))
    if high - low < max(1e-9 * max(abs(low), abs(high)), _LEAST_SPAN):
        room = max(1e-3 * max(abs(low), abs(high)), _LEAST_SPAN)
        low, high = low - room, high + room
    return Scale(low, high, start, end)


def choose_linear_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between ``low`` and ``high``: at least two, at most ``most`` >= 4."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if last - first + 1 > most:
        last = first + most - 1
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(index * step, digits) for index in range(first, last + 1)]


def choose_log_ticks(low: float, high: float, most: int) -> list[float]:
    """Powers of ten between ``low`` and ``high``; with 2 and 5 times them where there are few, thinned where many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
        found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / most)]
    return found if len(found) >= 2 else choose_linear_ticks(low, high, most)


def label_ticks(ticks: Sequence[float], show: Callable[[float], str]) -> list[tuple[float, str]]:
    """Ticks with their texts; one that would read as its neighbour does is left out."""
    texts: dict[str, float] = {}
    for value in ticks:
        texts.setdefault(show(value), value)
    return [(value, text) for text, value in texts.items()]
