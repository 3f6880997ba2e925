"""Rows that a program has already: they are the rows of a JSONL file, split alike; what is doubtful is refused."""

import datetime
import decimal
import enum
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from softprompt.data.examples import Example
from softprompt.data.readers.in_memory import plain_value
from softprompt.data.splits import Splits, read_splits
from softprompt.data.task import Task
from softprompt.errors import ConfigError, DataError

pandas = pytest.importorskip("pandas")
datasets = pytest.importorskip("datasets")
arrow = pytest.importorskip("pyarrow")
numpy = pytest.importorskip("numpy")

ROWS: list[dict[str, Any]] = [
    {
        "text": f"ticket {i} {'pay' if i % 3 else 'login'}",
        "label": ["billing", "account"][i % 2],
        "size": i,
        "share": i / 7,
    }
    for i in range(90)
]
SOURCES: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "list": list,
    "tuple": tuple,
    "iterator": iter,
    "frame": lambda rows: pandas.DataFrame(rows),
    "frame of nullable types": lambda rows: pandas.DataFrame(rows).convert_dtypes(),
    "frame of arrow types": lambda rows: pandas.DataFrame(rows).convert_dtypes(dtype_backend="pyarrow"),
    "frame with a categorical": lambda rows: pandas.DataFrame(rows).astype({"label": "category"}),
    "frame with another index": lambda rows: pandas.DataFrame(rows, index=[f"r{i}" for i in range(len(rows))]),
    "dataset": lambda rows: datasets.Dataset.from_list(rows),
    "dataset of torch": lambda rows: datasets.Dataset.from_list(rows).with_format("numpy"),
    "arrow": lambda rows: arrow.Table.from_pylist(rows),
    "columns": lambda rows: {name: [row[name] for row in rows] for name in rows[0]},
    "columns of numpy": lambda rows: {name: numpy.array([row[name] for row in rows]) for name in rows[0]},
    "rows of numpy": lambda rows: [{**row, "size": numpy.int64(row["size"])} for row in rows],
}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def contents(splits: Splits) -> list[Any]:
    return [splits.train, splits.validation, splits.test]


@pytest.mark.parametrize("kind", SOURCES)
class TestSameAsAFile:
    def test_examples_and_splits(self, kind: str, tmp_path: Path) -> None:
        expected = read_splits(write_rows(tmp_path / "rows.jsonl", ROWS))
        found = read_splits(SOURCES[kind](ROWS))
        assert contents(found) == contents(expected)
        assert found.fingerprint == expected.fingerprint
        assert [len(part) for part in contents(found)] != [len(ROWS), 0, 0]

    def test_task(self, kind: str, tmp_path: Path) -> None:
        template = "{{ text }} {{ size }} {{ share }}:"
        expected = Task.of(write_rows(tmp_path / "rows.jsonl", ROWS), template=template)
        found = Task.of(SOURCES[kind](ROWS), template=template)
        assert (found.spec, contents(found.splits)) == (expected.spec, contents(expected.splits))

    def test_splits_by_name(self, kind: str, tmp_path: Path) -> None:
        cut = {"train": ROWS[:60], "val": ROWS[60:75], "test": ROWS[75:]}
        for name, rows in cut.items():
            write_rows(tmp_path / f"{name}.jsonl", rows)
        found = read_splits({name: SOURCES[kind](rows) for name, rows in cut.items()})
        assert contents(found) == contents(read_splits(tmp_path))
        assert [len(part) for part in contents(found)] == [60, 15, 15]

    def test_row_is_named(self, kind: str) -> None:
        rows = [*ROWS[:5], {**ROWS[5], "text": " "}, *ROWS[6:]]
        with pytest.raises(DataError, match=r"row 6: expected a string in column 'text', got a blank.*bad_rows='skip'"):
            read_splits(SOURCES[kind](rows))


class TestPandas:
    """Against what pandas itself says of its frames."""

    def test_counts_and_values(self) -> None:
        frame = pandas.DataFrame(ROWS)
        everything = read_splits(frame)["all"]
        assert (
            pandas.Series([one.label for one in everything]).value_counts().to_dict()
            == frame["label"].value_counts().to_dict()
        )
        assert sum(one.columns["share"] for one in everything) == pytest.approx(frame["share"].sum())
        assert {one.text for one in everything} == set(frame["text"])

    def test_whole_numbers_stay_whole_beside_fractions(self) -> None:
        frame = pandas.DataFrame({"text": ["a", "b"], "label": [1, 2], "share": [0.5, 1.5]})
        assert {one.label for one in read_splits(frame)["all"]} == {"1", "2"}

    def test_missing_cells_are_null(self, tmp_path: Path) -> None:
        rows = [{**row, "share": None if i % 4 else row["share"]} for i, row in enumerate(ROWS)]
        expected = read_splits(write_rows(tmp_path / "rows.jsonl", rows))
        frame = pandas.DataFrame(rows)
        assert frame["share"].isna().sum() == sum(one.columns["share"] is None for one in read_splits(frame)["all"])
        for found in (frame, frame.astype({"share": "Float64"}), frame.astype({"share": object})):
            assert contents(read_splits(found)) == contents(expected)

    @pytest.mark.parametrize("missing", [None, float("nan"), pandas.NA, pandas.NaT], ids=str)
    @pytest.mark.parametrize("column", ["text", "label"])
    def test_missing_text_or_label_is_told(self, column: str, missing: Any) -> None:
        frame = pandas.DataFrame(ROWS).astype(object)
        frame.loc[3, column] = missing
        with pytest.raises(DataError, match=rf"'DataFrame' row 4: expected a string in column '{column}', got null"):
            read_splits(frame)

    def test_times_are_words(self) -> None:
        times = pandas.to_datetime(["2024-01-02", "2024-01-03 10:30"], format="mixed")
        frame = pandas.DataFrame({"text": ["a", "b"], "label": ["x", "y"], "at": times, "took": times - times[0]})
        found = {one.text: dict(one.columns) for one in read_splits(frame)["all"]}
        expected = {"a": str(times[0]), "b": str(times[1])}
        assert {name: values["at"] for name, values in found.items()} == expected

    def test_index_is_not_read_and_it_is_said(self) -> None:
        found = read_splits(pandas.DataFrame(ROWS).set_index("size"))
        assert any("The index of 'DataFrame' was not read ('size'): reset_index()" in note for note in found.notes)
        assert "size" not in found["all"][0].columns

    def test_a_filtered_frame_names_its_index_too(self) -> None:
        frame = pandas.DataFrame([*ROWS, {"text": "", "label": "a"}]).iloc[80:]
        with pytest.raises(DataError, match=r"'DataFrame' index 90, row 11: expected a string in column 'text'"):
            read_splits(frame)

    @pytest.mark.parametrize(
        ("frame", "words"),
        [
            (pandas.DataFrame([["a", "b", "x"]], columns=["text", "text", "label"]), "columns of different names"),
            (pandas.DataFrame([["a", "b"]], columns=[0, "0"]), "columns of different names"),
            (pandas.DataFrame([[1]], columns=pandas.MultiIndex.from_tuples([("a", "b")])), "columns of one level"),
            (pandas.DataFrame({"text": []}), "got no rows"),
            (pandas.DataFrame(), "got no rows"),
            (
                pandas.DataFrame(ROWS).rename(columns={"text": "body"}),
                "a column 'text', got 'body'.*text_column=",
            ),
            (pandas.DataFrame(ROWS).rename(columns={"label": "Label"}), "did you mean 'Label'"),
        ],
        ids=range(7),
    )
    def test_doubtful_frames_are_refused(self, frame: Any, words: str) -> None:
        with pytest.raises(DataError, match=words):
            read_splits(frame)


def yes_or_no() -> Any:
    return datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})


class TestDatasets:
    def test_classes_have_their_names(self) -> None:
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
        )
        data = datasets.Dataset.from_dict(
            {"text": [f"t{i}" for i in range(20)], "label": [0, 1] * 10}, features=features
        )
        kind = data.features["label"]
        expected = {row["text"]: kind.int2str(row["label"]) for row in data}
        assert {one.text: one.label for one in read_splits(data)["all"]} == expected

    def test_classes_of_parquet_and_arrow(self, tmp_path: Path) -> None:
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
        )
        data = datasets.Dataset.from_dict(
            {"text": [f"t{i}" for i in range(20)], "label": [0, 1] * 10}, features=features
        )
        data.to_parquet(tmp_path / "rows.parquet")
        found = [read_splits(one) for one in (data, data.data.table, tmp_path / "rows.parquet")]
        assert contents(found[0]) == contents(found[1]) == contents(found[2])

    def test_published_splits(self) -> None:
        cut = {"train": ROWS[:60], "validation": ROWS[60:75], "unsupervised": ROWS[75:]}
        made = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in cut.items()})
        found = read_splits(made)
        assert contents(found) == contents(read_splits({name: cut[name] for name in ("train", "validation")}))
        assert "The split 'unsupervised' of 'DatasetDict' was not used." in found.notes

    def test_hidden_labels(self) -> None:
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
        )
        made = {
            "train": datasets.Dataset.from_dict({"text": [*"abcdef"], "label": [0, 1] * 3}, features=features),
            "test": datasets.Dataset.from_dict({"text": [*"gh"], "label": [-1, -1]}, features=features),
        }
        found = read_splits(datasets.DatasetDict(made))
        assert not found.test
        assert any("The split 'test' of 'DatasetDict' was not used" in note for note in found.notes)

    def test_streamed_rows_are_streamed(self) -> None:
        data = datasets.Dataset.from_list(ROWS * 20).to_iterable_dataset()
        with pytest.raises(ConfigError, match=r"got a streamed data set.*stream_splits"):
            read_splits(data)


class Color(enum.Enum):
    RED = "red"


class TestCells:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (numpy.float32(0.5), 0.5),
            (numpy.bool_(True), True),
            (numpy.str_("a"), "a"),
            (numpy.array([1, 2]), [1, 2]),
            (numpy.array([numpy.nan]), [None]),
            (numpy.datetime64("NaT"), None),
            (pandas.NaT, None),
            (pandas.NA, None),
            ({"a": (1, {"b": numpy.int64(2)})}, {"a": [1, {"b": 2}]}),
            pytest.param({"b", "a"}, ["a", "b"], id="a set"),
            (Color.RED, "red"),
            (decimal.Decimal("1.10"), "1.10"),
            (datetime.date(2024, 1, 2), "2024-01-02"),
            (b"ab", b"ab"),
        ],
        ids=repr,
    )
    def test_are_plain(self, value: Any, expected: Any) -> None:
        found = plain_value(value, "x")
        assert (found, type(found)) == (expected, type(expected))

    def test_what_has_no_words_is_refused(self) -> None:
        with pytest.raises(
            DataError, match="'list' row 1: expected words, numbers or lists in column 'made', got an obj"
        ):
            read_splits([{"text": "a", "label": "b", "made": object()}])


class TestOthers:
    def test_examples_are_rows(self) -> None:
        found = read_splits([Example(f"t{i}", "ab"[i % 2], columns={"n": i}) for i in range(20)])
        assert {one.columns["n"] for one in found["all"]} == set(range(20))

    def test_parts_of_several_kinds(self, tmp_path: Path) -> None:
        found = read_splits(
            {"train": pandas.DataFrame(ROWS[:60]), "test": str(write_rows(tmp_path / "x.jsonl", ROWS[60:]))}
        )
        assert len(found.test) == 30

    def test_references(self) -> None:
        rows = [{"text": f"t{i}", "references": ("a", "b")} for i in range(20)]
        assert {one.references for one in read_splits(rows)["all"]} == {("a", "b")}

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            (
                {"text": "a", "label": "b"},
                "expected a mapping of split names or of columns, got a mapping with 'text', ",
            ),
            ({}, "got an empty mapping"),
            ({"text": ["a"], "label": ["b", "c"]}, "columns of the same length in 'dict', got 'text' 1, 'label' 2"),
            ([], "'list', got no rows"),
            (["a text"], r"row 1: expected a dict such as .* got 'a text'"),
            ([("a", "b")], r"row 1: expected a dict such as .* got a tuple of strings"),
            ({"train": ROWS, "val": ROWS, "dev": ROWS}, "expected one validation split in 'dict', got 'val' and 'dev'"),
            ({"train": ROWS, "test": []}, "expected examples in 'test', got no rows"),
        ],
        ids=range(8),
    )
    def test_what_is_no_table(self, source: Any, words: str) -> None:
        with pytest.raises(DataError, match=words):
            read_splits(source)
