"""Metrics against scikit-learn, sacrebleu and rouge-score, and intervals against simulated truth."""

from collections.abc import Callable

import numpy as np
import pytest
from sacrebleu.metrics import BLEU
from scipy.stats import binom
from sklearn.metrics import accuracy_score, f1_score

from softprompt.errors import DataError
from softprompt.metrics.bootstrap import paired_bootstrap
from softprompt.metrics.calibration import expected_calibration_error
from softprompt.metrics.registry import accuracy, bleu, exact_match, macro_f1, rouge_l
from softprompt.metrics.scores import Score


def labels_with_noise(n: int, classes: int, noise: float, seed: int) -> tuple[list[str], list[str]]:
    """Gold labels of uneven frequency, and predictions that are redrawn with probability ``noise``."""
    generator = np.random.default_rng(seed)
    gold = generator.integers(0, classes, n) * generator.integers(0, 2, n)
    predicted = np.where(generator.random(n) < noise, generator.integers(0, classes, n), gold)
    return [f"c{label}" for label in gold], [f"c{label}" for label in predicted]


REFERENCES = [
    ["the cat sat on the mat", "a cat was sitting on the mat"],
    ["there is no parking near the old town hall"],
    ["he walks to school every day", "every day he goes to school on foot", "he goes to school daily on foot"],
    ["prices rose by 3.5% in May."],
]
OUTPUTS = [
    "the cat was sitting on the mat",
    "there is no parking close to the town hall",
    "every day he walks to school on foot",
    "prices rose by 3.5% in June.",
]


def test_accuracy_equals_scikit_learn() -> None:
    gold, predicted = labels_with_noise(700, 5, 0.3, seed=1)
    metric = accuracy(gold, predicted)
    assert metric.value == pytest.approx(accuracy_score(gold, predicted), abs=1e-12)
    assert (metric.metric, metric.n) == ("accuracy", 700)


def test_accuracy_interval_equals_the_exact_bootstrap_distribution() -> None:
    gold, predicted = ["a"] * 200, ["a"] * 150 + ["b"] * 50
    metric = accuracy(gold, predicted, resamples=20000)
    # a resample's number of hits is binomial, so the quantiles are known without resampling
    assert metric.low == pytest.approx(binom.ppf(0.025, 200, 0.75) / 200, abs=0.0051)
    assert metric.high == pytest.approx(binom.ppf(0.975, 200, 0.75) / 200, abs=0.0051)


@pytest.mark.parametrize("classes", [2, 6, 40])
def test_macro_f1_equals_scikit_learn(classes: int) -> None:
    gold, predicted = labels_with_noise(300, classes, 0.4, seed=classes)
    expected = f1_score(gold, predicted, average="macro", zero_division=0)
    assert macro_f1(gold, predicted).value == pytest.approx(expected, abs=1e-12)


def test_macro_f1_counts_a_class_that_is_only_predicted() -> None:
    assert macro_f1(["a", "a", "a"], ["a", "a", "b"]).value == pytest.approx((0.8 + 0) / 2)


def test_macro_f1_interval_equals_resampling_indices_with_scikit_learn() -> None:
    gold, predicted = labels_with_noise(59, 3, 0.4, seed=5)
    gold.append("rare")  # missing from a third of the resamples
    predicted.append("rare")
    generator = np.random.default_rng(0)
    samples = []
    for _ in range(1500):
        index = generator.integers(0, 60, 60)
        resampled = [gold[i] for i in index], [predicted[i] for i in index]
        samples.append(f1_score(*resampled, average="macro", zero_division=0))
    metric = macro_f1(gold, predicted, resamples=20000)
    assert (metric.low, metric.high) == pytest.approx(tuple(np.quantile(samples, [0.025, 0.975])), abs=0.015)


def test_exact_match_takes_any_reference_and_ignores_outer_white_space() -> None:
    metric = exact_match([["yes", " yeah\n"], ["no"], ["a b"], ["Yes"]], ["yeah ", "no", "a  b", "yes"])
    assert (metric.metric, metric.value, metric.n) == ("exact_match", 0.5, 4)


def test_bleu_equals_sacrebleu_with_varying_numbers_of_references() -> None:
    most = max(map(len, REFERENCES))
    streams = [[row[i] if i < len(row) else None for row in REFERENCES] for i in range(most)]
    expected = BLEU().corpus_score(OUTPUTS, streams).score
    metric = bleu(REFERENCES, OUTPUTS)
    assert metric.value == pytest.approx(expected, abs=1e-9)
    assert 0 < metric.low < metric.value < metric.high <= 100
    assert bleu([row[:1] for row in REFERENCES], OUTPUTS).value < metric.value


def test_bleu_interval_equals_resampling_rows_with_sacrebleu() -> None:
    references, outputs = REFERENCES * 4, (OUTPUTS + [row[0] for row in REFERENCES]) * 2
    generator = np.random.default_rng(0)
    samples = []
    for _ in range(400):
        index = generator.integers(0, 16, 16)
        rows = [references[i] for i in index]
        streams = [[row[i] if i < len(row) else None for row in rows] for i in range(3)]
        samples.append(BLEU().corpus_score([outputs[i] for i in index], streams).score)
    metric = bleu(references, outputs)
    assert (metric.low, metric.high) == pytest.approx(tuple(np.quantile(samples, [0.025, 0.975])), abs=2.5)


def test_bleu_of_perfect_empty_and_unrelated_outputs() -> None:
    perfect = bleu(REFERENCES, [row[-1] for row in REFERENCES])
    assert (perfect.value, perfect.low, perfect.high) == pytest.approx((100, 100, 100))
    assert bleu(REFERENCES, [""] * 4).value == 0
    assert bleu(REFERENCES, ["xyzzy plugh"] * 4).value == 0


def test_rouge_l_is_the_mean_of_the_best_reference_with_stemming() -> None:
    # lcs("every day he", ...): 3 of 5 and 3 of 4 words, F = 2/3; "walks" and "walking" share a stem, F = 1
    metric = rouge_l([["xx", "every day he goes"], ["she walks"]], ["every single day he sings", "she walking"])
    assert metric.value == pytest.approx((100 * 2 * 0.6 * 0.75 / 1.35 + 100) / 2)
    assert (metric.metric, metric.n) == ("rouge_l", 2)
    assert (metric.low, metric.high) == pytest.approx((100 * 2 * 0.6 * 0.75 / 1.35, 100))


@pytest.mark.parametrize(
    ("gold", "predicted", "value"),
    [(["a"], ["a"], 1.0), (["a"], ["b"], 0.0), (["a", "b"] * 9, ["a", "b"] * 9, 1.0), (["a"] * 9, ["b"] * 9, 0.0)],
    ids=["one-right", "one-wrong", "all-right", "all-wrong"],
)
@pytest.mark.parametrize("score", [accuracy, macro_f1])
def test_intervals_without_variation_have_no_width(
    score: Callable[..., Score], gold: list[str], predicted: list[str], value: float
) -> None:
    metric = score(gold, predicted)
    assert (metric.value, metric.low, metric.high, metric.n) == (value, value, value, len(gold))


@pytest.mark.parametrize("score", [exact_match, bleu, rouge_l])
def test_one_row_has_an_interval_without_width(score: Callable[..., Score]) -> None:
    metric = score(REFERENCES[:1], OUTPUTS[:1])
    assert metric.low == pytest.approx(metric.value) == pytest.approx(metric.high)
    assert metric.n == 1


def test_accuracy_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(7)
    covered = 0
    for simulation in range(400):
        hits = generator.random(150) < 0.8
        metric = accuracy(["a"] * 150, ["a" if hit else "b" for hit in hits], seed=simulation)
        covered += metric.low <= 0.8 <= metric.high
    # of 400 intervals at 95%, 363 to 396 hold the truth in 99.9% of runs; the percentile method is slightly short
    assert 0.905 <= covered / 400 <= 0.99


def test_macro_f1_interval_covers_the_truth_as_often_as_it_says() -> None:
    truth = macro_f1(*labels_with_noise(200_000, 3, 0.3, seed=11), resamples=1).value
    intervals = [macro_f1(*labels_with_noise(250, 3, 0.3, seed=100 + run), resamples=500) for run in range(300)]
    covered = sum(metric.low <= truth <= metric.high for metric in intervals)
    assert 0.9 <= covered / 300 <= 0.99


@pytest.mark.parametrize(
    "score",
    [
        lambda seed: accuracy(*labels_with_noise(211, 3, 0.3, seed=2), seed=seed),
        lambda seed: macro_f1(*labels_with_noise(211, 3, 0.3, seed=2), seed=seed),
        lambda seed: bleu(REFERENCES, OUTPUTS, seed=seed, resamples=101),
        lambda seed: rouge_l(REFERENCES, OUTPUTS, seed=seed, resamples=101),
        lambda seed: paired_bootstrap([0.1, 0.7, 0.4, 1.3], [0.3, 0.2, 0.1, 0.0], seed=seed, resamples=101),
    ],
    ids=["accuracy", "macro_f1", "bleu", "rouge_l", "paired"],
)
def test_a_seed_fixes_the_numbers(score: Callable[[int], object]) -> None:
    assert score(4) == score(4)
    assert len({repr(score(seed)) for seed in range(5)}) > 1


def test_paired_bootstrap_sees_a_difference_that_unpaired_intervals_hide() -> None:
    generator = np.random.default_rng(0)
    hard = generator.random(400) * 3
    a, b = hard + 0.05 + generator.normal(0, 0.1, 400), hard
    result = paired_bootstrap(a.tolist(), b.tolist())
    assert result.difference == pytest.approx(float(np.mean(a) - np.mean(b)))
    assert 0 < result.low < result.difference < result.high
    standard_error = float(np.std(a - b)) / 20
    assert (result.high - result.low) / 2 == pytest.approx(1.96 * standard_error, rel=0.05)
    assert result.p_value == pytest.approx(2 / 10001)
    assert result.n == 400
    swapped = paired_bootstrap(b.tolist(), a.tolist())
    assert swapped.difference == pytest.approx(-result.difference)
    assert swapped.p_value == result.p_value


def test_paired_bootstrap_of_equal_scores_finds_nothing() -> None:
    result = paired_bootstrap([1, 0, 1], [1, 0, 1])
    assert result.model_dump() == {"difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0, "n": 3}
    # differences that cancel only up to rounding are no evidence either
    assert paired_bootstrap([0.3, 0.0], [0.2, 0.1]).p_value == 1.0


def test_paired_bootstrap_raises_false_alarms_at_the_rate_it_says() -> None:
    generator = np.random.default_rng(3)
    alarms = 0
    for simulation in range(400):
        a, b = (generator.random((2, 120)) < 0.7).astype(float)
        alarms += paired_bootstrap(a.tolist(), b.tolist(), resamples=1000, seed=simulation).p_value < 0.05
    assert 0.015 <= alarms / 400 <= 0.095


def test_calibration_error_by_hand() -> None:
    # bins of a half: {0.5, 0.1} with mean 0.3 and accuracy 0.5, {0.9, 0.7} with mean 0.8 and accuracy 1
    assert expected_calibration_error([0.5, 0.1, 0.9, 0.7], [True, False, True, True], bins=2) == pytest.approx(0.2)
    assert expected_calibration_error([1.0] * 4, [True] * 4) == 0
    assert expected_calibration_error([1.0, 0.0], [False, True]) == 1
    assert expected_calibration_error([1.0000001], [True]) == pytest.approx(0, abs=1e-6)


def test_calibration_error_is_small_when_confidences_are_true_and_large_when_not() -> None:
    generator = np.random.default_rng(0)
    confidences = generator.random(20000)
    correct = generator.random(20000) < confidences
    assert expected_calibration_error(confidences.tolist(), correct.tolist()) < 0.02
    assert expected_calibration_error((confidences**3).tolist(), correct.tolist()) > 0.2


def test_a_metric_prints_and_serialises() -> None:
    metric = Score(metric="accuracy", value=0.92102, low=0.908, high=0.93449, n=1821)
    assert str(metric) == "accuracy 0.921 [0.908, 0.934] n=1821"
    assert metric.model_dump() == {"metric": "accuracy", "value": 0.92102, "low": 0.908, "high": 0.93449, "n": 1821}
    assert str(Score(metric="bleu", value=27.43, low=26.91, high=28, n=630)) == "bleu 27.4 [26.9, 28.0] n=630"


@pytest.mark.parametrize("score", [accuracy, macro_f1, exact_match, bleu, rouge_l])
def test_no_examples_is_an_error(score: Callable[..., Score]) -> None:
    with pytest.raises(DataError, match=r"expected at least one example to score, got no .*: check the split"):
        score([], [])


@pytest.mark.parametrize("score", [accuracy, macro_f1])
def test_lengths_that_differ_are_an_error(score: Callable[..., Score]) -> None:
    with pytest.raises(DataError, match="expected as many predictions as gold labels, got 1 and 2: pass one for each"):
        score(["a", "b"], ["a"])


@pytest.mark.parametrize("score", [exact_match, bleu, rouge_l])
@pytest.mark.parametrize(("row", "got"), [([], "none"), ("ab", "a string")])
def test_references_that_are_no_list_are_an_error(score: Callable[..., Score], row: list[str] | str, got: str) -> None:
    with pytest.raises(DataError, match=f"expected a list of references for example 1, got {got}: give at least one"):
        score([["a"], row], ["a", "b"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: accuracy(["a"], ["a"], resamples=0), "expected at least 1 resample, got 0"),
        (lambda: paired_bootstrap([], []), "expected at least one example to score"),
        (lambda: paired_bootstrap([1.0], []), "expected as many scores of B as scores of A, got 0 and 1"),
        (lambda: paired_bootstrap([float("nan")], [1.0]), "expected finite scores, got NaN or infinity"),
        (lambda: expected_calibration_error([], []), "expected at least one example to score"),
        (lambda: expected_calibration_error([0.5], [True], bins=0), "expected at least 1 bin, got 0"),
        (lambda: expected_calibration_error([1.5], [True]), "expected confidences between 0 and 1, got 1.5"),
        (lambda: expected_calibration_error([float("nan")], [True]), "expected confidences between 0 and 1, got nan"),
    ],
)
def test_arguments_that_make_no_sense_are_errors(call: Callable[[], object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        call()
