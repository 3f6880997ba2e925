"""Tasks: templates that are tried at once, labels, verbalizers, and data that does not fit them."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from softprompt.data.examples import Example
from softprompt.data.splits import Splits
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import DataError, PromptFileError, SoftpromptError, TemplateError


def splits(train: Sequence[Example], validation: Sequence[Example] = (), test: Sequence[Example] = ()) -> Splits:
    return Splits(tuple(train), tuple(validation), tuple(test), "made/here", ())


GOOD, BAD = Example("fine", "good"), Example("dull", "bad")
TRANSLATED = Example("one", references=("eins", "ein"))


class TestClassification:
    def test_labels_are_those_of_train_sorted(self) -> None:
        spec = Task.classification(splits([GOOD, BAD])).spec
        assert spec.labels == spec.verbalizers == ("bad", "good")

    def test_labels_given_keep_their_order(self) -> None:
        task = Task.classification(splits([GOOD, BAD]), labels=["good", "bad", "neutral"])
        assert task.spec.labels == ("good", "bad", "neutral")
        assert task.spec.label_index == {"good": 0, "bad": 1, "neutral": 2}

    def test_verbalizers_for_some(self) -> None:
        spec = Task.classification(splits([GOOD, BAD]), verbalizers={"bad": "a waste"}).spec
        assert dict(zip(spec.labels, spec.verbalizers, strict=True)) == {"bad": "a waste", "good": "good"}

    def test_separator_depends_on_the_end_of_the_template(self) -> None:
        for template, separator in (("{{ text }}:", " "), ("{{ text }}: ", ""), ("{{ text }}\n", "")):
            assert Task.classification(splits([GOOD, BAD]), template=template).spec.answer_separator == separator

    def test_name_is_that_of_the_source(self) -> None:
        assert Task.classification(splits([GOOD, BAD])).name == "here"

    def test_from_a_file_with_other_columns(self, tmp_path: Path) -> None:
        rows = [{"review": f"r{i}", "stars": i % 2} for i in range(20)]
        (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = Task.classification(tmp_path / "r.jsonl", text_column="review", label_column="stars")
        assert task.spec.labels == ("0", "1")
        assert len(task.train) + len(task.validation) + len(task.test) == 20

    @pytest.mark.parametrize(
        ("train", "options", "words"),
        [
            ([GOOD, GOOD], {}, "at least two labels, got only 'good': add examples of another class"),
            ([GOOD, BAD], {"labels": []}, "at least two labels, got none"),
            ([GOOD, BAD], {"labels": ["good", "good", "bad"]}, "labels must differ, got good, good, bad"),
            ([GOOD, BAD], {"verbalizers": {"bda": "poor"}}, "verbalizer for unknown label 'bda': labels are bad, good"),
            ([GOOD, BAD], {"verbalizers": {"bad": " "}}, "label 'bad' has a blank verbalizer"),
            ([GOOD, BAD], {"labels": ["good", "neutral"]}, r"train split has label 'bad' \(1 rows\).*good, neutral"),
            ([TRANSLATED], {}, "made/here: expected rows with a label, got generation rows"),
        ],
    )
    def test_mistakes(self, train: list[Example], options: dict[str, list[str]], words: str) -> None:
        with pytest.raises(DataError, match=words):
            Task.classification(splits(train), **options)  # type: ignore[arg-type]

    @pytest.mark.parametrize("where", ["validation", "test"])
    def test_unknown_label_outside_train(self, where: str) -> None:
        odd = [Example("x", "neutral"), Example("y", "neutral"), Example("z", "other"), GOOD]
        with pytest.raises(DataError) as caught:
            Task.classification(splits([GOOD, BAD], **{where: odd}))
        assert str(caught.value) == (
            f"made/here: the {where} split has label 'neutral' (2 rows), which is not among the labels bad, good: "
            "correct the rows, or name all labels"
        )

    @pytest.mark.parametrize(
        "template", ["{{ text", "no place", "{{ text }}{{ nothing }}", "{{ text.__class__.mro() }}"]
    )
    def test_template_is_tried_at_once(self, template: str) -> None:
        with pytest.raises(TemplateError):
            Task.classification(splits([GOOD, BAD]), template=template)

    def test_empty_template_is_not_the_default_one(self) -> None:
        with pytest.raises(TemplateError):
            Task.classification(splits([GOOD, BAD]), template="")


class TestOtherWays:
    def test_generation(self) -> None:
        spec = Task.generation(splits([TRANSLATED]), template="{{ text }} =", max_length=64).spec
        assert (spec.kind, spec.template, spec.labels, spec.max_length) == ("generation", "{{ text }} =", (), 64)

    def test_generation_of_labels(self) -> None:
        with pytest.raises(DataError, match="expected rows with target or references, got classification rows"):
            Task.generation(splits([GOOD, BAD]))

    def test_of_tells_the_kind(self) -> None:
        assert Task.of(splits([GOOD, BAD]), template="{{ text }}:").spec.kind == "classification"
        assert Task.of(splits([TRANSLATED]), template="{{ text }}:").spec.kind == "generation"

    @pytest.mark.parametrize("options", [{"labels": ["a", "b"]}, {"verbalizers": {"a": "b"}}])
    def test_of_refuses_labels_for_generation(self, options: dict[str, list[str]]) -> None:
        with pytest.raises(DataError, match="labels were given, but its rows are for generation"):
            Task.of(splits([TRANSLATED]), **options)  # type: ignore[arg-type]

    def test_matching_takes_the_task_as_it_was(self) -> None:
        spec = Task.classification(splits([GOOD, BAD]), verbalizers={"bad": "poor"}).spec
        task = Task.matching(spec, splits([], test=[GOOD]))
        assert task.spec is spec
        assert task.test == (GOOD,)

    def test_matching_refuses_an_unknown_label(self) -> None:
        spec = Task.classification(splits([GOOD, BAD])).spec
        with pytest.raises(DataError, match=r"the test split has label 'so-so' \(1 rows\)"):
            Task.matching(spec, splits([], test=[GOOD, Example("x", "so-so")]))

    def test_matching_refuses_the_other_kind(self) -> None:
        spec = Task.classification(splits([GOOD, BAD])).spec
        with pytest.raises(DataError, match="was learned for classification, these rows are for generation"):
            Task.matching(spec, splits([TRANSLATED]))

    def test_matching_refuses_data_without_the_columns(self) -> None:
        titled = Example("x", "good", columns={"title": "t"})
        spec = Task.classification(
            splits([titled, Example("y", "bad", columns={"title": "t"})]), template="{{ text }}{{ title }}"
        ).spec
        with pytest.raises(TemplateError, match="'title' is undefined; columns: text"):
            Task.matching(spec, splits([], test=[GOOD]))


class TestTemplatesWithoutText:
    def test_a_text_that_the_template_drops_is_told(self) -> None:
        rows = [Example(f"t{i}", "ab"[i % 2], columns={"title": f"t{i}"}) for i in range(4)]
        task = Task.classification(splits(rows), template="{{ title }}:")
        assert task.splits.notes == (
            "the template does not use {{ text }}, the column 'text': the model reads 'title' only",
        )
        assert Task.classification(splits(rows), template="{{ title }} {{ text }}:").splits.notes == ()


class TestSpecAsDictionary:
    def test_round_trip(self) -> None:
        spec = TaskSpec("classification", "{{ text }}\n", ("a", "b"), ("yes", "no"), 77)
        assert TaskSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec

    @pytest.mark.parametrize(
        "change",
        [
            {"kind": "regression"},
            {"template": None},
            {"template": "no place"},
            {"template": "{{ text"},
            {"labels": None},
            {"labels": ["a"]},
            {"labels": [1, 2]},
            {"verbalizers": ["yes"]},
            {"max_length": "77"},
            {"max_length": True},
            {"max_length": 0},
            {"max_length": 10**30},
            {"labels": "ab", "verbalizers": "ab"},
            {"kind": "generation", "verbalizers": []},
            {"template": "{{ text }}" + "x" * 65_536},
        ],
        ids=str,
    )
    def test_damage_is_a_prompt_file_error(self, change: dict[str, object]) -> None:
        whole = TaskSpec("classification", "{{ text }}", ("a", "b"), ("yes", "no"), 77).to_dict()
        with pytest.raises(PromptFileError, match="the saved task "):
            TaskSpec.from_dict({**whole, **change})

    @pytest.mark.parametrize("lost", ["kind", "template", "labels", "verbalizers", "max_length"])
    def test_loss_is_a_prompt_file_error(self, lost: str) -> None:
        values = TaskSpec("generation", "{{ text }}").to_dict()
        del values[lost]
        with pytest.raises(SoftpromptError, match=f"the saved task is of another form: it lacks '{lost}'"):
            TaskSpec.from_dict(values)


class TestSizesOfOthersTasks:
    """What a task of somebody else may be: refused, or of a size that every request can bear."""

    @pytest.mark.parametrize(
        ("labels", "verbalizers", "words"),
        [
            ([f"l{i}" for i in range(8_000)], None, "expected at most 2,000 labels, got 8,000: is the column"),
            (
                ["a", "b"],
                ["x" * 200_000, "y"],
                "at most 500 characters in a label and in its verbalizer, got 200,000 in",
            ),
            (["a" * 501, "b"], ["x", "y"], "at most 500 characters in a label and in its verbalizer, got 501 in"),
            (
                [f"l{i}" for i in range(1_000)],
                [f"{i:0300}" for i in range(1_000)],
                "at most 100,000 characters in all verbalizers together, got 300,000",
            ),
        ],
        ids=["labels", "verbalizer", "label", "together"],
    )
    def test_too_large(self, labels: list[str], verbalizers: list[str] | None, words: str) -> None:
        with pytest.raises(DataError, match=words) as made:
            TaskSpec("classification", "{{ text }}", tuple(labels), tuple(verbalizers or labels))
        saved = TaskSpec("classification", "{{ text }}", ("a", "b"), ("a", "b")).to_dict()
        with pytest.raises(PromptFileError, match=words):
            TaskSpec.from_dict({**saved, "labels": labels, "verbalizers": verbalizers or labels})
        assert len(str(made.value)) < 300
