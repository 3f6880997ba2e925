"""Readers: a folder, a file or a Hugging Face data set in, examples in three splits out.

    FOLDER                                train, validation (or valid, val, dev) and test, one file each
    FILE.jsonl .json .csv .tsv .parquet   split 80/10/10, each row by a hash of what the model reads of it
    hf:NAME[:CONFIG]                      as published; NAME may be a local folder
    a table in memory                     as a file of the same rows
    a mapping of split names to tables    as a folder of such files

A row with ``text`` and ``label`` is classification, one with ``text`` and ``target`` or ``references`` generation.
What was decided for the user (sizes, seed, duplicates, overlap) is told in ``Splits.notes``.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Self

from softprompt.config import DataOptions, TaskKind
from softprompt.data.chats.shared_parts import describe_shared_parts
from softprompt.data.example_stream import ExampleStream
from softprompt.data.examples import Columns, Example, infer_kind, keep_answered
from softprompt.data.readers.example_reader import (
    SPLITS,
    BadRows,
    CollectedExamples,
    collect_examples,
    find_split,
    load_hub_parts,
    read_file,
    read_hub_rows,
    split_files,
)
from softprompt.data.readers.in_memory import DataSource, Part, find_parts, make_part
from softprompt.data.row_identity import InputKey, input_key, row_key
from softprompt.data.split_assignment import Parts as ThreeParts
from softprompt.data.split_assignment import split_examples
from softprompt.errors import DataError
from softprompt.utils.arguments import check_arguments
from softprompt.utils.files import expand_user
from softprompt.utils.messages import map_read_errors, quote_names
from softprompt.utils.notebook_display import Displayed
from softprompt.utils.summaries import describe_value, summarize

Parts = dict[str, list[Example]]  # by split, none of them empty

HELD_OUT_SHARE = 0.1  # of the examples, about, for each split that is cut for the user


@dataclass(frozen=True, slots=True)
class Splits(Displayed):
    """Examples in splits that may be empty: ``splits["test"]`` refuses an empty one, ``splits.test`` returns it."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    source: str  # as the user gave it
    notes: tuple[str, ...]  # what was decided for the user, one sentence each
    stream: ExampleStream | None = None  # all training rows, where ``train`` is only the first of them
    columns: Columns | None = None  # that they were read from
    # by split, where what is here was drawn already: of how many rows
    sampled_from: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __repr__(self) -> str:
        sizes = {split: len(getattr(self, split)) for split in SPLITS}
        return summarize(self, describe_value(self.source), **sizes, streamed=self.stream is not None or None)

    def __getitem__(self, name: str) -> tuple[Example, ...]:
        """The examples of a split, or of ``all`` three in order; DataError when it is unknown or empty."""
        if name not in (*SPLITS, "all"):
            raise DataError(f"expected a split named train, validation, test or all, got '{name}': choose one of these")
        everything = {split: getattr(self, split) for split in SPLITS}
        examples: tuple[Example, ...] = sum(everything.values(), ()) if name == "all" else everything[name]
        if not examples:
            there = ", ".join(f"{split} ({len(some):,})" for split, some in everything.items() if some) or "no examples"
            why = "".join(f"; {note}" for note in self.notes if note.startswith(f"The split '{name}' of"))
            raise DataError(f"expected examples in split '{name}' of '{self.source}', got none: it has {there}{why}")
        return examples

    @property
    def kind(self) -> TaskKind:
        """Whether the examples carry labels or outputs; DataError without examples."""
        return infer_kind(self["all"])

    @property
    def fingerprint(self) -> str:
        """SHA-256, hexadecimal, over everything in all examples in order; the same on every machine."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for one in getattr(self, split):
                row = [split, one.text, one.label, one.references, sorted(one.columns.items())]
                turns = [] if one.conversation is None else [one.conversation.to_row()]
                digest.update(json.dumps([*row, *turns]).encode() + b"\n")
        if self.stream is not None:
            digest.update(self.stream.identity.encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class ReadOptions:
    """How rows become examples, and which split each goes to.

    Attributes:
        columns: what they are called, and what a row may lack.
        names: the columns that the template uses, ``text`` among them: what the model reads; ``None``: all columns.
        seed: of the splits that are cut for the user.
        unlabelled: rows may come without label and output; which side an example goes to then never depends on them.
    """

    columns: Columns
    bad_rows: BadRows = "refuse"
    names: Collection[str] | None = None
    seed: int = 0
    unlabelled: bool = False

    @classmethod
    def build(
        cls,
        *,
        remembered: Columns | None = None,
        names: Collection[str] | None = None,
        fill: Callable[[Example], object] | None = None,
        seed: int = 0,
        unlabelled: bool = False,
        **options: Any,
    ) -> Self:
        """Of what the user gives (``options``: see ``config.DataOptions``) and what the task is known to be.

        Args:
            remembered: what a saved prompt calls its columns, where no name is given; the usual names will do too.
            fill: raises TemplateError for an example that the template cannot be filled with, which is then a bad row.
        """
        given = DataOptions.build(**options)
        columns = Columns.of(given.text_column, given.label_column, given.target_column, remembered)
        text_optional = names is not None and "text" not in names
        columns = columns._replace(optional=unlabelled, text_optional=text_optional, fill=fill, read=names or ())
        return cls(columns, given.bad_rows, names, seed, unlabelled)

    @cached_property
    def key(self) -> Callable[[Example], InputKey]:
        """What the model reads of a row; asked for by each of the steps below."""
        return cache(partial(input_key, names=self.names))

    def describe_input(self, example: Example) -> str:
        """The columns that make up the input of such an example, for people."""
        text = "text" if example.conversation is None else "conversation"
        if not self.names:
            return f"{text} and all columns"
        return quote_names([text] * ("text" in self.names) + sorted({*self.names} - {"text"}))

    def split(self, examples: Sequence[Example], validation: float, test: float) -> ThreeParts:
        """Cut them into train, validation and test."""
        labelled = not self.unlabelled
        return split_examples(
            examples, validation=validation, test=test, seed=self.seed, key=self.key, labelled=labelled
        )


@check_arguments
def read_splits(source: DataSource, **options: Any) -> Splits:
    """Read a folder, a file, ``hf:NAME[:CONFIG]`` or data in memory, and fill in the splits that are missing.

    A folder or data set without validation gives up about 10% of train for it; without test, test is empty, and so is
    train without train. A file is freed of exact duplicates (all that the model reads, and the answer) and split about
    80/10/10. Where this function cuts, a row's side follows from what the model reads of it (``split_examples``).

    Args:
        source: a place as a string or path, or rows: a DataFrame, an Arrow table, a ``datasets.Dataset``, a list of
            dicts, a dict of columns, each read as a file of the same rows; a ``DatasetDict``, or a mapping of split
            names to any of these, is read as a folder of such files.
        options: ``text_column=``, ``label_column=``, ``target_column=``, ``bad_rows=``, ``seed=`` and what else
            ``ReadOptions.build`` takes.

    Raises:
        ConfigError: an unknown option.
        DataError: anything missing, malformed or ambiguous, with file and line where there is one.
        MissingExtraError: Parquet or ``hf:`` without the extra ``data``.
    """
    how = ReadOptions.build(**options)
    if not isinstance(source, str | Path):
        return _note_conflicts(_read_memory(source, how), how)
    if str(source).startswith("hf:"):
        return _note_conflicts(_fill_missing_splits(*_read_hub(str(source), how), str(source), how), how)
    path = expand_user(source)
    with map_read_errors(path):
        if path.is_dir():
            parts = {split: Part(str(file), file) for split, file in split_files(path).items()}
            return _note_conflicts(_fill_missing_splits(*_read_parts(parts, str(path), how), str(source), how), how)
    return _note_conflicts(_read_whole(Part(str(source), path), "One file", how), how)


def read_examples(path: Path, **options: Any) -> list[Example]:
    """Read one ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file whose rows are all of one kind.

    ``label`` wins over ``target`` where a row has both, unless ``target_column`` is given another name. Numbers and
    booleans in ``label`` become strings: ``"1"``, ``"1.0"``, ``"true"``; what is no string in ``target`` is its JSON.
    All else is left as it is, blanks too. ``options`` and errors as for ``read_splits``.
    """
    how = ReadOptions.build(**options)
    return read_file(path, how.columns, how.bad_rows).examples


def _read_memory(source: Any, how: ReadOptions) -> Splits:
    name = type(source).__name__
    if (found := find_parts(source)) is None:
        return _read_whole(make_part(name, source), "One table", how)
    given, left_out = found
    parts, notes = _read_parts(given, name, how)
    return _fill_missing_splits(parts, [*left_out, *notes], name, how)


def _read_whole(part: Part, what: str, how: ReadOptions) -> Splits:
    found = part.read(how.columns, how.bad_rows)
    splits = _split_whole(found.examples, part.name, what, how)
    return replace(splits, notes=(*found.notes, *splits.notes))


def _split_whole(examples: list[Example], source: str, what: str, how: ReadOptions) -> Splits:
    distinct: dict[object, Example] = {}
    for one in examples:
        distinct.setdefault(how.key(one) if how.unlabelled else row_key(one, how.key(one)), one)
    splits = how.split(list(distinct.values()), HELD_OUT_SHARE, HELD_OUT_SHARE)
    sizes = ", ".join(f"{len(some):,} {split}" for split, some in zip(SPLITS, splits, strict=True))
    notes = [
        f"{what} was given: split into {sizes} examples (about 80/10/10, by a hash of what is read of each row and "
        f"seed {how.seed}): rows keep their split when others are added, equal inputs are on one side."
    ]
    if removed := len(examples) - len(distinct):
        what = f"same {how.describe_input(examples[0])}{'' if how.unlabelled else ', same answer'}"
        notes.append(f"Exact duplicates ({what}) were removed: {removed:,} of {len(examples):,}.")
    return Splits(*splits, source, tuple(notes))


def _note_conflicts(splits: Splits, how: ReadOptions) -> Splits:
    """``splits`` with the names of their columns, and with what no answer to them can get right."""
    labels: defaultdict[object, Counter[str]] = defaultdict(Counter)
    unread: set[str] = set()
    for one in (*splits.train, *splits.validation, *splits.test):
        if one.label is not None:
            labels[how.key(one)][one.label] += 1
            unread |= one.columns.keys() - (how.names or one.columns.keys())
    notes = list(splits.notes)
    if lost := sum(counts.total() for counts in labels.values() if len(counts) > 1):
        why = f": the template does not read {quote_names(sorted(unread))}" if unread else ""
        what = how.describe_input(splits["all"][0])
        notes.append(f"{lost:,} rows have the same input ({what}) as one with another label{why}.")
    notes += describe_shared_parts((*splits.train, *splits.validation, *splits.test))
    return replace(splits, columns=how.columns.names(), notes=tuple(dict.fromkeys(notes)))


def _fill_missing_splits(parts: Parts, notes: list[str], source: str, how: ReadOptions) -> Splits:
    told = {split: keep_answered(examples) if how.unlabelled else examples for split, examples in parts.items()}
    kinds = [f"{infer_kind(examples)} in {split}" for split, examples in told.items() if examples]
    if len({kind.split()[0] for kind in kinds}) > 1:
        raise DataError(
            f"expected one kind of rows in '{source}', got {', '.join(kinds)}: give 'label' or 'target' in all"
        )
    train, validation, test = (tuple(parts.get(split, ())) for split in SPLITS)
    if not validation and len(train) > 1:
        share, given = HELD_OUT_SHARE, len(train)
        train, validation, _ = how.split(train, share, 0)
        notes.append(
            f"No validation split was given: {len(validation):,} of {given:,} train examples were set aside for it "
            f"(about {share:.0%}, by a hash of what is read of each row and seed {how.seed})."
        )
    notes += [
        f"No {split} split was given: it is empty."
        for split in ("train", "test")
        if split not in parts and not any(note.startswith(f"The split '{split}' of") for note in notes)
    ]
    inputs = {how.key(example) for example in train}
    for split, examples in (("validation", validation), ("test", test)):
        if shared := sum(how.key(example) in inputs for example in examples):
            notes.append(
                f"{shared:,} of {len(examples):,} {split} examples also stand in train "
                f"({how.describe_input(train[0])} alike)."
            )
    return Splits(train, validation, test, source, tuple(notes))


def _read_parts(given: Mapping[str, Part], source: str, how: ReadOptions) -> tuple[Parts, list[str]]:
    """The examples of each split, but for those whose answers are hidden."""
    columns = how.columns
    found: dict[str, CollectedExamples] = {
        split: part.read(columns, how.bad_rows, may_lack_answers=split != "train" and not columns.optional)
        for split, part in given.items()
    }
    if all(one.unanswered for one in found.values()):
        # nothing is left, so what they lack is told
        found = {split: part.read(columns, how.bad_rows) for split, part in given.items()}
    labels = {one.label for one in found["train"].examples} if "train" in found else set()
    parts: Parts = {}
    notes: list[str] = []
    for split, one in found.items():
        notes += one.notes
        hidden = labels and "-1" not in labels and {example.label for example in one.examples} == {"-1"}
        if one.unanswered or hidden:
            what = "all its labels are -1, that is unknown" if hidden else "no row has a label or output"
            notes.append(f"The split '{split}' of '{source}' was not used: {what}.")
        else:
            parts[split] = one.examples
    return parts, notes


def _read_hub(source: str, how: ReadOptions) -> tuple[Parts, list[str]]:
    parts: Parts = {}
    notes: list[str] = []
    there, columns, bad_rows = load_hub_parts(source, streaming=False), how.columns, how.bad_rows
    for given, data in there.items():
        split = find_split(given)
        if split is None or split in parts or not len(data):
            notes.append(f"The split '{given}' of '{source}' was not used.")
            continue
        rows = read_hub_rows(data, data.features, f"'{source}' {given}")
        found = collect_examples(rows, columns, bad_rows, may_lack_answers=not columns.optional)
        if found.unanswered and columns.label in data.features:
            notes.append(f"The split '{given}' of '{source}' was not used: its labels are not published.")
            continue
        if found.unanswered:  # what it lacks is told
            collect_examples(read_hub_rows(data, data.features, f"'{source}' {given}"), columns, bad_rows)
        parts[split] = found.examples
        notes += found.notes
    if not parts:
        raise DataError(f"expected a labelled train, validation or test split in '{source}', got {quote_names(there)}")
    return parts, notes
