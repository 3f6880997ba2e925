"""Rows to examples: text, label or outputs, and the other columns with the types that they have in the data."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

from softprompt.config import TaskKind
from softprompt.data.chats.conversation import Conversation, Message
from softprompt.data.chats.conversation_rows import ConversationForm, find_form, form_of_column
from softprompt.data.chats.plain_text import answer_text, plain_text, readable_text
from softprompt.data.column_values import format_value, is_blank, read_output, read_string, read_value
from softprompt.data.known_formats import recognize_rows, suggest_columns
from softprompt.data.label_names import fold_label, plain_label, quote_label
from softprompt.errors import DataError
from softprompt.utils.messages import quote_names, type_name
from softprompt.utils.notebook_display import Displayed
from softprompt.utils.summaries import describe_value, summarize


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

    @property
    def said(self) -> str:
        """What a plain template has as its text, which in a conversation is every turn but the answer."""
        return self.text if self.conversation is None else plain_text(self.conversation)

    def locate_message(self, message: object) -> str:
        """A message that begins with the place of the row, where it is known."""
        return f"{self.place}: {message}" if self.place else str(message)


class UnansweredError(DataError):
    """A row only lacks its label or output."""


class Columns(NamedTuple):
    """What the columns of text, label and output are called.

    Attributes:
        optional: a row may come without label and output.
        remembered: the names are a saved prompt's, so that a row may have the usual ones instead.
        text_optional: a row may come without text, for the template uses other columns.
        fill: raises TemplateError for an example that the template cannot be filled with.
        read: the columns that the template uses, as far as it is known.
    """

    text: str = "text"
    label: str = "label"
    target: str = "target"
    optional: bool = False
    remembered: bool = False
    text_optional: bool = False
    fill: Callable[[Example], object] | None = None
    read: Collection[str] = ()

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

    def find_form(self, row: Mapping[str, Any], *, asked: bool = False) -> ConversationForm | None:
        """The form of conversations that a row has, unless a column of its own has its text.

        Args:
            asked: the row is to be answered.
        """
        answers = {self.label, self.target, "references"} & row.keys()
        if self.text != "text":
            return form_of_column(self.text, row.get(self.text))
        if self.text_optional or (self.text in row and (asked or answers)):
            return None
        chosen = {self.label, self.target} - {"label", "target"}
        form = find_form(row, answered=not (asked or self.optional or chosen & row.keys()))
        return None if form is None or form.used & set(self.read) else form

    def kind(self, row: Mapping[str, Any], place: str) -> TaskKind | None:
        """What the row's columns make of it; a column whose name the caller chose must be there.

        ``None`` where label and output may be left out, and are: no such column, or nothing in it.
        """
        has_text = self.text in row or self.text_optional
        if self.optional and has_text:
            row = {name: value for name, value in row.items() if name == self.text or not is_blank(value)}
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
        form = find_form(row, answered=True)
        if form is not None and form.answers in row and self.names() == usual:
            return f"these are {form.name} that the template reads: name the answer with --target-column {form.answers}"
        if self.names() == usual and (found := recognize_rows(row)) is not None:
            return f"these are {found.name}; {found.advice}"
        names = f"{'--text-column, ' if self.text in missing else ''}--label-column or --target-column"
        answers = {"label", "target", "references"} & row.keys()
        likely = suggest_columns(row, [*missing, *(() if answers else ("label", "target"))])
        return f"name it with {names}" + (f", here perhaps {likely}" if likely else "")

    def text_of(self, row: Mapping[str, Any], place: str) -> str:
        """The row's text, empty where it may lack one and does."""
        if self.text_optional and is_blank(row.get(self.text)):
            return ""
        return read_string(row[self.text], self.text, place)


def make_example(row: Mapping[str, Any], columns: Columns, place: str) -> Example:
    """The example that a row is, with what ``columns`` make of it; DataError names ``place``."""
    if (form := columns.find_form(row)) is not None:
        return _make_chat(row, form, columns, place)
    return _make_plain(row, columns.kind(row, place), columns, place)


def _make_plain(row: Mapping[str, Any], kind: TaskKind | None, columns: Columns, place: str) -> Example:
    label: str | None = None
    references: tuple[str, ...] = ()
    if kind == "classification":
        used = {columns.text, columns.label}
        label = read_string(plain_label(row[columns.label]), columns.label, place)
    elif kind == "generation":
        used = {columns.text, columns.target, "references"}
        references = _references(row, columns.target, place)
    else:
        used = {columns.text, columns.label, columns.target, "references"}
    others = {name: read_value(value, name, place) for name, value in row.items() if name not in used}
    return Example(columns.text_of(row, place), label, references, others, place)


def _make_chat(row: Mapping[str, Any], form: ConversationForm, columns: Columns, place: str) -> Example:
    """The example that a row of such a form is; without label and references only where it may lack them."""
    conversation = form.read(row, place)
    given = conversation.answer
    kept = {name: value for name, value in row.items() if not (columns.optional and is_blank(value))}
    label_chosen, target_chosen = columns.label != "label", columns.target != "target"
    chosen = columns.label if label_chosen else columns.target if target_chosen else None
    if chosen is not None and chosen not in kept and not columns.optional:
        raise DataError(f"{place}: {_lacks(row, [chosen])}name it with --label-column or --target-column")
    label: str | None = None
    references: tuple[str, ...] = ()
    used = {*form.used, columns.text}
    # 'label' and 'target' may be anything in forms that have a column of the answer
    if columns.label in kept and (label_chosen or not (target_chosen or form.answers)):
        label = read_string(plain_label(row[columns.label]), columns.label, place)
        conversation = _end_before(conversation, form, (columns.label, label), place)
        used |= {columns.label}
    elif columns.target in kept and (target_chosen or given is None):
        references = _references(kept, columns.target, place)
        asked = _end_before(conversation, form, (columns.target, references[0]), place)
        conversation = replace(asked, messages=(*asked.messages, Message("assistant", references[0])))
        used |= {columns.target, "references"}
    elif given is not None:
        if not any(one.learned for one in conversation.messages if one.role == "assistant"):
            raise DataError(f"{place}: expected a turn of assistant to learn, got a weight of 0 for all: weigh one 1")
        several = row.get("references")
        more = _references({"references": several}, columns.target, place) if several else ()
        references = tuple(dict.fromkeys((answer_text(given), *more)))
        used |= {"references"}
    elif not columns.optional:
        raise UnansweredError(f"{place}: {_lacks_answer(conversation, form)}")
    if label is not None or not references:
        used -= {form.answers}
    others = {name: read_value(value, name, place) for name, value in row.items() if name not in used}
    return Example(readable_text(conversation), label, references, others, place, conversation)


def _end_before(
    conversation: Conversation, form: ConversationForm, answer: tuple[str, str], place: str
) -> Conversation:
    """The turns before the answer, which a column of its name has; DataError for another one at their end."""
    given = conversation.answer
    if given is not None and form.answers is None and answer_text(given).strip() != answer[1].strip():
        raise DataError(
            f"{place}: expected a conversation that ends before its answer, which is in column '{answer[0]}', got "
            "another turn of assistant at its end: remove the turn, or the column"
        )
    return conversation.without_answer()


def _lacks_answer(conversation: Conversation, form: ConversationForm) -> str:
    if form.answers is not None:
        return f"expected an answer in column '{form.answers}', got none: write it, or remove the row"
    return (
        "expected a last turn of assistant, which is the answer to learn, got one of "
        f"{conversation.messages[-1].role}: add it, or a column 'label' or 'target'"
    )


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
    return tuple(dict.fromkeys(read_output(output, name, place) for name, output in outputs))


def _lacks(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """That none of these columns is there, and which one is written almost so."""
    wanted = {fold_label(name) for name in names}
    near = [quote_label(name) for name in row if fold_label(name) in wanted]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"expected a column {quote_names(names, ' or ')}, got {quote_names(row)}: {hint}"


def count_characters(example: Example) -> int:
    """Of the text, or the conversation as JSON, and the columns beside it, their names counted."""
    said = example.text if example.conversation is None else json.dumps(example.conversation.to_row())
    return len(said) + sum(len(name) + len(format_value(value)) for name, value in example.columns.items())


def unlabelled_example(
    row: Mapping[str, Any], place: str, columns: Columns | None = None, *, padded: bool = False
) -> Example:
    """A row to be answered, its values read as those of training rows are; DataError names ``place``.

    Args:
        columns: as the prompt that answers calls them.
        padded: as for ``Row``.
    """
    found = (columns or Columns())._replace(remembered=True).in_row(row)
    if (form := found.find_form(row, asked=True)) is not None:
        conversation = form.read(form.drop_null_fields(row) if padded else row, place).without_answer()
        others = {name: read_value(value, name, place) for name, value in row.items() if name not in form.used}
        return Example(readable_text(conversation), columns=others, place=place, conversation=conversation)
    if found.text not in row and not found.text_optional:
        names = list(dict.fromkeys([(columns or found).text, found.text]))
        raise DataError(f"{place}: {_lacks(row, names)}rename it")
    others = {name: read_value(value, name, place) for name, value in row.items() if name != found.text}
    return Example(found.text_of(row, place), columns=others, place=place)


def find_answer(row: Mapping[str, Any], kind: TaskKind, columns: Columns) -> str | tuple[str, ...] | None:
    """The label or the references that a row has, as those of training rows are read; ``None`` without."""
    found = columns._replace(remembered=True).in_row(row)
    if kind == "classification" and found.label not in row:
        return None
    form = found.find_form(row)
    try:
        if form is not None:
            example = _make_chat(row, form, found, "")
        else:
            example = _make_plain(row, kind, found._replace(text_optional=True), "")
    except DataError:
        return None
    return (example.references or None) if example.label is None else example.label


def kind_of(example: Example) -> TaskKind | None:
    """What the example carries; ``None`` without label and output."""
    return "classification" if example.label is not None else "generation" if example.references else None


def infer_kind(examples: Sequence[Example]) -> TaskKind:
    """What the examples carry; outputs where the first has no label."""
    return "classification" if examples[0].label is not None else "generation"


def keep_answered(examples: Sequence[Example]) -> list[Example]:
    """Those with a label or outputs."""
    return [one for one in examples if one.label is not None or one.references]


def gold_answers(examples: Sequence[Example]) -> list[Any]:
    """Of each its label, or its references."""
    return [one.references if one.label is None else one.label for one in examples]
