"""TF-IDF and linear probe: they learn, they are saved without pickle, and answer the same when loaded."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers.small_tasks import TEMPLATE, answers, noise, reviews, reviews_task
from helpers.tiny_models import tiny_base
from safetensors.torch import load_file

import softprompt.experiments.baselines.linear_probe as linear_probe
from softprompt.data.examples import Example
from softprompt.data.splits import Splits
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import ConfigError, DataError, MissingExtraError
from softprompt.experiments.baselines.linear_head import LinearHead, fit_head
from softprompt.experiments.baselines.linear_probe import HiddenFeatures, fit_linear_probe, make_probe_answers
from softprompt.experiments.baselines.tfidf import fit_tfidf, make_tfidf_answers, make_vectorizer
from softprompt.experiments.comparison.compare import compare
from softprompt.inference.evaluation import score
from softprompt.models.frozen_lm import FrozenLM
from softprompt.utils.seals import unseal

FAMILIES = ("llama", "gemma3", "mamba", "bart", "t5")


class TestTfidf:
    def test_it_learns(self) -> None:
        task = reviews_task()
        found = fit_tfidf(task)
        assert score(found.answers, task.test).metric.value == found.best_value == 1.0
        assert (found.base_bytes, found.base_shared, found.added_tokens) == (0, True, 0)
        assert found.trained_parameters == 2 * found.settings["terms"] + 2
        assert fit_tfidf(noise_task()).best_value < 0.8

    def test_loaded_it_answers_as_before(self, tmp_path: Path) -> None:
        task = reviews_task()
        found = fit_tfidf(task)
        found.save(tmp_path / "saved")
        assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["tfidf.json", "tfidf.safetensors"]
        facts = unseal(json.loads((tmp_path / "saved" / "tfidf.json").read_text()))
        tensors = load_file(tmp_path / "saved" / "tfidf.safetensors")
        vectorizer = make_vectorizer(ngram_range=(1, 2), vocabulary=facts["terms"])
        vectorizer.idf_ = tensors["idf"].numpy()
        head = LinearHead(tensors["weight"], tensors["bias"])
        again = make_tfidf_answers(TaskSpec.from_dict(facts["task"]), vectorizer, head)
        assert again.spec == task.spec
        expected = found.answers.label_log_probabilities(task.test)
        assert torch.equal(again.label_log_probabilities(task.test), expected)

    def test_pairs_of_words_count(self) -> None:
        rows = tuple(Example(text, label) for text, label in (("not good", "a"), ("good not", "b")) * 8)
        assert fit_tfidf(Task.classification(Splits(rows, rows, (), "", ()))).best_value == 1.0

    def test_what_the_template_takes_counts_and_its_own_words_do_not(self) -> None:
        rows = tuple(
            Example("a film", label, columns={"title": f"the {title}"})
            for title, label in (("cat", "a"), ("mat", "b")) * 8
        )
        task = Task.classification(Splits(rows, rows, (), "", ()), template="Title: {{ title }} {{ text }}")
        found = fit_tfidf(task)
        assert found.best_value == 1.0
        words = {"the", "cat", "mat", "a", "film", "the cat", "the mat", "cat a", "mat a", "a film"}
        assert found.settings["terms"] == len(words)

    def test_a_label_that_no_training_example_has(self) -> None:
        rows = reviews().train
        task = Task.classification(Splits(rows, rows, (), "", ()), labels=["bad", "good", "so so"])
        found = fit_tfidf(task)
        assert found.best_value == 1.0
        probabilities = found.answers.label_log_probabilities(rows[:3]).exp()
        assert probabilities[:, 2].max() < 1e-6
        torch.testing.assert_close(probabilities.sum(1), torch.ones(3))

    def test_three_labels(self) -> None:
        rows = tuple(Example(f"{label} film {i}", label) for i in range(6) for label in "abc")
        found = fit_tfidf(Task.classification(Splits(rows, rows, (), "", ())))
        assert found.best_value == 1.0

    def test_nothing_to_answer(self) -> None:
        assert fit_tfidf(reviews_task()).answers.label_log_probabilities([]).shape == (0, 2)

    def test_without_scikit_learn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
        with pytest.raises(MissingExtraError, match=r"'scikit-learn', .*pip install 'softprompt\[compare\]'"):
            fit_tfidf(reviews_task())


def noise_task() -> Task:
    return Task.classification(noise(), template=TEMPLATE)


def last_hidden_state(base: FrozenLM, text: str) -> torch.Tensor:
    """Where the answer's first token is asked for, through the transformers model: ``[H]``."""
    ids = torch.tensor([base.tokenizer(text).input_ids])
    if base.architecture == "encoder-decoder":
        start = torch.tensor([base.special_tokens.decoder_start])
        output = base.model(input_ids=ids, decoder_input_ids=start, output_hidden_states=True)
        return output.decoder_hidden_states[-1][0, -1]  # type: ignore[no-any-return]
    return base.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]  # type: ignore[no-any-return]


class TestProbe:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_features_are_hidden_states_at_the_end_of_the_template(self, family: str) -> None:
        base = tiny_base(family)
        texts = ["a dull story", "so", "what is the film about? the cat sat on the mat"]
        features = HiddenFeatures(base, TaskSpec("classification", "{{ text }}\nLabel:", ("a", "b"), ("good", "bad")))
        found = features.extract([Example(text) for text in texts])
        with torch.no_grad():
            expected = torch.stack([last_hidden_state(base, f"{text}\nLabel:") for text in texts])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("family", ["llama", "t5"])
    def test_it_learns_and_loaded_answers_as_before(self, family: str, tmp_path: Path) -> None:
        base, task = tiny_base(family), reviews_task()
        found = fit_linear_probe(base, task)
        assert score(found.answers, task.test).metric.value > 0.9
        assert found.trained_parameters == 2 * base.embedding_size + 2
        assert found.task_bytes == 4 * found.trained_parameters
        found.save(tmp_path / "saved")
        assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["probe.json", "probe.safetensors"]
        facts = unseal(json.loads((tmp_path / "saved" / "probe.json").read_text()))
        assert facts["base"] == {"name": base.name, "fingerprint": base.fingerprint}
        head = LinearHead(**load_file(tmp_path / "saved" / "probe.safetensors"))
        again = make_probe_answers(TaskSpec.from_dict(facts["task"]), HiddenFeatures(base, task.spec), head)
        expected = found.answers.label_log_probabilities(task.test)
        assert torch.equal(again.label_log_probabilities(task.test), expected)

    def test_validation_figures_are_those_of_its_answers(self) -> None:
        task = reviews_task()
        found = fit_linear_probe(tiny_base("llama"), task)
        evaluation = score(found.answers, task.validation)
        assert evaluation.metric.value == found.best_value

    def test_of_many_examples_a_seed_chooses(self) -> None:
        rows = (*(Example(f"film {i}", "b") for i in range(60)), Example("the only one", "a"))
        chosen = [linear_probe.choose_examples(rows, 10, seed) for seed in (0, 0, 1)]
        assert chosen[0] == chosen[1] != chosen[2]
        assert all(Counter(one.label for one in some) == {"a": 1, "b": 9} for some in chosen)
        found = fit_linear_probe(tiny_base("llama"), reviews_task(), limit=20)
        assert found.settings["examples"] == 20

    def test_long_texts_are_cut_and_counted(self) -> None:
        task = Task.classification(reviews(), template=TEMPLATE, max_length=8)
        found = fit_linear_probe(tiny_base("llama"), task)
        assert score(found.answers, task.test).truncated == 24


@pytest.mark.parametrize("strengths", [(1e-6, 10.0), (10.0, 1e-6)])
def test_the_strength_is_chosen_on_validation(strengths: tuple[float, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(80, 4, generator=generator)
    examples = [Example("", "a" if row[0] > 0 else "b") for row in features]
    spec = TaskSpec("classification", "{{ text }}", ("a", "b"), ("a", "b"))
    parts = (features[:40].numpy(), examples[:40], features[40:].numpy(), examples[40:])
    choice = fit_head(spec, *parts, strengths, 0)
    assert choice.strength == 10.0
    # where nothing but the label's frequency helps, the held-back one has the lower loss
    swapped = [Example("", "b" if one.label == "a" else "a") for one in examples[40:]]
    assert fit_head(spec, *parts[:3], swapped, strengths, 0).loss < 5


@pytest.mark.parametrize(
    ("what", "words"), [("tfidf", "TF-IDF is for classification"), ("probe", "a linear probe is for classification")]
)
def test_generation_is_refused_in_one_line(what: str, words: str) -> None:
    task = Task.generation(answers(), template=TEMPLATE)
    with pytest.raises(ConfigError, match=f"{words}: expected rows with a label, got a generation task"):
        fit_tfidf(task) if what == "tfidf" else fit_linear_probe(tiny_base("llama"), task)


def test_one_class_is_an_error(tmp_path: Path) -> None:
    rows = tuple(Example(f"film {i}", "a") for i in range(4))
    task = Task.classification(Splits(rows, rows, (), "made here", ()), labels=["a", "b"])
    with pytest.raises(DataError, match="training examples of at least two labels, got only 'a'"):
        compare(tiny_base("llama"), task, "tfidf,linear-probe", tmp_path)
