"""Intervals over seeds and examples, and paired differences, against known cases."""

import numpy as np
import pytest

from softprompt.metrics.bootstrap import (
    RunScores,
    bootstrap_interval,
    paired_bootstrap,
    paired_difference,
    resample_scores,
)
from softprompt.metrics.registry import accuracy, bleu, score_runs


def run(right: int, n: int) -> list[str]:
    """Predictions for gold labels that are all ``a``: the first ``right`` are so."""
    return ["a"] * right + ["b"] * (n - right)


def scores(*right: int, n: int = 100) -> RunScores:
    return score_runs("accuracy", ["a"] * n, [run(one, n) for one in right])


def test_one_seed_has_the_interval_of_its_metric_and_no_deviation() -> None:
    one = scores(80, n=200)
    found = bootstrap_interval(one, resample_scores({"m": one}, 20000)["m"])
    expected = accuracy(["a"] * 200, run(80, 200), resamples=20000)
    assert (found.mean, found.deviation) == (0.4, None)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.006)


def test_deviation_is_over_seeds() -> None:
    found = bootstrap_interval(scores(40, 60), resample_scores({"m": scores(40, 60)})["m"])
    assert found.mean == pytest.approx(0.5)
    assert found.deviation == pytest.approx(np.std([0.4, 0.6], ddof=1))


def test_seeds_that_disagree_wholly_leave_everything_open() -> None:
    one = scores(0, 100)
    found = bootstrap_interval(one, resample_scores({"m": one})["m"])
    assert (found.low, found.high) == (0, 1)


def test_interval_has_the_variance_of_examples_plus_that_of_seeds() -> None:
    generator = np.random.default_rng(0)
    right = generator.random((5, 400)) < generator.normal(0.7, 0.05, (5, 1))
    one = RunScores(right[:, :, None].astype(float), accuracy.value)
    values = resample_scores({"m": one}, 20000)["m"]
    means = one.means
    # both draws are with replacement and independent; of the examples, what seeds share adds to what each has alone
    shared = np.cov(right.astype(float)).mean() / 400
    alone = (means.var() + np.diag(np.cov(right.astype(float))).mean() / 400) / 5
    assert values.var() == pytest.approx(shared * 0.8 + alone, rel=0.15)


def test_paired_difference_of_single_seeds_is_the_paired_bootstrap() -> None:
    generator = np.random.default_rng(1)
    a, b = ((generator.random(300) < p).astype(float) for p in (0.8, 0.72))
    one, other = (RunScores(x[None, :, None], accuracy.value) for x in (a, b))
    values = resample_scores({"a": one, "b": other}, 20000)
    found, expected = paired_difference(one, other, values["a"], values["b"]), paired_bootstrap(list(a), list(b))
    assert found.difference == pytest.approx(expected.difference)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.008)
    assert found.p_value == pytest.approx(expected.p_value, abs=0.02)
    assert found.n == 300


def test_pairing_sees_a_small_difference_on_the_same_examples() -> None:
    one, other = scores(60), scores(54)
    values = resample_scores({"a": one, "b": other})
    # all of the difference comes from six examples: its interval is that of a share of 6 in 100
    found = paired_difference(one, other, values["a"], values["b"])
    assert found.difference == pytest.approx(0.06)
    assert 0.01 <= found.low < 0.06 < found.high <= 0.12
    own = bootstrap_interval(one, values["a"])
    assert own.high - own.low > 0.15


def test_method_against_its_like_has_no_difference() -> None:
    values = resample_scores({"a": scores(70), "b": scores(70)})
    found = paired_difference(scores(70), scores(70), values["a"], values["b"])
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_bleu_is_of_the_corpus_in_every_resample() -> None:
    references = [["the cat sat on the mat"], ["prices rose by 3.5% in May"], ["he walks to school every day"]] * 5
    outputs = ["the cat sat on a mat", "prices rose in May", "he walks to the school every day"] * 5
    one = score_runs("bleu", references, [outputs])
    expected = bleu(references, outputs, resamples=4000)
    found = bootstrap_interval(one, resample_scores({"m": one}, 4000)["m"])
    assert found.mean == pytest.approx(expected.value)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1)


def test_same_seed_gives_the_same_values() -> None:
    first, second = (resample_scores({"a": scores(3, 9, n=10)}, seed=4)["a"] for _ in range(2))
    assert (first == second).all()
    assert (resample_scores({"a": scores(3, 9, n=10)}, seed=5)["a"] != first).any()


def test_nothing_to_resample() -> None:
    assert resample_scores({}) == {}
