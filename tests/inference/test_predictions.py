"""Texts, rows and tables in, predictions in their order out, and a table of them."""

from pathlib import Path
from typing import Any

import pytest
from helpers.small_tasks import WORDS, answers, reviews_task, write_data
from helpers.tiny_models import as_state, random_prompt, save_tiny, tiny_base

import softprompt as sp
from softprompt.data.examples import Example
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import ConfigError, DataError, PromptFileError
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictor import Predictor
from softprompt.prompts.saved_prompt import Prompt

pandas = pytest.importorskip("pandas")
datasets = pytest.importorskip("datasets")
arrow = pytest.importorskip("pyarrow")

TEXTS = ["a fine film", "dull", "great, great", "the film is poor"]
SPEC = TaskSpec.of(labels=["bad", "good"], template="{{ text }}:")
TICKETS = TaskSpec.of(labels=["a", "b"], template="{{ subject }} {{ body }}:")


def predictor(spec: TaskSpec = SPEC) -> Predictor:
    base = tiny_base("llama")
    return Predictor(base, spec, as_state(random_prompt(base, 3).detach()), GenerationConfig(max_new_tokens=4))


class TestPredict:
    @pytest.mark.parametrize(
        "make",
        [
            list,
            tuple,
            iter,
            pandas.Series,
            lambda texts: pandas.DataFrame({"text": texts, "label": "good"}),
            lambda texts: [{"text": text} for text in texts],
            lambda texts: [Example(text) for text in texts],
            lambda texts: {"text": texts},
            lambda texts: datasets.Dataset.from_dict({"text": texts}),
            lambda texts: datasets.Dataset.from_dict({"text": texts})["text"],
            lambda texts: arrow.table({"text": texts}),
            lambda texts: [texts[0], {"text": texts[1]}, Example(texts[2]), texts[3]],
        ],
        ids=range(12),
    )
    def test_is_what_examples_give(self, make: Any) -> None:
        expected = list(predictor().iterate_predictions([Example(text) for text in TEXTS]))
        assert list(predictor().predict(make(TEXTS))) == expected

    @pytest.mark.parametrize("one", [TEXTS[0], {"text": TEXTS[0]}, Example(TEXTS[0])], ids=["text", "row", "example"])
    def test_one_gives_one(self, one: Any) -> None:
        found = predictor().predict(one)
        assert isinstance(found, sp.Prediction)
        # padding beside longer texts is the last bit of a float
        assert found.probabilities == pytest.approx(predictor().predict(TEXTS)[0].probabilities, rel=1e-5)
        assert found.probability == max(found.probabilities.values())

    def test_none_gives_none(self) -> None:
        assert predictor().predict([]) == []
        assert predictor().predict([]).to_pandas().empty

    def test_rows_fill_the_template(self) -> None:
        frame = pandas.DataFrame({"subject": ["s1", "s2"], "body": ["b1", "b2"], "n": [1, 2]})
        expected = predictor(TaskSpec.of(labels=["a", "b"], template="{{ text }}:")).predict(["s1 b1", "s2 b2"])
        assert predictor(TICKETS).predict(frame) == expected

    def test_completions_are_in_order(self) -> None:
        found = predictor(TaskSpec.of(template="{{ text }}:")).predict(TEXTS)
        assert [one.index for one in found] == [0, 1, 2, 3]
        assert found.completions == [one.completion for one in found]

    @pytest.mark.parametrize(
        ("inputs", "words"),
        [
            (["a", " "], "text 2: expected a string in column 'text', got a blank string"),
            (["a", None], "text 2: expected a text or a row as a dict, got None"),
            (["a", 3], "text 2: expected a text or a row as a dict, got the number 3"),
            ([{"text": "a"}, {"body": "b"}], "row 2: expected a column 'text', got 'body'"),
            (
                pandas.DataFrame({"text": ["a", None]}),
                "'DataFrame' row 2: expected a string in column 'text', got null",
            ),
            (pandas.DataFrame({"body": ["a"]}), "'DataFrame' row 1: expected a column 'text', got 'body'"),
        ],
        ids=range(6),
    )
    def test_row_that_cannot_be_asked_is_named(self, inputs: Any, words: str) -> None:
        with pytest.raises(DataError, match=words):
            predictor().predict(inputs)

    def test_column_that_the_template_needs(self) -> None:
        with pytest.raises(DataError, match="text 1: the template uses a name that the data lacks: 'subject'"):
            predictor(TICKETS).predict("a text")

    @pytest.mark.parametrize(
        ("inputs", "words"),
        [
            (None, "got None: was a variable not set"),
            (3, "inputs: expected a text, a row as a dict, a list of messages, a list of these"),
            (reviews_task(), "got a Task: give one of its splits, as task.test"),
            (Path("texts.csv"), "read the file first"),
        ],
        ids=range(4),
    )
    def test_what_is_no_text(self, inputs: Any, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            predictor().predict(inputs)


class TestToPandas:
    def test_has_what_was_given_and_answered(self) -> None:
        frame = pandas.DataFrame(
            {"text": TEXTS, "label": ["good", "bad", "good", "bad"], "n": range(4)}, index=list("wxyz")
        )
        found = predictor().predict(frame)
        table = found.to_pandas()
        assert list(table.columns) == ["text", "n", "label", "probability", "gold"]
        assert list(table.index) == list("wxyz")
        assert list(table["label"]) == found.labels
        assert list(table["gold"]) == list(frame["label"])
        assert (table["label"] == table["gold"]).mean() == sp.evaluate(
            tiny_base("llama"),
            [Example(text, label) for text, label in zip(TEXTS, frame["label"], strict=True)],
            predictor().states[0],
            spec=SPEC,
        ).metric.value
        assert list(frame.columns) == ["text", "label", "n"]

    def test_of_texts(self) -> None:
        table = predictor().predict(TEXTS).to_pandas()
        assert list(table.columns) == ["text", "label", "probability"]
        assert list(table["text"]) == TEXTS

    def test_other_names_of_columns(self) -> None:
        task = Task.of(
            [{"body": f"t{i}", "kind": "ab"[i % 2]} for i in range(20)], text_column="body", label_column="kind"
        )
        table = (
            predictor(task.spec)
            .predict(pandas.DataFrame({"body": ["x"], "kind": ["b"], "probability": [7]}))
            .to_pandas()
        )
        assert list(table.columns) == ["body", "kind", "given_probability", "label", "probability", "gold"]
        assert table["gold"].tolist() == ["b"]

    def test_of_completions(self) -> None:
        spec = TaskSpec.of(template="{{ text }}:")
        table = (
            predictor(spec).predict([{"text": "a", "target": "x"}, {"text": "b", "references": ["y", "z"]}]).to_pandas()
        )
        assert list(table["gold"]) == ["x", ["y", "z"]]
        assert "completion" in table

    def test_repr_is_short(self) -> None:
        assert len(repr(predictor().predict(TEXTS * 50)).splitlines()) <= 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a prompt that was learned on it, by names alone."""
    folder = tmp_path_factory.mktemp("places")
    save_tiny(folder / "model", "llama")
    write_data(folder / "data", reviews_task().splits)
    sp.fit(str(folder / "model"), folder / "data", template="{{ text }}:", steps=2, length=2, out=folder / "prompt")
    return folder


class TestPlaces:
    def test_load_finds_the_base(self, place: Path) -> None:
        loaded = sp.Predictor.load(place / "prompt")
        assert loaded.base.name == str(place / "model")
        again = sp.Predictor.of_prompt(str(place / "model"), str(place / "prompt"))
        assert again.predict(TEXTS) == loaded.predict(TEXTS)

    def test_load_from_a_store(self, place: Path, tmp_path: Path) -> None:
        sp.Store(tmp_path / "store").put(place / "prompt", "tone")
        loaded = sp.Predictor.load(f"{tmp_path / 'store'}#tone@latest", base=str(place / "model"))
        assert loaded.predict(TEXTS) == sp.Predictor.load(place / "prompt").predict(TEXTS)

    def test_another_base_is_refused(self, place: Path) -> None:
        with pytest.raises(PromptFileError, match="learned on"):
            sp.Predictor.load(place / "prompt", base=tiny_base("gpt2"))

    def test_evaluate_by_names(self, place: Path) -> None:
        found = sp.evaluate(str(place / "model"), place / "data", str(place / "prompt"))
        model = sp.load_model(place / "model")
        prompt = sp.load_prompt(place / "prompt")
        assert found.metric == sp.evaluate(model, reviews_task().test, prompt).metric
        assert found.split == "test"


class TestEvaluate:
    def test_bare_template_of_a_task(self) -> None:
        task = reviews_task()
        found = sp.evaluate(tiny_base("llama"), task)
        assert found.metric == sp.evaluate(tiny_base("llama"), task.test, spec=task.spec).metric
        assert (found.split, "(test split)" in str(found)) == ("test", True)

    def test_validation_where_there_is_no_test(self) -> None:
        found = sp.evaluate(tiny_base("llama"), reviews_task(test=0))
        assert (found.split, len(found.predictions)) == ("validation", 24)

    def test_chosen_split(self) -> None:
        found = sp.evaluate(tiny_base("llama"), reviews_task(), split="all")
        assert len(found.predictions) == 60 + 24 + 24

    def test_data_for_the_prompts_own_task(self) -> None:
        base, rows = (
            tiny_base("llama"),
            [{"body": f"{WORDS['good'][i % 2]} {i}", "kind": "ab"[i % 2]} for i in range(60)],
        )
        prompt = sp.fit(base, rows, text_column="body", label_column="kind", steps=2, length=2)
        found = sp.evaluate(base, pandas.DataFrame(rows), prompt)
        assert found.metric.value == prompt.metrics["test"]["value"]

    def test_generation(self) -> None:
        rows = [{"text": one.text, "target": one.references[0]} for one in answers()["all"]]
        assert sp.evaluate(tiny_base("llama"), rows).metric.n == len(Task.of(rows).test)

    def test_labels_that_the_prompt_does_not_know(self) -> None:
        base = tiny_base("llama")
        made = Prompt((as_state(random_prompt(base, 2).detach()),), SPEC, base.name, base.fingerprint, "m")  # type: ignore[arg-type]
        with pytest.raises(DataError, match="has label 'x'"):
            sp.evaluate(base, [{"text": f"t{i}", "label": "x"} for i in range(20)], made)
