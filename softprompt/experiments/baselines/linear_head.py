"""Labels by logistic regression on features, by scikit-learn; how much it is held back is chosen on validation.

Shapes: ``N`` examples, ``F`` features, ``C`` labels.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.experiments.baselines.fitted_baseline import extra_module
from softprompt.inference.predictions import Prediction
from softprompt.inference.predictor import name_failing_example, predict_labels
from softprompt.inference.scoring import check_finite
from softprompt.training.validation import score_labels

_NEVER = -1e4  # score of a label that no training example has


@dataclass(frozen=True)
class LinearHead:
    """Features to label probabilities: the softmax of ``features @ weight.T + bias``.

    Attributes:
        weight: ``[C, F]``, float32.
        bias: ``[C]``, float32.
    """

    weight: Tensor
    bias: Tensor

    def log_probabilities(self, features: Any) -> Tensor:
        """``[N, C]`` of features ``[N, F]``, a NumPy array or a SciPy sparse matrix."""
        scores = torch.from_numpy(features @ self.weight.T.numpy()) + self.bias
        return scores.float().log_softmax(1)


@dataclass(frozen=True)
class LinearAnswers:
    """Labels by a linear classifier on features of the texts.

    Attributes:
        extract: examples to their features ``[N, F]``.
        encoder: what makes tokens of examples, where there is one.
    """

    spec: TaskSpec
    extract: Callable[[Sequence[Example]], Any]
    head: LinearHead
    encoder: ExampleEncoder | None = None

    @property
    def truncated(self) -> int:
        """Texts cut so far."""
        return 0 if self.encoder is None else self.encoder.truncated

    def label_log_probabilities(self, examples: Sequence[Example]) -> Tensor:
        """Log-probabilities ``[examples, C]`` of the labels."""
        if not examples:
            return torch.zeros(0, len(self.spec.labels))
        with name_failing_example(examples):
            return check_finite(self.head.log_probabilities(self.extract(examples)))

    def iterate_predictions(self, examples: Sequence[Example]) -> Iterator[Prediction]:
        """Predictions in the order of the examples."""
        return predict_labels(self.spec, self.label_log_probabilities(examples))


@dataclass(frozen=True)
class HeadChoice:
    """The head that does best on validation.

    Attributes:
        strength: ``C`` of scikit-learn, the inverse of the penalty on the weights.
        value, loss: accuracy and mean loss (nats) on validation.
    """

    head: LinearHead
    strength: float
    value: float
    loss: float


def fit_head(
    spec: TaskSpec,
    features: Any,
    examples: Sequence[Example],
    validation_features: Any,
    validation: Sequence[Example],
    strengths: Sequence[float],
    seed: int,
) -> HeadChoice:
    """Fit once for each of ``strengths`` and keep what does best on ``validation``.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    LogisticRegression = extra_module("sklearn.linear_model").LogisticRegression
    ConvergenceWarning = extra_module("sklearn.exceptions").ConvergenceWarning
    gold = [spec.label_index[str(example.label)] for example in examples]
    best: HeadChoice | None = None
    for strength in strengths:
        with warnings.catch_warnings():
            # what has not converged yet is a candidate like any other
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = LogisticRegression(C=strength, max_iter=1000, random_state=seed).fit(features, gold)
        head = _make_head(fitted, len(spec.labels))
        value, loss = score_labels(head.log_probabilities(validation_features), validation, spec)
        if best is None or (value, -loss) > (best.value, -best.loss):
            best = HeadChoice(head, strength, value, loss)
    assert best is not None
    return best


def _make_head(fitted: Any, labels: int) -> LinearHead:
    coefficients, intercepts = torch.from_numpy(fitted.coef_), torch.from_numpy(fitted.intercept_)
    if len(fitted.classes_) == 2:
        # scikit-learn keeps the second label's only: its sigmoid is the softmax beside zeros
        coefficients = torch.cat([torch.zeros_like(coefficients), coefficients])
        intercepts = torch.cat([torch.zeros_like(intercepts), intercepts])
    weight, bias = torch.zeros(labels, coefficients.shape[1]), torch.full((labels,), _NEVER)
    seen = torch.from_numpy(fitted.classes_)
    weight[seen], bias[seen] = coefficients.float(), intercepts.float()
    return LinearHead(weight, bias)
