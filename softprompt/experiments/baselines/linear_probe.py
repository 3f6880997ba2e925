"""A linear probe: logistic regression on what the frozen model thinks at the end of the template.

Alain and Bengio 2016. The features are the hidden state behind the last layer's norm, where the answer's first token is
asked for; each is brought to mean 0 and deviation 1, for some are a hundred times larger than others.
"""

import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from softprompt.data.encoding.batching import batch_by_token_budget, collate
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.task import Task, TaskSpec
from softprompt.experiments.baselines.fitted_baseline import (
    VALIDATION_LIMIT,
    FittedBaseline,
    check_classification,
    count_bytes,
    describe_baseline,
)
from softprompt.experiments.baselines.linear_head import LinearAnswers, LinearHead, fit_head
from softprompt.inference.chat_answers import make_bare_state
from softprompt.inference.scoring import EVALUATION_TOKENS
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import make_prefix
from softprompt.prompts.written_prompt import count_written
from softprompt.training.validation import validation_examples
from softprompt.utils.files import check_free, write_folder
from softprompt.utils.sealed_tensors import seal_tensors

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
MOST_EXAMPLES = 10_000  # of the training split: read once; the other methods see 4,800 in 300 steps of 16
_TENSORS, _FACTS = "probe.safetensors", "probe.json"


class HiddenFeatures:
    """The frozen model's hidden state ``[H]`` at the end of each text."""

    def __init__(self, base: FrozenLM, spec: TaskSpec) -> None:
        spec = spec.without_prompt
        self.base, self.encoder = base, ExampleEncoder(base, spec, 0)
        with torch.no_grad():
            self._prefix = make_prefix(base, make_bare_state(base, spec))

    @torch.no_grad()
    def extract(self, examples: Sequence[Example]) -> Tensor:
        """``[examples, H]``, float32 on the CPU."""
        items = self.encoder.question_items(examples)
        found: list[Tensor] = [torch.empty(0)] * len(items)
        for chunk in batch_by_token_budget(items, EVALUATION_TOKENS):
            hidden = self._prefix.scored(collate(chunk, self.base.device)).float().cpu()
            for item, row in zip(chunk, hidden, strict=True):
                found[item.example] = row
        return torch.stack(found)


def make_probe_answers(spec: TaskSpec, features: HiddenFeatures, head: LinearHead) -> LinearAnswers:
    """Labels by a linear classifier on the frozen model's hidden states."""
    return LinearAnswers(spec, lambda examples: features.extract(examples).numpy(), head, features.encoder)


def fit_linear_probe(base: FrozenLM, task: Task, seed: int = 0, *, limit: int = MOST_EXAMPLES) -> FittedBaseline:
    """Fit on the training examples, or on ``limit`` of them that ``seed`` chooses if there are more.

    Raises:
        ConfigError: a generation task.
        DataError: no training or validation examples, or examples of one label only.
        MissingExtraError: scikit-learn is not installed.
    """
    began = time.perf_counter()
    spec = task.spec
    check_classification(spec, "a linear probe")
    features = HiddenFeatures(base, spec)
    examples = choose_examples(task.train, limit, seed)
    seen = features.extract(examples)
    mean, deviation = seen.mean(0), seen.std(0, correction=0).clamp(min=1e-6)
    validation = validation_examples(task, VALIDATION_LIMIT)
    normed, of_validation = (((one - mean) / deviation).numpy() for one in (seen, features.extract(validation)))
    choice = fit_head(spec, normed, examples, of_validation, validation, STRENGTHS, seed)
    weight = choice.head.weight / deviation
    head = LinearHead(weight, choice.head.bias - weight @ mean)
    answers = make_probe_answers(spec, features, head)

    def save(folder: Path) -> None:
        check_free(folder)
        tensors = {"weight": head.weight, "bias": head.bias}
        write_folder(folder, {_TENSORS: seal_tensors(tensors, {}), _FACTS: describe_baseline(base, spec)})

    return FittedBaseline(
        answers=answers,
        trained_parameters=weight.numel() + len(head.bias),
        best_value=choice.value,
        best_loss=choice.loss,
        seconds=time.perf_counter() - began,
        added_tokens=float(count_written(base, spec.without_prompt)),
        base_bytes=count_bytes(base.model),
        base_shared=True,
        task_bytes=weight.nbytes + head.bias.nbytes,
        save=save,
        settings={"C": choice.strength, "examples": len(examples), "seed": seed},
    )


def choose_examples(examples: Sequence[Example], limit: int, seed: int) -> list[Example]:
    """At most ``limit`` examples, one of each label among them."""
    firsts: list[Example] = []
    others: list[Example] = []
    labels: set[str | None] = set()
    for example in random.Random(seed).sample(examples, len(examples)):
        (others if example.label in labels else firsts).append(example)
        labels.add(example.label)
    return [*firsts, *others][:limit]
