"""A file of each form of chats, right and broken: it trains, or ends in one line that names the row."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.chat_models import save_chat_model
from helpers.small_tasks import Ended, command
from helpers.tiny_models import save_tiny

FAST = ["--length", "4", "--steps", "2", "--batch-size", "4", "--eval-every", "2", "--init", "random", "--no-baseline"]
CPU = ["--device", "cpu", "--dtype", "float32"]
WORDS = ("red", "green", "blue", "white")


def user(number: int) -> dict[str, Any]:
    return {"role": "user", "content": f"colour {number} please"}


def assistant(number: int) -> dict[str, Any]:
    return {"role": "assistant", "content": WORDS[number % 4]}


def make_row(form: str, number: int) -> dict[str, Any]:
    asked, answer = user(number)["content"], WORDS[number % 4]
    turns = [user(number), assistant(number)]
    call = {"id": "c", "function": {"name": "mix", "arguments": f'{{"n": {number}}}'}}
    rows: dict[str, dict[str, Any]] = {
        "openai": {"messages": [{"role": "system", "content": "One word."}, *turns]},
        "turns": {"messages": [*turns, user(number + 100), assistant(number + 1)]},
        "tools": {
            "messages": [
                user(number),
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c", "content": answer},
                assistant(number),
            ],
            "tools": [{"type": "function", "function": {"name": "mix", "parameters": {}}}],
        },
        "labelled": {"messages": turns[:1], "label": answer},
        "sharegpt": {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]},
        "sharegpt tools": {
            "conversations": [
                {"from": "human", "value": asked},
                {"from": "function_call", "value": json.dumps(call["function"])},
                {"from": "observation", "value": answer},
                {"from": "gpt", "value": answer},
            ],
            "tools": json.dumps([{"name": "mix", "parameters": {}}]),
        },
        "alpaca": {"instruction": "name a colour", "input": str(number), "output": answer},
        "alpaca history": {"instruction": asked, "output": answer, "history": [["hello", "hi"]]},
        "dolly": {"instruction": asked, "context": "", "response": answer, "category": "open_qa"},
        "completion": {"prompt": asked, "completion": answer},
        "completion of messages": {"prompt": turns[:1], "completion": turns[1:]},
        "response": {"prompt": asked, "response": answer},
        "preference": {"prompt": asked, "chosen": answer, "rejected": "none"},
        "preference of messages": {"chosen": turns, "rejected": turns},
    }
    return rows[form]


FORMS = (
    *("openai", "turns", "tools", "labelled", "sharegpt", "sharegpt tools", "alpaca", "alpaca history", "dolly"),
    *("completion", "completion of messages", "response", "preference", "preference of messages"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield save_tiny(tmp_path_factory.mktemp("model") / "llama", "llama")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def train(model: Path, data: Path, *more: object) -> Ended:
    places = ["--model", model, "--data", data, "--out", data.parent / "prompt"]
    return command("train", *places, *FAST, *CPU, "--no-test", *more)


@pytest.mark.parametrize("form", FORMS)
def test_right_file_trains_and_its_rows_are_answered(model: Path, tmp_path: Path, form: str) -> None:
    rows = [make_row(form, number) for number in range(40)]
    done = train(model, write(tmp_path / "rows.jsonl", rows))
    assert done.code == 0, done.err
    assert "These are " in done.err
    asked = b"".join(json.dumps(one).encode() + b"\n" for one in rows[:2])
    found = command("predict", tmp_path / "prompt", "--model", model, *CPU, "--json", stdin=asked)
    assert found.code == 0, found.err
    assert len(json.loads(found.out)["predictions"]) == 2
    told = command("eval", tmp_path / "prompt", "--model", model, "--data", tmp_path / "rows.jsonl", *CPU, "--json")
    assert told.code == 0, told.err


@pytest.mark.parametrize("form", ["openai", "tools", "labelled", "alpaca history"])
def test_right_file_trains_a_chat_model(tmp_path: Path, form: str) -> None:
    chat_model = save_chat_model("qwen3", tmp_path / "qwen3")
    rows = [make_row(form, number) for number in range(12)]
    done = train(chat_model, write(tmp_path / "rows.jsonl", rows))
    assert done.code == 0, done.err
    few = ["--max-new-tokens", "2", "--json"]
    asked = json.dumps(rows[0]).encode()
    found = command("predict", tmp_path / "prompt", "--model", chat_model, *CPU, *few, stdin=asked)
    assert found.code == 0, found.err
    (answer,) = json.loads(found.out)["predictions"]
    assert (answer["label"] in WORDS) if form == "labelled" else isinstance(answer["completion"], str)


def test_model_whose_template_refuses_a_system_message(tmp_path: Path) -> None:
    chat_model = save_chat_model("gemma", tmp_path / "gemma")
    data = write(tmp_path / "rows.jsonl", [make_row("openai", number) for number in range(12)])
    assert "no place for a system message: leave --system out, or those of the rows" in train(chat_model, data).error


@pytest.mark.parametrize("form", FORMS)
def test_broken_file_ends_in_one_line_that_names_the_row(model: Path, tmp_path: Path, form: str) -> None:
    rows = [make_row(form, number) for number in range(40)]
    blank = WORDS[6 % 4] if form == "alpaca" else user(6)["content"]
    broken = json.loads(json.dumps(rows[6]).replace(blank, " "))
    data = write(tmp_path / "rows.jsonl", [*rows[:6], broken, *rows[7:]])
    done = train(model, data)
    assert done.code == 2
    assert done.error.startswith(f"'{data}' line 7: ")
    assert done.error.endswith(", or leave it out with --bad-rows skip")
    done = train(model, data, "--bad-rows", "skip")
    assert done.code == 0, done.err
    assert f"Left out: 1 of 40 rows cannot be used: '{data}' line 7: " in done.err


def test_pairs_of_texts_train_with_a_template_of_their_columns(model: Path, tmp_path: Path) -> None:
    rows = [
        {"premise": f"a {WORDS[number % 4]} house {number}", "hypothesis": "it is red", "label": number % 4 == 0}
        for number in range(40)
    ]
    data = write(tmp_path / "rows.jsonl", rows)
    assert "these are pairs of texts; read it with --template" in train(model, data).error
    done = train(model, data, "--template", "{{ premise }}\n{{ hypothesis }}\nLabel:")
    assert done.code == 0, done.err
    asked = json.dumps({"premise": "a red house", "hypothesis": "it is red"}).encode()
    found = command("predict", tmp_path / "prompt", "--model", model, *CPU, "--json", stdin=asked)
    assert json.loads(found.out)["predictions"][0]["label"] in ("true", "false")


def test_template_that_reads_the_columns_of_a_form_needs_the_answer_named(model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [make_row("alpaca", number) for number in range(40)])
    template = ["--template", "{{ instruction }}: {{ input }}\nAnswer:"]
    expected = "these are rows in Alpaca's form that the template reads: name the answer with --target-column output"
    assert expected in train(model, data, *template).error
    assert train(model, data, *template, "--target-column", "output").code == 0
