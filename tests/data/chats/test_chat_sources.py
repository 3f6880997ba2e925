"""Chats come alike from every source, are split by all of their turns, and are asked as they are learned."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_models import as_state, random_prompt, tiny_base

from softprompt.data.chats.conversation import Conversation, Message, ToolCall
from softprompt.data.chats.shared_parts import shared_system, shared_tools
from softprompt.data.examples import Example
from softprompt.data.splits import Splits, read_splits
from softprompt.data.streaming import stream_splits
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import DataError
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictor import Predictor, arriving_examples

pandas = pytest.importorskip("pandas")
datasets = pytest.importorskip("datasets")
arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "required": ["a"]}}}
DAY = {"type": "function", "function": {"name": "day", "description": "of the week"}}


def row(number: int) -> dict[str, Any]:
    """Four turns, the second of which calls one of two tools whose arguments have other names."""
    arguments = {"a": number, "b": 1} if number % 2 else {"date": {"month": number, "names": ["x"]}}
    call = {"id": f"c{number}", "function": {"name": "add" if number % 2 else "day", "arguments": arguments}}
    return {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": f"Sum {number}"}, {"type": "text", "text": "?"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"c{number}", "content": str(number)},
            {"role": "assistant", "content": f"It is {number}.", "weight": 1},
        ],
        "tools": [ADD, DAY],
        "number": number,
    }


def conversation(number: int) -> Conversation:
    """The same, without what reads it."""
    arguments = {"a": number, "b": 1} if number % 2 else {"date": {"month": number, "names": ["x"]}}
    return Conversation(
        (
            Message("system", "Be brief."),
            Message("user", f"Sum {number}?"),
            Message("assistant", "", (ToolCall("add" if number % 2 else "day", arguments, f"c{number}"),)),
            Message("tool", str(number), tool_call_id=f"c{number}"),
            Message("assistant", f"It is {number}."),
        ),
        (ADD, DAY),
    )


def plain_row(number: int) -> dict[str, Any]:
    """With text as content, which every kind of table can hold."""
    found = row(number)
    found["messages"][1]["content"] = f"Sum {number}?"
    return found


ROWS = [plain_row(number) for number in range(60)]


def write_lines(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in map(row, range(60))), encoding="utf-8")
    return path


def write_array(folder: Path) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    return path


def write_cells(folder: Path, separator: str = ",") -> Path:
    path = folder / ("rows.csv" if separator == "," else "rows.tsv")
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["messages", "tools", "number"], delimiter=separator)
        writer.writeheader()
        writer.writerows(
            {"messages": json.dumps(one["messages"]), "tools": json.dumps(one["tools"]), "number": one["number"]}
            for one in ROWS
        )
    return path


def write_parquet(folder: Path) -> Path:
    parquet.write_table(arrow.Table.from_pylist(ROWS), folder / "rows.parquet")
    return folder / "rows.parquet"


SOURCES: dict[str, Callable[[Path], Any]] = {
    "lines": write_lines,
    "array": write_array,
    "csv": write_cells,
    "tsv": lambda folder: write_cells(folder, "\t"),
    "parquet": write_parquet,
    "list": lambda folder: ROWS,
    "columns": lambda folder: {name: [one[name] for one in ROWS] for name in ROWS[0]},
    "frame": lambda folder: pandas.DataFrame(ROWS),
    # pandas makes floats of numbers beside nulls
    "frame of parquet": lambda folder: pandas.read_parquet(write_parquet(folder), dtype_backend="pyarrow"),
    "arrow": lambda folder: arrow.Table.from_pylist(ROWS),
    "dataset": lambda folder: datasets.Dataset.from_list(ROWS),
    "examples": lambda folder: read_splits(ROWS)["all"],
}


def by_number(splits: Splits) -> list[Example]:
    return sorted(splits["all"], key=lambda one: int(one.columns["number"]))


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same(tmp_path: Path, kind: str) -> None:
    splits = read_splits(SOURCES[kind](tmp_path), names={"text"})
    found = by_number(splits)
    assert [one.conversation for one in found] == [conversation(number) for number in range(60)]
    assert [one.references for one in found] == [(f"It is {number}.",) for number in range(60)]
    expected = read_splits(ROWS, names={"text"})
    for name in ("train", "validation", "test"):
        assert {one.text for one in splits[name]} == {one.text for one in expected[name]}
    assert any(note.startswith("These are chats in OpenAI's form: ") for note in splits.notes)
    assert "All conversations have the same system message (9 characters)." in splits.notes
    assert "All conversations have the same tools (add, day)." in splits.notes


def test_messages_without_columns() -> None:
    found = read_splits([one["messages"][:3] for one in ROWS])["all"]
    assert {len(one.conversation.messages) for one in found if one.conversation} == {3}
    parts = read_splits({"train": [one["messages"] for one in ROWS[:9]], "test": [ROWS[9]["messages"]]})
    assert [len(parts.train) + len(parts.validation), len(parts.test)] == [9, 1]


def test_null_is_kept_where_nobody_filled_it_in(tmp_path: Path) -> None:
    call = {"name": "add", "arguments": {"a": None}}
    rows = [{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [{"function": call}]}]}]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(rows[0]), encoding="utf-8")
    (example,) = read_splits(path)["all"]
    assert example.conversation is not None
    assert example.conversation.messages[1].tool_calls == (ToolCall("add", {"a": None}),)
    assert example.references == ('{"name": "add", "arguments": {"a": null}}',)
    call["arguments"] = '{"a": null}'
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert read_splits(tmp_path / "rows.parquet")["all"] == (example,)


def test_data_sets_of_the_hub_are_streamed_alike() -> None:
    streamed = stream_splits(datasets.Dataset.from_list(ROWS).to_iterable_dataset(), names={"text"})
    assert streamed.stream is not None
    read = [*streamed.stream.open().read(100), *streamed.validation]
    assert sorted((one.conversation for one in read), key=str) == sorted(map(conversation, range(60)), key=str)
    assert "All conversations have the same tools (add, day)." in streamed.notes


@pytest.mark.parametrize("kind", ["lines", "parquet", "csv"])
def test_streaming_gives_the_same(tmp_path: Path, kind: str) -> None:
    streamed, whole = (make(SOURCES[kind](tmp_path), names={"text"}) for make in (stream_splits, read_splits))
    assert streamed.stream is not None
    assert {one.conversation for one in streamed.stream.open().read(100)} <= {conversation(i) for i in range(60)}
    assert set(streamed.test) <= set(whole["all"])
    assert any(note.startswith("These are chats in OpenAI's form: ") for note in streamed.notes)


def test_rows_are_the_same_where_all_turns_are(tmp_path: Path) -> None:
    """A text is made of some turns only: another system message, or other tools, make another row."""
    user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    said = [{"messages": [{"role": "system", "content": f"s{number}"}, user, answer]} for number in range(3)]
    offered = [{"messages": [user, answer], "tools": [tool]} for tool in (ADD, DAY)]
    splits = read_splits([*said, *offered, {"messages": [user, answer]}, said[0], offered[1]], names={"text"})
    assert len(splits["all"]) == 6
    assert len({one.text for one in splits["all"]}) == 1
    assert "Exact duplicates (same 'conversation', same answer) were removed: 2 of 8." in splits.notes
    parts = read_splits({"train": said[:2], "validation": [said[2]], "test": [said[0]]}, names={"text"})
    assert any(note.startswith("1 of 1 test examples also stand in train") for note in parts.notes)
    assert not any("validation examples also stand in train" in note for note in parts.notes)
    assert len({read_splits([one]).fingerprint for one in (*said, *offered)}) == 5


def test_a_split_without_answers_is_not_used(tmp_path: Path) -> None:
    asked = {"messages": ROWS[0]["messages"][:2]}
    splits = read_splits({"train": ROWS, "test": [asked, asked]})
    assert splits.test == ()
    assert any("The split 'test' of 'dict' was not used: no row has a label or output." in one for one in splits.notes)
    with pytest.raises(DataError, match="'list' row 2: expected a last turn of assistant"):
        read_splits([ROWS[0], asked, ROWS[1]])
    inputs = Task.of_inputs([ROWS[0], asked, ROWS[1]]).splits["all"]
    assert sorted(len(one.references) for one in inputs) == [0, 1, 1]


def test_what_all_share() -> None:
    examples = read_splits(ROWS)["all"]
    assert shared_system(examples) == "Be brief."
    assert shared_tools(examples) == (ADD, DAY)
    other = read_splits([{"messages": ROWS[0]["messages"][1:]}])["all"]
    assert (shared_system([*examples, *other]), shared_tools([*examples, *other])) == (None, ())
    assert (shared_system([*examples, Example("a")]), shared_tools([])) == (None, ())


SPEC = TaskSpec.of(template="{{ text }}:")


class TestAsked:
    def predictor(self) -> Predictor:
        base = tiny_base("llama")
        return Predictor(base, SPEC, as_state(random_prompt(base, 3).detach()), GenerationConfig(max_new_tokens=4))

    @pytest.mark.parametrize(
        ("asked", "expected"),
        [
            ({"messages": ROWS[1]["messages"][:4], "tools": [ADD, DAY]}, conversation(1).without_answer()),
            (ROWS[1], conversation(1).without_answer()),
            ({"prompt": "hello"}, Conversation((Message("user", "hello"),))),
            ({"instruction": "add", "input": "1 2"}, Conversation((Message("user", "add\n1 2"),))),
            ({"conversations": [{"from": "human", "value": "hello"}]}, Conversation((Message("user", "hello"),))),
        ],
        ids=range(5),
    )
    def test_rows_of_standard_input(self, asked: dict[str, Any], expected: Conversation) -> None:
        lines = io.BytesIO(json.dumps(asked).encode() + b"\n")
        ((found,),) = arriving_examples(lines, 8, SPEC.compiled, SPEC.row_columns)
        assert isinstance(found, Example)
        assert (found.conversation, found.references) == (expected, ())

    def test_broken_row_of_standard_input(self) -> None:
        lines = b'{"messages": [{"role": "user", "content": "a"}]}\n{"messages": []}\n'
        chunks = arriving_examples(io.BytesIO(lines), 8, SPEC.compiled, SPEC.row_columns, "skip")
        found = [one for chunk in chunks for one in chunk]
        assert isinstance(found[0], Example)
        assert str(found[1]).startswith("'standard input' line 2: expected a list of messages")

    def test_predict_takes_messages(self) -> None:
        messages = [{"role": "user", "content": "a fine film"}]
        predictor = self.predictor()
        expected = predictor.predict(Example("a fine film")).completion
        assert predictor.predict(messages).completion == expected
        assert predictor.predict({"messages": messages}).completion == expected
        many = predictor.predict([messages, {"messages": messages}, {"messages": [*messages, ROWS[0]["messages"][4]]}])
        assert many.completions == [expected] * 3
        assert [one.gold for one in many.asked] == [None, None, "It is 0."]
        assert predictor.predict({"messages": [messages, messages]}).completions == [expected] * 2
        assert predictor.predict(pandas.DataFrame({"messages": [messages, messages]})).completions == [expected] * 2
        with pytest.raises(DataError, match="row 2: message 1: expected a role"):
            predictor.predict([messages, [{"role": "bob", "content": "x"}]])
