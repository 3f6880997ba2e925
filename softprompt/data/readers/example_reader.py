"""Rows to examples, in memory: a file, the files of a folder, a published data set; bad rows told all at once."""

import csv
import difflib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from softprompt.config import TaskKind
from softprompt.data.chats.conversation_rows import ConversationForm
from softprompt.data.examples import Columns, Example, UnansweredError, kind_of, make_example
from softprompt.data.readers.file_rows import ENDINGS, FileRows, name_class
from softprompt.data.readers.lines import Row
from softprompt.errors import DataError, TemplateError
from softprompt.utils.messages import import_optional, map_read_errors, quote_names
from softprompt.utils.place_kinds import describe_mistaken_place

BadRows = Literal["refuse", "skip"]
SPLITS = ("train", "validation", "test")
_ALIASES = {**{split: split for split in SPLITS}, **dict.fromkeys(("valid", "val", "dev"), "validation")}
_TOLD = 40  # places told for each reason
_REASONS = 12  # reasons told


class ExampleCollector:
    """Makes examples of rows, and keeps account of those that cannot be used.

    Attributes:
        rows: read so far.
        bad: of these, that cannot be used.
        unanswered: of these, that only lack a label or output.
    """

    def __init__(self, columns: Columns, bad_rows: BadRows = "refuse") -> None:
        self.rows = self.bad = self.unanswered = 0
        self._columns, self._skips = columns, bad_rows == "skip"
        self._kind: TaskKind | None = None
        self._reasons: dict[str, list[str]] = {}
        self._ends = False
        self._template: TemplateError | None = None
        self._forms: Counter[ConversationForm] = Counter()

    def take(self, row: Row) -> Example | None:
        """Its example, ``None`` if it cannot be used."""
        self.rows += 1
        try:
            return self._example(row)
        except (DataError, TemplateError) as error:
            if isinstance(error, TemplateError):
                self._template = self._template or error
            self.bad += 1
            self._ends = self._ends or row.ends
            reason = str(error).removeprefix(f"{' '.join(row.place.split())}: ")
            if reason not in self._reasons and len(self._reasons) >= _REASONS:
                reason = "other reasons"
            places = self._reasons.setdefault(reason, [])
            if len(places) <= _TOLD:
                places.append(row.place)
            return None

    def check(self) -> None:
        """Raise DataError for bad rows, if they must not be left out, or none are left."""
        if not self.bad or (self._skips and not self._ends and self.bad < self.rows):
            return
        if self._template is not None and self.bad == self.rows:
            raise self._template  # it is the template that is wrong
        if self.bad == 1 or (self.bad == self.rows and len(self._reasons) == 1):
            reason, places = next(iter(self._reasons.items()))
            of = f" (as all {self.rows:,} rows)" if self.bad > 1 else ""
            advice = "" if self._ends or self.bad == self.rows else ", or leave it out with --bad-rows skip"
            raise DataError(f"{places[0]}: {reason}{of}{advice}")
        advice = "" if self._ends or self._skips else ": mend them, or leave them out with --bad-rows skip"
        raise DataError(f"{self._describe_bad_rows()}{advice}")

    def notes(self) -> list[str]:
        """How conversations were read, and what was left out."""
        whole = len(self._forms) == 1 and self._forms.total() == self.rows - self.bad
        read = []
        for form, count in self._forms.items():
            which = "These are" if whole else f"{count:,} of {self.rows:,} rows are"
            read.append(f"{which} {form.name}: {self._describe_answers(form)}.")
        return [*read, *([f"Left out: {self._describe_bad_rows()}."] if self.bad and self._skips else [])]

    def _describe_answers(self, form: ConversationForm) -> str:
        if self._kind == "classification":
            return f"'{self._columns.label}' is the answer to each conversation"
        return form.said if self._kind else "they are to be answered"

    def _describe_bad_rows(self) -> str:
        found = []
        for reason, places in self._reasons.items():
            numbers = [place.rpartition(" ")[2] for place in places[:_TOLD]]
            more = " and more" if len(places) > _TOLD else ""
            found.append(f"{', '.join([places[0], *numbers[1:]])}{more}: {reason}")
        return f"{self.bad:,} of {self.rows:,} rows cannot be used: {'; '.join(found)}"

    def _example(self, row: Row) -> Example:
        values, place = row.values, row.place
        if row.reason:
            raise DataError(f"{place}: {row.reason}")
        if len(values) > 1 and {str(value) for value in values.values()} == values.keys():
            raise DataError(f"{place}: expected data, got the names of the columns: were files joined? remove this row")
        columns = self._columns.in_row(values)
        form = columns.find_form(values)
        if form is not None and row.padded:
            values = form.drop_null_fields(values)
        try:
            example = make_example(values, columns, place)
        except DataError as error:
            if isinstance(error, UnansweredError) or (
                form is None and columns.text in values and columns._replace(optional=True).kind(values, place) is None
            ):
                self.unanswered += 1
            raise
        kind = kind_of(example)
        if None not in (self._kind, kind) and kind != self._kind:
            raise DataError(
                f"{place}: expected {self._kind} as in the rows before, got {kind}: "
                "give every row a label, or every row a target or references"
            )
        if columns.fill is not None:
            columns.fill(example)
        self._kind = self._kind or kind
        if form is not None:
            self._forms[form] += 1
        return example


class CollectedExamples(NamedTuple):
    """The examples of a file or split, and what there is to say of it; ``unanswered``: no row has label or output."""

    examples: list[Example]
    notes: list[str]
    unanswered: bool = False


def collect_examples(
    rows: Iterable[Row], columns: Columns, bad_rows: BadRows, *, may_lack_answers: bool = False
) -> CollectedExamples:
    """All examples of ``rows``.

    Args:
        may_lack_answers: where no row has a label or output, this is told instead of refused.

    Raises:
        DataError: rows that cannot be used, all of them at once.
    """
    gathering = ExampleCollector(columns, bad_rows)
    examples = [example for row in rows if (example := gathering.take(row)) is not None]
    if may_lack_answers and 0 < gathering.rows == gathering.unanswered:
        return CollectedExamples([], [], unanswered=True)
    gathering.check()
    return CollectedExamples(examples, gathering.notes())


def read_file(
    path: Path, columns: Columns, bad_rows: BadRows = "refuse", *, may_lack_answers: bool = False
) -> CollectedExamples:
    """The examples of one file; raises DataError as ``collect_examples``, or for an empty file or none of rows."""
    check_file(path)
    rows = FileRows(path)
    found = collect_examples(rows if path.stat().st_size else (), columns, bad_rows, may_lack_answers=may_lack_answers)
    if not found.examples and not found.unanswered:
        raise DataError(
            f"expected examples in '{path}', got an empty file: give rows with a text and a label or target"
        )
    return CollectedExamples(found.examples, [*rows.notes(), *found.notes], found.unanswered)


def check_file(path: Path) -> None:
    """Raise DataError for what is no file of rows."""
    ending = path.suffix.lower()
    with map_read_errors(path):
        if not path.exists():
            near = difflib.get_close_matches(path.name, [one.name for one in path.parent.glob("*")])
            hint = f"did you mean {quote_names(near, ' or ')}? " if near else ""
            raise DataError(
                f"expected a file or folder at '{path}', found none: {hint}Hugging Face data sets are hf:NAME"
            )
        if path.is_dir() or ending not in ENDINGS:
            if told := describe_mistaken_place(path, "data"):
                raise DataError(f"expected data; {told}")
            got = "a folder" if path.is_dir() else f"'{ending}'" if ending else "no ending"
            raise DataError(f"expected a file ending in {', '.join(ENDINGS)}, got {got} in '{path}': convert the data")


def find_split(name: str) -> str | None:
    """The split that files and published parts of this name are, if any."""
    return _ALIASES.get(name)


def split_files(folder: Path) -> dict[str, Path]:
    """The file of each split in a folder, in the order of ``SPLITS``; raises DataError for none, or two of one."""
    files: dict[str, Path] = {}
    paths = sorted(folder.iterdir())
    for path in paths:
        split = find_split(path.stem.lower())
        if split and path.suffix.lower() in ENDINGS:
            if split in files:
                got = quote_names([files[split].name, path.name], " and ")
                raise DataError(f"expected one {split} file in '{folder}', got {got}: move or rename one of them")
            files[split] = path
    if not files:
        if told := describe_mistaken_place(folder, "data"):
            raise DataError(f"expected data; {told}")
        raise DataError(
            f"expected train, validation or test ({', '.join(ENDINGS)}) in the folder '{folder}', "
            f"got {quote_names(path.name for path in paths)}: rename the files, or give one file to have it split "
            "for you"
        )
    return {split: files[split] for split in SPLITS if split in files}


def load_hub_parts(source: str, *, streaming: bool) -> dict[str, Any]:
    """The parts of the data set ``hf:NAME[:CONFIG]`` by their names, cells of CSV as they stand in the file.

    Raises:
        DataError: it is not within reach.
        MissingExtraError: the extra ``data`` is not installed.
    """
    name, _, config = source.removeprefix("hf:").partition(":")
    if not name:
        raise DataError(f"expected the name of a data set behind 'hf:', got '{source}': give hf:NAME or hf:NAME:CONFIG")
    datasets = import_optional("datasets")
    try:
        builder = datasets.load_dataset_builder(name, config or None)
        more: dict[str, Any] = {}
        if type(builder.config).__name__ == "CsvConfig" and builder.config.features is None:
            # told the types of the columns, the library does not guess them
            strings = {column: datasets.Value("string") for column in _csv_header(builder.config)}
            more = {"features": datasets.Features(strings), "na_filter": False}
        found: dict[str, Any] = datasets.load_dataset(name, config or None, streaming=streaming, **more)
    except Exception as error:  # what builders raise is not of one family
        raise DataError(
            f"expected a data set within reach at '{source}', got {type(error).__name__} ({str(error)[:300]}): "
            "give hf:NAME or hf:NAME:CONFIG"
        ) from error
    return found


def _csv_header(config: Any) -> list[str]:
    """The names of the columns of a published table, near or far."""
    first = next(iter(config.data_files.values()))[0]
    opened = import_optional("fsspec").open(first, "rt", encoding="utf-8-sig", compression="infer", newline="")
    with opened as stream:
        return next(csv.reader(stream, delimiter=config.sep), [])


def read_hub_rows(data: Any, features: Any, place: str, first: int = 1) -> Iterator[Row]:
    """The rows of a published part, numbers of classes as their names."""
    kinds = import_optional("datasets").ClassLabel
    classes = {key: kind.names for key, kind in (features or {}).items() if isinstance(kind, kinds)}
    for number, values in enumerate(data, start=first):
        named = {key: name_class(values[key], names) for key, names in classes.items()}
        yield Row(f"{place} row {number}", {**values, **named}, padded=True)
