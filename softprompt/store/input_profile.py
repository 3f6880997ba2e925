"""Profile: what a prompt saw when it was measured, in a few kilobytes beside it, for live traffic to be compared with.

It holds distributions and counts, and no text: of validation rows, which the prompt did not learn from, so that
confidence and hidden states are those of rows that are new to it.
"""

import base64
import json
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Self

import numpy as np
from pydantic import Field, FiniteFloat, model_validator

from softprompt.metrics.bootstrap import Floats
from softprompt.store.artifacts import read_record
from softprompt.store.metadata import StoreRecord
from softprompt.utils.records import Record
from softprompt.utils.seals import seal

PROFILE_FILE = "profile.json"
POINTS = 40  # of a distribution: no cumulative share is off by more than 1 in so many
FREQUENT = 1000  # tokens that count as known; the others are called rare
COORDINATES = 192  # of hidden states, evenly spaced

Share = Annotated[float, Field(ge=0, le=1)]


class Distribution(Record):
    """A distribution of ``n`` numbers: a share ``upto[i]`` of them is at most ``points[i]``."""

    n: int = Field(ge=1)
    mean: FiniteFloat
    deviation: FiniteFloat = Field(ge=0)
    points: tuple[FiniteFloat, ...] = Field(min_length=1, max_length=4 * POINTS)
    upto: tuple[Share, ...]

    @classmethod
    def of(cls, values: Sequence[float] | Floats) -> Self:
        """Of numbers; all of their different values, or quantiles where there are many."""
        array = np.sort(np.asarray(values, dtype=np.float64))
        points = np.unique(array)
        if len(points) > POINTS:
            points = np.unique(np.quantile(array, np.linspace(0, 1, POINTS), method="inverted_cdf"))
        points = np.unique([_shorten(point) for point in points])
        upto = np.searchsorted(array, just_above(points), side="right") / len(array)
        return cls(
            n=len(array),
            mean=_shorten(array.mean()),
            deviation=_shorten(array.std(ddof=1)) if len(array) > 1 else 0.0,
            points=tuple(points.tolist()),
            upto=tuple(_shorten(share) for share in upto),
        )

    @model_validator(mode="after")
    def _check_rising(self) -> Self:
        if len(self.points) != len(self.upto):
            raise ValueError("points and their shares differ in number")
        if any(a >= b for a, b in zip(self.points, self.points[1:], strict=False)) or list(self.upto) != sorted(
            self.upto
        ):
            raise ValueError("points and their shares must rise")
        return self

    def quantile(self, share: float) -> float:
        """The least point that at least this share lies at or below."""
        place = int(np.searchsorted(np.asarray(self.upto), share - 1e-9, side="left"))
        return self.points[min(place, len(self.points) - 1)]


class TokenShare(Record):
    """A share of the tokens of ``n`` texts, with its standard error over texts: those of one text go together."""

    n: int = Field(ge=1)
    value: Share
    error: Share

    @classmethod
    def of(cls, counts: Sequence[int], totals: Sequence[int]) -> Self:
        """Of counted and of all tokens of each text, by the ratio estimator (Cochran, Sampling Techniques, 1977)."""
        part, whole = np.asarray(counts, dtype=np.float64), np.asarray(totals, dtype=np.float64)
        value, n = part.sum() / whole.sum(), len(part)
        error = np.sqrt(((part - value * whole) ** 2).sum() * n / max(1, n - 1)) / whole.sum()
        return cls(n=n, value=_shorten(value), error=_shorten(min(1.0, error)))


class HiddenProfile(Record):
    """Hidden states where the answer begins.

    Attributes:
        size: of a hidden state, of which ``COORDINATES`` are looked at.
        mean, deviation: of each of these, as base64 of little-endian float32.
        distances: of each row's state from the centre of all the others (see ``distances``).
    """

    size: int = Field(ge=1, le=2**20)
    mean: str = Field(max_length=8 * COORDINATES)
    deviation: str = Field(max_length=8 * COORDINATES)
    distances: Distribution

    @classmethod
    def of(cls, states: Floats, size: int) -> Self:
        """Of the chosen coordinates of states ``[n, K]``, three or more; raises ValueError for fewer."""
        if len(states) < 3:
            raise ValueError(f"expected three hidden states or more, got {len(states)}")
        mean, variance, n = states.mean(axis=0), states.var(axis=0, ddof=1), len(states)
        # each row from the centre of the others, in closed form: from one that it is part of, it would seem nearer
        off = states - mean
        others = ((n - 1) * variance - off**2 * n / (n - 1)) / (n - 2)
        apart = _measure_distances(off * n / (n - 1), np.sqrt(others.clip(min=0)))
        return cls(
            size=size,
            mean=_pack(mean),
            deviation=_pack(np.sqrt(variance)),
            distances=Distribution.of(apart),
        )

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        if {len(_unpack(self.mean)), len(_unpack(self.deviation))} != {len(choose_coordinates(self.size))}:
            raise ValueError("its centre is not of the coordinates of such a hidden state")
        return self

    def distances_of(self, states: Floats) -> Floats:
        """How far states ``[n, K]`` are from the centre: root mean square over coordinates, in deviations of each."""
        return _measure_distances(states - _unpack(self.mean), _unpack(self.deviation))


class InputProfile(StoreRecord):
    """What a prompt saw.

    Attributes:
        examples: validation rows that were looked at.
        frequent: ids of the most frequent tokens of the training texts, each as its distance from the one before.
        lengths: tokens of template and text.
        rare: share of the tokens that are not among the frequent ones.
        labels: how often each label was answered (classification).
        confidence: probability of the label that was answered (classification).
        hidden: of the base model behind the prompt.
    """

    examples: int = Field(ge=1)
    frequent: tuple[Annotated[int, Field(ge=0, le=2**31)], ...] = Field(max_length=FREQUENT)
    lengths: Distribution
    rare: TokenShare
    labels: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    confidence: Distribution | None = None
    hidden: HiddenProfile | None = None

    @property
    def known(self) -> frozenset[int]:
        """The frequent tokens."""
        return frozenset(accumulate(self.frequent))

    def to_bytes(self) -> bytes:
        # on one line, for most of it is numbers
        return json.dumps(seal(self.model_dump(mode="json", exclude_none=True)), ensure_ascii=False).encode() + b"\n"


def just_above(points: Sequence[float] | Floats) -> Floats:
    """Where what is at or below a point ends: points are rounded to five digits, and a value that was rounded down is
    still meant."""
    found: Floats = np.asarray(points, dtype=np.float64)
    return found + 1e-5 * np.abs(found)


def encode_ids(ids: Sequence[int]) -> tuple[int, ...]:
    """Ids, in order, each as its distance from the one before."""
    ordered = sorted(ids)
    return tuple(b - a for a, b in zip((0, *ordered), ordered, strict=False))


def choose_coordinates(size: int) -> Sequence[int]:
    """Which of ``size`` coordinates of a hidden state are looked at."""
    return range(size) if size <= COORDINATES else [index * size // COORDINATES for index in range(COORDINATES)]


def read_profile(place: str) -> InputProfile | None:
    """The profile of a saved prompt (see ``read_record``); ``None`` if it has none."""
    return read_record(place, PROFILE_FILE, InputProfile.from_bytes)


def _measure_distances(off: Floats, deviation: Floats) -> Floats:
    """Root mean square over coordinates ``[n]`` of ``off [n, K]``; a coordinate that never varied is left out."""
    varied = deviation > 0
    parts = np.divide(off, deviation, out=np.zeros_like(off), where=np.broadcast_to(varied, off.shape))
    found: Floats = np.sqrt((parts**2).mean(axis=1))
    return found


def _pack(values: Floats) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def _unpack(text: str) -> Floats:
    """Raises ValueError for what ``_pack`` does not give."""
    values = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("its centre has values that are not numbers")
    return values


def _shorten(value: float) -> float:
    """Five significant digits: more would be noise, and bytes."""
    return float(f"{value:.5g}")
