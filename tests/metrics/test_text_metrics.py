"""Metrics of text in any script and of any length, against sacrebleu, rouge-score and scikit-learn; which is chosen."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.saved_prompts import a_prompt
from helpers.small_tasks import FAST, TEMPLATE, Recorder, reviews
from helpers.tiny_models import random_prompt, tiny_base
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import f1_score

from softprompt.config import TrainConfig
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.splits import Splits
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import ConfigError, PromptFileError
from softprompt.inference.predictor import Predictor
from softprompt.inference.scoring import AnswerScorer
from softprompt.metrics.bootstrap import resample_scores
from softprompt.metrics.registry import (
    METRICS,
    bleu,
    choose_metric,
    chrf,
    exact_match,
    metrics_of_kind,
    rouge_l,
    score_runs,
    token_f1,
)
from softprompt.metrics.text_tokenization import split_words
from softprompt.prompts.state import PromptState
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.fit import fit
from softprompt.training.validation import Validation

# each script twice: a sentence, and one that shares some of its words
SENTENCES = {
    "english": ("the cat sat on the mat today", "the dog sat on the red mat"),
    "chinese": ("北京是中国的首都城市", "上海是中国的最大城市"),
    "japanese": ("猫がマットの上に座っています", "犬がマットの上で寝ています"),
    "korean": ("고양이가 매트 위에 조용히 앉아 있다", "개가 매트 위에 조용히 누워 있다"),
    "russian": ("кошка сидит на красном ковре дома", "собака сидит на красном полу дома"),
    "arabic": ("القط يجلس على السجادة الحمراء اليوم", "الكلب يجلس على السجادة الخضراء اليوم"),
    "hindi": ("बिल्ली आज लाल चटाई पर बैठी है", "कुत्ता आज लाल चटाई पर सोया है"),
    "thai": ("แมวนั่งอยู่บนเสื่อในวันนี้", "สุนัขนอนอยู่บนเสื่อในวันนี้"),
    "greek": ("μια γάτα κάθεται πάνω στο χαλί", "ένας σκύλος κάθεται πάνω στο πάτωμα"),
}
TEXTS = [
    "Paris",
    "the capital of France is Paris, I'd say.",
    "It costs 3.50 dollars (plus tax)",
    "RUNNING runners ran; they were runnin'",
    "a b c",
    "",
    "under_scored words-with-hyphens",
]


@pytest.mark.parametrize("name", [one.name for one in metrics_of_kind("generation")])
@pytest.mark.parametrize("script", SENTENCES)
def test_a_perfect_answer_is_perfect_and_a_better_one_scores_higher(name: str, script: str) -> None:
    right, near = SENTENCES[script]
    scorer = METRICS[name]
    for references in ([right], [right, near]):
        assert scorer([references], [right]).value == pytest.approx(scorer.limits[1])
    other = SENTENCES["english" if script != "english" else "russian"][0]
    assert scorer([[right]], [other]).value < 0.1 * scorer.limits[1]
    if name != "exact_match":
        assert 0.1 * scorer.limits[1] < scorer([[right]], [near]).value < 0.95 * scorer.limits[1]


@pytest.mark.parametrize("name", [one.name for one in metrics_of_kind("generation")])
@pytest.mark.parametrize("word", ["yes", "北京", "да", "7", "C++", "नहीं", "ใช่", "new york city", ":-)"])
def test_short_answers_are_ranked_by_how_many_are_right(name: str, word: str) -> None:
    """Three of four right is better than one of four, which BLEU without effective order calls 0 both times."""
    references = [[word]] * 4
    values = [METRICS[name](references, [word] * right + ["wrong"] * (4 - right)).value for right in range(5)]
    assert values == sorted(values)
    assert values[1] < values[3] < values[4] == pytest.approx(METRICS[name].limits[1])


class TestAgainstOthers:
    def streams(self, references: list[list[str]]) -> list[list[str | None]]:
        most = max(map(len, references))
        return [[row[i] if i < len(row) else None for row in references] for i in range(most)]

    @pytest.mark.parametrize("script", SENTENCES)
    def test_chrf_is_sacrebleu_s_of_the_corpus(self, script: str) -> None:
        right, near = SENTENCES[script]
        references, outputs = [[right, near], [near], [right], [near]], [near + " x", right, "?", right]
        expected = CHRF().corpus_score(outputs, self.streams(references)).score
        assert chrf(references, outputs).value == pytest.approx(expected, abs=1e-9)
        for one, row, output in zip(chrf.score_each(references, outputs), references, outputs, strict=True):
            assert one == pytest.approx(CHRF().sentence_score(output, row).score, abs=1e-9)

    def test_chrf_interval_equals_resampling_rows_with_sacrebleu(self) -> None:
        pairs = list(SENTENCES.values()) * 2
        references, outputs = (
            [[one] for one, _ in pairs],
            [one if i % 3 else near for i, (one, near) in enumerate(pairs)],
        )
        generator = np.random.default_rng(0)
        samples = []
        for _ in range(400):
            index = generator.integers(0, len(pairs), len(pairs))
            rows = [[references[i][0] for i in index]]
            samples.append(CHRF().corpus_score([outputs[i] for i in index], rows).score)
        found = chrf(references, outputs)
        assert (found.low, found.high) == pytest.approx(tuple(np.quantile(samples, [0.025, 0.975])), abs=1.5)

    @pytest.mark.parametrize(
        ("script", "tokenizer"),
        [
            ("english", "13a"),
            ("russian", "13a"),
            ("korean", "13a"),
            ("chinese", "zh"),
            ("japanese", "char"),
            ("thai", "char"),
        ],
    )
    def test_bleu_is_sacrebleu_s_with_the_tokenizer_of_the_script(self, script: str, tokenizer: str) -> None:
        right, near = SENTENCES[script]
        references, outputs = [[right], [near, right], [near]], [near, right + " ok", right]
        expected = BLEU(tokenize=tokenizer).corpus_score(outputs, self.streams(references)).score
        assert expected > 0
        assert bleu(references, outputs).value == pytest.approx(expected, abs=1e-9)

    def test_rouge_l_of_ascii_is_rouge_score_s(self) -> None:
        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        for reference in TEXTS[:5] + TEXTS[6:]:
            for output in TEXTS:
                expected = 100 * scorer.score(reference, output)["rougeL"].fmeasure
                assert rouge_l([[reference]], [output]).value == pytest.approx(expected, abs=1e-9)

    def test_token_f1_is_that_of_counted_words(self) -> None:
        """F1 of bags of words, which scikit-learn counts."""
        texts = [one for one in TEXTS if one]
        counts = CountVectorizer(token_pattern=r"[a-z0-9]+").fit_transform(texts).toarray()
        for i, reference in enumerate(texts):
            for j, output in enumerate(texts):
                shared = np.minimum(counts[i], counts[j]).sum()
                expected = 2 * shared / (counts[i].sum() + counts[j].sum())
                assert token_f1([[reference]], [output]).value == pytest.approx(expected)


def test_words_keep_their_marks_and_scripts_without_blanks_have_letters() -> None:
    assert split_words("Don't STOP, हिन्दी भाषा; ไทย 日本 x1") == (
        "don",
        "t",
        "stop",
        "हिन्दी",
        "भाषा",
        "ไ",
        "ท",
        "ย",
        "日",
        "本",
        "x1",
    )
    assert split_words("cafe\N{COMBINING ACUTE ACCENT}") == ("café",) == split_words("CAFÉ")


@pytest.mark.parametrize("name", METRICS)
def test_a_comparison_has_the_value_and_interval_of_the_metric(name: str) -> None:
    generator = np.random.default_rng(0)
    words = ["good", "bad", "so so, all in all"]
    drawn = [words[i] for i in generator.integers(0, 3, 60)]
    predicted = [
        one if keep else words[i]
        for one, keep, i in zip(drawn, generator.random(60) < 0.6, generator.integers(0, 3, 60), strict=True)
    ]
    gold = drawn if METRICS[name].kind == "classification" else [(one,) for one in drawn]
    scores = score_runs(name, gold, [predicted])
    values = resample_scores({"m": scores}, 4000)["m"]
    expected = METRICS[name](gold, predicted, resamples=4000)
    assert float(scores.means[0]) == pytest.approx(expected.value, abs=1e-12)
    assert tuple(np.quantile(values, [0.025, 0.975])) == pytest.approx(
        (expected.low, expected.high), abs=0.03 * METRICS[name].limits[1]
    )


class TestChoice:
    @pytest.mark.parametrize(
        ("references", "name"),
        [
            (["yes", "no", "not at all"], "exact_match"),
            (["new york city", "rome"], "exact_match"),
            (["北京", "上海市"], "exact_match"),
            (["42", "17"], "exact_match"),
            (["the cat sat on the mat", "yes, it did so again"], "chrf"),
            (["北京是中国的首都上海不是", "猫坐在红色的垫子上"], "chrf"),
        ],
    )
    def test_short_references_are_matched_and_longer_ones_compared(self, references: list[str], name: str) -> None:
        splits = Splits(
            tuple(Example(f"t{i}", references=(one,)) for i, one in enumerate(references)), (), (), "here", ()
        )
        task = Task.of(splits)
        assert task.spec.metric == name == choose_metric("generation", None, [(one,) for one in references]).name
        (note,) = task.splits.notes
        assert note.startswith(f"judged by {METRICS[name].heading}, because most references are ")
        assert "--metric NAME judges by another: exact_match, token_f1, chrf, bleu, rouge_l" in note

    def test_the_user_s_choice_is_kept_and_not_noted(self) -> None:
        splits = Splits((Example("t", references=("yes",)),), (), (), "here", ())
        task = Task.of(splits, metric="token_f1")
        assert (task.spec.metric, task.splits.notes) == ("token_f1", ())
        assert TaskSpec.from_dict(json.loads(json.dumps(task.spec.to_dict()))) == task.spec

    @pytest.mark.parametrize("name", ["bleu", "f1", "", "Accuracy"])
    def test_a_metric_that_there_is_not_is_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match=f"metric '{name}': expected one for classification: accuracy, macro_f1"):
            TaskSpec.of(labels=["a", "b"], metric=name)

    def test_a_saved_prompt_keeps_it_and_an_older_one_has_none(self, tmp_path: Path) -> None:
        plain = a_prompt(0)
        assert "metric" not in plain.spec.to_dict()
        judged = plain.judged_by("macro_f1")
        assert judged.digest == plain.digest
        judged.save(tmp_path / "p")
        assert load_prompt(tmp_path / "p").spec == replace(plain.spec, metric="macro_f1")
        with pytest.raises(PromptFileError, match="metric 'rouge_l': expected one for classification"):
            TaskSpec.from_dict({**plain.spec.to_dict(), "metric": "rouge_l"})
        with pytest.raises(PromptFileError, match="of another form: metric: Input should be a valid string"):
            TaskSpec.from_dict({**plain.spec.to_dict(), "metric": 3})


def test_exact_is_exact() -> None:
    assert exact_match([["C++ ."], ["don 't"]], ["C++.", "don't"]).value == 0


class TestTheStepIsChosenByWhatIsReported:
    def test_validation_has_the_macro_f1_of_scikit_learn_and_its_error(self) -> None:
        base, generator = tiny_base("llama"), np.random.default_rng(0)
        splits = reviews(40, 60, 0)
        labels = ["good" if one < 0.8 else "bad" for one in generator.random(60)]
        uneven = tuple(replace(one, label=label) for one, label in zip(splits.validation, labels, strict=True))
        task = Task.of(replace(splits, validation=uneven), template=TEMPLATE, metric="macro_f1")
        config = TrainConfig.build(length=3)
        encoder = ExampleEncoder(base, task.spec, 3)
        held = Validation(task, encoder, AnswerScorer(base, encoder.verbalizer), config)
        for seed in (1, 2, 3):
            state = PromptState.of_embeddings(random_prompt(base, 3, seed).detach())
            predicted = [str(one.label) for one in Predictor(base, task.spec, state).predict(uneven)]
            value, _ = held.score(state)
            assert held.metric == "macro_f1"
            assert value == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0))
            draws = [generator.integers(0, 60, 60) for _ in range(400)]
            drawn = [
                f1_score([labels[i] for i in one], [predicted[i] for i in one], average="macro", zero_division=0)
                for one in draws
            ]
            assert held.standard_error(value) == pytest.approx(np.std(drawn), rel=0.25, abs=0.003)

    def test_a_run_keeps_the_step_that_is_reported(self) -> None:
        task = Task.of(reviews(), template=TEMPLATE, metric="macro_f1")
        seen = Recorder()
        prompt = fit(tiny_base("llama"), task, callback=seen, **FAST)
        assert {metric for _, metric, *_ in seen.evaluations} == {"macro_f1"}
        best = max(value for _, _, value, _, kept in seen.evaluations if kept)
        assert prompt.metrics["validation"]["metric"] == "macro_f1"
        assert prompt.metrics["validation"]["value"] == pytest.approx(best)
        assert prompt.metrics["test"]["others"].keys() == {"accuracy"}
