"""What a prompt keeps of the rows it learned from and of its precision, and what eval, promote and show say of them."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.planted_candidates import Planted, few_requests  # noqa: F401 (a fixture)
from helpers.saved_prompts import a_prompt
from helpers.small_tasks import FAST, TEMPLATE, Recorder, command, noise, reviews, write_data
from helpers.tiny_models import save_tiny, tiny_base
from helpers.told import told_lines

from softprompt.data.examples import Example
from softprompt.data.splits import Splits
from softprompt.data.task import Task
from softprompt.errors import OutputError, PromptFileError
from softprompt.experiments.comparison.compare import compare
from softprompt.experiments.comparison.comparison_run import ComparisonSettings
from softprompt.inference.evaluation import score_sample
from softprompt.inference.predictor import Predictor
from softprompt.models.loading import load_model
from softprompt.report.pages.store_page import make_move_document
from softprompt.store.learned_rows import MOST, ROWS_FILE, LearnedRows, read_learned
from softprompt.store.prompt_loading import load_prompt
from softprompt.store.version_store import Store
from softprompt.training.fit import fit
from softprompt.training.training_run import TEST_LIMIT, evaluate_prompt

RUN = [
    "--length",
    "4",
    "--steps",
    "3",
    "--batch-size",
    "8",
    "--init",
    "labels",
    "--template",
    TEMPLATE,
    "--device",
    "cpu",
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"text": f"row {i} is {'fine' if i % 3 else 'dull'}", "label": "ab"[i % 3 > 0]}
        for i in range(start, start + count)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a file of 200 rows, and a prompt that was learned on it in float32."""
    folder = tmp_path_factory.mktemp("learned")
    save_tiny(folder / "model", "llama")
    write(folder / "all.jsonl", rows(200))
    places = ["--model", folder / "model", "--data", folder / "all.jsonl", "--out", folder / "prompt"]
    done = command("train", *places, *RUN, "--dtype", "float32")
    assert done.code == 0, done.err
    return folder


def evaluated(place: Path, data: Path, *more: object) -> tuple[dict[str, Any], str]:
    done = command("eval", place / "prompt", "--data", data, "--device", "cpu", "--json", *more)
    assert done.code == 0, done.err
    return json.loads(done.out), done.err


class TestEval:
    def test_the_same_file_says_nothing(self, place: Path) -> None:
        found, said = evaluated(place, place / "all.jsonl", "--dtype", "float32")
        assert found["same_data"] is True
        assert found["known_rows"] == {"rows": found["n"], "looked_at": found["n"], "learned": 0, "chosen": 0}
        assert "another fingerprint" not in said
        assert "stand in" not in said
        assert "precision" not in found

    @pytest.mark.parametrize("how", ["longer", "shuffled"])
    def test_old_rows_stay_on_their_side(self, place: Path, tmp_path: Path, how: str) -> None:
        new = [*rows(20, 200), *rows(200)] if how == "longer" else random.Random(0).sample(rows(200), 200)
        found, said = evaluated(place, write(tmp_path / "new.jsonl", new), "--dtype", "float32")
        assert found["same_data"] is False
        assert found["known_rows"]["learned"] == found["known_rows"]["chosen"] == 0
        assert "these are not the data that this prompt was learned on (another fingerprint)" in said

    def test_a_test_split_of_rows_learned_from_is_counted(self, place: Path, tmp_path: Path) -> None:
        whole = Task.of(place / "all.jsonl", template=TEMPLATE).splits
        known = [{"text": one.text, "label": one.label} for one in (*whole.train[:30], *whole.validation[:5])]
        (tmp_path / "d").mkdir()
        write(tmp_path / "d" / "test.jsonl", [*known, *rows(10, 500)])
        found, said = evaluated(place, tmp_path / "d", "--dtype", "float32")
        assert found["known_rows"] == {"rows": 45, "looked_at": 45, "learned": 30, "chosen": 5}
        assert "30 of 45 test rows stand in what this prompt was learned from, 5 of 45 test rows stand in what" in said

    def test_a_sample_is_drawn_by_label_and_said(self, place: Path, tmp_path: Path) -> None:
        ordered = sorted(rows(300, 1000), key=lambda row: row["label"])
        (tmp_path / "d").mkdir()
        write(tmp_path / "d" / "test.jsonl", ordered)
        arguments = [tmp_path / "d", "--limit", "30", "--dtype", "float32"]
        found, _ = evaluated(place, *arguments)
        assert found["n"] == 30
        assert found["sample"] == {"rows": 30, "of": 300, "seed": 0}
        # the first 30 are all "a"; the score is that of all rows, within four standard errors
        prompt, base = load_prompt(place / "prompt"), load_model(str(place / "model"), device="cpu", dtype="float32")
        asked = [Example(row["text"], row["label"]) for row in ordered]
        answers = Predictor.of_prompt(base, prompt).predict(asked)
        whole = sum(one.label == answer.label for one, answer in zip(asked, answers, strict=True)) / 300
        assert abs(found["value"] - whole) <= 4 * (0.25 / 30) ** 0.5
        text = command("eval", place / "prompt", "--data", *arguments, "--device", "cpu").out
        assert "test split, on a sample of 30 of 300 test rows, seed 0" in text

    def test_precision(self, place: Path) -> None:
        found, said = evaluated(place, place / "all.jsonl", "--dtype", "bfloat16")
        assert found["precision"] == {"learned": "float32", "loaded": "bfloat16"}
        assert "this prompt was learned in float32, the base model is loaded in bfloat16" in said
        done = command("predict", place / "prompt", "fine", "--device", "cpu", "--dtype", "bfloat16", "--json")
        assert json.loads(done.out)["precision"] == {"learned": "float32", "loaded": "bfloat16"}
        assert "was learned in float32" in done.err
        shown = command("show", place / "prompt")
        assert "learned in float32" in shown.out
        assert json.loads(command("show", place / "prompt", "--json").out)["base"]["dtype"] == "float32"

    def test_no_advice_that_is_refused(self, place: Path, tmp_path: Path) -> None:
        """A PEFT adapter is made in float32 only."""
        replace(load_prompt(place / "prompt"), base_dtype="bfloat16").save(tmp_path / "prompt")
        places = [tmp_path / "prompt", "--out", tmp_path / "out", "--device", "cpu"]
        assert command("export", *places, "--format", "peft", "--dtype", "bfloat16").code == 2
        for form, advised in (("peft", False), ("vocab", True)):
            made = command("export", *places[:2], tmp_path / form, *places[3:], "--format", form)
            assert made.code == 0, made.err
            assert "was learned in bfloat16, the base model is loaded in float32" in made.err
            assert ("--dtype bfloat16" in made.err) is advised

    def test_without_records(self, place: Path, tmp_path: Path) -> None:
        """A prompt of before: no rows.json, no precision."""
        prompt = load_prompt(place / "prompt")
        replace(prompt, base_dtype=None).save(tmp_path / "prompt")
        assert read_learned(str(tmp_path / "prompt")) is None
        assert load_prompt(tmp_path / "prompt").base_dtype is None
        found, said = evaluated(tmp_path, place / "all.jsonl", "--dtype", "bfloat16")
        assert found["known_rows"] is None
        assert "precision" not in found
        assert "learned in" not in said


class TestPromote:
    def test_both_versions_are_told_of(self, place: Path, tmp_path: Path) -> None:
        store = Store(str(tmp_path / "store"))
        store.put(str(place / "prompt"), "p")
        store.put(replace(load_prompt(place / "prompt"), base_dtype="float16"), "p")
        store.promote("p@2", "prod")
        whole = Task.of(place / "all.jsonl", template=TEMPLATE).splits
        (tmp_path / "d").mkdir()
        known = [{"text": one.text, "label": one.label} for one in whole.train[:12]]
        write(tmp_path / "d" / "test.jsonl", [*known, *rows(48, 700)])
        done = command(
            "promote", f"{store.url}#p@1", "prod", "--data", tmp_path / "d", "--limit", "40", "--device", "cpu",
            "--dtype", "float32", "--json",
        )  # fmt: skip
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert found["gate"]["sample"] == {"rows": 40, "of": 60, "seed": 0}
        told = told_lines(make_move_document(store.history("p@prod")[-1]))
        assert told[-1].endswith(", n=40, on a sample of 40 of 60 given rows, seed 0")
        assert found["known_rows"]["p@2"] is None
        assert 4 <= found["known_rows"]["p@1"]["learned"] <= 12
        assert f"p@1: {found['known_rows']['p@1']['learned']} of 40 test rows stand in" in done.err
        assert found["precisions"] == [{"learned": "float16", "loaded": "float32"}]


class TestRecord:
    def test_round_trip_and_damage(self, place: Path, tmp_path: Path) -> None:
        content = (place / "prompt" / ROWS_FILE).read_bytes()
        found = LearnedRows.from_bytes(content)
        assert found.to_text().encode() == content
        assert found.columns == ("text",)
        for at in random.Random(0).sample(range(len(content)), 60):
            flipped = bytes([*content[:at], content[at] ^ 2, *content[at + 1 :]])
            try:
                assert LearnedRows.from_bytes(flipped).to_text().encode() == content  # white space
            except ValueError:
                continue
        write_data(tmp_path / "d", reviews())
        (place / "prompt" / ROWS_FILE).write_bytes(content.replace(b'"below": "1', b'"below": "2'))
        try:
            with pytest.raises(PromptFileError, match=r"rows.json' is damaged: its SHA-256 .*; remove it, or learn"):
                read_learned(str(place / "prompt"))
        finally:
            (place / "prompt" / ROWS_FILE).write_bytes(content)

    def test_of_many_rows_a_bounded_number_is_kept(self) -> None:
        train = tuple(Example(f"row {i}", "ab"[i % 2]) for i in range(3 * MOST))
        task = Task.of(Splits(train, train[:10], (), "here", ()))
        found = LearnedRows.of(task)
        assert len(found.train) == MOST
        assert len(found.to_text()) < 2**20
        asked = [*train[:6000], *(Example(f"other {i}", "a") for i in range(3000))]
        known = found.among(asked)
        # a third of the rows can be told, within four standard deviations
        assert abs(known.looked_at - 3000) < 4 * (9000 * 2 / 9) ** 0.5
        assert abs(known.learned / known.looked_at - 2 / 3) < 0.05
        assert f"({known.looked_at:,} of 9,000 rows were looked at)" in known.describe("test")

    def test_what_the_template_uses_counts(self) -> None:
        train = tuple(Example("same", "ab"[i % 2], columns={"other": str(i)}) for i in range(20))
        found = LearnedRows.of(Task.of(Splits(train, (), (), "here", ()), template="{{ text }} {{ other }}"))
        asked = [Example("same", "a", columns={"other": str(i), "id": "x"}) for i in range(15, 25)]
        assert found.among(asked).learned == 5


@pytest.mark.usefixtures("few_requests")
class TestLearning:
    def test_rows_of_the_prompt_that_it_started_from_are_known_too(self, place: Path, tmp_path: Path) -> None:
        new = write(tmp_path / "new.jsonl", rows(80, 3000))
        places = ["--model", place / "model", "--data", new, "--out", tmp_path / "prompt"]
        done = command("train", *places, *RUN, "--dtype", "float32", "--init", f"prompt:{place / 'prompt'}")
        assert done.code == 0, done.err
        (tmp_path / "d").mkdir()
        old = Task.of(place / "all.jsonl", template=TEMPLATE).splits.train
        known = [{"text": one.text, "label": one.label} for one in (*old[:7], *Task.of(new).splits.train[:4])]
        write(tmp_path / "d" / "test.jsonl", [*known, *rows(5, 9000)])
        found, _ = evaluated(tmp_path, tmp_path / "d", "--dtype", "float32")
        assert found["known_rows"] == {"rows": 16, "looked_at": 16, "learned": 11, "chosen": 0}
        record = read_learned(str(tmp_path / "prompt"))
        assert record is not None
        assert LearnedRows.from_bytes(record.to_text().encode()).earlier[0].columns == ("text",)

    def test_a_comparison_scores_a_sample_of_a_sorted_split(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(TEST_LIMIT, "classification", 20)
        test = sorted(reviews(test=90).test, key=lambda one: str(one.label))
        task = Task.classification(replace(reviews(validation=30), test=tuple(test)), template=TEMPLATE)
        settings = ComparisonSettings(seeds=1, steps=4, batch_size=8)
        study = compare(tiny_base("llama"), task, [Planted("good", 0.9), Planted("bad", 0.4)], tmp_path / "a", settings)
        assert "scored on a sample of 20 of 90 test rows, seed 0" in study.notes
        shares = Counter(one.label for one in test)
        for label, count in Counter(study.gold).items():
            assert abs(count - 20 * shares[label] / 90) < 1
        # a folder whose results are of other rows is another comparison
        monkeypatch.setitem(TEST_LIMIT, "classification", 30)
        with pytest.raises(OutputError, match="another comparison"):
            compare(tiny_base("llama"), task, [Planted("good", 0.9), Planted("bad", 0.4)], tmp_path / "a", settings)

    def test_of_a_stream_what_was_read(self, tmp_path: Path) -> None:
        from softprompt.data.streaming import stream_splits

        random.Random(0).shuffle(some := rows(4000))
        task = Task.of(stream_splits(write(tmp_path / "d.jsonl", some), names={"text"}), template=TEMPLATE)
        settings = {**FAST, "steps": 10, "batch_size": 8, "shuffle_buffer": 64}
        prompt = fit(tiny_base("llama"), task, **settings)
        record = LearnedRows.from_bytes(prompt.extra_files[ROWS_FILE].encode())
        plain = Task.of(tmp_path / "d.jsonl", template=TEMPLATE)
        # ten steps of eight end in the second block of 64
        assert record.among(plain.train).learned == record.among(plain.train[:128]).learned == 128
        assert record.among(plain.test).learned == 0
        assert record.among(plain.validation).chosen == len(plain.validation)

    def test_a_sorted_test_split_is_scored_on_a_sample(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(TEST_LIMIT, "classification", 20)
        splits = noise(train=40, validation=30)
        test = sorted(reviews(test=90).test, key=lambda one: str(one.label))
        task = Task.classification(replace(splits, test=tuple(test)), template=TEMPLATE)
        seen = Recorder()
        base = tiny_base("llama")
        prompt = fit(base, task, callback=seen, validation_limit=12, **{**FAST, "steps": 2})
        for split, whole in (("validation", 30), ("test", 90)):
            assert prompt.metrics[split]["sample"] == {"rows": 20, "of": whole, "seed": 0}
        assert any("measured on a sample of 12 of 30 validation rows, seed 0" in note for note in seen.notes)
        found = score_sample(Predictor(base, task.spec, prompt.states), test, 20)
        shares = Counter(one.label for one in test)
        for label, count in Counter(found.gold).items():
            assert abs(count - 20 * shares[label] / 90) < 1
        assert prompt.metrics["test"]["value"] == found.metric.value
        # rows that --streaming has drawn of more
        drawn = replace(task, splits=replace(task.splits, sampled_from={"test": 400}))
        again = evaluate_prompt(prompt, base, drawn, evaluate_test=True, baseline=True)
        before, sample = prompt.metrics["test"], {"rows": 20, "of": 400, "seed": 0}
        written = {**before["baseline"], "sample": sample}
        assert again.metrics["test"] == {**before, "sample": sample, "baseline": written}
        assert prompt.base_dtype == "float32"

    def test_a_saved_prompt_of_before_still_loads(self, tmp_path: Path) -> None:
        a_prompt().save(tmp_path / "p")
        manifest = json.loads((tmp_path / "p" / "prompt.json").read_text())
        assert "dtype" not in manifest["base"]
        assert load_prompt(tmp_path / "p").base_dtype is None
