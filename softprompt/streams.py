"""Training rows that come one after the other, never all in memory: a Hugging Face data set opened for streaming."""

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from softprompt.errors import DataError
from softprompt.examples import Columns, Example, example_of


@dataclass(frozen=True, eq=False)
class Stream:
    """The rows of a split, in the order in which they are published.

    Attributes:
        dataset: ``datasets.IterableDataset``.
        classes: names of the labels of columns that hold numbers instead.
        identity: what tells it from another one, as far as that is known without reading all of it.
    """

    dataset: Any
    columns: Columns
    classes: Mapping[str, Sequence[str]]
    source: str
    identity: str

    def open(self) -> "Rows":
        """Its rows, from the first one on."""
        return Rows(self)

    def skipping(self, count: int) -> Self:
        """Without its first rows."""
        return type(self)(self.dataset.skip(count), self.columns, self.classes, self.source, self.identity)


class Rows:
    """Reads a stream, and knows where it stands."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        # the place in the stream is kept in the object
        self._dataset = copy.deepcopy(stream.dataset)
        self._start: dict[str, Any] = copy.deepcopy(self._dataset.state_dict())
        self._begins = self._start
        self._rows: Any = None
        self._read = 0

    def read(self, count: int) -> list[Example]:
        """The next rows, fewer at the end of the data.

        Raises:
            DataError: a row cannot be read, or is not of the kind of the others.
        """
        if self._rows is None:
            self._rows = iter(self._dataset)
        source = self._stream.source
        try:
            found = list(itertools.islice(self._rows, count))
        except Exception as error:  # what builders raise is not of one family
            raise DataError(
                f"the rows of '{source}' behind {self._read:,} cannot be read: {type(error).__name__} "
                f"({str(error)[:300]}): mend them, or the connection"
            ) from error
        examples = [self._example(row, self._read + place) for place, row in enumerate(found, start=1)]
        self._read += len(found)
        return examples

    @property
    def position(self) -> dict[str, Any]:
        """Where it stands, as JSON has it; ``go_to`` takes it back."""
        # the data set tells its place only once a row was read
        state = self._begins if self._rows is None else self._dataset.state_dict()
        return {"read": self._read, "state": copy.deepcopy(state)}

    def go_to(self, position: Mapping[str, Any]) -> None:
        """Stand where ``position`` was taken."""
        self._begins = copy.deepcopy(position["state"])
        self._dataset.load_state_dict(self._begins)
        self._read, self._rows = int(position["read"]), None

    def rewind(self) -> None:
        """Stand before the first row."""
        self.go_to({"read": 0, "state": self._start})

    def _example(self, row: Mapping[str, Any], number: int) -> Example:
        stream = self._stream
        place = f"'{stream.source}' row {number}"
        named = {key: class_name(row[key], names) for key, names in stream.classes.items()}
        values = {**row, **named}
        return example_of(values, stream.columns.kind(values, place), stream.columns, place)


def class_name(index: int | None, names: Sequence[str]) -> str | None:
    """The label that a published number stands for."""
    # a negative class stands for a label that is not published
    return None if index is None or index < 0 else names[index]


__all__ = ["Rows", "Stream", "class_name"]
