"""The metrics that answers are judged by. To add one, define it here: all that knows metrics asks ``METRICS``.

Each is given by what it keeps of an example (``rows``) and by what it makes of examples drawn any number of times
(``value``), so that the value itself, every resample and every paired comparison come from the same code. What a row
of text keeps are counts that add up (Koehn, "Statistical Significance Tests for Machine Translation Evaluation", 2004).
Shapes: ``n`` examples, ``D`` rows that differ, ``k`` numbers kept of each, ``R`` resamples.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from softprompt.config import TaskKind
from softprompt.errors import ConfigError, DataError
from softprompt.metrics.bootstrap import Floats, RunScores, bootstrap_score, check_lengths, draw_resamples
from softprompt.metrics.scores import FORMATS, MetricFormat, Score
from softprompt.metrics.text_tokenization import choose_bleu_tokenizer, median_word_count, split_words

IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")  # of a user's function
NEGATIVE_LOSS = "negative_loss"  # what generation is judged by where completions would be too costly
SHORT = 4  # words of a reference (median), below which answers are right or wrong as a whole

Gold = Sequence[Any]  # of each example its label, or its references


@dataclass(frozen=True)
class Metric:
    """One metric; higher is better. Calling it scores predictions, with an interval.

    Attributes:
        name: as options, records and JSON spell it.
        kind: of task that it is for; ``None``: of either kind.
        heading: as people read it.
        limits: the least and the greatest value.
        rows: of gold and predictions what is kept ``[n, k]``.
        value: of how often each row was drawn ``[R, D]`` and the rows ``[D, k]`` the values ``[R]``.
        score_each: the score of every example by itself, where that is not ``rows``.
        digits: behind the point, that the scale deserves.
        is_binary: whether the score of an example is 1, right, or 0, wrong.
        is_mean: whether the value is the mean of the scores of the examples.
    """

    name: str
    kind: TaskKind | None
    heading: str
    limits: tuple[float, float]
    rows: Callable[[Gold, Sequence[str]], Floats]
    value: Callable[[Floats, Floats], Floats]
    score_each: Callable[[Gold, Sequence[str]], list[float]]
    digits: int = 3
    is_binary: bool = False
    is_mean: bool = False

    def __call__(self, gold: Gold, predicted: Sequence[str], *, resamples: int = 2000, seed: int = 0) -> Score:
        """The score over all examples.

        Raises:
            DataError: no examples, not as many predictions as rows of gold, or a row without references.
        """
        distinct, counts = np.unique(self.compute_rows(gold, predicted), axis=0, return_counts=True)
        found = bootstrap_score(self.name, lambda weights: self.value(weights, distinct), counts, resamples, seed)
        return found.model_copy(update={"format": self.format}) if self.kind is None else found

    @property
    def format(self) -> MetricFormat:
        """How its values are shown."""
        low, high = (limit if math.isfinite(limit) else None for limit in self.limits)
        return MetricFormat(heading=self.heading[:100], low=low, high=high, digits=min(self.digits, 12))

    def compute(self, gold: Gold, predicted: Sequence[str]) -> float:
        """The score alone."""
        rows = self.compute_rows(gold, predicted)
        return float(self.value(np.ones((1, len(rows))), rows)[0])

    def standard_error(self, gold: Gold, predicted: Sequence[str], value: float) -> float:
        """Of the score ``value``: how far it moves by chance, by few resamples; exact for a share."""
        if self.is_binary and self.is_mean:
            return math.sqrt(value * (1 - value) / len(gold))
        distinct, counts = np.unique(self.compute_rows(gold, predicted), axis=0, return_counts=True)
        return float(
            np.concatenate([self.value(weights, distinct) for weights in draw_resamples(counts, 200, 0)]).std()
        )

    def compute_rows(self, gold: Gold, predicted: Sequence[str]) -> Floats:
        """``rows``, if they can be made; raises as a call."""
        check_lengths(gold, predicted, "rows of references" if self.kind == "generation" else "gold labels")
        for position, row in enumerate(gold if self.kind == "generation" else ()):
            if isinstance(row, str) or not row:
                got = "a string" if isinstance(row, str) else "none"
                raise DataError(
                    f"expected a list of references for example {position}, got {got}: give at least one, in a list"
                )
        return self.rows(gold, predicted)

    @property
    def note(self) -> str:
        """Why the references chose it, for the user to know."""
        short = "shorter" if self is exact_match else "no shorter"
        others = ", ".join(one.name for one in METRICS.values() if one.kind == self.kind)
        return (
            f"judged by {self.heading}, because most references are {short} than {SHORT} words; --metric NAME judges "
            f"by another: {others}"
        )


def mean_metric(
    name: str,
    kind: TaskKind | None,
    heading: str,
    score_each: Callable[[Gold, Sequence[str]], list[float]],
    limits: tuple[float, float] = (0.0, 1.0),
    digits: int = 3,
    is_binary: bool = False,
) -> Metric:
    """A metric that is the mean of what ``score_each`` gives for every example."""

    def rows(gold: Gold, predicted: Sequence[str]) -> Floats:
        return np.array(score_each(gold, predicted), dtype=np.float64)[:, None]

    def value(weights: Floats, rows: Floats) -> Floats:
        means: Floats = weights @ rows[:, 0] / weights.sum(axis=1)
        return means

    return Metric(name, kind, heading, limits, rows, value, score_each, digits, is_binary, is_mean=True)


def _right(gold: Gold, predicted: Sequence[str]) -> list[float]:
    return [float(a == b) for a, b in zip(gold, predicted, strict=True)]


def _label_pairs(gold: Gold, predicted: Sequence[str]) -> Floats:
    place = {name: index for index, name in enumerate(sorted({*gold, *predicted}))}
    return np.array([[place[a], place[b]] for a, b in zip(gold, predicted, strict=True)], dtype=np.float64)


def _macro_f1(weights: Floats, pairs: Floats) -> Floats:
    """F1 of a class is 2 TP / (gold + predicted); the mean is over the classes that occur in either."""
    places = pairs.astype(np.int64)
    in_gold, in_predicted = (np.zeros((len(places), int(places.max()) + 1)) for _ in range(2))
    in_gold[np.arange(len(places)), places[:, 0]] = 1
    in_predicted[np.arange(len(places)), places[:, 1]] = 1
    support = weights @ (in_gold + in_predicted)
    present = support > 0
    f1 = 2 * (weights @ (in_gold * in_predicted)) / np.where(present, support, 1)
    means: Floats = f1.sum(axis=1) / np.maximum(present.sum(axis=1), 1)
    return means


def _exact(references: Gold, predicted: Sequence[str]) -> list[float]:
    return [
        float(output.strip() in {reference.strip() for reference in row})
        for row, output in zip(references, predicted, strict=True)
    ]


def _token_f1(references: Gold, predicted: Sequence[str]) -> list[float]:
    return [
        max(_f1_of_words(split_words(reference), split_words(output)) for reference in row)
        for row, output in zip(references, predicted, strict=True)
    ]


def _f1_of_words(reference: Sequence[str], output: Sequence[str]) -> float:
    shared = (Counter(reference) & Counter(output)).total()
    return 2 * shared / (len(reference) + len(output)) if shared else 0.0


def _chrf_counts(references: Gold, predicted: Sequence[str]) -> Floats:
    """By order of character n-grams: those of the output, of its best reference, and of both ``[n, 18]``."""
    scorer = import_module("sacrebleu.metrics").CHRF()
    # sacrebleu's own statistics of a segment, which its corpus score adds up
    rows = [
        scorer._extract_corpus_statistics([output], [[reference] for reference in row])[0]
        for row, output in zip(references, predicted, strict=True)
    ]
    return np.array(rows, dtype=np.float64)


def _chrf(weights: Floats, rows: Floats) -> Floats:
    """Recall counts twice; orders that neither side is long enough for do not count."""
    in_output, in_reference, in_both = np.moveaxis((weights @ rows).reshape(len(weights), -1, 3), 2, 0)
    counted = (in_output > 0) & (in_reference > 0)
    orders = np.maximum(counted.sum(axis=1), 1)
    precision = np.where(counted, in_both / np.maximum(in_output, 1), 0).sum(axis=1) / orders
    recall = np.where(counted, in_both / np.maximum(in_reference, 1), 0).sum(axis=1) / orders
    below = 4 * precision + recall
    score: Floats = 100 * 5 * precision * recall / np.where(below > 0, below, 1)
    return score


def _chrf_of_each(references: Gold, predicted: Sequence[str]) -> list[float]:
    rows = _chrf_counts(references, predicted)
    return [float(one) for one in _chrf(np.eye(len(rows)), rows)]


def _bleu_counts(references: Gold, predicted: Sequence[str]) -> Floats:
    """What sacrebleu counts in each row ``[n, k]``: two lengths, then matches and totals by n-gram order."""
    scorer = _bleu_scorer(choose_bleu_tokenizer(references))
    scores = [scorer.sentence_score(output, list(row)) for row, output in zip(references, predicted, strict=True)]
    return np.array([[one.sys_len, one.ref_len, *one.counts, *one.totals] for one in scores], dtype=np.float64)


def _bleu(weights: Floats, rows: Floats) -> Floats:
    scorer = _bleu_scorer("13a")  # text is counted already
    order: int = scorer.max_ngram_order
    return np.array(
        [
            scorer.compute_bleu(
                correct=[int(count) for count in row[2 : 2 + order]],
                total=[int(count) for count in row[2 + order :]],
                sys_len=int(row[0]),
                ref_len=int(row[1]),
                smooth_method=scorer.smooth_method,
                effective_order=scorer.effective_order,
            ).score
            for row in (weights @ rows).astype(np.int64)
        ],
        dtype=np.float64,
    )


def _bleu_of_each(references: Gold, predicted: Sequence[str]) -> list[float]:
    rows = _bleu_counts(references, predicted)
    return [float(one) for one in _bleu(np.eye(len(rows)), rows)]


@cache
def _bleu_scorer(tokenizer: str) -> Any:
    # effective order: outputs too short for four words in a row are judged by the orders that there are
    return import_module("sacrebleu.metrics").BLEU(effective_order=True, tokenize=tokenizer)


class _StemmedWords:
    """rouge-score's own words for ASCII text (lower case, Porter's stems from four letters on), ours for other."""

    def __init__(self) -> None:
        self._stem = import_module("nltk.stem.porter").PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        return [self._stem(word) if len(word) > 3 and word.isascii() else word for word in split_words(text)]


@cache
def _rouge_scorer() -> Any:
    return import_module("rouge_score.rouge_scorer").RougeScorer(["rougeL"], tokenizer=_StemmedWords())


def _rouge_l(references: Gold, predicted: Sequence[str]) -> list[float]:
    return [
        100.0 * float(_rouge_scorer().score_multi(list(row), output)["rougeL"].fmeasure)
        for row, output in zip(references, predicted, strict=True)
    ]


_SHARE, _POINTS = (0.0, 1.0), (0.0, 100.0)

accuracy = mean_metric("accuracy", "classification", "Accuracy", _right, is_binary=True)
macro_f1 = Metric("macro_f1", "classification", "Macro-F1", _SHARE, _label_pairs, _macro_f1, _right, is_binary=True)
exact_match = mean_metric("exact_match", "generation", "Exact match", _exact, is_binary=True)
token_f1 = mean_metric("token_f1", "generation", "Token F1", _token_f1)
chrf = Metric("chrf", "generation", "chrF", _POINTS, _chrf_counts, _chrf, _chrf_of_each, digits=1)
bleu = Metric("bleu", "generation", "BLEU", _POINTS, _bleu_counts, _bleu, _bleu_of_each, digits=1)
rouge_l = mean_metric("rouge_l", "generation", "ROUGE-L", _rouge_l, _POINTS, digits=1)

METRICS = {one.name: one for one in (accuracy, macro_f1, exact_match, token_f1, chrf, bleu, rouge_l)}


def metrics_of_kind(kind: TaskKind) -> list[Metric]:
    """The built-in ones that tasks of this kind are judged by."""
    return [one for one in METRICS.values() if one.kind == kind]


def choose_metric(kind: TaskKind, name: str | None = None, references: Gold = ()) -> Metric:
    """The metric called ``name``; without a name the one that suits: accuracy, or what ``references`` ask for.

    Short references are matched exactly or not; longer ones are compared by chrF, which needs no words, hence is for
    text in any script, and has a value for a single example too.

    Raises:
        ConfigError: no metric of this name, one for tasks of the other kind, or a function that nobody asked for here.
    """
    if name is not None:
        check_metric_name(kind, name)
        if name not in METRICS:
            raise ConfigError(
                f"metric '{name}' is a function of its maker's own, which is imported only where you name it: give "
                f"--metric {name} if you trust it, or another metric"
            )
        return METRICS[name]
    if kind == "classification":
        return accuracy
    return exact_match if references and median_word_count(row[0] for row in references) < SHORT else chrf


def check_metric_name(kind: TaskKind, name: str) -> None:
    """Raise ConfigError for what is neither a metric of this kind of task, nor written as a function's import path."""
    known = [one.name for one in metrics_of_kind(kind)]
    if name not in known and not IMPORT_PATH.fullmatch(name):
        raise ConfigError(
            f"metric '{name}': expected one for {kind}: {', '.join(known)}, or a function of yours: package.module:name"
        )


def score_runs(metric: str, gold: Sequence[Any], runs: Sequence[Sequence[str]]) -> RunScores:
    """``runs``: the label or completion that each seed gave, in the order of ``gold``, labels or references."""
    known = METRICS[metric]
    return RunScores(np.stack([known.compute_rows(gold, predicted) for predicted in runs]), known.value)


def metric_format(name: str) -> MetricFormat:
    """Of a metric, of a user's function that is not imported here, or of another figure, as a divergence."""
    if name in METRICS:
        return METRICS[name].format
    own = name.rpartition(":")[2].replace("_", " ")
    limits = {} if ":" in name else {"low": 0.0, "high": 1.0}
    return FORMATS.get(name, MetricFormat(heading=(own[:1].upper() + own[1:])[:100], **limits))
