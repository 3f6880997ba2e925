"""Data that a program has already: rows of a DataFrame, of an Arrow table, of a Dataset, of a list or of columns.

A row is what it is in a file of JSON lines: numbers are Python's, what is missing (NaN, NA, NaT) is null, a number that
stands for a class of a ``Dataset`` is its name.
"""

import datetime
import decimal
import enum
import itertools
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from softprompt.data.chats.message_parsing import is_messages
from softprompt.data.examples import Columns, Example
from softprompt.data.readers.example_reader import (
    SPLITS,
    BadRows,
    CollectedExamples,
    collect_examples,
    find_split,
    read_file,
    read_hub_rows,
)
from softprompt.data.readers.file_rows import name_class, read_class_names
from softprompt.data.readers.lines import Row
from softprompt.errors import ConfigError, DataError
from softprompt.utils.arguments import class_names, describe_argument, describe_kind, refuse_argument
from softprompt.utils.files import expand_user
from softprompt.utils.messages import import_optional, quote_names

_DEEPEST = 64  # levels of lists and mappings in a cell; what reads the rows allows fewer
_IN_WORDS = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID, bytes, Path, complex)
_IN_WORDS_BY_NAME = {"Period", "Interval", "datetime64", "timedelta64"}
EXPECTED = "a path, hf:NAME, a DataFrame, a list of dicts, a Dataset, or a mapping of split names to these"
_ADVICE = {
    "FrozenLM": "the base model comes before the data",
    "DeferredBase": "the base model comes before the data",
    "PreTrainedModel": "the base model comes before the data",
    "Prompt": "the prompt comes behind the data",
    "Series": "give the DataFrame that it is a column of",
    "Array": "give the table that it is a column of",
    "ChunkedArray": "give the table that it is a column of",
    "ndarray": "give rows with names, as [{'text': ..., 'label': ...}]",
    "Tensor": "give texts, not tokens: each row a dict with 'text' and 'label'",
    "DataLoader": "give the rows themselves: they are batched here",
    "IterableDataset": "give a Dataset, or softprompt.data.streaming.stream_splits('hf:NAME')",
    "IterableDatasetDict": "give a DatasetDict, or softprompt.data.streaming.stream_splits('hf:NAME')",
    "Dataset": "a Dataset of the 'datasets' library is meant; of another, give a list of dicts",
    "NoneType": "was a variable not set?",
    "": "build rows as [{'text': ..., 'label': ...}]",
}


class ArrowTable(Protocol):
    """Whatever gives its columns by the Arrow PyCapsule interface, as tables of polars and pyarrow."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


DataSource: TypeAlias = str | Path | Mapping[str, Any] | Iterable[Mapping[str, Any] | Example] | ArrowTable


@dataclass(frozen=True)
class Part:
    """A file, or a table in memory, that holds a split or all rows.

    Attributes:
        name: what messages call it.
        content: as it was given.
    """

    name: str
    content: Any

    def read(
        self, columns: Columns, bad_rows: BadRows = "refuse", *, may_lack_answers: bool = False
    ) -> CollectedExamples:
        """Its examples; raises DataError as ``example_reader.read_file``."""
        if isinstance(self.content, str | Path):
            return read_file(expand_user(self.content), columns, bad_rows, may_lack_answers=may_lack_answers)
        notes: list[str] = []
        rows = iterate_rows(self.content, self.name, notes)
        try:
            found = collect_examples(rows, columns, bad_rows, may_lack_answers=may_lack_answers)
        except DataError as error:
            raise DataError(_name_arguments(str(error))) from error
        if not found.examples and not found.unanswered:
            raise DataError(f"expected examples in '{self.name}', got no rows: give rows with a text and an answer")
        return found._replace(notes=[*notes, *found.notes])


def _name_arguments(message: str) -> str:
    """The message with options of the command line as the arguments that they are here."""
    message = message.replace("--bad-rows skip", "bad_rows='skip'")
    return re.sub(r"--(text|label|target)-column", r"\1_column=", message)


def make_part(name: str, content: Any) -> Part:
    """A part that can be read more than once."""
    return Part(name, list(content) if isinstance(content, Iterator) else content)


def find_parts(source: Any) -> tuple[dict[str, Part], list[str]] | None:
    """The parts of a mapping by split, in the order of ``SPLITS``, and what of it is left out; ``None`` for a table.

    Raises:
        DataError: two parts of one split.
    """
    if not isinstance(source, Mapping) or not any(find_split(str(name).lower()) for name in source):
        return None
    if not all(_is_part(one) for one in source.values()):
        return None
    name = type(source).__name__
    found: dict[str, Part] = {}
    given: dict[str, str] = {}
    notes = []
    for key, content in source.items():
        split = find_split(str(key).lower())
        if split is None:
            notes.append(f"The split '{key}' of '{name}' was not used.")
        elif split in found:
            raise DataError(
                f"expected one {split} split in '{name}', got '{given[split]}' and '{key}': leave one of them out"
            )
        else:
            found[split], given[split] = make_part(str(key), content), str(key)
    return {split: found[split] for split in SPLITS if split in found}, notes


def _is_part(value: Any) -> bool:
    """Whether a value of a mapping can be rows of a split, and not a column or a cell."""
    if isinstance(value, list | tuple):
        return all(isinstance(one, Mapping | Example) or is_messages(one) for one in value[:3])
    return not is_column(value)


def is_column(value: Any) -> bool:
    """Whether a value is a list, or a column of a table."""
    return isinstance(value, list | tuple) or bool(
        {"Series", "ndarray", "Index", "Array", "ChunkedArray", "Column"} & set(class_names(value))
    )


def refuse_source(source: Any) -> ConfigError:
    """The error for what is no data."""
    return refuse_argument("data", EXPECTED, source, _ADVICE)


def iterate_rows(
    source: Any, name: str, notes: list[str], refuse: Callable[[Any], ConfigError] = refuse_source
) -> Iterator[Row]:
    """The rows of a table in memory.

    Args:
        name: what messages call it.
        notes: gets what there is to say of how it is read.
        refuse: makes the error for what is no table.

    Raises:
        DataError: columns of the same name, or of different lengths.
        ConfigError: this is no table.
    """
    pandas, datasets = sys.modules.get("pandas"), sys.modules.get("datasets")
    if pandas is not None and isinstance(source, pandas.DataFrame):
        return _frame_rows(source, name, notes)
    if datasets is not None and isinstance(source, datasets.Dataset):
        # whatever form the rows were given for another purpose
        found = read_hub_rows(source.with_format(None), source.features, f"'{name}'")
        return (make_row(row.values, row.place, padded=True) for row in found)
    if isinstance(source, Mapping):
        return _column_rows(source, name)
    if hasattr(source, "__arrow_c_stream__") and not is_column(source):
        return _arrow_rows(source, name)
    if isinstance(source, list | tuple):
        return _listed_rows(source, name)
    raise refuse(source)


def _frame_rows(frame: Any, name: str, notes: list[str]) -> Iterator[Row]:
    if frame.columns.nlevels > 1:
        raise DataError(f"expected columns of one level in '{name}', got {frame.columns.nlevels}: flatten their names")
    columns = [str(column) for column in frame.columns]
    _check_column_names(columns, name)
    if named := [str(level) for level in frame.index.names if level is not None]:
        notes.append(f"The index of '{name}' was not read ({quote_names(named)}): reset_index() makes it a column.")
    plain = type(frame.index).__name__ == "RangeIndex" and frame.index[:1].tolist() == [0][: len(frame)]
    cells = zip(*(frame.iloc[:, place].tolist() for place in range(len(columns))), strict=True)
    rows: Iterable[Any] = cells if columns else itertools.repeat((), len(frame))
    for number, (label, values) in enumerate(zip(frame.index, rows, strict=True), start=1):
        place = f"'{name}' row {number}" if plain else f"'{name}' index {label!r}, row {number}"
        yield make_row(dict(zip(columns, values, strict=True)), place, padded=True)


def _arrow_rows(source: Any, name: str) -> Iterator[Row]:
    arrow = import_optional("pyarrow")
    table = arrow.table(source)
    _check_column_names(table.column_names, name)
    classes = read_class_names(table.schema.metadata or {})
    number = 0
    for batch in table.to_batches(max_chunksize=1024):
        for values in batch.to_pylist():
            number += 1
            named = {key: name_class(values[key], classes[key]) for key in classes if key in values}
            yield make_row({**values, **named}, f"'{name}' row {number}", padded=True)


def _column_rows(source: Mapping[Any, Any], name: str) -> Iterator[Row]:
    if not source or not all(is_column(one) for one in source.values()):
        got = f"a mapping with {quote_names(map(str, source))}" if source else "an empty mapping"
        raise DataError(
            f"expected a mapping of split names or of columns, got {got}: give train=, validation= and test= rows, or "
            "a list of dicts for rows"
        )
    columns = [str(column) for column in source]
    _check_column_names(columns, name)
    sizes = {column: len(values) for column, values in zip(columns, source.values(), strict=True)}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"'{column}' {size:,}" for column, size in sizes.items())
        raise DataError(f"expected columns of the same length in '{name}', got {shown}: mend them")
    cells = zip(*(list_cells(values) for values in source.values()), strict=True)
    for number, values in enumerate(cells, start=1):
        yield make_row(dict(zip(columns, values, strict=True)), f"'{name}' row {number}")


def _listed_rows(source: Iterable[Any], name: str) -> Iterator[Row]:
    for number, one in enumerate(source, start=1):
        place = f"'{name}' row {number}"
        if isinstance(one, Example):
            yield Row(one.place or place, example_values(one))
        elif isinstance(one, Mapping):
            yield make_row(one, place)
        elif is_messages(one):
            yield make_row({"messages": one}, place)
        elif number == 1:
            got = describe_argument(one)
            raise DataError(
                f"{place}: expected a dict such as {{'text': ..., 'label': ...}}, got {got}: give each row its columns "
                "by name"
            )
        else:
            reason = f"expected a dict as in the rows before, got {describe_argument(one)}: mend it"
            yield Row(place, {}, reason)


def example_values(example: Example) -> dict[str, Any]:
    """The row that an example was made of, by the usual names of columns."""
    answer: dict[str, Any] = {} if example.label is None else {"label": example.label}
    if example.references:
        answer = {"references": list(example.references)}
    said = {"text": example.text} if example.conversation is None else example.conversation.to_row()
    return {**said, **answer, **example.columns}


def _check_column_names(columns: Iterable[str], name: str) -> None:
    names = list(columns)
    if len(set(names)) < len(names):
        raise DataError(f"expected columns of different names in '{name}', got {quote_names(names)}: rename them")


def make_row(values: Mapping[Any, Any], place: str, *, padded: bool = False) -> Row:
    """A row whose cells are what JSON has, or why it cannot be used."""
    try:
        cells = {str(name): plain_value(value, str(name)) for name, value in values.items()}
        return Row(place, cells, padded=padded)
    except DataError as error:
        return Row(place, {}, str(error))


def plain_value(value: Any, name: str, depth: int = 0) -> Any:
    """A cell as Python's own types have it: no value for one that is missing.

    Args:
        name: of its column.

    Raises:
        DataError: what has no words, as a picture.
    """
    if depth > _DEEPEST:
        raise DataError(f"expected at most {_DEEPEST} levels in column '{name}', got more: flatten it")
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or type(value) in (str, bool, int, float):
        return None if value != value else value
    kinds = set(class_names(value))
    if kinds & {"NAType", "NaTType"}:
        return None
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain_value(one, name, depth + 1) for key, one in value.items()}
    if isinstance(value, set | frozenset):
        value = sorted(value, key=repr)  # sets have no order of their own, and rows are compared
    if isinstance(value, list | tuple):
        return [plain_value(one, name, depth + 1) for one in value]
    if isinstance(value, _IN_WORDS) or kinds & _IN_WORDS_BY_NAME:
        return None if str(value) == "NaT" else value if isinstance(value, bytes) else str(value)
    if hasattr(value, "tolist"):  # arrays, columns and their numbers, of numpy, torch and pandas
        return plain_value(value.tolist(), name, depth + 1)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    raise DataError(f"expected words, numbers or lists in column '{name}', got {describe_kind(value)}: leave it out")


def list_cells(column: Any) -> list[Any]:
    """The cells of a column, whatever it is of."""
    found = column.tolist() if hasattr(column, "tolist") else column
    return list(found)
