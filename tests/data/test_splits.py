"""Readers and splits: what is read, what is decided for the user, and what each mistake says."""

import csv
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from softprompt.data.examples import Example
from softprompt.data.readers.file_rows import read_records
from softprompt.data.splits import Splits, read_examples, read_splits
from softprompt.errors import DataError, MissingExtraError


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def labelled(n: int, start: int = 0) -> list[dict[str, str]]:
    return [{"text": f"text {i}", "label": "even" if i % 2 == 0 else "odd"} for i in range(start, start + n)]


def error_of(path: Path | str, **columns: str) -> str:
    with pytest.raises(DataError) as caught:
        read_splits(path, **columns)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder_gives_its_three_splits_as_they_are(tmp_path: Path) -> None:
    for split, n, start in (("train", 30, 0), ("validation", 6, 100), ("test", 4, 200)):
        write_jsonl(tmp_path / f"{split}.jsonl", labelled(n, start))
    splits = read_splits(tmp_path)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [30, 6, 4]
    assert splits.validation[1] == Example("text 101", "odd")
    assert (splits.kind, splits.source, splits.notes) == ("classification", str(tmp_path), ())
    assert splits["all"] == splits["train"] + splits["validation"] + splits["test"]


@pytest.mark.parametrize("name", ["dev", "valid", "val", "validation"])
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".tsv", ".parquet", ".json"])
def test_other_names_and_endings_of_a_split_file(tmp_path: Path, name: str, ending: str) -> None:
    rows = [*labelled(4), {"text": 'say "é",\tplease\nor not', "label": "odd"}]
    write_jsonl(tmp_path / "train.jsonl", labelled(9, 50))
    path = tmp_path / f"{name}{ending}"
    if ending == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ending in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, ["text", "label"], delimiter="\t" if ending == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif ending == ".json":
        path.write_text(json.dumps(rows, indent=2))
    else:
        write_jsonl(path, rows)
    assert read_splits(tmp_path).validation == tuple(Example(row["text"], row["label"]) for row in rows)


def test_a_missing_validation_is_cut_from_train_and_said(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", labelled(60))
    splits = read_splits(tmp_path, seed=3)
    held = len(splits.validation)
    assert 1 <= held <= 15
    assert (len(splits.train), len(splits.test)) == (60 - held, 0)
    assert splits.notes == (
        f"No validation split was given: {held} of 60 train examples were set aside for it (about 10%, by a hash of "
        "what is read of each row and seed 3).",
        "No test split was given: it is empty.",
    )
    assert splits.validation == read_splits(tmp_path, seed=3).validation != read_splits(tmp_path, seed=4).validation


def test_a_folder_with_only_a_test_split_will_do_for_evaluation(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test.jsonl", labelled(3))
    splits = read_splits(str(tmp_path))
    assert (len(splits.test), splits.train, splits.validation) == (3, (), ())
    assert "No train split was given: it is empty." in splits.notes
    with pytest.raises(DataError, match=r"expected examples in split 'train' of '.*', got none: it has test \(3\)"):
        splits["train"]


def test_texts_that_stand_in_two_splits_are_counted(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", labelled(10))
    write_jsonl(tmp_path / "validation.jsonl", labelled(4, 8))
    write_jsonl(tmp_path / "test.jsonl", labelled(5, 9))
    assert read_splits(tmp_path).notes == (
        "2 of 4 validation examples also stand in train (text and all columns alike).",
        "1 of 5 test examples also stand in train (text and all columns alike).",
    )


def test_a_single_file_is_split_and_freed_of_exact_duplicates(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "all.jsonl", labelled(200) + labelled(7))
    splits = read_splits(path)
    sizes = [len(some) for some in (splits.train, splits.validation, splits.test)]
    assert sum(sizes) == 200
    assert all(8 <= size <= 36 for size in sizes[1:])  # four standard deviations of a binomial around 20
    assert sorted(one.text for one in splits["all"]) == sorted(f"text {i}" for i in range(200))
    assert splits.notes == (
        "One file was given: split into {} train, {} validation, {} test examples (about 80/10/10, by a hash of what "
        "is read of each row and seed 0): rows keep their split when others are added, equal inputs are on one "
        "side.".format(*sizes),
        "Exact duplicates (same text and all columns, same answer) were removed: 7 of 207.",
    )
    assert read_splits(path) == splits
    assert read_splits(path, seed=1).test != splits.test


def test_a_text_with_several_outputs_stays_on_one_side(tmp_path: Path) -> None:
    rows = [{"text": f"text {i % 40}", "target": f"output {i}"} for i in range(120)]
    splits = read_splits(write_jsonl(tmp_path / "all.jsonl", rows))
    sides = [{one.text for one in some} for some in (splits.train, splits.validation, splits.test)]
    assert splits.kind == "generation"
    assert len(splits["all"]) == 120
    assert all(sides)
    assert sum(map(len, sides)) == len(set.union(*sides)) == 40


def test_generation_rows(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "target": "x"},
        {"text": "a", "references": ["y", "z", "y"], "source": "web"},
        {"text": "b", "target": "x", "references": ["y", "x"]},
        {"text": "c", "target": None, "references": ["y"]},
    ]
    examples = read_examples(write_jsonl(tmp_path / "train.jsonl", rows))
    assert [one.references for one in examples] == [("x",), ("y", "z"), ("x", "y"), ("y",)]
    assert examples[1].columns == {"source": "web"}
    assert all(one.label is None for one in examples)


def test_labels_become_strings_and_other_columns_keep_their_types(tmp_path: Path) -> None:
    labels = [1, 1.0, True, False, "Ja "]
    others = {"year": 2020, "share": 0.5, "checked": False, "none": None, "tags": ["é", 1]}
    rows = [{"text": " kept as is ", "label": label, **others} for label in labels]
    examples = read_examples(write_jsonl(tmp_path / "x.jsonl", rows))
    assert [one.label for one in examples] == ["1", "1.0", "true", "false", "Ja "]
    assert examples[0].text == " kept as is "
    assert json.dumps(examples[0].columns) == json.dumps(others)


def test_columns_of_other_names(tmp_path: Path) -> None:
    rows = [{"sentence": "s", "mood": "good", "label": "unused", "summary": "short"}]
    path = write_jsonl(tmp_path / "x.jsonl", rows)
    example = read_examples(path, text_column="sentence", label_column="mood")[0]
    assert (example.text, example.label, example.columns) == ("s", "good", {"label": "unused", "summary": "short"})
    example = read_examples(path, text_column="sentence", target_column="summary")[0]
    assert (example.label, example.references, example.columns["label"]) == (None, ("short",), "unused")


def test_byte_order_marks_blank_lines_and_long_fields(tmp_path: Path) -> None:
    long = "word " * 60_000
    jsonl, table, array = tmp_path / "x.jsonl", tmp_path / "x.csv", tmp_path / "x.json"
    jsonl.write_bytes(b'\xef\xbb\xbf\n{"text": "a", "label": "b"}\r\n\n  \n{"text": "c", "label": "d"}')
    table.write_text(f'text,label\r\n\r\n"{long}",b\r\n', encoding="utf-8-sig", newline="")
    array.write_text('[{"text": "a", "label": "b"}]', encoding="utf-8-sig")
    assert [one.text for one in read_examples(jsonl)] == ["a", "c"]
    assert read_examples(array) == [Example("a", "b")]
    before = csv.field_size_limit(1000)
    try:
        assert read_examples(table) == [Example(long, "b")]
        assert csv.field_size_limit() == 1000
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_every_system(tmp_path: Path, end: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(end.join(["text,label", "a,b", '"c, d",e', ""]), newline="")
    assert read_examples(path) == [Example("a", "b"), Example("c, d", "e")]


def test_records_arrive_one_by_one() -> None:
    def lines() -> Iterator[str]:
        yield '\ufeff{"text": "a"}\n'
        yield "\n"
        yield '{"text": "b"}\n'
        raise AssertionError("read ahead")

    records = read_records(lines(), "stdin")
    assert next(records) == ("'stdin' line 1", {"text": "a"}, "", False, False)
    assert next(records) == ("'stdin' line 3", {"text": "b"}, "", False, False)
    assert [row.values for row in read_records([b'{"text": "\xc3\xa9"}'], "stdin")] == [{"text": "é"}]
    bad, good = read_records(["{", "{}"], "stdin")
    assert bad.place == "'stdin' line 1"
    assert bad.reason.startswith("expected JSON, got text that does not parse")
    assert (good.values, good.reason) == ({}, "")


GOOD = b'{"text": "a", "label": "b"}\n'


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"text": "a", "label"', "line 2: expected JSON, got text that does not parse"),
        (b"[" * 100_000, "line 2: expected JSON, got text that does not parse"),
        (b'["a", "b"]', "line 2: expected an object such as"),
        (b'{"text": "\xff", "label": "b"}', "line 2: expected UTF-8, got the byte 0xff: save the file as UTF-8"),
        (b'{"text": 5, "label": "b"}', "line 2: expected a string in column 'text', got a number"),
        (b'{"text": null, "label": "b"}', "line 2: expected a string in column 'text', got null"),
        (b'{"text": " \\n", "label": "b"}', "line 2: expected a string in column 'text', got a blank string"),
        (b'{"text": "\\ud83d", "label": "b"}', r"line 2: .* in column 'text', got half a character \(\\ud83d\)"),
        (b'{"text": "a", "label": null}', "line 2: expected a string in column 'label', got null: mend or remove"),
        (b'{"text": "a", "label": NaN}', "line 2: expected a string in column 'label', got null"),
        (b'{"text": "a", "label": Infinity}', "line 2: expected a string in column 'label', got an infinite number"),
        (b'{"text": "a", "label": -1e999}', "line 2: expected a string in column 'label', got an infinite number"),
        (b'{"text": "a", "label": ""}', "line 2: expected a string in column 'label', got a blank string"),
        (b'{"text": "a", "label": ["b"]}', "line 2: expected a string in column 'label', got a list"),
        (b'{"text": "a", "target": "b"}', "line 2: expected classification as in the rows before, got generation"),
        (b'{"text": "a"}', "line 2: expected a column 'label' or 'target', got 'text': name it with --label-column"),
        (b'{"label": "a", "body": "b"}', "line 2: expected a column 'text', got 'label', 'body': name it with --text"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(GOOD + line + b"\n" + GOOD)
    with pytest.raises(DataError, match=f"^'{path}' {words}"):
        read_examples(path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"references": []}, "expected at least one output in 'references', got none"),
        ({"references": None}, "expected at least one output in 'references', got none"),
        ({"references": "x"}, "expected a list of strings in 'references', got a string: use 'target' for one"),
        ({"references": ["x", None]}, "expected a string in column 'references', got null"),
        ({"target": None}, "expected a string in column 'target', got null"),
        ({"target": " "}, "expected a string in column 'target', got a blank string"),
        ({"target": float("inf")}, "expected a string in column 'target', got an infinite number"),
        ({"target": {"a": [1.5, float("-inf")]}}, "expected finite numbers in column 'target', got one that JSON"),
    ],
)
def test_bad_outputs_are_named(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    path = write_jsonl(tmp_path / "train.jsonl", [{"text": "a", **row}])
    assert f"'{path}' line 1: {words}" in error_of(path)


def test_a_column_that_was_chosen_must_be_there(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"text": "a", "label": "b", "target": "c"}])
    assert "expected a column 'mood', got 'text', 'label', 'target'" in error_of(path, label_column="mood")
    assert "expected a column 'summary' or 'references', got 'text'" in error_of(path, target_column="summary")
    assert "expected a column 'body', got 'text'" in error_of(path, text_column="body")


@pytest.mark.parametrize(
    ("header", "near"), [("Text,label", "'Text'"), ("text, Label ", "' Label '"), ("text,la\u200bbel", "u200b")]
)
def test_a_column_that_is_written_almost_so_is_named(tmp_path: Path, header: str, near: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"{header}\na,b\nc,d\n")
    asked = error_of(path).partition("did you mean ")[2]
    assert near in asked.partition("?")[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'text,label\n"a\nb",c\nd,e,f\n', "line 4: expected 2 fields, got 3: quote fields with a separator"),
        (b"text,label\na,b\nc\n", "line 3: expected 2 fields, got 1"),
        (b'text,label\na,b\n"c,d\ne,f\n', "line 3: expected CSV, got unexpected end of data: double the quotes"),
        (b'text,label\n"a"b,c\n', "line 2: expected CSV, got ',' expected after '\"'"),
        (b"text,text\na,b\n", "line 1: expected columns of different names, got 'text', 'text'"),
        (b"text:label\na:b\n", "line 2: expected a column 'text', got 'text:label'"),
        (b"text,label\na,b\nc\xe9,d\n", "line 3: expected UTF-8, got the byte 0xe9"),
        (b"text,label\na,\n", "line 2: expected a string in column 'label', got a blank string"),
    ],
)
def test_bad_csv_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    assert error_of(path).startswith(f"'{path}' {words}")


def test_bad_json_and_parquet_files_are_named(tmp_path: Path) -> None:
    array, table = tmp_path / "x.json", tmp_path / "x.parquet"
    array.write_text('[{"text": "a", "label": "b"}, 3]')
    assert f"'{array}' item 2: expected an object" in error_of(array)
    array.write_text('[{"text": "a", "label": "b"},')
    assert f"'{array}': expected JSON" in error_of(array)
    table.write_bytes(b"not parquet at all")
    assert f"expected Parquet in '{table}', got a file that does not read as it" in error_of(table)


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.jsonl", ""), ("x.jsonl", "\n \n"), ("x.csv", "text,label\n"), ("x.parquet", ""), ("x.json", "[]")],
)
def test_an_empty_file_is_an_error(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert f"expected examples in '{tmp_path / name}', got an empty file" in error_of(tmp_path / name)


def test_a_missing_path_suggests_near_names(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "reviews.jsonl", labelled(3))
    message = error_of(tmp_path / "review.jsonl")
    assert (
        f"expected a file or folder at '{tmp_path}/review.jsonl', found none: did you mean 'reviews.jsonl'?" in message
    )
    message = error_of(tmp_path / "no" / "such" / "folder")
    assert "did you mean" not in message
    assert "Hugging Face data sets are hf:NAME" in message


def test_folders_and_endings_that_do_not_fit(tmp_path: Path) -> None:
    assert "got nothing: rename the files" in error_of(tmp_path)
    (tmp_path / "notes.md").write_text("# data")
    assert "expected train, validation or test (.jsonl, .json" in error_of(tmp_path)
    assert f"in the folder '{tmp_path}', got 'notes.md': rename the files" in error_of(tmp_path)
    assert "expected a file ending in .jsonl, .json, .csv, .tsv, .parquet, got '.md'" in error_of(tmp_path / "notes.md")
    write_jsonl(tmp_path / "dev.jsonl", labelled(3))
    write_jsonl(tmp_path / "validation.jsonl", labelled(3))
    assert f"expected one validation file in '{tmp_path}', got 'dev.jsonl' and 'validation.jsonl'" in error_of(tmp_path)
    with pytest.raises(DataError, match=f"expected a file ending in .*, got a folder in '{tmp_path}'"):
        read_examples(tmp_path)


def test_splits_of_two_kinds_are_an_error(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", labelled(5))
    write_jsonl(tmp_path / "test.jsonl", [{"text": "a", "target": "b"}])
    message = error_of(tmp_path)
    assert "expected one kind of rows" in message
    assert "got classification in train, generation in test: give 'label' or 'target' in all" in message


def test_asking_for_a_split_that_is_not_there() -> None:
    splits = Splits((Example("a", "b"),), (), (), "here", ())
    with pytest.raises(DataError, match="expected a split named train, validation, test or all, got 'dev'"):
        splits["dev"]
    with pytest.raises(DataError, match=r"expected examples in split 'test' of 'here', got none: it has train \(1\)"):
        splits["test"]
    with pytest.raises(DataError, match="got none: it has no examples"):
        _ = Splits((), (), (), "here", ()).kind


def test_the_fingerprint_is_stable_and_sees_every_change() -> None:
    one, two = Example("é", "b", (), {"y": "1", "x": "2"}), Example("c", None, ("d", "e"))
    base = Splits((one, two), (), (), "here", ())
    lines = b"""["train", "\\u00e9", "b", [], [["x", "2"], ["y", "1"]]]\n["train", "c", null, ["d", "e"], []]\n"""
    assert base.fingerprint == hashlib.sha256(lines).hexdigest()
    same = Splits((Example("é", "b", (), {"x": "2", "y": "1"}), two), (), (), "there", ("note",))
    assert same.fingerprint == base.fingerprint
    others = [
        Splits((two, one), (), (), "here", ()),
        Splits((one,), (two,), (), "here", ()),
        Splits((Example("é", "b"), two), (), (), "here", ()),
        Splits((Example("é", "c", (), one.columns), two), (), (), "here", ()),
        Splits((one, Example("c", None, ("e", "d"))), (), (), "here", ()),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 6


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local folder of Parquet files with class labels, as the Hub holds them."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {
            "sentence": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["bad", "good"]),
            "id": datasets.Value("int32"),
        }
    )
    folder = tmp_path / "hub"
    folder.mkdir()
    for split, labels in (("train", [0, 1] * 10), ("validation", [1, 0]), ("test", [-1, -1])):
        rows = {"sentence": [f"{split} {i}" for i in range(len(labels))], "label": labels, "id": range(len(labels))}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def test_a_hugging_face_data_set_gives_names_for_class_labels(hub: Path) -> None:
    splits = read_splits(f"hf:{hub}", text_column="sentence")
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [20, 2, 0]
    assert splits.validation == (
        Example("validation 0", "good", (), {"id": 0}),
        Example("validation 1", "bad", (), {"id": 1}),
    )
    assert splits.source == f"hf:{hub}"
    assert splits.notes[0] == f"The split 'test' of 'hf:{hub}' was not used: its labels are not published."


def test_mistakes_with_a_hugging_face_data_set(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"'hf:{hub}' train row 1: expected a column 'text', got 'sentence', 'label', 'id'" in error_of(f"hf:{hub}")
    assert f"expected a data set within reach at 'hf:{tmp_path}/none', got" in error_of(f"hf:{tmp_path}/none")
    assert "give hf:NAME or hf:NAME:CONFIG" in error_of(f"hf:{hub}:nope")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"package 'datasets', .*pip install 'softprompt\[data\]'"):
        read_splits(f"hf:{hub}")


def test_parquet_without_its_extra_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"package 'pyarrow', .*pip install 'softprompt\[data\]'"):
        read_splits(tmp_path / "x.parquet")


def test_importing_the_readers_loads_no_heavy_library() -> None:
    heavy = {"torch", "transformers", "datasets", "pyarrow", "pandas", "sacrebleu", "rouge_score"}
    code = f"import sys, softprompt.data.splits, softprompt.metrics; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_parquet_values_that_json_does_not_have_are_their_strings(tmp_path: Path) -> None:
    import datetime
    import decimal

    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {"text": "a", "label": "b", "day": datetime.date(2020, 1, 2), "price": decimal.Decimal("1.50")}
    row |= {"tags": ["x", None], "flag": False, "share": float("nan"), "old": "é".encode(), "deep": {"n": [1, 2.5]}}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    told = {"day": "2020-01-02", "price": "1.50", "tags": ["x", None], "flag": False, "share": None, "old": "é"}
    assert read_examples(tmp_path / "x.parquet")[0].columns == {**told, "deep": {"n": [1, 2.5]}}


def test_a_row_knows_its_place(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", labelled(3))
    assert [one.place for one in read_examples(path)] == [f"'{path}' line {n}" for n in (1, 2, 3)]
    assert Example("a", "b", place="here") == Example("a", "b", place="there")


def test_a_column_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a", "label": "b", "deep": ' + "[" * 200 + "]" * 200 + "}\n")
    assert "line 1: expected at most 32 levels in column 'deep', got more: flatten it" in error_of(path)


def test_templates_see_the_types_of_every_reader(tmp_path: Path) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    from softprompt.data.examples import unlabelled_example
    from softprompt.data.templates.template import Template
    from softprompt.inference.predictor import arriving_examples

    rows = [{"text": f"t{i}", "label": "ab"[i % 2], "ok": bool(i), "n": i, "tags": ["x", "y"]} for i in range(2)]
    template = Template(
        "{% if ok %}yes{% else %}no{% endif %} {% if n == 0 %}zero{% endif %}:{{ n }} {{ ok }} "
        "{% for tag in tags %}<{{ tag }}>{% endfor %} {{ text }}"
    )
    expected = ["no zero:0 false <x><y> t0", "yes :1 true <x><y> t1"]
    lines = write_jsonl(tmp_path / "x.jsonl", rows)
    (tmp_path / "x.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    for name in ("x.jsonl", "x.json", "x.parquet"):
        assert [template.render(one) for one in read_examples(tmp_path / name)] == expected
    assert [template.render(unlabelled_example(row, "row")) for row in rows] == expected
    (arriving,) = arriving_examples(io.BytesIO(lines.read_bytes()), 8)
    assert [template.render(one) for one in arriving] == expected
