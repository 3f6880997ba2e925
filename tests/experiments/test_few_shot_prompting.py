"""Few-shot: examples by seed or nearest to each text; calibration takes a prompt's bias out."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from helpers.small_tasks import TEMPLATE, answers, reviews_task
from helpers.tiny_models import CONTEXT, tiny_base
from torch import Tensor

from softprompt.data.examples import Example
from softprompt.data.splits import Splits
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import ConfigError, DataError, MissingExtraError, TemplateError
from softprompt.experiments.baselines.few_shot_prompting import fit_few_shot
from softprompt.experiments.baselines.label_calibration import calibrate
from softprompt.experiments.baselines.nearest_examples import NearestShots
from softprompt.inference.evaluation import score
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictions import Prediction
from softprompt.inference.predictor import Predictor, predict_labels
from softprompt.inference.scoring import AnswerScorer
from softprompt.prompts.written_prompt import choose_shots, written_prompt
from softprompt.training.validation import mean_loss
from softprompt.utils.seals import unseal

FAMILIES = ("llama", "gemma3", "mamba", "bart", "t5")
SHORT = GenerationConfig(max_new_tokens=5)
POOL = (
    Example("the cat sat on a mat", "good"),
    Example("dull story, dull film", "bad"),
    Example("a great film", "good"),
    Example("what is a cat about", "bad"),
)

every_family = pytest.mark.parametrize("family", FAMILIES)


def pool_task(*test: Example) -> Task:
    return Task.classification(Splits(POOL, POOL[:2], test, "made here", ()), template=TEMPLATE)


def generation_task() -> Task:
    return Task.generation(answers(), template=TEMPLATE)


@pytest.mark.parametrize("instruction", ["", "Good or bad?"])
@every_family
def test_examples_by_seed_are_the_written_prompt(family: str, instruction: str) -> None:
    base, task = tiny_base(family), reviews_task()
    found = fit_few_shot(base, task, 3, seed=2, instruction=instruction)
    state = written_prompt(base, task.spec, instruction, choose_shots(task.train, 3, seed=2))
    assert state is not None
    expected = Predictor(base, task.spec, state).label_log_probabilities(task.test)
    assert torch.equal(found.answers.label_log_probabilities(task.test), expected)
    assert (found.added_tokens, found.trained_parameters, found.curve) == (state.length, 0, ())
    other = fit_few_shot(base, task, 3, seed=3, instruction=instruction)
    assert not torch.equal(other.answers.label_log_probabilities(task.test), expected)
    on_validation = score(found.answers, task.validation)
    assert found.best_value == on_validation.metric.value


def test_no_examples_are_the_bare_template() -> None:
    base, task = tiny_base("llama"), reviews_task()
    for nearest in (False, True):
        found = fit_few_shot(base, task, 0, nearest=nearest)
        expected = Predictor(base, task.spec).label_log_probabilities(task.test)
        assert torch.equal(found.answers.label_log_probabilities(task.test), expected)
        assert found.added_tokens == 0


class TestNearest:
    def test_the_nearest_come_first(self) -> None:
        answers = NearestShots(tiny_base("llama"), pool_task(), 2)
        assert answers.nearest([Example("a great, great film"), Example("the mat of a cat")]) == [[2, 1], [0, 3]]

    @every_family
    def test_they_stand_in_front_the_most_similar_one_last(self, family: str) -> None:
        base = tiny_base(family)
        texts = [Example("a great, great film"), Example("the mat of a cat, and what it is about")]
        found = fit_few_shot(base, pool_task(), 2, nearest=True, instruction="Good?").answers
        scores = found.label_log_probabilities(texts)
        for text, shots, row in zip(texts, ((1, 2), (0, 3)), scores, strict=True):
            state = written_prompt(base, found.spec, "Good?", [POOL[index] for index in shots])
            expected = Predictor(base, found.spec, state).label_log_probabilities([text])[0]
            torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)

    @every_family
    def test_completions_too(self, family: str) -> None:
        base, task = tiny_base(family), generation_task()
        found = fit_few_shot(base, task, 2, nearest=True, generation=SHORT)
        near = found.answers
        assert isinstance(near, NearestShots)
        completions = {one.index: one.completion for one in near.iterate_predictions(task.test)}
        for index, (text, chosen) in enumerate(zip(task.test, near.nearest(task.test), strict=True)):
            state = written_prompt(base, task.spec, "", [task.train[place] for place in reversed(chosen)])
            (expected,) = Predictor(base, task.spec, state, SHORT).predict([text])
            assert completions[index] == expected.completion

    @pytest.mark.parametrize("family", ["llama", "bart"])
    def test_the_loss_is_that_of_the_outputs_behind_them(self, family: str) -> None:
        base, task = tiny_base(family), generation_task()
        one = Task(task.spec, Splits(task.train, task.validation[:1], (), "made here", ()))
        found = fit_few_shot(base, one, 2, nearest=True, generation=SHORT)
        near = found.answers
        assert isinstance(near, NearestShots)
        shots = [task.train[place] for place in reversed(near.nearest(one.validation)[0])]
        same = Predictor(base, task.spec, written_prompt(base, task.spec, "", shots), SHORT)
        items = same.encoder.training_items(one.validation)
        assert found.best_loss == pytest.approx(mean_loss(AnswerScorer(base, None), same.prefix, items), rel=1e-4)
        assert found.best_value == -found.best_loss

    @pytest.mark.parametrize("family", ["llama", "bart"])
    def test_as_many_as_the_context_holds(self, family: str) -> None:
        base = tiny_base(family)
        near = NearestShots(base, reviews_task(), 12)
        texts = list(reviews_task().test)
        fronts = near.in_front(texts, [100] * len(texts))
        assert near.left_out > 0
        assert 0 < max(map(len, fronts)) <= CONTEXT - 100 - len(base.bos_ids)
        all_scores = near.label_log_probabilities(texts)
        assert all_scores.isfinite().all()
        found = fit_few_shot(base, reviews_task(), 12, nearest=True)
        assert found.settings["left_out"] > 0

    def test_what_they_add_is_told(self) -> None:
        base = tiny_base("llama")
        found = fit_few_shot(base, pool_task(), 1, nearest=True)
        shots = [written_prompt(base, found.answers.spec, "", [one]) for one in POOL[:2]]
        assert found.added_tokens == sum(shot.length for shot in shots if shot is not None) / 2

    def test_other_columns_of_the_template_count(self) -> None:
        pool = tuple(
            Example("a film", label, columns={"title": title, "id": "same words"})
            for label, title in (("a", "the cat"), ("b", "a mat"))
        )
        task = Task.classification(Splits(pool, pool, (), "", ()), template="{{ title }}: {{ text }} same words")
        near = NearestShots(tiny_base("llama"), task, 1)
        assert near.nearest([Example("a film", columns={"title": "mat", "id": ""})]) == [[1]]

    def test_without_scikit_learn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
        with pytest.raises(MissingExtraError, match=r"'scikit-learn', .*pip install 'softprompt\[compare\]'"):
            fit_few_shot(tiny_base("llama"), pool_task(), 2, nearest=True)

    def test_texts_without_words(self) -> None:
        pool = (Example("?", "a"), Example("!", "b"))
        task = Task.classification(Splits(pool, pool, (), "made here", ()))
        with pytest.raises(DataError, match="made here: expected words in the training texts, got none"):
            fit_few_shot(tiny_base("llama"), task, 1, nearest=True)


@pytest.mark.parametrize("nearest", [False, True])
def test_more_examples_than_there_are(nearest: bool) -> None:
    with pytest.raises(DataError, match="8 examples wanted for the written prompt, but the training split has 4"):
        fit_few_shot(tiny_base("llama"), pool_task(), 8, nearest=nearest)


def test_more_examples_than_the_context_holds() -> None:
    with pytest.raises(TemplateError, match=r"a prompt of \d+ virtual tokens .* in this model's context of 160"):
        fit_few_shot(tiny_base("llama"), reviews_task(), 40)


class TestCompletionsEnd:
    def stops(self, *outputs: str) -> tuple[str, ...]:
        rows = tuple(Example(f"text {i}", None, (output,)) for i, output in enumerate(outputs))
        task = Task.generation(Splits(rows, rows, (), "", ()), template=TEMPLATE)
        found = fit_few_shot(tiny_base("t5"), task, len(rows)).answers
        assert isinstance(found, Predictor)
        return found.generation.stop

    def test_where_the_next_example_would_begin(self) -> None:
        assert self.stops("one", "two") == ("\n\n",)

    def test_but_not_within_an_output(self) -> None:
        assert self.stops("one", "two\n\nparts") == ()


class TestSaved:
    @pytest.mark.parametrize("nearest", [False, True])
    def test_it_answers_as_before(self, nearest: bool, tmp_path: Path) -> None:
        base, task = tiny_base("llama"), reviews_task()
        found = fit_few_shot(base, task, 3, seed=1, nearest=nearest, instruction="Good?")
        found.save(tmp_path / "saved")
        assert [path.name for path in (tmp_path / "saved").iterdir()] == ["few_shot.json"]
        facts = unseal(json.loads((tmp_path / "saved" / "few_shot.json").read_text()))
        assert facts["base"] == {"name": base.name, "fingerprint": base.fingerprint}
        spec, count, words = TaskSpec.from_dict(facts["task"]), facts["count"], facts["instruction"]
        shots = tuple(
            Example(one["text"], one["label"], tuple(one["references"]), one["columns"]) for one in facts["examples"]
        )
        again = (
            NearestShots(base, Task(spec, Splits(shots, (), (), "saved", ())), count, words)
            if facts["nearest"]
            else Predictor(base, spec, written_prompt(base, spec, words, shots))
        )
        expected = found.answers.label_log_probabilities(task.test)
        assert torch.equal(again.label_log_probabilities(task.test), expected)


class Biased:
    """Reads the label off the text, and leans to the first label more than the text says."""

    def __init__(self, spec: TaskSpec, lean: float) -> None:
        self.spec, self.lean, self.truncated = spec, lean, 0
        self.asked: list[Example] = []

    def label_log_probabilities(self, examples: Sequence[Example]) -> Tensor:
        self.asked += examples
        scores = torch.tensor([[self.lean + one.text.count("good"), 0.0 + one.text.count("bad")] for one in examples])
        return scores.log_softmax(1)

    def iterate_predictions(self, examples: Sequence[Example]) -> Iterator[Prediction]:
        return predict_labels(self.spec, self.label_log_probabilities(examples))


class TestCalibration:
    SPEC = TaskSpec("classification", "{{ text }} by {{ author }}:", ("good", "bad"), ("good", "bad"))
    TEXTS = (Example("good film", "good"), Example("bad film", "bad"), Example("so bad", "bad"))

    def test_a_planted_bias_is_undone(self) -> None:
        biased = Biased(self.SPEC, lean=3.0)
        assert score(biased, self.TEXTS).metric.value == pytest.approx(1 / 3)
        fair = calibrate(biased)
        assert score(fair, self.TEXTS).metric.value == 1.0
        expected = Biased(self.SPEC, lean=0.0).label_log_probabilities(self.TEXTS)
        torch.testing.assert_close(fair.label_log_probabilities(self.TEXTS), expected)

    def test_every_column_of_the_template_is_without_content(self) -> None:
        biased = Biased(self.SPEC, lean=1.0)
        calibrate(biased, ["N/A", ""])
        assert [(one.text, dict(one.columns)) for one in biased.asked] == [
            ("N/A", {"author": "N/A"}),
            ("", {"author": ""}),
        ]

    def test_lists_and_numbers_stay_such_for_templates_that_loop_and_compare(self) -> None:
        loop = "{% for one in turns %}{{ one.who }}: {{ one.said }}{% endfor %}"
        source = loop + "{% if year > 2000 %}new{% endif %}{{ text }}"
        spec = TaskSpec("classification", source, ("good", "bad"), ("good", "bad"))
        columns = {"turns": [{"who": "a", "said": "good"}, {"who": "b", "said": "bad"}], "year": 2001}
        biased = Biased(spec, lean=1.0)
        calibrate(biased, ["N/A"], like=Example("good film", "good", columns=columns))
        (asked,) = biased.asked
        assert spec.compiled.render(asked) == "N/A: N/AN/A: N/AnewN/A"

    @pytest.mark.parametrize("count", [0, 3])
    def test_a_prompt_leans_to_nothing_on_such_inputs(self, count: int) -> None:
        base, task = tiny_base("llama"), reviews_task()
        found = calibrate(fit_few_shot(base, task, count).answers, ["N/A"])
        fair = found.label_log_probabilities([Example("N/A")]).exp()
        torch.testing.assert_close(fair, torch.full((1, 2), 0.5))
        assert sum(one.label == "bad" for one in found.iterate_predictions(task.test)) not in (0, len(task.test))
        assert found.truncated == 0

    def test_inputs_that_the_template_leaves_empty_are_left_out(self) -> None:
        spec = TaskSpec("classification", "{{ text }}", ("good", "bad"), ("good", "bad"))
        biased = Biased(spec, lean=1.0)
        calibrate(biased)
        assert [one.text for one in biased.asked] == ["N/A", "[MASK]"]
        with pytest.raises(TemplateError, match=r"needs inputs that say nothing, .* an empty one from '{{ text }}'"):
            calibrate(biased, [""])

    def test_generation(self) -> None:
        with pytest.raises(ConfigError, match=r"contextual calibration is for classification: .* a generation task"):
            calibrate(fit_few_shot(tiny_base("llama"), generation_task(), 1, generation=SHORT).answers)
