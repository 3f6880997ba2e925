"""Readers: a folder, a file or a Hugging Face data set in, examples in three splits out.

    FOLDER                                train, validation (or valid, val, dev) and test, one file each
    FILE.jsonl .json .csv .tsv .parquet   split 80/10/10, each row by a hash of what the model reads of it
    hf:NAME[:CONFIG]                      as published; NAME may be a local folder

A row with ``text`` and ``label`` is classification, one with ``text`` and ``target`` or ``references`` generation.
What was decided for the user (sizes, seed, duplicates, overlap) is told in ``Splits.notes``.
"""

import difflib
import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from softprompt.errors import DataError
from softprompt.examples import Columns, Example, Kind, answered, example_of, kind_of, unlabelled_example
from softprompt.identity import input_of, row_of
from softprompt.paths import expanded
from softprompt.rows import ENDINGS, Row, listed, optional_module, read_records, read_rows, reading
from softprompt.splitting import split_examples
from softprompt.streams import Stream, class_name

__all__ = [
    "Example",
    "Kind",
    "Splits",
    "read_examples",
    "read_records",
    "read_splits",
    "unlabelled_example",
]

Parts = dict[str, list["Example"]]  # by split, none of them empty

SPLITS = ("train", "validation", "test")
HELD_OUT_SHARE = 0.1  # of the examples, about, for each split that is cut for the user
_ALIASES = {**{split: split for split in SPLITS}, **dict.fromkeys(("valid", "val", "dev"), "validation")}


@dataclass(frozen=True, slots=True)
class Splits:
    """Examples in splits that may be empty: ``splits["test"]`` refuses an empty one, ``splits.test`` returns it."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    source: str  # as the user gave it
    notes: tuple[str, ...]  # what was decided for the user, one sentence each
    stream: Stream | None = None  # all training rows, where ``train`` is only the first of them

    def __getitem__(self, name: str) -> tuple[Example, ...]:
        """The examples of a split, or of ``all`` three in order; DataError when it is unknown or empty."""
        if name not in (*SPLITS, "all"):
            raise DataError(f"expected a split named train, validation, test or all, got '{name}': choose one of these")
        everything = {split: getattr(self, split) for split in SPLITS}
        examples: tuple[Example, ...] = sum(everything.values(), ()) if name == "all" else everything[name]
        if not examples:
            there = ", ".join(f"{split} ({len(some):,})" for split, some in everything.items() if some) or "no examples"
            raise DataError(f"expected examples in split '{name}' of '{self.source}', got none: it has {there}")
        return examples

    @property
    def kind(self) -> Kind:
        """Whether the examples carry labels or outputs; DataError without examples."""
        return kind_of(self["all"])

    @property
    def fingerprint(self) -> str:
        """SHA-256, hexadecimal, over everything in all examples in order; the same on every machine."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for one in getattr(self, split):
                row = [split, one.text, one.label, one.references, sorted(one.columns.items())]
                digest.update(json.dumps(row).encode() + b"\n")
        if self.stream is not None:
            digest.update(self.stream.identity.encode())
        return digest.hexdigest()


def read_splits(
    source: str | Path,
    *,
    text_column: str = "text",
    label_column: str = "label",
    target_column: str = "target",
    names: Collection[str] | None = None,
    seed: int = 0,
    unlabelled: bool = False,
) -> Splits:
    """Read a folder, a file or ``hf:NAME[:CONFIG]`` and fill in the splits that are missing.

    A folder or data set without validation gives up about 10% of train for it; without test, test is empty, and so is
    train without train. A file is freed of exact duplicates (all that the model reads, and the answer) and split about
    80/10/10. Where this function cuts, a row's side follows from what the model reads of it (``split_examples``).

    Args:
        names: the columns that the template uses, ``text`` among them: what the model reads; without, all columns.
        unlabelled: rows may come without label and output; which side an example goes to then never depends on them.

    Raises:
        DataError: anything missing, malformed or ambiguous, with file and line where there is one.
        MissingExtraError: Parquet or ``hf:`` without the extra ``data``.
    """
    columns = Columns(text_column, label_column, target_column, unlabelled)
    if str(source).startswith("hf:"):
        return _complete(*_read_hub(str(source), columns), str(source), names, seed, unlabelled)
    path = expanded(source)
    with reading(path):
        if path.is_dir():
            return _complete(_read_folder(path, columns), [], str(source), names, seed, unlabelled)
    return _split_file(_read_file(path, columns), str(source), names, seed, unlabelled)


def read_examples(
    path: Path, *, text_column: str = "text", label_column: str = "label", target_column: str = "target"
) -> list[Example]:
    """Read one ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file whose rows are all of one kind.

    ``label`` wins over ``target`` where a row has both, unless ``target_column`` is given another name. Numbers and
    booleans in ``label`` become strings: ``"1"``, ``"1.0"``, ``"true"``. All else is left as it is, blanks too.

    Raises:
        DataError: the file is missing, empty, of another ending or malformed, with the line where there is one.
        MissingExtraError: Parquet without the extra ``data``.
    """
    return _read_file(path, Columns(text_column, label_column, target_column))


def split_of(name: str) -> str | None:
    """The split that files and published parts of this name are, if any."""
    return _ALIASES.get(name)


def _split_file(
    examples: list[Example], source: str, names: Collection[str] | None, seed: int, unlabelled: bool
) -> Splits:
    same = input_of if unlabelled else row_of
    distinct: dict[object, Example] = {}
    for one in examples:
        distinct.setdefault(same(one, names), one)
    share = HELD_OUT_SHARE
    rows = list(distinct.values())
    splits = split_examples(rows, validation=share, test=share, seed=seed, names=names, labelled=not unlabelled)
    sizes = ", ".join(f"{len(some):,} {split}" for split, some in zip(SPLITS, splits, strict=True))
    notes = [
        f"One file was given: split into {sizes} examples (about 80/10/10, by a hash of what is read of each row and "
        f"seed {seed}): rows keep their split when others are added, equal inputs are on one side."
    ]
    if removed := len(examples) - len(distinct):
        what = f"same {_read(names)}{'' if unlabelled else ', same answer'}"
        notes.append(f"Exact duplicates ({what}) were removed: {removed:,} of {len(examples):,}.")
    return Splits(*splits, source, tuple(notes))


def _read(names: Collection[str] | None) -> str:
    """The columns that make up an input, for people."""
    return "text and all columns" if not names else listed(sorted(names, key=lambda name: (name != "text", name)))


def _complete(
    parts: Parts, notes: list[str], source: str, names: Collection[str] | None, seed: int, unlabelled: bool
) -> Splits:
    told = {split: answered(examples) if unlabelled else examples for split, examples in parts.items()}
    kinds = [f"{kind_of(examples)} in {split}" for split, examples in told.items() if examples]
    if len({kind.split()[0] for kind in kinds}) > 1:
        raise DataError(
            f"expected one kind of rows in '{source}', got {', '.join(kinds)}: give 'label' or 'target' in all"
        )
    train, validation, test = (tuple(parts.get(split, ())) for split in SPLITS)
    if not validation and len(train) > 1:
        share, given = HELD_OUT_SHARE, len(train)
        train, validation, _ = split_examples(
            train, validation=share, test=0, seed=seed, names=names, labelled=not unlabelled
        )
        notes.append(
            f"No validation split was given: {len(validation):,} of {given:,} train examples were set aside for it "
            f"(about {share:.0%}, by a hash of what is read of each row and seed {seed})."
        )
    notes += [f"No {split} split was given: it is empty." for split in ("train", "test") if split not in parts]
    inputs = {input_of(example, names) for example in train}
    for split, examples in (("validation", validation), ("test", test)):
        if shared := sum(input_of(example, names) in inputs for example in examples):
            notes.append(
                f"{shared:,} of {len(examples):,} {split} examples also stand in train ({_read(names)} alike)."
            )
    return Splits(train, validation, test, source, tuple(notes))


def _read_folder(folder: Path, columns: Columns) -> Parts:
    files: dict[str, Path] = {}
    paths = sorted(folder.iterdir())
    for path in paths:
        split = split_of(path.stem.lower())
        if split and path.suffix.lower() in ENDINGS:
            if split in files:
                got = listed([files[split].name, path.name], " and ")
                raise DataError(f"expected one {split} file in '{folder}', got {got}: move or rename one of them")
            files[split] = path
    if not files:
        raise DataError(
            f"expected train, validation or test ({', '.join(ENDINGS)}) in the folder '{folder}', "
            f"got {listed(path.name for path in paths)}: rename the files, or give one file to have it split for you"
        )
    return {split: _read_file(files[split], columns) for split in SPLITS if split in files}


def _read_hub(source: str, columns: Columns) -> tuple[Parts, list[str]]:
    name, _, config = source.removeprefix("hf:").partition(":")
    if not name:
        raise DataError(f"expected the name of a data set behind 'hf:', got '{source}': give hf:NAME or hf:NAME:CONFIG")
    datasets = optional_module("datasets")
    try:
        published = datasets.load_dataset(name, config or None)
    except Exception as error:  # what builders raise is not of one family
        raise DataError(
            f"expected a data set within reach at '{source}', got {type(error).__name__} ({str(error)[:300]}): "
            "give hf:NAME or hf:NAME:CONFIG"
        ) from error
    parts: Parts = {}
    notes: list[str] = []
    for given, data in published.items():
        split = split_of(given)
        if split is None or split in parts or not len(data):
            notes.append(f"The split '{given}' of '{source}' was not used.")
            continue
        classes = {key: kind.names for key, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)}
        rows = [row | {key: class_name(row[key], names) for key, names in classes.items()} for row in data]
        if columns.label in classes and all(row[columns.label] is None for row in rows):
            notes.append(f"The split '{given}' of '{source}' was not used: its labels are not published.")
            continue
        parts[split] = _examples(((f"'{source}' {given} row {at}", row) for at, row in enumerate(rows, 1)), columns)
    if not parts:
        raise DataError(f"expected a labelled train, validation or test split in '{source}', got {listed(published)}")
    return parts, notes


def _read_file(path: Path, columns: Columns) -> list[Example]:
    ending = path.suffix.lower()
    with reading(path):
        if not path.exists():
            near = difflib.get_close_matches(path.name, [one.name for one in path.parent.glob("*")])
            hint = f"did you mean {listed(near, ' or ')}? " if near else ""
            raise DataError(
                f"expected a file or folder at '{path}', found none: {hint}Hugging Face data sets are hf:NAME"
            )
        if path.is_dir() or ending not in ENDINGS:
            got = "a folder" if path.is_dir() else f"'{ending}'" if ending else "no ending"
            raise DataError(f"expected a file ending in {', '.join(ENDINGS)}, got {got} in '{path}': convert the data")
        examples = _examples(read_rows(path), columns) if path.stat().st_size else []
    if not examples:
        raise DataError(
            f"expected examples in '{path}', got an empty file: give rows with a text and a label or target"
        )
    return examples


def _examples(rows: Iterable[Row], columns: Columns) -> list[Example]:
    examples: list[Example] = []
    before: Kind | None = None
    for place, row in rows:
        kind = columns.kind(row, place)
        if None not in (before, kind) and kind != before:
            raise DataError(
                f"{place}: expected {before} as in the rows before, got {kind}: "
                "give every row a label, or every row a target or references"
            )
        before = before or kind
        examples.append(example_of(row, kind, columns, place))
    return examples
