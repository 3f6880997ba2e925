"""Scores with 95% intervals, as pure functions of what was expected and what was predicted.

Every interval is a percentile bootstrap over examples (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
chapter 13): the statistic is computed anew on each resample, and the 2.5% and 97.5% quantiles are reported. Two of its
limits to know when reading one: when all examples score alike (all right, all wrong, or n = 1) it has no width, and for
a statistic that is not a mean (macro-F1, BLEU) it need not be centred on the value.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softprompt.errors import DataError

Floats = NDArray[np.float64]

QUANTILES = (0.025, 0.975)
OUT_OF_100 = frozenset({"bleu", "rouge_l"})
_CELLS_AT_ONCE = 2**22  # resamples times distinct rows that are drawn in one go: 32 MiB


def digits_of(name: str) -> int:
    """How many digits behind the point the scale of a metric deserves."""
    return 1 if name in OUT_OF_100 else 3


@dataclass(frozen=True, slots=True)
class Metric:
    """One score: ``value`` and its 95% interval ``low`` to ``high``, over ``n`` examples.

    Accuracy, macro-F1 and exact match lie in 0..1, BLEU and ROUGE-L in 0..100.
    """

    name: str
    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, str | float | int]:
        """The JSON object that ``softprompt eval --json`` prints."""
        return {"metric": self.name, "value": self.value, "low": self.low, "high": self.high, "n": self.n}

    def __str__(self) -> str:
        digits = digits_of(self.name)
        return f"{self.name} {self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}] n={self.n}"


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of A minus mean of B on the same ``n`` examples, its 95% interval, and a two-sided ``p_value``."""

    difference: float
    low: float
    high: float
    p_value: float
    n: int

    def to_dict(self) -> dict[str, float | int]:
        """The fields by name, ready for JSON."""
        return asdict(self)


def mean_metric(name: str, scores: Sequence[float], resamples: int = 2000, seed: int = 0) -> Metric:
    """The mean over examples of any score, with its interval; DataError without examples."""
    _check_lengths(scores, scores, "scores")
    values, counts = np.unique(np.asarray(scores, dtype=np.float64), return_counts=True)
    n = len(scores)
    return _metric(name, lambda weights: weights @ values / n, counts, resamples, seed)


def accuracy(gold: Sequence[str], predicted: Sequence[str], *, resamples: int = 2000, seed: int = 0) -> Metric:
    """Share of examples whose predicted label is the gold one, 0..1.

    Raises:
        DataError: no examples, or not as many predictions as gold labels.
    """
    _check_lengths(gold, predicted, "gold labels")
    return mean_metric("accuracy", [float(a == b) for a, b in zip(gold, predicted, strict=True)], resamples, seed)


def macro_f1(
    gold: Sequence[str],
    predicted: Sequence[str],
    labels: Sequence[str] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Metric:
    """Unweighted mean of the classes' F1, 0..1, as scikit-learn's ``f1_score(average="macro", zero_division=0)``.

    Without ``labels`` the mean is over the classes that occur in ``gold`` or ``predicted``; with them, over exactly
    those, and one that never occurs counts as 0. The same rule holds in every resample.

    Raises:
        DataError: no examples, not as many predictions as gold labels, or ``labels`` empty or with repeats.
    """
    _check_lengths(gold, predicted, "gold labels")
    if labels is not None and (len(set(labels)) < max(1, len(labels))):
        raise DataError(
            f"expected labels that are given once each, at least one, got {list(labels)}: pass None for all"
        )
    classes = sorted({*gold, *predicted}) if labels is None else list(labels)
    positions = {name: position for position, name in enumerate(classes)}
    elsewhere = len(classes)  # labels that do not count; only present when the caller chose the classes
    pairs = np.array(
        [[positions.get(a, elsewhere), positions.get(b, elsewhere)] for a, b in zip(gold, predicted, strict=True)]
    )
    cells, counts = np.unique(pairs, axis=0, return_counts=True)
    one_hot = np.eye(len(classes) + 1)[:, :-1]
    in_gold, in_predicted = one_hot[cells[:, 0]], one_hot[cells[:, 1]]

    def statistic(weights: Floats) -> Floats:
        """``[R, cells]`` counts to ``[R]`` macro-F1; F1 is 2 TP / (gold + predicted)."""
        support = weights @ (in_gold + in_predicted)
        present = support > 0
        f1 = 2 * (weights @ (in_gold * in_predicted)) / np.where(present, support, 1)
        over = np.full(len(f1), len(classes)) if labels is not None else present.sum(axis=1)
        means: Floats = f1.sum(axis=1) / np.maximum(over, 1)
        return means

    return _metric("macro_f1", statistic, counts, resamples, seed)


def exact_match(
    references: Sequence[Sequence[str]], predicted: Sequence[str], *, resamples: int = 2000, seed: int = 0
) -> Metric:
    """Share of outputs that equal one of their references, 0..1; white space at both ends does not count.

    Raises:
        DataError: no examples, not as many predictions as rows of references, or a row without references.
    """
    _check_references(references, predicted)
    hits = [
        float(output.strip() in {reference.strip() for reference in row})
        for row, output in zip(references, predicted, strict=True)
    ]
    return mean_metric("exact_match", hits, resamples, seed)


def bleu(
    references: Sequence[Sequence[str]], predicted: Sequence[str], *, resamples: int = 2000, seed: int = 0
) -> Metric:
    """Corpus BLEU, 0..100, with sacrebleu's defaults (13a tokens, 4-grams, exponential smoothing).

    Rows may have different numbers of references. sacrebleu counts the n-grams of each row once; a resample adds up
    rows' counts (Koehn, "Statistical Significance Tests for Machine Translation Evaluation", 2004), so the value is
    sacrebleu's own ``corpus_score`` and the interval needs no second pass over the text.

    Raises:
        DataError: no examples, not as many predictions as rows of references, or a row without references.
    """
    counts = bleu_counts(references, predicted)
    distinct, repeats = np.unique(counts, axis=0, return_counts=True)
    return _metric("bleu", lambda weights: bleu_of_counts(weights @ distinct), repeats, resamples, seed)


def bleu_counts(references: Sequence[Sequence[str]], predicted: Sequence[str]) -> Floats:
    """What sacrebleu counts in each of ``n`` rows, ``[n, K]``: two lengths, then matches and totals by n-gram order.

    Raises:
        DataError: as ``bleu``.
    """
    _check_references(references, predicted)
    scorer = _bleu_scorer()
    scores = [scorer.sentence_score(output, list(row)) for row, output in zip(references, predicted, strict=True)]
    return np.array([[one.sys_len, one.ref_len, *one.counts, *one.totals] for one in scores], dtype=np.float64)


def bleu_of_counts(sums: Floats) -> Floats:
    """Corpus BLEU ``[R]``, 0..100, of rows whose counts add up to ``sums [R, K]``."""
    scorer = _bleu_scorer()
    order: int = scorer.max_ngram_order
    return np.array(
        [
            scorer.compute_bleu(
                correct=[int(count) for count in row[2 : 2 + order]],
                total=[int(count) for count in row[2 + order :]],
                sys_len=int(row[0]),
                ref_len=int(row[1]),
                smooth_method=scorer.smooth_method,
            ).score
            for row in sums.astype(np.int64)
        ],
        dtype=np.float64,
    )


def rouge_l(
    references: Sequence[Sequence[str]], predicted: Sequence[str], *, resamples: int = 2000, seed: int = 0
) -> Metric:
    """ROUGE-L F-measure by rouge-score with stemming, the best reference of each row, mean over rows, 0..100.

    rouge-score keeps only ASCII letters and digits, so the score says nothing about text in other scripts.

    Raises:
        DataError: no examples, not as many predictions as rows of references, or a row without references.
    """
    _check_references(references, predicted)
    scorer = import_module("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=True)
    scores = [
        100.0 * float(scorer.score_multi(list(row), output)["rougeL"].fmeasure)
        for row, output in zip(references, predicted, strict=True)
    ]
    return mean_metric("rouge_l", scores, resamples, seed)


def chrf_of_each(references: Sequence[Sequence[str]], predicted: Sequence[str]) -> list[float]:
    """chrF of each output by sacrebleu's defaults, 0..100: character 6-grams, hence for text in any script.

    Raises:
        DataError: as ``bleu``.
    """
    _check_references(references, predicted)
    scorer = import_module("sacrebleu.metrics").CHRF()
    return [
        float(scorer.sentence_score(output, list(row)).score) for row, output in zip(references, predicted, strict=True)
    ]


def paired_bootstrap(
    scores_a: Sequence[float], scores_b: Sequence[float], *, resamples: int = 10000, seed: int = 0
) -> PairedDifference:
    """Does A score higher than B on the same examples? Position ``i`` of both is the score on example ``i``.

    The p-value inverts the percentile interval: twice the smaller share of resamples on one side of zero, with one
    added to count and total so that it is never 0.

    Raises:
        DataError: no examples, not as many scores in A as in B, or a score that is not finite.
    """
    _check_lengths(scores_a, scores_b, "scores of A", "scores of B")
    differences = np.asarray(scores_a, dtype=np.float64) - np.asarray(scores_b, dtype=np.float64)
    if not np.isfinite(differences).all():
        raise DataError(
            "expected finite scores, got NaN or infinity: leave out the examples that have no score, in A and B"
        )
    n = len(differences)
    values, counts = np.unique(differences, return_counts=True)
    sums = np.concatenate([weights @ values for weights in drawn(counts, resamples, seed)])
    # sums that cancel in exact arithmetic leave rounding dust, which must not count as a side
    sums[np.abs(sums) <= 1e-12 * n * np.abs(values).max()] = 0.0
    return difference_of(float(differences.mean()), sums / n, n)


def difference_of(difference: float, resampled: Floats, n: int) -> PairedDifference:
    """``difference`` over ``n`` examples, with the interval and p-value that its values ``[R]`` in resamples give."""
    tail = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    low, high = np.quantile(resampled, QUANTILES)
    p_value = min(1.0, 2 * (tail + 1) / (len(resampled) + 1))
    return PairedDifference(difference, float(low), float(high), p_value, n)


def expected_calibration_error(confidences: Sequence[float], correct: Sequence[bool], bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equally wide bins, weighted by their examples; 0..1.

    After Guo et al., "On Calibration of Modern Neural Networks", 2017, equation 3; bins are open on the left.

    Raises:
        DataError: no examples, not as many outcomes as confidences, a confidence outside 0..1, or ``bins`` below 1.
    """
    return float(np.abs(_calibration_gaps(confidences, correct, bins).sum(axis=0)).sum() / len(confidences))


def calibration_error(
    confidences: Sequence[float], correct: Sequence[bool], bins: int = 15, *, resamples: int = 2000, seed: int = 0
) -> Metric:
    """``expected_calibration_error`` with its interval; resamples lie higher, as small samples do.

    Raises:
        DataError: as ``expected_calibration_error``.
    """
    gaps = _calibration_gaps(confidences, correct, bins)
    n = len(gaps)
    return _metric(
        "calibration_error",
        lambda weights: np.abs(weights @ gaps).sum(axis=1) / n,
        np.ones(n, dtype=np.int64),
        resamples,
        seed,
    )


def _calibration_gaps(confidences: Sequence[float], correct: Sequence[bool], bins: int) -> Floats:
    """``[n, bins]``: of each example, outcome minus confidence, in the column of its bin."""
    _check_lengths(confidences, correct, "confidences", "outcomes")
    if bins < 1:
        raise DataError(f"expected at least 1 bin, got {bins}: the usual number is 15")
    confidence = np.asarray(confidences, dtype=np.float64)
    # a softmax in float32 may end a rounding error above 1
    outside = confidence[~((confidence >= 0) & (confidence <= 1 + 1e-5))]
    if outside.size:
        raise DataError(f"expected confidences between 0 and 1, got {outside[0]}: pass probabilities, not logits")
    edges = np.linspace(0, 1, bins + 1)
    gaps = np.zeros((len(confidence), bins))
    index = np.searchsorted(edges[1:-1], confidence, side="left")
    gaps[np.arange(len(confidence)), index] = np.asarray(correct, dtype=np.float64) - confidence
    return gaps


def _metric(
    name: str, statistic: Callable[[Floats], Floats], counts: NDArray[np.int64], resamples: int, seed: int
) -> Metric:
    """Score the data and its resamples.

    ``counts[k]`` examples share the distinct row ``k``; ``statistic`` maps ``[R, K]`` such counts to ``[R]`` values.
    """
    value = float(statistic(counts[None].astype(np.float64))[0])
    samples = np.concatenate([statistic(weights) for weights in drawn(counts, resamples, seed)])
    low, high = np.quantile(samples, QUANTILES)
    return Metric(name, value, float(low), float(high), int(counts.sum()))


def drawn(counts: NDArray[np.int64], resamples: int, seed: int) -> Iterator[Floats]:
    """How often each of ``K`` distinct rows occurs in each resample: chunks of ``[R, K]`` that add up to ``resamples``.

    Drawing ``n`` examples with replacement is one multinomial draw over the distinct rows, which are few for labels.
    """
    if resamples < 1:
        raise DataError(f"expected at least 1 resample, got {resamples}: the usual number is 2000")
    generator = np.random.default_rng(seed)
    n = int(counts.sum())
    chunk = max(1, _CELLS_AT_ONCE // len(counts))
    for start in range(0, resamples, chunk):
        drawn = generator.multinomial(n, counts / n, size=min(chunk, resamples - start))
        yield drawn.astype(np.float64)


def _bleu_scorer() -> Any:
    # effective_order concerns the single rows' scores, which are not used, and keeps sacrebleu from warning about them
    return import_module("sacrebleu.metrics").BLEU(effective_order=True)


def _check_lengths(expected: Sequence[object], got: Sequence[object], left: str, right: str = "predictions") -> None:
    if len(expected) != len(got):
        raise DataError(
            f"expected as many {right} as {left}, got {len(got)} and {len(expected)}: pass one for each example"
        )
    if len(expected) == 0:
        raise DataError(f"expected at least one example to score, got no {left}: check the split and its filters")


def _check_references(references: Sequence[Sequence[str]], predicted: Sequence[str]) -> None:
    _check_lengths(references, predicted, "rows of references")
    for position, row in enumerate(references):
        if isinstance(row, str) or not row:
            got = "a string" if isinstance(row, str) else "none"
            raise DataError(
                f"expected a list of references for example {position}, got {got}: give at least one, in a list"
            )
