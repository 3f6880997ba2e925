"""Training rows that are streamed: bounded in memory, in an order that a killed run goes on with to the same bytes."""

import csv
import gc
import json
import random
from pathlib import Path
from typing import Any

import pytest
from helpers.small_tasks import FAST, TEMPLATE, Recorder, command, reviews, write_data
from helpers.tiny_models import save_tiny, tiny_base

from softprompt.config import TrainConfig
from softprompt.data.examples import Example
from softprompt.data.splits import Splits, read_splits
from softprompt.data.streaming import stream_splits
from softprompt.data.task import Task
from softprompt.errors import DataError
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.data_loader import StreamingLoader
from softprompt.training.fit import fit
from softprompt.training.training_objective import make_encoders

pytest.importorskip("datasets")

SETTINGS: dict[str, Any] = {**FAST, "shuffle_buffer": 24, "checkpoint_every": 1, "steps": 14}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data", reviews(train=70))


def task_of(source: Path | str) -> Task:
    return Task.of(stream_splits(source), template=TEMPLATE)


def as_parquet(folder: Path, target: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    target.mkdir()
    for path in folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        pq.write_table(pa.Table.from_pylist(rows), target / f"{path.stem}.parquet", row_group_size=9)
    return target


def feed_of(task: Task, **settings: Any) -> StreamingLoader:
    config = TrainConfig.build(**{**SETTINGS, **settings})
    assert task.splits.stream is not None
    return StreamingLoader(
        task.splits.stream, make_encoders(tiny_base("llama"), task.spec, [config.length])[config.length], config
    )


def flat(batches: list[list[tuple[int, ...]]]) -> list[tuple[int, ...]]:
    return [ids for batch in batches for ids in batch]


def batches_of(feed: StreamingLoader, steps: range) -> list[list[tuple[int, ...]]]:
    return [[items[0].ids for items in feed.batch(step)] for step in steps]


class TestReading:
    def test_splits_are_those_of_the_folder(self, folder: Path) -> None:
        splits = stream_splits(folder)
        whole = reviews(train=70)
        assert (splits.train, splits.validation, splits.test) == (whole.train, whole.validation, whole.test)
        assert splits.stream is not None
        assert splits.stream.open().read(1000) == list(whole.train)

    def test_formats_are_alike(self, folder: Path, tmp_path: Path) -> None:
        parquet = stream_splits(as_parquet(folder, tmp_path / "parquet"))
        hub = stream_splits(f"hf:{folder}")
        assert parquet.train == hub.train == stream_splits(folder).train
        assert parquet.validation == hub.validation

    def test_one_file_is_split_as_without_streaming(self, tmp_path: Path) -> None:
        """A file sorted by label but for its first rows: the rows set aside are of both halves, and not trained on."""
        rows = [Example(f"film {n}", "ab"[n % 2 if n < 100 else n >= 1500]) for n in range(3000)]
        path = write_data(tmp_path / "d", Splits(tuple(rows), (), (), "here", ())) / "train.jsonl"
        splits = stream_splits(path)
        assert 240 < len(splits.validation) < 360  # four standard deviations of a binomial around 300
        assert 0.4 < sum(one.label == "a" for one in splits.validation) / len(splits.validation) < 0.6
        plain = read_splits(path)
        assert (splits.validation, splits.test) == (plain.validation, plain.test)
        left = list(plain.train)
        assert splits.stream is not None
        stream = splits.stream.open()
        assert stream.read(5000) == left
        assert list(splits.train) == left[:1000]
        stream.rewind()
        assert stream.read(3) == left[:3]
        assert stream_splits(path).validation == splits.validation != stream_splits(path, seed=1).validation
        assert any("set aside for validation, and as many for test" in note for note in splits.notes)
        more = [*rows, *(Example(f"more {n}", "ab"[n % 2]) for n in range(500))]
        random.Random(0).shuffle(more)
        again = stream_splits(write_data(tmp_path / "e", Splits(tuple(more), (), (), "here", ())) / "train.jsonl")
        assert again.stream is not None
        assert {one for one in again.stream.open().read(5000) if one.text.startswith("film")} == set(left)

    def test_validation_and_test_are_drawn_from_the_whole_split(self, tmp_path: Path) -> None:
        """Sorted by label, as the first rows would be of one."""
        rows = tuple(Example(f"film {n}", "ab"[n >= 6000]) for n in range(12_000))
        write_data(tmp_path / "d", Splits(reviews(train=70).train, rows, rows[:6100], "here", ()))
        splits = stream_splits(tmp_path / "d")
        assert len(splits.validation) == len(splits.test) == 5000
        assert 0.47 < sum(one.label == "a" for one in splits.validation) / 5000 < 0.53
        assert "5,000 of 12,000 validation rows were drawn." in splits.notes
        assert splits.sampled_from == {"validation": 12_000, "test": 6100}
        assert list(splits.test) == sorted(splits.test, key=rows.index)

    def test_goes_on_from_any_row(self, folder: Path, tmp_path: Path) -> None:
        tables = []
        for ending, mark in (("csv", ","), ("tsv", "\t")):
            (tmp_path / ending).mkdir()
            for path in folder.glob("*.jsonl"):
                rows = [json.loads(line) for line in path.read_text().splitlines()]
                with (tmp_path / ending / f"{path.stem}.{ending}").open("w", newline="") as file:
                    writer = csv.DictWriter(file, list(rows[0]), delimiter=mark)
                    writer.writeheader()
                    writer.writerows(rows)
            tables.append(tmp_path / ending)
        for source in (folder, as_parquet(folder, tmp_path / "parquet"), *tables):
            stream = stream_splits(source).stream
            assert stream is not None
            whole = stream.open().read(100)
            for place in (0, 1, 8, 9, 10, 69, 70):
                rows = stream.open()
                rows.read(place)
                position = json.loads(json.dumps(rows.position))
                rows.read(100)  # a file of tables is closed at its end
                other = stream.open()
                other.seek(position)
                assert other.read(100) == whole[place:]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("".join(f'{{"text": "a{n}", "label": "x"}}\n' for n in range(700)), "expected rows in random order"),
            (
                '{"text": "a", "label": "x"}\n{"text": " ", "label": "y"}\n',
                "line 2: expected a string in column 'text'",
            ),
            ('{"text": "a", "label": "x"}\n' * 5, "leave --streaming out"),
            ("not json\n", "line 1: expected JSON"),
        ],
    )
    def test_mistakes(self, tmp_path: Path, text: str, words: str) -> None:
        (tmp_path / "d.jsonl").write_text(text)
        with pytest.raises(DataError) as caught:
            stream_splits(tmp_path / "d.jsonl")
        assert words in str(caught.value)

    def test_mistaken_places(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="found none"):
            stream_splits(tmp_path / "nowhere")
        (tmp_path / "d.txt").write_text("")
        with pytest.raises(DataError, match=r"expected a file ending in .jsonl, .json, .csv, .tsv, .parquet"):
            stream_splits(tmp_path / "d.txt")
        write_data(tmp_path / "d", reviews(train=0))
        with pytest.raises(DataError, match="expected a train split"):
            stream_splits(tmp_path / "d")


class TestFeed:
    def test_takes_every_row_of_a_block_once_in_a_shuffled_order(self, folder: Path) -> None:
        task = task_of(folder)
        feed = feed_of(task, shuffle_buffer=24)
        first, second = (flat(batches_of(feed, steps)) for steps in (range(3), range(3, 6)))
        encoder = make_encoders(tiny_base("llama"), task.spec, [4])[4]
        rows = [item.ids for item in encoder.training_items(reviews(train=70).train)]
        assert first != rows[:24]
        assert sorted(first) == sorted(rows[:24])
        assert sorted(second) == sorted(rows[24:48])

    def test_begins_anew_behind_the_last_row_in_another_order(self, folder: Path) -> None:
        """70 rows in blocks of 24 are batches of 8: three, three, and two of the last 22 rows."""
        feed = feed_of(task_of(folder))
        epochs = [batches_of(feed, range(start, start + 8)) for start in (0, 8)]
        assert feed.position["epoch"] == 1
        assert epochs[0][:3] != epochs[1][:3]
        assert sorted(flat(epochs[0][:3])) == sorted(flat(epochs[1][:3]))

    def test_goes_on_from_any_step(self, folder: Path) -> None:
        task = task_of(folder)
        whole = batches_of(feed_of(task), range(20))
        for step in range(20):
            feed = feed_of(task)
            batches_of(feed, range(step + 1))
            other = feed_of(task)
            other.seek(json.loads(json.dumps(feed.position)))
            assert batches_of(other, range(step, 20)) == whole[step:]

    def test_seeds_have_orders_of_their_own(self, folder: Path) -> None:
        task = task_of(folder)
        assert batches_of(feed_of(task, seed=1), range(3)) != batches_of(feed_of(task), range(3))

    def test_batches_hold_little_padding(self, tmp_path: Path) -> None:
        generator = random.Random(0)
        rows = [Example("word " * generator.randrange(1, 30), generator.choice("ab")) for _ in range(256)]
        write_data(tmp_path / "d", Splits(tuple(rows), tuple(rows[:8]), (), "here", ()))
        feed = feed_of(task_of(tmp_path / "d"), shuffle_buffer=256)
        found = batches_of(feed, range(32))
        padded = sum(8 * max(map(len, batch)) for batch in found)
        assert padded < 1.1 * sum(len(ids) for batch in found for ids in batch)

    def test_fewer_rows_than_a_batch_are_refused(self, tmp_path: Path) -> None:
        write_data(tmp_path / "d", reviews(train=7))
        with pytest.raises(DataError, match=r"has fewer rows than a batch \(8\)"):
            feed_of(task_of(tmp_path / "d")).batch(0)

    def test_holds_a_bounded_number_of_rows(self, tmp_path: Path) -> None:
        """20,000 rows pass by; no more than a block of them is alive at any step."""
        generator = random.Random(0)
        with (tmp_path / "train.jsonl").open("w") as stream:
            for number in range(20_000):
                row = {"text": f"film {number} is {generator.choice(['great', 'dull'])}", "label": "ab"[number % 2]}
                stream.write(json.dumps(row) + "\n")
        feed = feed_of(task_of(tmp_path / "train.jsonl"), shuffle_buffer=64)
        gc.collect()
        others = sum(type(thing) is Example for thing in gc.get_objects())
        most, seen = 0, set()
        for step in range(15_500 // 8):
            seen |= {items[0].ids for items in feed.batch(step)}
            if step % 97 == 0:
                most = max(most, sum(type(thing) is Example for thing in gc.get_objects()) - others)
                assert len(feed._items) <= 64
        assert most <= 64
        assert len(seen) > 15_000  # 16,000 of them are for training


class TestTraining:
    def test_learns_and_says_that_it_streamed(self, folder: Path) -> None:
        prompt = fit(tiny_base("llama"), task_of(folder), **SETTINGS)
        assert prompt.data["streamed"] is True
        assert set(prompt.data["examples"]) == {"validation", "test"}
        assert prompt.training["steps_made"] == 14

    @pytest.mark.parametrize("breaks", [1, 4, 7, 10])
    def test_a_broken_run_goes_on_to_the_same_bytes(self, folder: Path, tmp_path: Path, breaks: int) -> None:
        """Within a block, at its end, and behind the last row of the data."""
        fit(tiny_base("llama"), task_of(folder), out=tmp_path / "whole", **SETTINGS)

        class Breaks(Recorder):
            def on_step_end(self, step: int, *more: float) -> None:
                if step == breaks + 1:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(tiny_base("llama"), task_of(folder), out=tmp_path / "p", callback=Breaks(), **SETTINGS)
        callback = Recorder()
        fit(tiny_base("llama"), task_of(folder), out=tmp_path / "p", resume=True, callback=callback, **SETTINGS)
        assert callback.first_step >= breaks - 1
        for name in ("prompt.safetensors", "prompt.json", "history.jsonl"):
            assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name

    def test_other_rows_are_another_run(self, folder: Path) -> None:
        before = stream_splits(folder).fingerprint
        with (folder / "train.jsonl").open("a") as stream:
            stream.write('{"text": "more", "label": "good"}\n')
        assert stream_splits(folder).fingerprint != before

    def test_a_label_that_the_first_rows_do_not_have(self, tmp_path: Path) -> None:
        generator = random.Random(0)
        rows = [Example(f"film {n}", generator.choice("ab")) for n in range(1010)]
        rows += [Example("film", "c")] * 20
        write_data(tmp_path / "d", Splits(tuple(rows), tuple(rows[:8]), (), "here", ()))
        with pytest.raises(DataError, match="label 'c' is not among a, b: name all with --labels"):
            batches_of(feed_of(task_of(tmp_path / "d"), shuffle_buffer=512), range(200))

    def test_from_the_command_line(self, folder: Path, tmp_path: Path) -> None:
        save_tiny(tmp_path / "llama", "llama")
        places = ["--model", tmp_path / "llama", "--data", folder, "--out", tmp_path / "p", "--template", TEMPLATE]
        fast = ["--length", 4, "--steps", 4, "--batch-size", 8, "--init", "labels", "--device", "cpu", "--seeds", 2]
        done = command("train", *places, *fast, "--streaming")
        assert done.code == 0, done.err
        assert "Training rows are streamed" in done.err
        assert load_prompt(tmp_path / "p").data["streamed"] is True
