"""Rows to examples: text, label or outputs, and the other columns with the types that they have in the data."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from softprompt.config import TaskKind
from softprompt.data.chats.conversation import Conversation
from softprompt.data.known_formats import recognize_rows, suggest_columns
from softprompt.data.label_names import fold_label, quote_label
from softprompt.errors import DataError
from softprompt.utils.messages import quote_names, type_name
from softprompt.utils.notebook_display import Displayed
from softprompt.utils.summaries import describe_value, summarize

_DEEPEST = 32  # levels of lists and objects in a column


@dataclass(frozen=True, slots=True)
class Example(Displayed):
    """One row; ``label`` is set in classification, ``references`` in generation."""

    text: str
    label: str | None = None
    references: tuple[str, ...] = ()  # accepted outputs; the first is the one that is learned
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)  # the others, with JSON's types
    place: str = field(default="", compare=False)  # where its row stands, for messages
    conversation: Conversation | None = None  # all turns, where the row is a chat; ``text`` is then made of them

    def __repr__(self) -> str:
        return summarize(
            self, describe_value(self.text), label=self.label, references=self.references, columns=self.columns
        )

    def locate_message(self, message: object) -> str:
        """A message that begins with the place of the row, where it is known."""
        return f"{self.place}: {message}" if self.place else str(message)


class Columns(NamedTuple):
    """What the columns of text, label and output are called.

    Attributes:
        optional: a row may come without label and output.
        remembered: the names are a saved prompt's, so that a row may have the usual ones instead.
        textless: a row may come without text, for the template uses other columns.
        fills: raises TemplateError for an example that the template cannot be filled with.
    """

    text: str = "text"
    label: str = "label"
    target: str = "target"
    optional: bool = False
    remembered: bool = False
    text_optional: bool = False
    fill: Callable[[Example], object] | None = None

    @classmethod
    def of(cls, text: str | None, label: str | None, target: str | None, remembered: Self | None = None) -> Self:
        """The names given, else those remembered, else the usual ones."""
        if text and text in (label, target):
            raise DataError(f"expected the text in another column than the answer, got '{text}' for both: correct one")
        known = remembered or cls()
        return known._replace(
            text=text or known.text,
            label=label or known.label,
            target=target or known.target,
            remembered=remembered is not None and not (text or label or target),
        )

    def in_row(self, row: Mapping[str, Any]) -> Self:
        """With the names that this row has."""
        if not self.remembered:
            return self
        usual = Columns()
        return self._replace(
            text=self.text if self.text in row else usual.text,
            label=self.label if self.label in row else usual.label,
            target=self.target if self.target in row else usual.target,
        )

    def names(self) -> "Columns":
        """The three names alone."""
        return Columns(self.text, self.label, self.target)

    def others(self) -> dict[str, str]:
        """The names that are not the usual ones, by what is called so."""
        usual = Columns()
        return {
            name: getattr(self, name)
            for name in ("text", "label", "target")
            if getattr(self, name) != getattr(usual, name)
        }

    def kind(self, row: Mapping[str, Any], place: str) -> TaskKind | None:
        """What the row's columns make of it; a column whose name the caller chose must be there.

        ``None`` where label and output may be left out, and are: no such column, or nothing in it.
        """
        has_text = self.text in row or self.text_optional
        if self.optional and has_text:
            row = {name: value for name, value in row.items() if name == self.text or not _blank(value)}
            if not {self.label, self.target, "references"} & row.keys():
                return None
        label_chosen, target_chosen = self.label != "label", self.target != "target"
        wanted = [self.label] if label_chosen else [self.target, "references"] if target_chosen else ["label", "target"]
        if has_text:
            if self.label in row and (label_chosen or not target_chosen):
                return "classification"
            if not label_chosen and (self.target in row or "references" in row):
                return "generation"
        missing = wanted if has_text else [self.text]
        raise DataError(f"{place}: {_lacks(row, missing)}{self._advise(row, missing)}")

    def _advise(self, row: Mapping[str, Any], missing: Sequence[str]) -> str:
        """How a row that lacks these columns may be read."""
        usual = Columns()
        if self.names() == usual and (found := recognize_rows(row)) is not None:
            return f"these are {found.name}; {found.advice}"
        names = "--text-column, --label-column or --target-column"
        answers = {"label", "target", "references"} & row.keys()
        likely = suggest_columns(row, [*missing, *(() if answers else ("label", "target"))])
        return f"name it with {names}" + (f", here perhaps {likely}" if likely else "")

    def text_of(self, row: Mapping[str, Any], place: str) -> str:
        """The row's text, empty where it may lack one and does."""
        if self.text_optional and _blank(row.get(self.text)):
            return ""
        return _string(row[self.text], self.text, place)


def make_example(row: Mapping[str, Any], kind: TaskKind | None, columns: Columns, place: str) -> Example:
    """The example that a row of this ``kind`` is (see ``Columns.kind``); DataError names ``place``."""
    label: str | None = None
    references: tuple[str, ...] = ()
    if kind == "classification":
        used = {columns.text, columns.label}
        label = _string(plain_label(row[columns.label]), columns.label, place)
    elif kind == "generation":
        used = {columns.text, columns.target, "references"}
        references = _references(row, columns.target, place)
    else:
        used = {columns.text, columns.label, columns.target, "references"}
    others = {name: _column(value, name, place) for name, value in row.items() if name not in used}
    return Example(columns.text_of(row, place), label, references, others, place)


def _references(row: Mapping[str, Any], target: str, place: str) -> tuple[str, ...]:
    several = row.get("references")
    if not isinstance(several, list | None):
        raise DataError(
            f"{place}: expected a list of strings in 'references', got {type_name(several)}: use '{target}' for one"
        )
    outputs = [("references", output) for output in several or ()]
    if target in row and not (row[target] is None and outputs):
        outputs.insert(0, (target, row[target]))
    if not outputs:
        raise DataError(f"{place}: expected at least one output in 'references', got none: add one, or remove the row")
    return tuple(dict.fromkeys(_string(_output(output, name, place), name, place) for name, output in outputs))


def _output(value: Any, name: str, place: str) -> Any:
    """What is to be written for a value: JSON for what is neither a string nor missing."""
    if not isinstance(value, bool | int | float | Mapping | list) or value in (math.inf, -math.inf):
        return value
    found = _column(value, name, place)
    try:
        json.dumps(found, allow_nan=False)
    except ValueError as error:
        raise DataError(
            f"{place}: expected finite numbers in column '{name}', got one that JSON has no word for: mend it"
        ) from error
    return None if found is None else format_value(found)


def _lacks(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """That none of these columns is there, and which one is written almost so."""
    wanted = {fold_label(name) for name in names}
    near = [quote_label(name) for name in row if fold_label(name) in wanted]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"expected a column {quote_names(names, ' or ')}, got {quote_names(row)}: {hint}"


def _blank(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def plain_label(value: Any) -> Any:
    """A label as it is called: numbers and booleans as strings; all else as it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))  # NaN stands for null
    return str(value) if finite else value


def _column(value: Any, name: str, place: str, depth: int = 0) -> Any:
    """A value with one of JSON's types: what is none of them (a date, a decimal number) is its string."""
    if depth > _DEEPEST:
        raise DataError(f"{place}: expected at most {_DEEPEST} levels in column '{name}', got more: flatten it")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return None if value != value else value  # NaN stands for null
    if isinstance(value, Mapping):
        return {str(_column(str(key), name, place)): _column(one, name, place, depth + 1) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_column(one, name, place, depth + 1) for one in value]
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return _unicode(str(value), name, place)


def format_value(value: Any) -> str:
    """The value of a column as words, as templates and reports have it."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def count_characters(example: Example) -> int:
    """Of the text and the columns beside it, their names counted."""
    return len(example.text) + sum(len(name) + len(format_value(value)) for name, value in example.columns.items())


def _string(value: Any, name: str, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        got = "a blank string" if isinstance(value, str) else type_name(value)
        raise DataError(f"{place}: expected a string in column '{name}', got {got}: mend or remove this row")
    return _unicode(value, name, place)


def _unicode(value: str, name: str, place: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(value[error.start]):x}"
        raise DataError(
            f"{place}: expected Unicode text in column '{name}', got half a character ({code}): mend it"
        ) from error
    return value


def unlabelled_example(row: Mapping[str, Any], place: str, columns: Columns | None = None) -> Example:
    """A row to be answered, its values read as those of training rows are; DataError names ``place``.

    ``columns``: as the prompt that answers calls them.
    """
    found = (columns or Columns())._replace(remembered=True).in_row(row)
    if found.text not in row and not found.text_optional:
        names = list(dict.fromkeys([(columns or found).text, found.text]))
        raise DataError(f"{place}: {_lacks(row, names)}rename it")
    others = {name: _column(value, name, place) for name, value in row.items() if name != found.text}
    return Example(found.text_of(row, place), columns=others, place=place)


def find_answer(row: Mapping[str, Any], kind: TaskKind, columns: Columns) -> str | tuple[str, ...] | None:
    """The label or the references that a row has, as those of training rows are read; ``None`` without."""
    found = columns._replace(remembered=True, text_optional=True).in_row(row)
    if kind == "classification" and found.label not in row:
        return None
    try:
        example = make_example(row, kind, found, "")
    except DataError:
        return None
    return example.references if example.label is None else example.label


def infer_kind(examples: Sequence[Example]) -> TaskKind:
    """What the examples carry; outputs where the first has no label."""
    return "classification" if examples[0].label is not None else "generation"


def keep_answered(examples: Sequence[Example]) -> list[Example]:
    """Those with a label or outputs."""
    return [one for one in examples if one.label is not None or one.references]


def gold_answers(examples: Sequence[Example]) -> list[Any]:
    """Of each its label, or its references."""
    return [one.references if one.label is None else one.label for one in examples]
