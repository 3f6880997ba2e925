"""Rows of every form as conversations, and those that cannot be one: one line that names the row."""

import json
from pathlib import Path
from typing import Any

import pytest

from softprompt.data.chats.conversation import Conversation, Message, ToolCall
from softprompt.data.examples import Example
from softprompt.data.splits import read_splits
from softprompt.errors import DataError

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "What is 1 + 2?"}
ANSWER = {"role": "assistant", "content": "3"}
FUNCTION = {"name": "add", "arguments": '{"a": 1, "b": 2}'}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": FUNCTION}]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "3"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}

SHORT = Conversation((Message("user", "What is 1 + 2?"), Message("assistant", "3")))
WITH_SYSTEM = Conversation((Message("system", "Be brief."), *SHORT.messages))
WITH_TOOL = Conversation(
    (
        Message("user", "What is 1 + 2?"),
        Message("assistant", "", (ToolCall("add", {"a": 1, "b": 2}, "c1"),)),
        Message("tool", "3", tool_call_id="c1"),
        Message("assistant", "3"),
    ),
    (TOOL,),
)


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def read(path: Path, row: dict[str, Any], **options: Any) -> Example:
    (example,) = read_splits(write(path / "rows.jsonl", row), **options)["all"]
    return example


@pytest.mark.parametrize(
    ("row", "expected", "said"),
    [
        ({"messages": [USER, ANSWER]}, SHORT, "chats in OpenAI's form"),
        ({"messages": [SYSTEM, USER, ANSWER]}, WITH_SYSTEM, "chats in OpenAI's form"),
        ({"messages": [{**SYSTEM, "role": "developer"}, USER, ANSWER]}, WITH_SYSTEM, "chats in OpenAI's form"),
        ({"messages": [USER, CALL, RESULT, ANSWER], "tools": [TOOL]}, WITH_TOOL, "chats in OpenAI's form"),
        ({"messages": json.dumps([USER, ANSWER])}, SHORT, "chats in OpenAI's form"),
        ({"conversation": [USER, ANSWER]}, SHORT, "chats in the column 'conversation'"),
        (
            {"conversations": [{"from": "human", "value": USER["content"]}, {"from": "gpt", "value": "3"}]},
            SHORT,
            "chats in ShareGPT's form",
        ),
        ({"conversations": [USER, ANSWER], "system": "Be brief."}, WITH_SYSTEM, "chats in ShareGPT's form"),
        ({"instruction": "What is 1 + 2?", "input": "", "output": "3"}, SHORT, "rows in Alpaca's form"),
        ({"instruction": "What is 1 + 2?", "output": 3, "system": "Be brief."}, WITH_SYSTEM, "rows in Alpaca's form"),
        ({"instruction": "What is 1 + 2?", "context": "", "response": "3"}, SHORT, "rows in Dolly's form"),
        ({"prompt": "What is 1 + 2?", "completion": "3"}, SHORT, "prompts and completions"),
        ({"prompt": [SYSTEM, USER], "completion": [ANSWER]}, WITH_SYSTEM, "prompts and completions"),
        ({"prompt": "What is 1 + 2?", "response": "3"}, SHORT, "prompts and responses"),
        ({"prompt": "What is 1 + 2?", "chosen": "3", "rejected": "4"}, SHORT, "preference pairs"),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER]}, SHORT, "preference pairs"),
        ({"prompt": "What is", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, SHORT, "preference pairs"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, SHORT, "preference pairs without prompts"),
    ],
)
def test_the_conversation_of_each_form(tmp_path: Path, row: dict[str, Any], expected: Conversation, said: str) -> None:
    splits = read_splits(write(tmp_path / "rows.jsonl", row))
    (example,) = splits["all"]
    assert example.conversation == expected
    assert (example.references, example.label, example.text) == (("3",), None, example.text)
    assert splits.notes[0].startswith(f"These are {said}: ")


def test_calls_and_functions_in_other_spellings(tmp_path: Path) -> None:
    arguments = {"a": 1, "b": 2}
    expected = Conversation(
        (WITH_TOOL.messages[0], Message("assistant", "", (ToolCall("add", arguments),)), *WITH_TOOL.messages[2:]),
        ({"type": "function", "function": {"name": "add"}},),
    )
    asked, answer = {"from": "human", "value": "What is 1 + 2?"}, {"from": "gpt", "value": "3"}
    call = {"from": "function_call", "value": json.dumps({"name": "add", "arguments": arguments})}
    result = {"from": "observation", "value": "3", "tool_call_id": "c1"}
    row = {"conversations": [asked, call, result, answer], "tools": '[{"name": "add"}]'}
    assert read(tmp_path, row).conversation == expected
    old = [
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": json.dumps(arguments)}},
        {"role": "function", "name": "add", "content": "3", "tool_call_id": "c1"},
        ANSWER,
    ]
    found = read(tmp_path, {"messages": old, "functions": [{"name": "add"}]}).conversation
    assert found is not None
    assert (found.messages[1], found.tools) == (expected.messages[1], expected.tools)
    assert found.messages[2] == Message("tool", "3", tool_call_id="c1", name="add")


def test_calls_between_tags(tmp_path: Path) -> None:
    """As Hermes' data has them: two calls, and their results in one turn."""
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    turns = [
        {"from": "human", "value": "What is 1 + 2?"},
        {"from": "gpt", "value": f"Let me see.\n{call}\n{call}"},
        {"from": "tool", "value": '<tool_response>\n{"content": 3}\n</tool_response><tool_response>4</tool_response>'},
        {"from": "gpt", "value": "3"},
    ]
    found = read(tmp_path, {"conversations": turns}).conversation
    assert found is not None
    assert found.messages == (
        Message("user", "What is 1 + 2?"),
        Message("assistant", "Let me see.", (ToolCall("add", {"a": 1}),) * 2),
        Message("tool", '{"content": 3}'),
        Message("tool", "4"),
        Message("assistant", "3"),
    )
    found = read(tmp_path, {"conversations": turns[:2]}).conversation
    assert found is not None
    assert found.messages[1] == Message("assistant", f"Let me see.\n{call}\n{call}")
    turns[1]["value"] = "<tool_call>add(1)</tool_call>"
    with pytest.raises(DataError, match="message 3: expected a tool's result behind the call that it answers"):
        read(tmp_path, {"conversations": turns})


def test_label_makes_it_classification(tmp_path: Path) -> None:
    example = read(tmp_path, {"messages": [SYSTEM, USER], "label": 3, "id": 7})
    assert (example.label, example.references, example.columns) == ("3", (), {"id": 7})
    assert example.conversation == Conversation(WITH_SYSTEM.messages[:2])
    assert read(tmp_path, {"messages": [SYSTEM, USER, ANSWER], "label": "3"}) == read(
        tmp_path, {"messages": [SYSTEM, USER], "label": "3"}
    )


def test_named_columns_win(tmp_path: Path) -> None:
    row = {"prompt": "What is 1 + 2?", "completion": "3", "topic": "sums"}
    assert read(tmp_path, row, text_column="prompt", target_column="completion") == Example(
        "What is 1 + 2?", references=("3",), columns={"topic": "sums"}
    )
    found = read(tmp_path, row, label_column="topic")
    assert (found.label, found.conversation) == ("sums", Conversation(SHORT.messages[:1]))
    found = read(tmp_path, {"messages": [USER], "reply": "3"}, target_column="reply")
    assert (found.references, found.conversation, found.columns) == (("3",), SHORT, {})


def test_the_named_text_may_be_messages(tmp_path: Path) -> None:
    row = {"dialog": [USER, ANSWER], "text": "a"}
    splits = read_splits(write(tmp_path / "rows.jsonl", row), text_column="dialog")
    assert splits.notes[0].startswith("These are chats in the column 'dialog': ")
    assert splits["all"] == (Example("What is 1 + 2?", references=("3",), columns={"text": "a"}, conversation=SHORT),)
    assert read(tmp_path, {"messages": [USER, ANSWER]}, text_column="messages").conversation == SHORT
    assert read(tmp_path, {"prompt": [USER], "label": "x"}, text_column="prompt").label == "x"


def test_rows_with_text_stay_as_they_are(tmp_path: Path) -> None:
    row = {"text": "a", "label": "b", "messages": [USER]}
    assert read(tmp_path, row) == Example("a", "b", columns={"messages": [USER]})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [SYSTEM, ANSWER]}, "expected a turn of the user, got none"),
        ({"messages": [SYSTEM, SYSTEM, USER, ANSWER]}, "message 2: expected one system message, at the beginning"),
        ({"messages": [USER, SYSTEM, ANSWER]}, "message 2: expected one system message, at the beginning"),
        ({"messages": [{**USER, "content": " "}, ANSWER]}, "message 1: expected text as the content of user, got none"),
        ({"messages": [USER, {"role": "assistant"}]}, "message 2: expected text as the content of assistant, got none"),
        (
            {"messages": [{**SYSTEM, "content": ""}, USER, ANSWER]},
            "message 1: expected text as the content of system, got none: write it, or remove the message",
        ),
        (
            {"messages": [{**USER, "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER]},
            "message 1: expected text only, got a part of the type 'image_url'",
        ),
        (
            {"messages": [{**USER, "content": [{"type": "input_audio", "input_audio": {}}]}, ANSWER]},
            "message 1: expected text only, got a part of the type 'input_audio'",
        ),
        ({"messages": [USER, ANSWER], "images": ["x.png"]}, "expected text only, got something in the column 'images'"),
        (
            {"messages": [{**USER, "role": "narrator"}, ANSWER]},
            "message 1: expected a role of system, developer, user, assistant or tool, got 'narrator'",
        ),
        ({"messages": [USER, CALL, ANSWER]}, "message 3: expected the result of the call of 'add', got a turn of ass"),
        ({"messages": [USER, RESULT, ANSWER]}, "message 2: expected a tool's result behind the call that it answers"),
        (
            {"messages": [USER, {**ANSWER, "tool_calls": [{"function": {"name": "add", "arguments": "{a"}}]}]},
            "message 2: expected the arguments of 'add' as JSON, got text that does not parse",
        ),
        (
            {"messages": [USER, {**ANSWER, "tool_calls": [{"function": {"name": "add", "arguments": "[1]"}}]}]},
            "message 2: expected the arguments of 'add' as a JSON object, got a list",
        ),
        ({"messages": [USER, ANSWER, ANSWER]}, "message 3: expected one answer at the end"),
        ({"messages": [USER]}, "expected a last turn of assistant, which is the answer to learn, got one of user"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "expected a turn of assistant to learn, got a weight of 0"),
        ({"messages": [USER, {**ANSWER, "weight": 2}]}, "message 2: expected a weight of 0 or 1, got another number"),
        ({"messages": {"role": "user"}}, "expected a list of messages such as"),
        ({"messages": []}, "expected a list of messages such as"),
        ({"messages": "hello"}, "expected a list in column 'messages' as JSON, got text that does not parse"),
        ({"messages": ["hello"]}, "message 1: expected an object such as"),
        ({"messages": [{**USER, "content": "\ud83d"}, ANSWER]}, "expected Unicode text in column 'messages', got half"),
        ({"messages": [USER, ANSWER], "label": "no"}, "expected a conversation that ends before its answer"),
        ({"prompt": "a", "completion": " "}, "expected an answer in column 'completion', got none"),
        ({"instruction": "", "output": "x"}, "expected a string in column 'instruction', got a blank string"),
    ],
)
def test_what_cannot_be_one_is_said_in_a_line_that_names_the_row(
    tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    good = {"prompt": "a", "completion": "b"} if "prompt" in row else {"messages": [USER, ANSWER]}
    good |= {"label": "3"} if "label" in row else {}
    path = write(tmp_path / "rows.jsonl", good, row, {**good, "id": 1})
    with pytest.raises(DataError) as raised:
        read_splits(path)
    assert str(raised.value).startswith(f"'{path}' line 2: {words}")
    assert str(raised.value).endswith(", or leave it out with --bad-rows skip")
    kept = read_splits(path, bad_rows="skip")
    assert len(kept["all"]) == 2
    assert any(note.startswith(f"Left out: 1 of 3 rows cannot be used: '{path}' line 2: ") for note in kept.notes)
