"""Rows that are conversations, recognised by their columns: which form they have, and their turns."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from softprompt.data.chats.conversation import Conversation, Message
from softprompt.data.chats.message_parsing import is_messages, parse_json, parse_messages, parse_tools
from softprompt.data.chats.turn_order import check_turns
from softprompt.data.chats.written_calls import read_written_calls
from softprompt.data.column_values import is_blank, read_output, read_string, read_value
from softprompt.errors import DataError
from softprompt.utils.messages import type_name

_LISTS = ("messages", "conversations", "conversation", "history", "tools", "functions")  # JSON text in a cell of CSV
_MEDIA = ("images", "image", "videos", "audios", "audio")
_Turns = tuple[Message, ...]
_ReadTurns = Callable[[Mapping[str, Any], str], _Turns]


@dataclass(frozen=True)
class ConversationForm:
    """A form that conversations have in a row.

    Attributes:
        name: as people call it.
        columns: those of the turns, all needed where an answer is.
        asked: those that a row to be answered has.
        beside: columns that belong to the conversation too, where they are there.
        said: how it is read.
        answers: the column that the answer stands in by itself, if it does.
        turns: makes the messages of a row's columns; the last is the answer, where there is one.
    """

    name: str
    columns: tuple[str, ...]
    asked: tuple[str, ...]
    beside: tuple[str, ...]
    said: str
    answers: str | None
    turns: _ReadTurns

    @property
    def used(self) -> frozenset[str]:
        """All columns that the conversation is made of."""
        return frozenset((*self.columns, *self.beside))

    def fits(self, row: Mapping[str, Any], *, answered: bool) -> bool:
        """Whether a row has the columns of this form, and they can be meant so."""
        if not row.keys() >= set(self.columns if answered else self.asked):
            return False
        if self.asked in (("conversation",), ("chosen",)):  # a text of such a name is a text
            value = row[self.asked[0]]
            return isinstance(value, list | tuple) or (isinstance(value, str) and value.lstrip().startswith("[{"))
        # TRL's unpaired preferences have a label beside the completion, true or false
        return self.answers != "completion" or str(row.get("label")).lower() not in ("true", "false")

    def drop_null_fields(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with objects as they stood before Arrow gave each the fields of all, null where it had none."""
        return {name: _drop_null_fields(value) if name in self.used else value for name, value in row.items()}

    def read(self, row: Mapping[str, Any], place: str) -> Conversation:
        """The conversation of a row; DataError, which begins with ``place``, for what cannot be one."""
        given = {name: _read_cell(row[name], name, place) for name in self.used if name in row}
        with _naming(place):
            if media := next((name for name in _MEDIA if isinstance(row.get(name), list | Mapping) and row[name]), ""):
                raise DataError(f"expected text only, got something in the column '{media}': remove it, or the row")
        turns = self.turns(given, place)
        system = given.get("system")
        if not is_blank(system) and not (turns[0].role == "system" and turns[0].content == system):
            turns = (Message("system", read_string(system, "system", place)), *turns)
        with _naming(place):
            check_turns(turns)
            return Conversation(turns, parse_tools(given.get("tools", given.get("functions"))))


def find_form(row: Mapping[str, Any], *, answered: bool) -> ConversationForm | None:
    """The form that a row has; ``answered``: it must have the column of the answer, where the form has one."""
    found = next((form for form in FORMS if form.fits(row, answered=True)), None)
    if found is None and not answered:
        found = next((form for form in FORMS if form.fits(row, answered=False)), None)
    return found


def _drop_null_fields(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _drop_null_fields(one) for name, one in value.items() if one is not None}
    return [_drop_null_fields(one) for one in value] if isinstance(value, list | tuple) else value


def form_of_column(name: str, value: Any) -> ConversationForm | None:
    """The form of rows whose column of this name holds messages; ``None`` where its value is something else."""
    if not is_messages(value):
        return None
    return next((form for form in FORMS if form.columns == (name,)), None) or _message_form(
        f"chats in the column '{name}'", name
    )


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """DataErrors within begin with ``place``."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{place}: {error}") from error


def _read_cell(value: Any, name: str, place: str) -> Any:
    """A value with JSON's types, its JSON text parsed where it can only be a list."""
    if name in _LISTS and isinstance(value, str):
        with _naming(place):
            value = parse_json(value, f"a list in column '{name}'") if value.strip() else None
    return read_value(value, name, place)


def _parse_messages(value: Any, name: str, place: str) -> _Turns:
    with _naming(place):
        return parse_messages(value, name)


def _read_messages(column: str) -> _ReadTurns:
    def read(row: Mapping[str, Any], place: str) -> _Turns:
        turns = _parse_messages(row[column], column, place)
        if column != "conversations":
            return turns
        with _naming(place):
            return read_written_calls(turns)

    return read


def _read_instruction(answer: str, inputs: str) -> _ReadTurns:
    def read(row: Mapping[str, Any], place: str) -> _Turns:
        words = [read_string(row[name], name, place) for name in ("instruction", inputs) if not is_blank(row.get(name))]
        asked = Message("user", "\n".join(words) or read_string(row["instruction"], "instruction", place))
        return (*_read_history(row.get("history"), place), asked, *_read_answer(row.get(answer), answer, place))

    return read


def _read_prompt(answer: str) -> _ReadTurns:
    def read(row: Mapping[str, Any], place: str) -> _Turns:
        given = _read_answer(row.get(answer), answer, place)
        if given and given[0].role != "assistant":
            return given  # all of it, as preferences are published
        prompt = row["prompt"]
        if isinstance(prompt, list):
            return (*_parse_messages(prompt, "prompt", place), *given)
        return (Message("user", read_string(prompt, "prompt", place)), *given)

    return read


def _read_answer(value: Any, name: str, place: str) -> _Turns:
    """The turns of an answer, which is a text or messages; none where it is missing."""
    if is_blank(value):
        return ()
    if is_messages(value):
        return _parse_messages(value, name, place)
    return (Message("assistant", read_output(value, name, place)),)


def _read_history(value: Any, place: str) -> _Turns:
    """The turns before: pairs of what was asked and answered."""
    if not isinstance(value, list | None) or any(not isinstance(one, list) or len(one) != 2 for one in value or ()):
        raise DataError(f"{place}: expected pairs of texts in 'history', got {type_name(value)}: correct it")
    turns = []
    for asked, answer in value or ():
        turns.append(Message("user", read_string(asked, "history", place)))
        turns.append(Message("assistant", read_string(answer, "history", place)))
    return tuple(turns)


_TOOLS = ("tools", "functions", "system")
_TURNS_SAID = "learned are the assistant's turns, of which the last is the answer"
_PREFERRED = "the answer preferred is learned, the other is not used"


def _message_form(name: str, *columns: str, said: str = _TURNS_SAID) -> ConversationForm:
    return ConversationForm(name, columns, columns[:1], _TOOLS, said, None, _read_messages(columns[0]))


def _prompt_form(name: str, answer: str, *columns: str, said: str = "") -> ConversationForm:
    said = said or f"'prompt' is the user's turn, '{answer}' the answer"
    return ConversationForm(name, ("prompt", answer, *columns), ("prompt",), _TOOLS, said, answer, _read_prompt(answer))


def _instruction_form(name: str, answer: str, inputs: str) -> ConversationForm:
    said = f"'instruction' and '{inputs}' are the user's turn, '{answer}' the answer"
    beside, read = (inputs, "system", "history"), _read_instruction(answer, inputs)
    return ConversationForm(name, ("instruction", answer), ("instruction",), beside, said, answer, read)


FORMS = (
    _message_form("chats in OpenAI's form", "messages"),
    _message_form("chats in ShareGPT's form", "conversations"),
    _message_form("chats in the column 'conversation'", "conversation"),
    _prompt_form("preference pairs", "chosen", "rejected", said=_PREFERRED),
    _message_form("preference pairs without prompts", "chosen", "rejected", said=_PREFERRED),
    _instruction_form("rows in Alpaca's form", "output", "input"),
    _instruction_form("rows in Dolly's form", "response", "context"),
    _prompt_form("prompts and completions", "completion"),
    _prompt_form("prompts and responses", "response"),
)
