"""Training rows that come one after the other, never all in memory: of a file, or of a data set on the hub."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

from softprompt.data.examples import Columns, Example
from softprompt.data.readers.example_reader import BadRows, ExampleCollector, read_hub_rows
from softprompt.data.readers.lines import Row
from softprompt.errors import DataError


class ResumableRows(Protocol):
    """Rows that can be read on from any of them; ``FileRows`` is one."""

    def __next__(self) -> Row: ...

    @property
    def position(self) -> Any:
        """Where it stands, as JSON has it."""
        ...

    def seek(self, position: Any) -> None:
        """Stand where ``position`` was taken."""
        ...


@dataclass(frozen=True, eq=False)
class ExampleStream:
    """The rows of a split, in the order in which they are published.

    Attributes:
        rows: opens them at the first one.
        identity: what tells it from another one, as far as that is known without reading all of it.
        leaves_out: rows that are not for training, though they are among these.
    """

    rows: Callable[[], ResumableRows]
    columns: Columns
    source: str
    identity: str
    bad_rows: BadRows = "refuse"
    leaves_out: Callable[[Example], bool] | None = None

    def open(self) -> "ExampleStreamReader":
        """Its rows, from the first one on."""
        return ExampleStreamReader(self)

    def without(self, leaves_out: Callable[[Example], bool]) -> Self:
        """Only the rows for which this does not hold."""
        return replace(self, leaves_out=leaves_out)


class ExampleStreamReader:
    """Reads a stream, and knows where it stands.

    Attributes:
        notes: what there is to say of the rows so far.
    """

    def __init__(self, stream: ExampleStream) -> None:
        self._stream, self._rows = stream, stream.rows()
        self._start = copy.deepcopy(self._rows.position)
        self._read = 0
        self.notes: list[str] = []

    def read(self, count: int) -> list[Example]:
        """The next rows, fewer at the end of the data.

        Raises:
            DataError: rows cannot be read, or are not of the kind of the others.
        """
        stream = self._stream
        gathering = ExampleCollector(stream.columns, stream.bad_rows)
        examples: list[Example] = []
        while len(examples) < count and (stream.bad_rows == "skip" or gathering.bad < count):
            try:
                row = next(self._rows)
            except StopIteration:
                break
            example = gathering.take(row)
            if example is not None and not (stream.leaves_out and stream.leaves_out(example)):
                examples.append(example)
        if stream.bad_rows != "skip" or not (examples or self._read):
            gathering.check()
        self._read += gathering.rows
        self.notes = gathering.notes()
        return examples

    @property
    def position(self) -> dict[str, Any]:
        """Where it stands, as JSON has it; ``seek`` takes it back."""
        return {"read": self._read, "state": copy.deepcopy(self._rows.position)}

    def seek(self, position: Mapping[str, Any]) -> None:
        """Stand where ``position`` was taken."""
        self._rows.seek(copy.deepcopy(position["state"]))
        self._read = int(position["read"])

    def rewind(self) -> None:
        """Stand before the first row."""
        self.seek({"read": 0, "state": self._start})


class HubRows:
    """The rows of a ``datasets.IterableDataset``."""

    def __init__(self, dataset: Any, source: str) -> None:
        # the place in the stream is kept in the object
        self._dataset, self._source = copy.deepcopy(dataset), source
        self._begins: dict[str, Any] = copy.deepcopy(self._dataset.state_dict())
        self._rows: Iterator[Row] | None = None
        self._read = 0

    def __next__(self) -> Row:
        if self._rows is None:
            self._rows = read_hub_rows(self._dataset, self._dataset.features, f"'{self._source}'", self._read + 1)
        try:
            row = next(self._rows)
        except StopIteration:
            raise
        except Exception as error:  # what builders raise is not of one family
            raise DataError(
                f"the rows of '{self._source}' behind {self._read:,} cannot be read: {type(error).__name__} "
                f"({str(error)[:300]}): mend them, or the connection"
            ) from error
        self._read += 1
        return row

    @property
    def position(self) -> dict[str, Any]:
        # the data set tells its place only once a row was read
        state = self._begins if self._rows is None else self._dataset.state_dict()
        return {"read": self._read, "state": state}

    def seek(self, position: Mapping[str, Any]) -> None:
        """Stand where ``position`` was taken."""
        self._begins = position["state"]
        self._dataset.load_state_dict(self._begins)
        self._read, self._rows = int(position["read"]), None
