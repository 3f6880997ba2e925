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

ROWS: dict[str, dict[str, Any]] = {
    "completions judged true or false": {"prompt": "a", "completion": "b", "label": True},
    "sentence pairs": {"premise": "a", "hypothesis": "b", "label": "yes"},
    "questions on passages": {"question": "a", "context": "b", "answer": "c"},
}


def write(folder: Path, row: dict[str, Any]) -> Path:
    """Twenty rows, all different, of two labels where there are some."""
    rows = []
    for number in range(20):
        one = {name: f"{value} {number}" if isinstance(value, str) else value for name, value in row.items()}
        rows.append({**one, "label": ["yes", "no"][number % 2]} if row.get("label") == "yes" else one)
    (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return folder / "rows.jsonl"


def test_there_is_an_example_of_each() -> None:
    assert [one.name for one in FORMATS] == list(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_told_by_their_form_and_read_as_is_advised(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, ROWS[name])
    with pytest.raises(DataError) as raised:
        Task.of(path)
    told = str(raised.value)
    assert f"these are {name}; " in told
    words = shlex.split(told.partition(f"these are {name}; ")[2])
    options = {
        one[2:].replace("-", "_"): words[place + 1].rstrip(",").replace(r"\n", "\n")
        for place, one in enumerate(words)
        if one.startswith("--")
    }
    if name == "completions judged true or false":
        assert "keep the rows whose label is true" in told
        return
    task = Task.of(path, **options)
    assert task.spec.kind == ("classification" if "label" in ROWS[name] else "generation")
    shown = task.spec.compiled.fill(task.train[0]) if hasattr(task.spec.compiled, "fill") else ""
    assert not shown or not re.search(r"\{\{", str(shown))


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
