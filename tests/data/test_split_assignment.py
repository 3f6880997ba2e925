"""Rows keep their split, samples hold every label in its proportion, and a row is all that the model reads of it."""

import csv
import json
import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from softprompt.data.examples import Example
from softprompt.data.row_identity import hash_input, input_key, row_key
from softprompt.data.split_assignment import Subsample, sample_examples, split_examples
from softprompt.data.splits import Splits, read_splits
from softprompt.data.task import Task
from softprompt.errors import DataError

LABELS = ("anger", "joy", "sadness")


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"text number {i}", "label": LABELS[i % 3]} for i in range(start, start + count)]


def sides(splits: Splits) -> dict[str, str]:
    """The split of each text."""
    return {one.text: split for split in ("train", "validation", "test") for one in getattr(splits, split)}


class TestRowsStay:
    @pytest.mark.parametrize("how", ["behind", "in front", "shuffled", "sorted by label", "twice", "thinned"])
    def test_where_they_were(self, tmp_path: Path, how: str) -> None:
        old = rows(200)
        new = {
            "behind": [*old, *rows(20, 200)],
            "in front": [*rows(20, 200), *old],
            "shuffled": random.Random(1).sample(old, 200),
            "sorted by label": sorted(old, key=lambda row: row["label"]),
            "twice": [*old, *old[:50]],
            "thinned": old[::2],
        }[how]
        before = sides(read_splits(write(tmp_path / "a.jsonl", old)))
        after = sides(read_splits(write(tmp_path / "b.jsonl", new)))
        assert {text: after[text] for text in before if text in after} == {
            text: side for text, side in before.items() if text in after
        }
        assert len(after) == len({row["text"] for row in new})

    def test_in_a_folder_without_validation(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        write(tmp_path / "a" / "train.jsonl", rows(12_000))
        write(tmp_path / "b" / "train.jsonl", random.Random(0).sample(rows(12_500), 12_500))
        before, after = sides(read_splits(tmp_path / "a")), sides(read_splits(tmp_path / "b"))
        assert {text: after[text] for text in before} == before
        # binomial: four standard deviations are 131
        assert abs(sum(side == "validation" for side in before.values()) - 1200) < 131

    def test_in_another_format(self, tmp_path: Path) -> None:
        some = [{**row, "n": i} for i, row in enumerate(rows(100))]
        with (tmp_path / "a.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, some[0])
            writer.writeheader()
            writer.writerows(some)
        assert sides(read_splits(tmp_path / "a.csv")) == sides(read_splits(write(tmp_path / "a.jsonl", some)))

    def test_shares_are_about_those_asked_for(self) -> None:
        examples = [Example(f"row {i}", "rare" if i % 10 == 0 else "often") for i in range(20_000)]
        parts = split_examples(examples, validation=0.05, test=0.2, seed=3)
        for part, share in zip(parts, (0.75, 0.05, 0.2), strict=True):
            # within four standard deviations of a binomial, and so are the labels
            assert abs(len(part) - share * 20_000) < 4 * (20_000 * share * (1 - share)) ** 0.5
            rare = sum(one.label == "rare" for one in part)
            assert abs(rare - len(part) / 10) < 4 * (len(part) * 0.09) ** 0.5
            order = [int(one.text[4:]) for one in part]
            assert order == sorted(order)

    def test_seeds_have_splits_of_their_own(self) -> None:
        examples = [Example(f"row {i}", "a") for i in range(300)]
        one, same, other = (split_examples(examples, validation=0.1, test=0.1, seed=seed) for seed in (0, 0, 1))
        assert one == same
        assert set(one[2]) != set(other[2])

    @pytest.mark.parametrize("count", range(1, 40))
    def test_small_data_keeps_every_label_in_train_and_each_split_a_row_where_it_can(self, count: int) -> None:
        examples = [Example(f"row {i} of {count}", f"label {i % 4}") for i in range(count)]
        train, validation, test = split_examples(examples, validation=0.1, test=0.1, seed=0)
        assert Counter([*train, *validation, *test]) == Counter(examples)
        assert {one.label for one in train} == {one.label for one in examples}
        assert bool(test) == (count > 4)
        assert bool(validation) == (count > 5)

    def test_no_rows(self) -> None:
        assert split_examples([], validation=0.1, test=0.1, seed=0) == ((), (), ())

    @pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.2), (0.5, 0.5), (1, 0)])
    def test_shares_that_leave_nothing_for_train_are_an_error(self, validation: float, test: float) -> None:
        with pytest.raises(DataError, match=f"leave rows for train, got {validation} and {test}: ask for less"):
            split_examples([Example("a", "b")], validation=validation, test=test, seed=0)


class TestIdentity:
    def test_equal_inputs_are_on_one_side_whatever_their_answers(self) -> None:
        examples = [Example(f"text {i // 3}", f"label {i % 3}", columns={"id": str(i)}) for i in range(300)]
        parts = split_examples(examples, validation=0.2, test=0.2, seed=1, key=partial(input_key, names={"text"}))
        texts = [{one.text for one in part} for part in parts]
        assert all(texts)
        assert sum(map(len, texts)) == 100

    def test_pairs_that_differ_in_a_column_of_the_template_are_no_duplicates(self, tmp_path: Path) -> None:
        some = [
            {"text": f"premise {i % 50}", "hypothesis": f"hypothesis {i}", "id": i, "label": LABELS[i % 2]}
            for i in range(400)
        ]
        path = write(tmp_path / "pairs.jsonl", [*some, *({**row, "id": -1} for row in some[:30])])
        task = Task.of(path, template="{{ text }} / {{ hypothesis }}:")
        assert len(task.splits["all"]) == 400
        assert any(
            "Exact duplicates (same 'text', 'hypothesis', same answer) were removed: 30 of 430." in note
            for note in task.splits.notes
        )
        inputs = {(row["text"], row["hypothesis"]) for row in some}
        held = [{(one.text, one.columns["hypothesis"]) for one in part} for part in (task.train, task.test)]
        assert not held[0] & held[1]
        assert held[0] | held[1] < inputs
        # a template of the text alone: what differs in other columns only is the same row
        bare = Task.of(path)
        assert len(bare.splits["all"]) == len({(row["text"], row["label"]) for row in some})
        # a template that is not known: all columns count
        assert len(read_splits(path)["all"]) == 430

    def test_instructions_with_inputs(self, tmp_path: Path) -> None:
        some = [{"text": "Translate.", "input": f"word {i}", "target": f"mot {i % 9}"} for i in range(300)]
        task = Task.of(write(tmp_path / "a.jsonl", some), template="{{ text }}\n{{ input }}\n")
        assert len(task.splits["all"]) == 300
        assert 10 <= len(task.test) <= 55

    def test_overlap_of_a_folder_is_of_what_is_read(self, tmp_path: Path) -> None:
        pair = [{"text": "same", "other": str(i), "label": LABELS[i % 2]} for i in range(20)]
        write(tmp_path / "train.jsonl", pair[:10])
        write(tmp_path / "validation.jsonl", pair[8:12])
        write(tmp_path / "test.jsonl", pair[12:])
        notes = Task.of(tmp_path, template="{{ text }} {{ other }}").splits.notes
        assert notes == ("2 of 4 validation examples also stand in train ('text', 'other' alike).",)
        assert Task.of(tmp_path).splits.notes[-2:] == (
            "8 of 8 test examples also stand in train ('text' alike).",
            "22 rows have the same input ('text') as one with another label: the template does not read 'other'.",
        )

    def test_a_key_is_what_is_read_and_the_answer(self) -> None:
        one = Example("a", "x", columns={"n": 1, "m": "2", "none": None, "yes": True})
        assert input_key(one, {"text"}) == (("text", "a"),)
        assert input_key(one, {"n", "m"}) == (("m", "2"), ("n", "1"))
        assert input_key(one) == (("m", "2"), ("n", "1"), ("none", ""), ("text", "a"), ("yes", "true"))
        assert row_key(one, input_key(one, {"text"})) == ((("text", "a"),), ("x",))
        assert row_key(Example("a", references=("p", "q")), (("text", "a"),)) == ((("text", "a"),), ("p", "q"))
        assert hash_input(input_key(one)) == hash_input(
            input_key(Example("a", "y", columns=dict(reversed(one.columns.items()))))
        )
        assert len({hash_input(input_key(one), salt) for salt in ("", "a", "b")}) == 3

    def test_inputs_with_several_labels_are_told_with_the_columns_that_nobody_reads(self, tmp_path: Path) -> None:
        pairs = [{"text": f"t{i % 30}", "other": f"o{i}", "label": LABELS[0]} for i in range(60)]
        pairs[0]["label"] = pairs[1]["label"] = LABELS[1]
        path = write(tmp_path / "pairs.jsonl", pairs)
        told = "4 rows have the same input ('text') as one with another label: the template does not read 'other'."
        assert told in Task.of(path).splits.notes
        both = Task.of(path, template="{{ text }} {{ other }}").splits.notes
        assert not any("another label" in note for note in both)


class TestSample:
    def test_every_label_in_its_proportion_from_a_sorted_file(self) -> None:
        examples = [
            Example(f"{label} {i}", label) for label, n in (("a", 700), ("b", 250), ("c", 50)) for i in range(n)
        ]
        drawn = sample_examples(examples, 100)
        assert Counter(one.label for one in drawn) == {"a": 70, "b": 25, "c": 5}
        chosen = set(drawn)
        assert list(drawn) == [one for one in examples if one in chosen]
        assert drawn == sample_examples(examples, 100) != sample_examples(examples, 100, seed=1)
        # drawn over the whole of each label, not from its beginning
        assert max(int(one.text[2:]) for one in drawn if one.label == "a") > 600

    @pytest.mark.parametrize("limit", [1, 2, 7, 99, 333])
    def test_by_largest_remainders(self, limit: int) -> None:
        sizes = {"a": 401, "b": 57, "c": 9, "d": 1}
        examples = [Example(f"{label} {i}", label) for label, n in sizes.items() for i in range(n)]
        counts = Counter(one.label for one in sample_examples(examples, limit))
        assert counts.total() == limit
        for label, size in sizes.items():
            assert abs(counts[label] - limit * size / 468) < 1

    def test_all_where_there_are_no_more(self) -> None:
        examples = [Example(f"row {i}", references=("a",)) for i in range(10)]
        assert sample_examples(examples, 10) == sample_examples(examples, None) == tuple(examples)
        assert len(set(sample_examples(examples, 4, seed=2))) == 4

    def test_is_said(self) -> None:
        assert Subsample(5000, 8600).describe("test") == "on a sample of 5,000 of 8,600 test rows, seed 0"
        assert Subsample(10, 10).describe("test") == ""
        assert Subsample(3, 10, 4).to_dict() == {"sample": {"rows": 3, "of": 10, "seed": 4}}
        assert Subsample(10, 10).to_dict() == {}
