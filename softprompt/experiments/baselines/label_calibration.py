"""Contextual calibration: take out what the model answers before it has read anything.

Zhao, Wallace, Feng, Klein and Singh 2021, "Calibrate before use". The label probabilities of inputs without content,
such as "N/A", tell the prompt's bias; every later answer is divided by them and normalised again (the paper's diagonal
``W``, ``b = 0``). Where the template takes other columns than the text, the words in these too are without content.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from softprompt.data.chats.conversation import Conversation, Message
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.errors import TemplateError
from softprompt.experiments.baselines.fitted_baseline import check_classification
from softprompt.inference.predictions import Prediction
from softprompt.inference.predictor import PredictorLike, predict_labels

CONTENT_FREE = ("N/A", "[MASK]", "")


@dataclass(frozen=True)
class CalibratedPredictor:
    """Answers without their bias.

    Attributes:
        answers: with it.
        bias: log-probabilities ``[C]`` of the labels for inputs without content.
    """

    answers: PredictorLike
    bias: Tensor

    @property
    def spec(self) -> TaskSpec:
        return self.answers.spec

    @property
    def truncated(self) -> int:
        """Texts cut so far."""
        return self.answers.truncated

    def label_log_probabilities(self, examples: Sequence[Example]) -> Tensor:
        """Log-probabilities ``[examples, C]`` of the labels."""
        return (self.answers.label_log_probabilities(examples) - self.bias).log_softmax(1)

    def iterate_predictions(self, examples: Sequence[Example]) -> Iterator[Prediction]:
        """Predictions in the order of the examples."""
        return predict_labels(self.spec, self.label_log_probabilities(examples))


def calibrate(
    answers: PredictorLike, content_free: Sequence[str] = CONTENT_FREE, like: Example | None = None
) -> CalibratedPredictor:
    """Measure the bias of ``answers`` and take it out.

    Args:
        content_free: inputs that say nothing; those that the template leaves empty are not used.
        like: an example whose columns show which of them are lists, objects, numbers; all are words, if not given.

    Raises:
        ConfigError: answers for generation.
        TemplateError: the template gives nothing for any of them.
    """
    spec = answers.spec
    check_classification(spec, "contextual calibration")
    examples = [_fill_columns(spec, words, like) for words in content_free]
    examples = [example for example in examples if spec.compiled.render(example)]
    if not examples:
        raise TemplateError(
            f"contextual calibration needs inputs that say nothing, but give some text; got an empty one from "
            f"{spec.template!r}: add words to the template"
        )
    probabilities = answers.label_log_probabilities(examples).exp().mean(0)
    # a label that never comes must not divide by zero
    return CalibratedPredictor(answers, probabilities.clamp(min=torch.finfo(torch.float32).tiny).log())


def _fill_columns(spec: TaskSpec, words: str, like: Example | None) -> Example:
    columns: Mapping[str, Any] = {} if like is None else like.columns
    names = spec.compiled.names - {"text"}
    example = Example(words, columns={name: _empty_value(columns.get(name), words) for name in names})
    if like is None or like.conversation is None:
        return example
    # what a conversation of its own begins with is no content, all turns but the user's last are
    system = [one for one in like.conversation.messages[:1] if one.role == "system"]
    asked = Conversation((*system, Message("user", words)), like.conversation.tools)
    return replace(example, conversation=asked)


def _empty_value(value: Any, words: str) -> Any:
    """A column's value with ``words`` in place of all of its own; numbers, which a template may compare, stay."""
    if isinstance(value, list):
        return [_empty_value(one, words) for one in value]
    if isinstance(value, dict):
        return {name: _empty_value(one, words) for name, one in value.items()}
    return words if value is None or isinstance(value, str) else value
