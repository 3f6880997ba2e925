"""What rows are made of: tables as people write them, bad rows told together, names of classes and of columns."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.small_tasks import FAST, command, reviews, write_data
from helpers.tiny_models import save_tiny, tiny_base

from softprompt.cli.option_values import parse_task_settings
from softprompt.data.examples import Columns, Example, unlabelled_example
from softprompt.data.splits import Splits, read_examples, read_splits
from softprompt.data.streaming import stream_splits
from softprompt.data.task import Task, TaskSpec
from softprompt.data.templates.template import Template
from softprompt.errors import DataError, TemplateError
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.fit import fit


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labelled(*pairs: tuple[str, str], path: Path) -> Path:
    return written(path, [{"text": text, "label": label} for text, label in pairs])


class TestTables:
    def test_a_lone_quote_in_tsv_swallows_no_row(self, tmp_path: Path) -> None:
        """20 rows, of which two have a quote that would open a field in CSV and close it four lines on."""
        texts = [f"film {n}" for n in range(20)]
        texts[4], texts[8], texts[12] = '"Great film', 'the end of it"', '"Boo" they said'
        path = tmp_path / "x.tsv"
        path.write_text("text\tlabel\n" + "".join(f"{text}\t{'ab'[n % 2]}\n" for n, text in enumerate(texts)))
        expected = pd.read_csv(path, sep="\t", quoting=csv.QUOTE_NONE)
        assert [(one.text, one.label) for one in read_examples(path)] == list(
            expected.itertuples(index=False, name=None)
        )
        notes = read_splits(path).notes
        assert f"'{path}': a quote that opens no quoted field was read as a character, in lines 6, 14." in notes

    def test_tsv_as_spreadsheets_write_it(self, tmp_path: Path) -> None:
        rows = [('two\nlines with\ta tab and "quotes"', "a"), ("plain", "b"), ('"', "a"), ("x\ny\nz", "b")]
        for order in (("text", "label"), ("label", "text")):
            path = tmp_path / f"{order[0]}.tsv"
            with path.open("w", newline="") as stream:
                writer = csv.writer(stream, dialect="excel-tab")
                writer.writerow(order)
                writer.writerows(row if order[0] == "text" else row[::-1] for row in rows)
            expected = pd.read_csv(path, sep="\t")
            found = [(one.text, one.label) for one in read_examples(path)]
            assert found == list(expected[["text", "label"]].itertuples(index=False, name=None)) == rows

    def test_records_over_several_lines_are_told(self, tmp_path: Path) -> None:
        path = tmp_path / "x.csv"
        path.write_text('text,label\n"a\nb\n\nc",x\nd,y\n"Great,x\ndull,y\nend",x\n')
        notes = read_splits(path).notes
        assert any(
            "2 records with line breaks within quotes; the longest has 4 lines, from line 2 on" in n for n in notes
        )
        path.write_text('text,label\n"Great,x\ndull,y\nfine,x\nend",x\nmore,y\nall,x\n')
        assert any("each line of the record that begins at line 2 could be a row" in n for n in read_splits(path).notes)

    @pytest.mark.parametrize("separator", [";", "\t", "|", ","])
    @pytest.mark.parametrize("ending", [".csv", ".tsv"])
    def test_separators_are_recognised_by_the_header_and_told(
        self, tmp_path: Path, separator: str, ending: str
    ) -> None:
        path = tmp_path / f"x{ending}"
        rows = [{"text": f"a{separator}b, c;d|e\tf {n}", "label": "xy"[n % 2], "n": str(n)} for n in range(6)]
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter=separator)
            writer.writeheader()
            writer.writerows(rows)
        splits = read_splits(path)
        assert sorted(one.text for one in splits["all"]) == [row["text"] for row in rows]
        usual = separator == ("\t" if ending == ".tsv" else ",")
        assert any("are separated by" in note for note in splits.notes) != usual

    def test_a_spreadsheet_tells_its_separator(self, tmp_path: Path) -> None:
        (tmp_path / "x.csv").write_text("sep=;\r\ntext;label\r\na, b;x\r\n")
        assert read_examples(tmp_path / "x.csv") == [Example("a, b", "x")]

    @pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-32"])
    @pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.json", "x.tsv"])
    def test_other_codings_are_named(self, tmp_path: Path, name: str, coding: str) -> None:
        (tmp_path / name).write_text('[{"text": "a", "label": "b"}]', encoding=coding)
        with pytest.raises(DataError, match=r"line 1: expected UTF-8, got UTF-(16|32).*: save the file as UTF-8"):
            read_examples(tmp_path / name)

    def test_joined_files_have_their_header_again(self, tmp_path: Path) -> None:
        """`cat a.csv b.csv`: the header is no class; a byte order mark within is no text."""
        part = "text,label\r\nfine,good\r\ndull,bad\r\n".encode("utf-8-sig")
        (tmp_path / "x.csv").write_bytes(part * 2)
        with pytest.raises(DataError, match="line 4: expected data, got the names of the columns: were files joined"):
            read_examples(tmp_path / "x.csv")
        left = read_examples(tmp_path / "x.csv", bad_rows="skip")
        assert [(one.text, one.label) for one in left] == [("fine", "good"), ("dull", "bad")] * 2
        (tmp_path / "y.csv").write_text("text,label\nfine,good\nlabel,text\nbad,dull\n")
        with pytest.raises(DataError, match="line 3: expected data, got the names of the columns"):
            read_examples(tmp_path / "y.csv")


class TestOneReader:
    """The same cells, whichever way the rows come."""

    CELLS = (["01", "1", "True", "true", "NA", "null", "1.0", "nan", "2020-01-02", "", " x"] * 60)[:600]

    def rows(self) -> list[dict[str, str]]:
        return [{"text": f"row {n}", "label": "01" if n % 2 else "NA", "cell": c} for n, c in enumerate(self.CELLS)]

    def test_streamed_and_published_tables_are_those_of_the_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        for split in ("train", "validation", "test"):
            (tmp_path / "d").mkdir(exist_ok=True)
            pd.DataFrame(self.rows()).to_csv(tmp_path / "d" / f"{split}.csv", index=False)
        whole = read_splits(tmp_path / "d")
        assert [(one.label, one.columns["cell"]) for one in whole.train] == [
            (r["label"], r["cell"]) for r in self.rows()
        ]
        streamed, hub = stream_splits(tmp_path / "d"), read_splits(f"hf:{tmp_path / 'd'}")
        assert streamed.stream is not None
        assert tuple(streamed.stream.open().read(1000)) == hub.train == whole.train
        assert streamed.validation == hub.validation == whole.validation
        assert stream_splits(f"hf:{tmp_path / 'd'}").test == whole.test

    def test_names_of_classes_in_parquet_are_read_everywhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import datasets

        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        kinds = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
        (tmp_path / "d").mkdir()
        for split, labels in (("train", [0, 1] * 10), ("validation", [1, 0]), ("test", [-1, -1])):
            rows = {"text": [f"{split} {n}" for n in range(len(labels))], "label": labels}
            made = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
            made.to_parquet(tmp_path / "d" / f"{split}.parquet")
        folder, hub, streamed = (
            read_splits(tmp_path / "d"),
            read_splits(f"hf:{tmp_path / 'd'}"),
            stream_splits(tmp_path / "d"),
        )
        assert [one.label for one in folder.train] == ["bad", "good"] * 10
        assert folder.train == hub.train == streamed.train
        assert folder.validation == hub.validation == streamed.validation
        assert folder.test == hub.test == streamed.test == ()
        assert f"The split 'test' of '{tmp_path / 'd'}' was not used: no row has a label or output." in folder.notes

    def test_classes_without_a_name_are_none(self, tmp_path: Path) -> None:
        """A file of somebody else: names that are fewer than its numbers, or that are no names."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({"text": ["a", "b"], "label": [0, 7]})
        kinds = {
            "label": {"_type": "ClassLabel", "names": ["bad", "good"]},
            "gone": {"_type": "ClassLabel", "names": []},
        }
        for told in ({"info": {"features": kinds}}, {"info": {"features": [1]}}, {"info": 3}, [1], "x"):
            pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(told)}), tmp_path / "x.parquet")
            if isinstance(told, dict) and told["info"] == {"features": kinds}:
                with pytest.raises(DataError, match="row 2: expected a string in column 'label', got null"):
                    read_examples(tmp_path / "x.parquet")
            else:
                assert [one.label for one in read_examples(tmp_path / "x.parquet")] == ["0", "7"]


class TestBadRows:
    def file(self, tmp_path: Path) -> Path:
        rows: list[Any] = [{"text": f"film {n}", "label": "ab"[n % 2]} for n in range(100)]
        for n in (6, 31, 77):
            rows[n]["text"] = " "
        rows[50]["label"], rows[60] = None, ["no object"]
        return written(tmp_path / "x.jsonl", rows)

    def test_all_are_told_at_once(self, tmp_path: Path) -> None:
        path = self.file(tmp_path)
        with pytest.raises(DataError) as caught:
            read_splits(path)
        assert str(caught.value) == (
            f"5 of 100 rows cannot be used: '{path}' line 7, 32, 78: expected a string in column 'text', got a blank "
            f"string: mend or remove this row; '{path}' line 51: expected a string in column 'label', got null: mend "
            f'or remove this row; \'{path}\' line 61: expected an object such as {{"text": "…", "label": "…"}}, got a '
            "list: mend it: mend them, or leave them out with --bad-rows skip"
        )

    def test_they_are_left_out_and_counted(self, tmp_path: Path) -> None:
        splits = read_splits(self.file(tmp_path), bad_rows="skip")
        left = [f"film {n}" for n in range(100) if n not in (6, 31, 77, 50, 60)]
        assert sorted(one.text for one in splits["all"]) == sorted(left)
        assert splits.notes[0].startswith("Left out: 5 of 100 rows cannot be used: ")
        streamed = stream_splits(self.file(tmp_path), bad_rows="skip")
        assert sorted(one.text for one in (*streamed.train, *streamed.validation, *streamed.test)) == sorted(left)

    def test_a_name_that_stands_twice_in_a_row_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "x.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": "a", "label": "b", "text": "c"}\n')
        with pytest.raises(DataError, match=r"line 2: expected JSON, .* \('text' stands twice in an object\)"):
            read_examples(tmp_path / "x.jsonl")

    def test_as_many_reasons_as_rows(self, tmp_path: Path) -> None:
        """Each line breaks off somewhere else; all are told."""
        lines = [json.dumps({"text": "film", "label": "a"})[: 3 + n] for n in range(20)]
        (tmp_path / "x.jsonl").write_text("\n".join(['{"text": "a", "label": "b"}', *lines]) + "\n")
        with pytest.raises(DataError, match="20 of 21 rows cannot be used") as caught:
            read_examples(tmp_path / "x.jsonl")
        assert all(f" {number}" in str(caught.value) for number in range(2, 22))

    def test_none_left_is_an_error(self, tmp_path: Path) -> None:
        path = labelled(("", "a"), (" ", "b"), path=tmp_path / "x.jsonl")
        with pytest.raises(DataError, match=r"line 1: expected a string in column 'text', .* \(as all 2 rows\)"):
            read_splits(path, bad_rows="skip")

    def test_a_quote_without_end_is_no_row_to_be_left_out(self, tmp_path: Path) -> None:
        (tmp_path / "x.csv").write_text('text,label\na,b\n"c,d\ne,f\ng,h\n')
        with pytest.raises(DataError, match="line 3: expected CSV, got unexpected end of data"):
            read_examples(tmp_path / "x.csv", bad_rows="skip")

    @pytest.mark.parametrize("hidden", ["none", "blank", "-1"])
    def test_a_test_file_without_labels_does_not_stop_train(self, tmp_path: Path, hidden: str) -> None:
        write_data(tmp_path / "d", reviews(train=40, test=0))
        label: dict[str, Any] = {"none": {}, "blank": {"label": ""}, "-1": {"label": -1}}[hidden]
        written(tmp_path / "d" / "test.jsonl", [{"text": f"film {n}", **label} for n in range(4)])
        splits = Task.of(tmp_path / "d").splits
        assert (len(splits.train), splits.test) == (40, ())
        assert any(note.startswith("The split 'test' of") and "was not used" in note for note in splits.notes)
        with pytest.raises(DataError, match=r"expected examples in split 'test' .*The split 'test' of .* was not used"):
            splits["test"]

    def test_some_labels_missing_in_test_are_told(self, tmp_path: Path) -> None:
        write_data(tmp_path / "d", reviews(train=40, test=0))
        written(tmp_path / "d" / "test.jsonl", [{"text": "a", "label": "good"}, {"text": "b"}])
        with pytest.raises(DataError, match=r"test.jsonl' line 2: expected a column 'label' or 'target'"):
            read_splits(tmp_path / "d")

    def test_a_pair_whose_other_column_is_too_long_names_its_row(self, tmp_path: Path) -> None:
        rows = [
            {"text": f"film {n}", "other": "dull " * (300 if n == 7 else 1), "label": "ab"[n % 2]} for n in range(30)
        ]
        task = Task.of(
            written(tmp_path / "d" / "train.jsonl", rows).parent, template="{{ other }} {{ text }}", max_length=32
        )
        with pytest.raises(
            TemplateError, match=r"train.jsonl' line 8: .* fill the limit of 32 tokens and leave no room"
        ):
            fit(tiny_base("llama"), task, **FAST)

    def test_rows_that_do_not_fill_the_template_are_bad_ones(self, tmp_path: Path) -> None:
        rows: list[dict[str, Any]] = [{"text": f"film {n}", "title": "T", "label": "ab"[n % 2]} for n in range(40)]
        del rows[4]["title"], rows[20]["title"]
        path = written(tmp_path / "x.jsonl", rows)
        with pytest.raises(DataError, match=r"2 of 40 rows cannot be used: '.*' line 5, 21: the template uses a name"):
            Task.of(path, template="{{ title }}: {{ text }}")
        splits = Task.of(path, template="{{ title }}: {{ text }}", bad_rows="skip").splits
        assert sorted(one.text for one in splits["all"]) == sorted(f"film {n}" for n in range(40) if n not in (4, 20))
        assert len(Task.of(path, template="{{ title | default('none') }}: {{ text }}").splits["all"]) == 40
        with pytest.raises(TemplateError, match="line 1: the template uses a name that the data lacks: 'titel'"):
            Task.of(path, template="{{ titel }}: {{ text }}")


class TestLabels:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("caf\u00e9", "cafe\u0301"),
            ("good", "go\u200bod"),
            ("good", "\ufeffgood"),
            ("good", "\uff47ood"),
            ("0", "0.0"),
            ("1", "01"),
            ("true", "True"),
            ("a b", "a\u00a0 b"),
            ("-0.0", "0"),
        ],
    )
    def test_labels_that_look_or_count_alike_are_refused_with_their_codes(
        self, tmp_path: Path, one: str, other: str
    ) -> None:
        path = labelled(*((f"film {n}", (one, other)[n % 2]) for n in range(30)), path=tmp_path / "x.jsonl")
        with pytest.raises(DataError, match="differ only in") as caught:
            Task.of(path)
        for label in (one, other):
            assert label.isascii() or ascii(label)[1:-1] in str(caught.value)
        assert Task.of(path, labels=[one, other]).spec.labels == (one, other)

    def test_a_label_written_otherwise_in_test_is_told_as_such(self, tmp_path: Path) -> None:
        for split, label in (("train", "caf\u00e9"), ("test", "cafe\u0301")):
            labelled(*((f"{split} {n}", (label, "x")[n % 2]) for n in range(30)), path=tmp_path / f"{split}.jsonl")
        with pytest.raises(DataError, match=r"did you mean 'caf.' \(caf\\xe9\), got 'cafe.' \(cafe\\u0301\)\?"):
            Task.of(tmp_path)

    def test_each_row_with_a_label_of_its_own_is_refused(self, tmp_path: Path) -> None:
        path = labelled(*((f"film {n}", f"answer {n}") for n in range(40)), path=tmp_path / "x.jsonl")
        with pytest.raises(DataError, match=r"got 40 different labels in 40 rows.*give --target-column"):
            Task.of(path)
        assert Task.of(path, target_column="label").spec.kind == "generation"

    def test_sentences_as_labels_are_questioned(self, tmp_path: Path) -> None:
        said = [f"This is the answer to question number {n}." for n in range(45)]
        path = labelled(*((f"film {n}", said[n % 45]) for n in range(900)), path=tmp_path / "x.jsonl")
        assert any("45 different labels look like sentences" in note for note in Task.of(path).splits.notes)

    def test_names_with_commas_and_equals_signs_on_the_command_line(self, tmp_path: Path) -> None:
        save_tiny(tmp_path / "llama", "llama")
        pairs = ((f"film {n} is fine", ("yes, please", "a=b")[n % 2]) for n in range(60))
        data = labelled(*pairs, path=tmp_path / "x.jsonl")
        fast = ["--length", 4, "--steps", 2, "--batch-size", 8, "--init", "labels", "--device", "cpu"]
        same = ["--model", tmp_path / "llama", "--data", data, *fast]
        for number, (labels, words) in enumerate(
            [('["yes, please", "a=b"]', '{"a=b": "bad"}'), ('"yes, please", a=b', '{"a=b": "bad"}')]
        ):
            out = tmp_path / f"p{number}"
            done = command("train", *same, "--out", out, "--labels", labels, "--verbalizer", words)
            assert done.code == 0, done.err
            spec = load_prompt(out).spec
            assert (spec.labels, spec.verbalizers) == (("yes, please", "a=b"), ("yes, please", "bad"))

    def test_labels_that_cannot_be_read_are_refused(self, tmp_path: Path) -> None:
        for labels in ("a,\nb\rc", "[]", '["a", ""]', "a,,b"):
            done = command("train", "--model", "none", "--data", "none", "--out", tmp_path / "p", "--labels", labels)
            assert (done.code, "expected names with commas between them" in done.err) == (2, True), done.err
        assert parse_task_settings(None, "[0, 1, true]", ())["labels"] == ["0", "1", "true"]


class TestColumns:
    def test_a_prompt_remembers_the_names_of_its_columns(self, tmp_path: Path) -> None:
        save_tiny(tmp_path / "llama", "llama")
        rows = [
            {"body": f"film {n} is {'fine' if n % 2 else 'dull'}", "mood": ["bad", "good"][n % 2]} for n in range(60)
        ]
        data = written(tmp_path / "x.jsonl", rows)
        fast = ["--length", 4, "--steps", 2, "--batch-size", 8, "--init", "labels", "--device", "cpu"]
        names = ["--text-column", "body", "--label-column", "mood"]
        done = command("train", "--model", tmp_path / "llama", "--data", data, "--out", tmp_path / "p", *fast, *names)
        assert done.code == 0, done.err
        assert load_prompt(tmp_path / "p").spec.columns == Columns("body", "mood")
        other = [{"text": row["body"], "label": row["mood"]} for row in rows]
        usual = written(tmp_path / "y.jsonl", other)
        scored = [
            command("eval", tmp_path / "p", "--data", place, "--device", "cpu", "--json") for place in (data, usual)
        ]
        assert [one.code for one in scored] == [0, 0], scored[0].err
        first, second = (json.loads(one.out) for one in scored)
        assert first["n"] == second["n"]
        lines = io.BytesIO()
        for row in (rows[0], other[0], {"nothing": "x"}):
            lines.write(json.dumps(row).encode() + b"\n")
        done = command("predict", tmp_path / "p", "--device", "cpu", "--bad-rows", "skip", stdin=lines.getvalue())
        assert done.code == 0, done.err
        body, text, bad = (json.loads(line) for line in done.out.splitlines())
        assert body["probabilities"] == pytest.approx(text["probabilities"])
        assert "line 3: expected a column 'body' or 'text', got 'nothing'" in bad["error"]
        assert "1 of 3 rows could not be used" in done.err

    @pytest.mark.parametrize("streaming", [False, True])
    def test_a_template_may_call_the_text_by_the_name_of_its_column(self, tmp_path: Path, streaming: bool) -> None:
        save_tiny(tmp_path / "llama", "llama")
        rows = [{"body": f"b {n}", "title": f"t{n % 7}", "label": "ab"[n % 2]} for n in range(80)]
        data = written(tmp_path / "x.jsonl", rows)
        fast = ["--length", 4, "--steps", 2, "--batch-size", 8, "--init", "labels", "--device", "cpu"]
        fast += ["--text-column", "body", "--no-test", *["--streaming"] * streaming]
        answers = []
        for name, out in (("body", tmp_path / "p"), ("text", tmp_path / "q")):
            template = f"{{{{ title }}}} {{{{ {name} }}}}:"
            model = ["--model", tmp_path / "llama", "--template", template]
            done = command("train", "--data", data, "--out", out, *model, *fast)
            assert done.code == 0, done.err
            for row in (rows[0], {"text": "b 0", "title": "t0"}):
                done = command("predict", out, "--device", "cpu", stdin=json.dumps(row).encode() + b"\n")
                assert done.code == 0, done.err
                answers.append(json.loads(done.out))
        # the same rows learned from, the same text read, whatever it is called
        assert answers[1:] == answers[:1] * 3

    def test_a_loop_may_hide_the_name_of_the_text(self) -> None:
        template = Template("{% for body in parts %}{{ body }}{{ text }} {% endfor %}{{ body }}", "body")
        rendered = template.fill(Example("X", columns={"parts": ["a", "b"]}), "Y")
        assert (rendered.text, template.names) == ("aY bY Y", {"text", "parts"})

    def test_names_are_saved_only_where_they_are_not_the_usual_ones(self) -> None:
        spec = TaskSpec.of(labels=["a", "b"])
        assert "columns" not in spec.to_dict()
        named = TaskSpec.of(labels=["a", "b"], columns=Columns("body"))
        assert named.to_dict()["columns"] == {"text": "body"}
        assert TaskSpec.from_dict(named.to_dict()) == named

    def test_rows_without_text_where_the_template_uses_other_columns(self, tmp_path: Path) -> None:
        rows = [{"title": f"film {n}", "label": "ab"[n % 2]} for n in range(30)]
        task = Task.of(written(tmp_path / "x.jsonl", rows), template="{{ title }}:")
        assert {one.text for one in task.splits["all"]} == {""}
        example = unlabelled_example({"title": "film 1"}, "row", task.spec.row_columns)
        assert task.spec.compiled.render(example) == "film 1:"

    def test_objects_lists_and_numbers_as_targets_are_their_json(self, tmp_path: Path) -> None:
        targets: list[Any] = [{"name": "é", "ok": True, "n": [1, None]}, ["a", 1], 5, 0.5, False, "plain"]
        path = written(tmp_path / "x.jsonl", [{"text": f"t{n}", "target": one} for n, one in enumerate(targets)])
        found = [one.references[0] for one in read_examples(path)]
        assert found == [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in targets]
        assert read_splits(path).kind == "generation"


def test_splits_keep_the_columns_they_were_read_from(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", [{"body": "a", "label": "b"}])
    assert read_splits(path, text_column="body").columns == Columns("body")
    assert Splits((), (), (), "here", ()).columns is None
