"""What is asked and answered: rows of any form as examples, one prediction each, and all of them as a table."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from softprompt.data.chats.message_parsing import is_messages
from softprompt.data.examples import Example, find_answer, unlabelled_example
from softprompt.data.readers.in_memory import DataSource, example_values, is_column, iterate_rows, list_cells, make_row
from softprompt.data.readers.lines import Row
from softprompt.data.task import TaskSpec
from softprompt.data.templates.template import check_fills
from softprompt.errors import ConfigError, DataError
from softprompt.utils.arguments import describe_argument, refuse_argument
from softprompt.utils.notebook_display import Displayed
from softprompt.utils.pandas_tables import import_pandas
from softprompt.utils.summaries import describe_value, summarize

Inputs: TypeAlias = str | Example | Mapping[str, Any] | Sequence[str] | Sequence[Example] | DataSource

_EXPECTED = "a text, a row as a dict, a list of messages, a list of these, a DataFrame or a Dataset"
_ADVICE = {
    "Task": "give one of its splits, as task.test",
    "Splits": "give one of its splits, as splits.test",
    "DatasetDict": "give one of its splits, as data['test']",
    "Tensor": "give texts, not tokens: the tokenizer is the base model's",
    "BatchEncoding": "give texts, not tokens: the tokenizer is the base model's",
    "NoneType": "was a variable not set?",
    "PosixPath": "read the file first, as with pandas.read_csv",
}


@dataclass(frozen=True)
class Prediction(Displayed):
    """One answer.

    Attributes:
        index: of the example.
        label: the likeliest label (classification).
        probabilities: of every label, summing to 1 (classification).
        completion: the text generated (generation).
        at_limit: whether the completion was cut at the limit of tokens, before it ended.
        prompt_tokens: virtual tokens, template and text that were read for it, where whoever answered counts them.
        cut: only the beginning of the text was read, where whoever answered tells.
    """

    index: int
    label: str | None = None
    probabilities: dict[str, float] | None = None
    completion: str | None = None
    at_limit: bool = False
    prompt_tokens: int | None = None
    cut: bool = False

    def __repr__(self) -> str:
        return summarize(
            self,
            describe_value(self.answer),
            probability=self.probability,
            at_limit=self.at_limit or None,
            index=self.index,
        )

    @property
    def probability(self) -> float | None:
        """Of the label (classification)."""
        return None if self.probabilities is None or self.label is None else self.probabilities[self.label]

    @property
    def answer(self) -> str:
        """The label, or the completion."""
        return str(self.completion if self.label is None else self.label)

    def to_dict(self) -> dict[str, Any]:
        """The fields that this kind of task has."""
        fields = {"label": self.label, "probabilities": self.probabilities, "completion": self.completion}
        told = {name: value for name, value in fields.items() if value is not None}
        return {"index": self.index, **told, **({"cut": True} if self.at_limit else {})}


class AskedRow(NamedTuple):
    """A row to be answered.

    Attributes:
        values: its columns as they were given.
        gold: its answer, where it has one.
    """

    example: Example
    values: Mapping[str, Any]
    gold: Any = None


class Predictions(Displayed, list[Prediction]):
    """Predictions in the order of what was asked.

    Attributes:
        asked: the rows that they are for.
    """

    def __init__(
        self, predictions: Iterable[Prediction] = (), asked: Sequence[AskedRow] = (), frame: Any = None
    ) -> None:
        """``frame``: the DataFrame that the rows are of, whose index the table of answers has too."""
        super().__init__(predictions)
        self.asked = tuple(asked)
        self._frame = frame

    @property
    def labels(self) -> list[str | None]:
        """The label of each (classification)."""
        return [one.label for one in self]

    @property
    def completions(self) -> list[str | None]:
        """The completion of each (generation)."""
        return [one.completion for one in self]

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a row for each: the columns that were given, the answer, what it is to be.

        The answer is ``label`` and its ``probability``, or ``completion``; ``gold`` what the row itself has for it. A
        column of one of these names that was given is called ``given_label`` and so on.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        pandas = import_pandas()
        generated = any(one.label is None for one in self)
        answers: dict[str, list[Any]] = {"completion": self.completions} if generated else {"label": self.labels}
        if not generated:
            answers["probability"] = [one.probability for one in self]
        if any(row.gold is not None for row in self.asked):
            answers["gold"] = [row.gold for row in self.asked]
        given = pandas.DataFrame([dict(row.values) for row in self.asked]) if self._frame is None else self._frame
        if "gold" in answers and "label" in given and list(given["label"].astype(str)) == answers["gold"]:
            given = given.drop(columns="label")
        taken = {name: f"given_{name}" for name in answers if name in given}
        return given.rename(columns=taken).assign(**answers)

    def __repr__(self) -> str:
        return summarize(self, f"{len(self):,}", answers=[one.answer for one in self])


def is_single(inputs: Any) -> bool:
    """Whether one text, row or conversation is asked, and one answer is given."""
    if isinstance(inputs, Mapping):
        return not _is_table(inputs)
    return isinstance(inputs, str | Example) or is_messages(inputs)


def read_inputs(inputs: Any, spec: TaskSpec) -> list[AskedRow]:
    """What is asked, row by row, in order.

    Raises:
        ConfigError: no texts and no rows.
        DataError, TemplateError: a row that cannot be asked; its number is in the message.
    """
    if is_single(inputs):
        inputs = [inputs]
    elif is_column(inputs) and not isinstance(inputs, list | tuple):
        inputs = list_cells(inputs)
    elif isinstance(inputs, Iterator):
        inputs = list(inputs)
    if isinstance(inputs, list | tuple):
        return [_read_one(one, number, spec) for number, one in enumerate(inputs, start=1)]
    rows = iterate_rows(inputs, type(inputs).__name__, [], refuse=_refuse)
    return [_read_row(row, spec) for row in rows]


def _is_table(inputs: Mapping[Any, Any]) -> bool:
    """Whether a mapping holds columns; a row may have lists in some of its own, as messages."""
    values = inputs.values()
    return bool(inputs) and all(is_column(one) for one in values) and not any(map(is_messages, values))


def _refuse(inputs: Any) -> ConfigError:
    return refuse_argument("inputs", _EXPECTED, inputs, _ADVICE)


def _read_one(one: Any, number: int, spec: TaskSpec) -> AskedRow:
    if isinstance(one, Example):
        check_fills(spec.compiled, one)
        return AskedRow(
            one, example_values(one), _shorten_gold(one.references or None if one.label is None else one.label)
        )
    if is_messages(one):
        one = {"messages": one}
    if isinstance(one, Mapping):
        return _read_row(make_row(one, f"row {number}"), spec)
    if isinstance(one, str):
        try:
            return _read_row(Row(f"text {number}", {spec.columns.text: one}), spec)
        except DataError as error:
            names = sorted(spec.compiled.names - {"text"})
            asked = {spec.columns.text: "...", **dict.fromkeys(names, "...")} if names else {}
            if "text" not in spec.compiled.names:
                asked.pop(spec.columns.text, None)
            raise DataError(f"{error}{f': give the row, as {asked}' if asked else ''}") from error
    raise DataError(f"text {number}: expected a text or a row as a dict, got {describe_argument(one)}: leave it out")


def _read_row(row: Row, spec: TaskSpec) -> AskedRow:
    if row.reason:
        raise DataError(f"{row.place}: {row.reason}")
    example = unlabelled_example(row.values, row.place, spec.row_columns, padded=row.padded)
    check_fills(spec.compiled, example)
    return AskedRow(example, row.values, _shorten_gold(find_answer(row.values, spec.kind, spec.columns)))


def _shorten_gold(gold: Any) -> Any:
    """A single reference as itself."""
    return gold[0] if isinstance(gold, tuple) and len(gold) == 1 else list(gold) if isinstance(gold, tuple) else gold
