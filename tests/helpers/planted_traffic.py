"""Profiles and samples as if drawn from the same distribution, and what can be planted in them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from softprompt.serving.request_log.request_records import RequestRecord, Retention
from softprompt.serving.request_log.sample_files import open_samples
from softprompt.store.input_profile import Distribution, HiddenProfile, InputProfile, TokenShare, encode_ids

NOW = 1_795_600_000.0
LABELS = ("bad", "good")
SIZE = 16  # of hidden states


class World:
    """A distribution of texts and answers; ``draw`` gives rows of it."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def draw(
        self, n: int, *, longer: float = 1.0, odd: float = 0.1, good: float = 0.5, unsure: float = 0.0
    ) -> list[dict[str, Any]]:
        """Rows: tokens, rare ones, label and confidence, each moved by what is given."""
        tokens = np.maximum(3, self._random.lognormal(np.log(18 * longer), 0.4, n).astype(int))
        rare = self._random.binomial(tokens, odd)
        label = np.where(self._random.random(n) < good, "good", "bad")
        confidence = 0.5 + 0.5 * self._random.beta(5 - 4 * unsure, 1 + 2 * unsure, n)
        return [
            {"tokens": int(t), "rare": int(r), "label": str(a), "confidence": float(c)}
            for t, r, a, c in zip(tokens, rare, label, confidence, strict=True)
        ]

    def states(self, n: int, away: float = 0.0) -> np.ndarray:
        """Hidden states, their centre moved by so many deviations."""
        mixed = self._random.normal(size=(n, 4)) @ np.ones((4, SIZE)) / 4 + self._random.normal(size=(n, SIZE))
        return mixed + away


def profile(world: World, n: int = 800, **planted: Any) -> InputProfile:
    """Of rows of ``world``."""
    rows = world.draw(n, **planted)
    return InputProfile(
        examples=n,
        frequent=encode_ids([3, 1, 7]),
        lengths=Distribution.of([row["tokens"] for row in rows]),
        rare=TokenShare.of([row["rare"] for row in rows], [row["tokens"] for row in rows]),
        labels={label: sum(row["label"] == label for row in rows) for label in LABELS},
        confidence=Distribution.of([row["confidence"] for row in rows]),
        hidden=HiddenProfile.of(world.states(min(n, 400)), SIZE),
    )


def sample(row: dict[str, Any] | None = None, number: int = 0, prompt: str = "tone@1", **changes: Any) -> RequestRecord:
    """A sample of a row."""
    row = row or {"tokens": 9, "rare": 1, "label": "good", "confidence": 0.9}
    other = {"good": "bad", "bad": "good"}[row["label"]]
    fields = {
        "time": NOW + number,
        "request": f"r{number}",
        "prompt": prompt,
        "characters": 4 * row["tokens"],
        "tokens": row["tokens"],
        "rare": row["rare"],
        "text": f"text {number}",
        "answer": row["label"],
        "probabilities": {row["label"]: row["confidence"], other: 1 - row["confidence"]},
        "milliseconds": 12.5,
    }
    return RequestRecord(**{**fields, **changes})


def samples(rows: Iterable[dict[str, Any]], prompt: str = "tone@1") -> list[RequestRecord]:
    """Samples of rows, a second apart."""
    return [sample(row, number, prompt) for number, row in enumerate(rows)]


def write(path: Path, some: Iterable[RequestRecord], keep: str = "100000") -> Path:
    """A file of samples."""
    file = open_samples(path, Retention.parse(keep))
    file.write(list(some))
    file.close()
    return path


def edited(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """A file with other content."""
    path.write_bytes(change(path.read_bytes()))
    return path
