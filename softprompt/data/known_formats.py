"""Rows in forms that need to be told how they are read, recognised by their columns: their names, and what to say."""

import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_LIKELY = {  # what texts, labels and outputs are called elsewhere, by what they are called here
    "text": "sentence review content body message tweet question input prompt instruction document article"
    " query utterance premise source description title",
    "label": "category class sentiment labels label_text topic intent stars rating score y",
    "target": "output completion response answer summary reference translation highlights chosen",
}


@dataclass(frozen=True)
class RowFormat:
    """A form that rows have elsewhere.

    Attributes:
        name: as people call it.
        columns: that such rows have, all of them.
        advice: how to read it here.
    """

    name: str
    columns: tuple[str, ...]
    advice: str


def _make_pair(first: str, second: str) -> RowFormat:
    """Two texts with a label; a template puts them together, and the row needs no column of the text."""
    template = rf"'{{{{ {first} }}}}\n{{{{ {second} }}}}\nLabel:'"
    advice = f"read it with --template {template}, no column of the text is needed then"
    return RowFormat("pairs of texts", (first, second, "label"), advice)


FORMATS = (
    RowFormat(
        "completions judged true or false",
        ("prompt", "completion", "label"),
        "keep the rows whose label is true, and leave the column 'label' out: then they are prompts and completions",
    ),
    _make_pair("premise", "hypothesis"),
    _make_pair("sentence1", "sentence2"),
    _make_pair("question1", "question2"),
    _make_pair("question", "passage"),
    _make_pair("question", "sentence"),
    RowFormat(
        "questions on passages",
        ("question", "passage", "answer"),
        "read it with --label-column answer "
        r"--template '{{ passage }}\n{{ question }}\nAnswer:', no column of the text is needed then",
    ),
    RowFormat(
        "questions on passages",
        ("question", "context", "answer"),
        "read it with --text-column question --target-column answer "
        r"--template '{{ context }}\n{{ text }}\nAnswer:'",
    ),
)


def recognize_rows(row: Mapping[str, Any]) -> RowFormat | None:
    """The form that a row has, by its columns."""
    return next((one for one in FORMATS if set(one.columns) <= row.keys()), None)


def suggest_columns(row: Iterable[str], missing: Collection[str]) -> str:
    """Options that name the columns of a row where these are likely the text, label or output that are ``missing``."""
    names = {re.sub(r"[\W_]+", "_", str(name).lower()): str(name) for name in row}
    found: dict[str, str] = {}
    for what, likely in _LIKELY.items():
        whole = (names[one] for one in likely.split() if one in names)
        near = next(whole, None) or next(
            (name for key, name in names.items() if {*key.split("_")} & {*likely.split()}), None
        )
        # a row has a label or an output, and a column one meaning
        taken = near in found.values() or (what == "target" and "label" in found)
        if what in missing and near is not None and not taken:
            found[what] = near
    return " ".join(f"--{what}-column {shlex.quote(name)}" for what, name in found.items())
