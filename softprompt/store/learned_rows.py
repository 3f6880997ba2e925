"""What a prompt was learned from, as hashes: a file of its folder by which later data are told from the rows it knows.

A hash is of what the model reads of a row (``identity``), 8 bytes of it. Of more than ``MOST`` distinct training rows
only those with the lowest hashes are kept: a random sample of the rows, which finds its share of any overlap.
"""

import base64
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from softprompt.data.example_stream import ExampleStream
from softprompt.data.examples import Example
from softprompt.data.row_identity import hash_input, input_key
from softprompt.data.split_assignment import describe_rows
from softprompt.data.task import Task
from softprompt.store.artifacts import read_record
from softprompt.utils.safe_io import parse_json
from softprompt.utils.seals import SEAL, seal, unseal

ROWS_FILE = "rows.json"
MOST = 50_000  # hashes of training rows that are kept, and of validation rows
EARLIER = 2  # prompts that it started from whose rows are kept too, the latest ones
READ_AGAIN = 1_000_000  # rows of a stream that are read once more to be hashed, at most
AT_ONCE = 1000  # rows of a stream that are in memory together
SCHEMA = 1
ALL = 2**64  # what hashes are below where all are kept

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class KnownRows:
    """How many rows of some data a prompt knows.

    Attributes:
        rows: of the data.
        looked_at: those whose hash would have been kept, all but for large training data.
        learned, chosen: of these, in what it learned from, and in what its best step was chosen on.
    """

    rows: int
    looked_at: int
    learned: int
    chosen: int

    def describe(self, split: str) -> str:
        """A sentence, or nothing where it knows none of them."""
        found = [
            f"{count:,} of {self.looked_at:,} {describe_rows(split)} stand in {what}"
            for count, what in (
                (self.learned, "what this prompt was learned from"),
                (self.chosen, "what its best step was chosen on"),
            )
            if count
        ]
        if not found:
            return ""
        part = f" ({self.looked_at:,} of {self.rows:,} rows were looked at)" if self.looked_at < self.rows else ""
        return f"{', '.join(found)}{part}: the score is not of unseen data"

    def to_dict(self) -> dict[str, int]:
        return {"rows": self.rows, "looked_at": self.looked_at, "learned": self.learned, "chosen": self.chosen}


@dataclass(frozen=True)
class LearnedRows:
    """Hashes of the rows of a prompt's training and validation data.

    Attributes:
        columns: that were read of each row.
        below: only hashes below it were kept.
        train, validation: sorted, each once.
        earlier: of the prompts that it started from, the latest first.
    """

    columns: tuple[str, ...]
    below: int
    train: Hashes
    validation: Hashes
    earlier: "tuple[LearnedRows, ...]" = ()

    @classmethod
    def of(cls, task: Task, streamed_rows: int = 0) -> Self:
        """Those of a task's data; of a stream, of its first ``streamed_rows``."""
        names = task.spec.compiled.names
        train: Iterable[Example] = task.train
        if (stream := task.splits.stream) is not None:
            train = _read_first(stream, min(streamed_rows, READ_AGAIN))
        return cls(
            tuple(sorted(names)), ALL, _hash_examples(train, names), _hash_examples(task.validation, names)
        ).bounded()

    def bounded(self) -> Self:
        """With no more than ``MOST`` hashes of each split, by one measure for both."""
        below = min((int(found[MOST]) for found in (self.train, self.validation) if len(found) > MOST), default=ALL)
        if below == ALL:
            return self
        train, validation = (found[found < np.uint64(below)] for found in (self.train, self.validation))
        return replace(self, below=below, train=train, validation=validation)

    def behind(self, parent: "LearnedRows") -> Self:
        """With the rows of the prompt that it started from, which it knows too."""
        before = (replace(parent, earlier=()), *parent.earlier)
        return replace(self, earlier=before[:EARLIER])

    def among(self, examples: Sequence[Example]) -> KnownRows:
        """Which of ``examples`` are known."""
        found = self._hash_rows(examples)
        looked_at = np.array([int(one) < self.below for one in found], dtype=bool)
        learned = np.isin(found, self.train)
        for one in self.earlier:
            learned |= np.isin(one._hash_rows(examples), one.train)
        learned &= looked_at
        chosen = np.isin(found, self.validation) & looked_at & ~learned
        return KnownRows(len(found), int(looked_at.sum()), int(learned.sum()), int(chosen.sum()))

    def _hash_rows(self, examples: Sequence[Example]) -> Hashes:
        return np.array([hash_input(input_key(example, self.columns)) for example in examples], dtype=np.uint64)

    def to_text(self) -> str:
        """The file's text; the same rows give the same bytes."""
        facts = {"schema": SCHEMA, **self._to_facts(), "earlier": [one._to_facts() for one in self.earlier]}
        return json.dumps(seal(facts), indent=1) + "\n"

    def _to_facts(self) -> dict[str, Any]:
        return {
            "columns": list(self.columns),
            "below": str(self.below),
            "train": _pack(self.train),
            "validation": _pack(self.validation),
        }

    @classmethod
    def _from_facts(cls, facts: Mapping[str, Any]) -> Self:
        columns, below = tuple(map(str, facts["columns"])), int(facts["below"])
        return cls(columns, below, _unpack(facts["train"]), _unpack(facts["validation"]))

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """``to_text`` undone; raises ValueError for what it does not give."""
        values = parse_json(content)
        facts = unseal(values)
        if facts.get("schema") != SCHEMA or SEAL not in values:
            raise ValueError(f"expected schema {SCHEMA} of {ROWS_FILE}, and its SHA-256")
        try:
            return replace(cls._from_facts(facts), earlier=tuple(map(cls._from_facts, facts["earlier"])))
        except (KeyError, TypeError) as error:
            raise ValueError(f"it lacks or misuses {error}") from error


def read_learned(place: str) -> LearnedRows | None:
    """What a saved prompt was learned from (see ``read_record``); ``None`` if that was not kept."""
    return read_record(place, ROWS_FILE, LearnedRows.from_bytes)


def _read_first(stream: ExampleStream, count: int) -> Iterator[Example]:
    """The first rows of a stream."""
    rows = stream.open()
    while count > 0 and (found := rows.read(min(count, AT_ONCE))):
        yield from found
        count -= len(found)


def _hash_examples(examples: Iterable[Example], names: Collection[str]) -> Hashes:
    found = np.fromiter((hash_input(input_key(example, names)) for example in examples), dtype=np.uint64)
    return np.unique(found)


def _pack(values: Hashes) -> str:
    return base64.b64encode(values.astype("<u8").tobytes()).decode()


def _unpack(text: str) -> Hashes:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<u8").astype(np.uint64)
