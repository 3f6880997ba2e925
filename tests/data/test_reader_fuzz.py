"""500 generated files through every reader, and what pandas, pyarrow and json read of the same bytes.

The same rows with the same labels come out, as a whole, as a stream, and put together again from the splits; or an
error that names each row that cannot be used, which are then left out where that is asked for.
"""

import csv
import io
import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softprompt.data.example_stream import ExampleStream
from softprompt.data.examples import Columns, Example
from softprompt.data.readers.file_rows import FileRows
from softprompt.data.splits import read_examples, read_splits
from softprompt.errors import DataError

FILES = 500
WORDS = [
    "fine",
    "dull",
    "naïve",
    "電影",
    "👩‍👧",
    "01",
    "1.0",
    "NA",
    "null",
    "True",
    "false",
    "-",
    "#",
    "\\n",
    "e\u0301",
]
ODD = [
    '"',
    '""',
    "'",
    ",",
    ";",
    "|",
    "a,b",
    'say "hi"',
    '"quoted"',
    "x\u2028y",
    "\u00a0",
    "<|end|>",
    "{{ text }}",
    "\\",
]
BREAKS = ["\n", "\r\n", "\n\n", "\t"]
LABELS = ["good", "bad", "01", "1", "True", "NA", "null", "ä", "yes, please", "a=b", "0.50", "So so"]


@dataclass
class Made:
    """A file, its rows as the other library reads them, and what messages should call those that cannot be used."""

    path: Path
    rows: list[dict[str, Any]]
    bad: list[str]
    coding: bool = False  # it is no UTF-8

    @property
    def good(self) -> list[dict[str, Any]]:
        return [
            row for row in self.rows if row["text"] and row["label"] and row["text"].strip() and row["label"].strip()
        ]


def text(draw: random.Random, *, breaks: bool = True) -> str:
    pieces = draw.choices([*WORDS, *ODD, *(BREAKS if breaks else [])], k=draw.randrange(1, 9))
    return draw.choice([" ", ""]).join(pieces)


def rows_of(draw: random.Random, *, breaks: bool, typed: bool) -> list[dict[str, Any]]:
    labels = draw.sample(LABELS, draw.randrange(2, 5))
    weights = [draw.choice([1, 1, 20]) for _ in labels]  # imbalance
    made: list[dict[str, Any]] = []
    for _ in range(draw.randrange(1, 40)):
        made.append({"text": text(draw, breaks=breaks), "label": draw.choices(labels, weights)[0]})
        if draw.random() < 0.1:
            made.append(dict(made[draw.randrange(len(made))]))  # a duplicate
    if draw.random() < 0.3:
        made.sort(key=lambda row: row["label"])
    for number, row in enumerate(made):
        odd: list[Any] = [0, 1, -2.5, True, False, None, "0", "", "NA", ["a", 1], {"k": [None]}]
        row["extra"] = draw.choice(odd) if typed else draw.choice(["", "0", "NA", "x"])
        row["n"] = number if typed else str(number)
    if draw.random() < 0.3:
        for row in draw.sample(made, min(len(made), draw.randrange(1, 4))):
            row[draw.choice(["text", "label"])] = draw.choice(["", " ", "\t" if breaks else "  "])
    order = draw.sample(list(made[0]), 4)
    return [{name: row[name] for name in order} for row in made]


def is_bad(row: dict[str, Any]) -> bool:
    return not (row["text"] or "").strip() or not (row["label"] or "").strip()


def jsonl(draw: random.Random, path: Path) -> Made:
    rows = rows_of(draw, breaks=True, typed=True)
    content, bad, line = "", [], 1
    for row in rows:
        blank = draw.choice(["", "", "\n", "  \n"])
        line += blank.count("\n")
        if is_bad(row):
            bad.append(f"line {line}")
        content += blank + json.dumps(row, ensure_ascii=draw.random() < 0.5) + draw.choice(["\n", "\r\n"])
        line += 1
    path.write_text(content, encoding=draw.choice(["utf-8", "utf-8-sig"]), newline="")
    read = [json.loads(one) for one in path.read_text(encoding="utf-8-sig").split("\n") if one.strip()]
    return Made(path, read, bad)


def array(draw: random.Random, path: Path) -> Made:
    rows = rows_of(draw, breaks=True, typed=True)
    path.write_text(json.dumps(rows, indent=draw.choice([None, 2])), encoding=draw.choice(["utf-8", "utf-8-sig"]))
    read = json.loads(path.read_text(encoding="utf-8-sig"))
    return Made(path, read, [f"item {number}" for number, row in enumerate(read, start=1) if is_bad(row)])


def parquet(draw: random.Random, path: Path) -> Made:
    rows = rows_of(draw, breaks=True, typed=True)
    for row in rows:
        row["extra"] = draw.choice([None, True, False])
    table = pa.Table.from_pylist(rows)
    if draw.random() < 0.5:
        table = table.set_column(table.schema.get_field_index("label"), "label", table["label"].dictionary_encode())
    pq.write_table(table, path, row_group_size=draw.choice([3, 1000]))
    read = pq.read_table(path).to_pylist()
    return Made(path, read, [f"row {number}" for number, row in enumerate(read, start=1) if is_bad(row)])


def table(draw: random.Random, path: Path, separator: str) -> Made:
    """Written as programs write it that quote."""
    rows = rows_of(draw, breaks=True, typed=False)
    end, quoting = draw.choice(["\n", "\r\n"]), draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    content, bad = io.StringIO(newline=""), []
    writer = csv.writer(content, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writerow(rows[0])
    for row in rows:
        if draw.random() < 0.1:
            content.write(end)
        if is_bad(row):
            ends = re.findall(r"\r\n|\r|\n", content.getvalue())
            bad.append(f"line {1 + len(ends)}")
        writer.writerow(row.values())
    path.write_text(content.getvalue(), encoding=draw.choice(["utf-8", "utf-8-sig"]), newline="")
    return Made(path, by_pandas(path, separator, csv.QUOTE_MINIMAL), bad)


def plain_tsv(draw: random.Random, path: Path) -> Made:
    """Written without any quoting: each line is a row, whatever quotes are in it."""
    rows = rows_of(draw, breaks=False, typed=False)
    for row in rows:
        if row["text"].startswith('"') and row["text"].endswith('"'):
            row["text"] += "."  # a whole field in quotes means the same with every program
    lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    return Made(
        path, by_pandas(path, "\t", csv.QUOTE_NONE), [f"line {n}" for n, row in enumerate(rows, 2) if is_bad(row)]
    )


def by_pandas(path: Path, separator: str, quoting: int) -> list[dict[str, Any]]:
    options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "na_filter": False}
    frame = pd.read_csv(path, sep=separator, quoting=quoting, encoding="utf-8-sig", engine="python", **options)
    return list(frame.to_dict("records"))


def other_coding(draw: random.Random, path: Path) -> Made:
    """One row in Latin-1, or all in UTF-16."""
    if draw.random() < 0.3:
        path.write_text("text,label\nfine,good\n", encoding="utf-16")
        return Made(path, [], ["line 1"], coding=True)
    rows = [{"text": f"film {n}", "label": "ab"[n % 2]} for n in range(draw.randrange(1, 9))]
    at = draw.randrange(len(rows))
    rows[at]["text"] += " é"
    lines = [f"{row['text']},{row['label']}" for row in rows]
    coded = [line.encode("latin-1") for line in ("text,label", *lines)]
    path.write_bytes(b"\n".join(coded))
    return Made(path, rows, [f"line {at + 2}"], coding=True)


def made(seed: int, folder: Path) -> Made:
    draw = random.Random(seed)
    kind = draw.randrange(9)
    name = folder / f"file{seed}"
    if kind in (0, 1):
        return jsonl(draw, name.with_suffix(".jsonl"))
    if kind == 2:
        return array(draw, name.with_suffix(".json"))
    if kind == 3:
        return parquet(draw, name.with_suffix(".parquet"))
    if kind in (4, 5):
        return table(draw, name.with_suffix(".csv"), draw.choice(",,,;\t|"))
    if kind == 6:
        return table(draw, name.with_suffix(".tsv"), "\t")
    if kind == 7:
        return plain_tsv(draw, name.with_suffix(".tsv"))
    return other_coding(draw, name.with_suffix(".csv"))


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    others = {name: value for name, value in row.items() if name not in ("text", "label")}
    return row["text"], row["label"], json.dumps(others, sort_keys=True)


def key_of(one: Example) -> tuple[Any, ...]:
    return one.text, one.label, json.dumps(dict(one.columns), sort_keys=True)


def streamed(path: Path, pieces: random.Random) -> list[Example]:
    """As training reads it, some rows at a time, from a stream that is opened anew at each place."""
    stream = ExampleStream(lambda: FileRows(path), Columns(), str(path), "", "skip")
    found: list[Example] = []
    rows = stream.open()
    while some := rows.read(pieces.randrange(1, 12)):
        found += some
        position = json.loads(json.dumps(rows.position))
        rows = stream.open()
        rows.seek(position)
    return found


@pytest.mark.parametrize("part", range(10))
def test_all_readers_agree_with_others(part: int, tmp_path: Path) -> None:
    for seed in range(part, FILES, 10):
        file = made(seed, tmp_path)
        good = (
            [key(row) for row in file.good]
            if not file.coding
            else [key(row) for row in file.rows if not row["text"].endswith("é")]
        )
        if file.bad:
            with pytest.raises(DataError) as caught:
                read_examples(file.path)
            message = str(caught.value)
            assert re.search(re.escape(f"'{file.path}' {file.bad[0]}") + "[:,]", message), (seed, message)
            numbers = re.findall(r"\d+", message.replace(str(file.path), ""))
            if good:  # else it says that all rows are so
                assert {place.split()[1] for place in file.bad} <= set(numbers), (seed, message)
        else:
            assert [key_of(one) for one in read_examples(file.path)] == good, seed
        if not good:
            continue
        assert [key_of(one) for one in read_examples(file.path, bad_rows="skip")] == good, seed
        assert [key_of(one) for one in streamed(file.path, random.Random(seed))] == good, seed
        splits = read_splits(file.path, bad_rows="skip")
        assert Counter(key_of(one) for one in splits["all"]) == Counter(dict.fromkeys(good, 1)), seed
        told = [note for note in splits.notes if "cannot be used" in note]
        assert bool(told) == bool(file.bad), seed
        if told:
            assert f"{len(file.bad)} of {len(file.bad) + len(good)} rows" in told[0], seed
