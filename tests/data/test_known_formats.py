"""Rows in the form of other programs: what they are called, and that what is advised reads them."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from softprompt.data.known_formats import FORMATS, suggest_columns
from softprompt.data.task import Task
from softprompt.errors import DataError

ROWS: list[tuple[str, dict[str, Any]]] = [
    ("completions judged true or false", {"prompt": "a", "completion": "b", "label": True}),
    ("pairs of texts", {"premise": "a", "hypothesis": "b", "label": "yes"}),
    ("pairs of texts", {"sentence1": "a", "sentence2": "b", "label": "yes"}),
    ("pairs of texts", {"question1": "a", "question2": "b", "label": "yes"}),
    ("pairs of texts", {"question": "a", "passage": "b", "label": "yes"}),
    ("pairs of texts", {"question": "a", "sentence": "b", "label": "yes"}),
    ("questions on passages", {"question": "b", "passage": "a", "answer": "yes"}),
    ("questions on passages", {"question": "b", "context": "a", "answer": "c"}),
]


def write(folder: Path, row: dict[str, Any]) -> Path:
    """Twenty rows, all different, of two labels where there are some."""
    rows = []
    for number in range(20):
        one = {name: f"{value} {number}" if isinstance(value, str) else value for name, value in row.items()}
        rows.append(one | {name: ["yes", "no"][number % 2] for name, value in row.items() if value == "yes"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return folder / "rows.jsonl"


def test_there_is_an_example_of_each() -> None:
    assert [(one.name, one.columns) for one in FORMATS] == [(name, tuple(row)) for name, row in ROWS]


@pytest.mark.parametrize(("name", "row"), ROWS, ids=range(len(ROWS)))
def test_rows_are_told_by_their_form_and_read_as_is_advised(tmp_path: Path, name: str, row: dict[str, Any]) -> None:
    path = write(tmp_path, row)
    with pytest.raises(DataError) as raised:
        Task.of(path)
    told = str(raised.value)
    assert f"these are {name}; " in told
    if row.get("label") is True:
        assert "keep the rows whose label is true" in told
        return
    options = read_options(told)
    task = Task.of(path, **options)
    assert task.spec.kind == ("classification" if "yes" in row.values() else "generation")
    first, second = [column for column in row if row[column] in ("a", "b")]
    for one in task.splits["all"]:
        values = {**one.columns, "question": one.columns.get("question", one.text)}
        expected = [values[first], values[second]]
        if name == "questions on passages":
            expected.reverse()
        assert task.spec.compiled.render(one).splitlines()[:2] == expected
        assert re.fullmatch("(Label|Answer):", task.spec.compiled.render(one).splitlines()[2])


def read_options(told: str) -> dict[str, str]:
    """The options that an error advises, as arguments of Python."""
    words = shlex.split(told.partition("; ")[2])
    return {
        one[2:].replace("-", "_"): words[place + 1].rstrip(",").replace(r"\n", "\n")
        for place, one in enumerate(words)
        if one.startswith("--")
    }


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("sentence", "label", "idx"), "--text-column sentence"),
        (("subject", "body", "category"), "--text-column body --label-column category"),
        (("Review Text", "Stars"), "--text-column 'Review Text' --label-column Stars"),
        (("article", "highlights", "id"), "--text-column article --target-column highlights"),
        (("a", "b"), ""),
    ],
)
def test_columns_are_suggested_by_what_they_are_called_elsewhere(row: tuple[str, ...], words: str) -> None:
    missing = ["text", *(() if "label" in row else ("label", "target"))]
    assert suggest_columns(row, missing) == words


def test_a_suggestion_stands_in_the_error(tmp_path: Path) -> None:
    path = write(tmp_path, {"tweet": "a", "sentiment": "b"})
    with pytest.raises(DataError, match="here perhaps --text-column tweet --label-column sentiment"):
        Task.of(path)
