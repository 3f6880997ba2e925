"""Whatever stands in the place of a part of a conversation, it is read, or one line says what is wrong with it."""

import copy
import json
import random
from typing import Any

import pytest

from softprompt.data.chats.conversation_rows import find_form
from softprompt.data.examples import Columns, Example, make_example, unlabelled_example
from softprompt.errors import DataError

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, {"b": null}]}'}}
ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "u"}], "name": "n"},
            {"role": "assistant", "content": "", "tool_calls": [CALL], "weight": 0},
            {"role": "tool", "content": "r", "tool_call_id": "c"},
            {"role": "assistant", "content": "a", "reasoning_content": "t"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    },
    {
        "conversations": [
            {"from": "human", "value": "u"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
            {"from": "observation", "value": "r"},
            {"from": "gpt", "value": "a"},
        ],
        "system": "s",
        "tools": '[{"name": "f"}]',
    },
    {
        "conversations": [
            {"from": "human", "value": "u"},
            {"from": "gpt", "value": '<tool_call>{"name": "f"}</tool_call>'},
            {"from": "tool", "value": "<tool_response>r</tool_response>"},
            {"from": "gpt", "value": "a"},
        ],
    },
    {"instruction": "i", "input": "x", "output": "o", "history": [["a", "b"]], "system": "s"},
    {"prompt": [{"role": "user", "content": "u"}], "completion": [{"role": "assistant", "content": "a"}]},
    {"chosen": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}], "rejected": []},
]
deep: Any = []
for _ in range(200):
    deep = [deep]
OTHERS: list[Any] = [
    *(None, True, 0, -1, 2.5, float("nan"), float("inf"), "", " ", "\ud83d", "x", "[", "[[", "{}", "null", b"\xff"),
    *([], [[]], [None], {}, {"": None}, {"a": {}}, {"role": "user"}, {"type": "text"}, "[" * 5000, deep, 10**400),
    *('{"a": "\\ud83d"}', "[{}]", '{"name": "f", "arguments": "{"}', "tool", "assistant", "system", "function_call"),
    *('<tool_call>{"name": "f", "arguments": "\\ud83d"}</tool_call>', '<tool_call>{"name": "\\ud83d"}</tool_call>'),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every part."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in parts for place in places(one, (*path, key)))]


def put(row: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    found = copy.deepcopy(row)
    inner: Any = found
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return found


def read_both(row: dict[str, Any]) -> list[Example | str]:
    """The row to learn from and the row to be answered, or what is wrong with them."""
    found: list[Example | str] = []
    for read in (make_example, lambda row, columns, place: unlabelled_example(row, place, columns)):
        try:
            found.append(read(row, Columns(), "row 1"))
        except DataError as error:
            found.append(str(error))
    return found


def check(row: dict[str, Any]) -> None:
    for example in read_both(row):
        if isinstance(example, str):
            assert example.startswith("row 1: ")
            assert "\n" not in example
        elif example.conversation is not None:
            hash(example)
            said = example.conversation.to_row()
            json.dumps(said, ensure_ascii=False).encode()
            again = make_example({**said, "references": list(example.references)}, Columns(optional=True), "row 2")
            assert (again.conversation, again.references) == (example.conversation, example.references)


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_one_part_is_something_else(row: dict[str, Any]) -> None:
    assert find_form(row, answered=True) is not None
    check(row)
    for path in places(row)[1:]:
        for other in OTHERS:
            check(put(row, path, other))
        check({key: one for key, one in put(row, path, None).items() if one is not None})


@pytest.mark.parametrize("seed", range(8))
def test_several_parts_are_something_else(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(300):
        row = draw.choice(ROWS)
        for _ in range(draw.randint(2, 4)):
            row = put(row, draw.choice(places(row)[1:]), copy.deepcopy(draw.choice(OTHERS[:-10])))
        check(row)
