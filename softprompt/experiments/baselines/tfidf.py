"""TF-IDF and logistic regression: words and pairs of words, weighted by how rare they are. No language model at all.

What the template takes from the data is read, its own words are not. Sparck Jones 1972, Salton and Buckley 1988.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from softprompt.data.examples import Example
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import DataError
from softprompt.experiments.baselines.fitted_baseline import (
    VALIDATION_LIMIT,
    FittedBaseline,
    check_classification,
    describe_baseline,
    extra_module,
)
from softprompt.experiments.baselines.linear_head import LinearAnswers, LinearHead, fit_head
from softprompt.training.validation import validation_examples
from softprompt.utils.files import check_free, write_folder
from softprompt.utils.sealed_tensors import seal_tensors

STRENGTHS = (0.1, 1.0, 10.0, 100.0)
MOST_TERMS = 100_000  # the most frequent words and pairs
_TENSORS, _FACTS = "tfidf.safetensors", "tfidf.json"


def fit_tfidf(task: Task, seed: int = 0) -> FittedBaseline:
    """Fit on the training examples.

    Args:
        seed: for the sake of being called like other methods; the fit does not depend on it.

    Raises:
        ConfigError: a generation task.
        DataError: no training or validation examples, examples of one label only, or texts without words.
        MissingExtraError: scikit-learn is not installed.
    """
    began = time.perf_counter()
    spec = task.spec
    check_classification(spec, "TF-IDF")
    vectorizer = make_vectorizer(ngram_range=(1, 2), max_features=MOST_TERMS)
    features = fit_words(vectorizer, task, task.train)
    validation = validation_examples(task, VALIDATION_LIMIT)
    of_validation = vectorizer.transform(extract_words(spec, validation))
    choice = fit_head(spec, features, task.train, of_validation, validation, STRENGTHS, seed)
    answers = make_tfidf_answers(spec, vectorizer, choice.head)

    def save(folder: Path) -> None:
        check_free(folder)
        tensors = {"weight": choice.head.weight, "bias": choice.head.bias, "idf": torch.from_numpy(vectorizer.idf_)}
        facts = describe_baseline(None, spec, terms=vectorizer.get_feature_names_out().tolist())
        write_folder(folder, {_TENSORS: seal_tensors(tensors, {}), _FACTS: facts})

    terms = sum(len(term.encode()) for term in vectorizer.vocabulary_)
    weights = choice.head.weight
    return FittedBaseline(
        answers=answers,
        trained_parameters=weights.numel() + len(choice.head.bias),
        best_value=choice.value,
        best_loss=choice.loss,
        seconds=time.perf_counter() - began,
        added_tokens=0.0,
        base_bytes=0,
        base_shared=True,
        task_bytes=weights.nbytes + vectorizer.idf_.nbytes + terms,
        save=save,
        settings={"C": choice.strength, "terms": weights.shape[1], "seed": seed},
    )


def make_tfidf_answers(spec: TaskSpec, vectorizer: Any, head: LinearHead) -> LinearAnswers:
    """Labels by the words of the text."""
    return LinearAnswers(spec, lambda examples: vectorizer.transform(extract_words(spec, examples)), head)


def make_vectorizer(**options: Any) -> Any:
    """scikit-learn's, for words of one letter too; a word's tenth occurrence counts less than its first."""
    return extra_module("sklearn.feature_extraction.text").TfidfVectorizer(
        sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", **options
    )


def fit_words(vectorizer: Any, task: Task, examples: Sequence[Example]) -> Any:
    """Features ``[examples, F]``, sparse; raises DataError if there is no word in any of the examples."""
    words = extract_words(task.spec, examples)
    try:
        return vectorizer.fit_transform(words)
    except ValueError as error:
        raise DataError(
            f"{task.splits.source}: expected words in the training texts, got none ({error}): TF-IDF needs words"
        ) from error


def extract_words(spec: TaskSpec, examples: Sequence[Example]) -> list[str]:
    """What the template takes from each example."""
    return ["\n".join(spec.compiled.fields(example)) for example in examples]
