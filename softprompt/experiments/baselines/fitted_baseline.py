"""Fitted: what every baseline gives, and what baselines have in common."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from softprompt.data.task import TaskSpec
from softprompt.errors import ConfigError, MissingExtraError
from softprompt.inference.predictor import PredictorLike
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.cached_prefix import CachedPrefix
from softprompt.prompts.prefix import Prefix
from softprompt.prompts.seq2seq_prefix import EncodedPrefix
from softprompt.utils.seals import seal

VALIDATION_LIMIT = 500  # validation examples that the best is chosen on, as many as training does by default

PACKAGES = {"sklearn": ("scikit-learn", "compare"), "peft": ("peft", "peft")}  # and the extra of each


@dataclass(frozen=True)
class FittedBaseline:
    """A baseline, ready to answer, and what it took.

    Attributes:
        answers: takes examples of the task.
        trained_parameters: numbers that were learned.
        best_value, best_loss: on validation: accuracy, or minus the loss; and the loss (nats an example, or a token).
        seconds: of learning or choosing, evaluations on validation included.
        added_tokens: that a request carries beside template and text (mean).
        base_bytes: of the base model's weights, as they have to be in memory beside the tasks; 0 where none are needed.
        base_shared: whether tasks share one copy of the base model; without one true.
        task_bytes: memory of one more task.
        curve: an evaluation each: ``step``, ``seconds``, ``value``, ``loss``.
        settings: what was chosen.
        searched: what a sweep before it tried, as ``results.Trial`` has it; search_seconds: how long that took.
        save: writes what one task needs to be deployed into a new folder.
    """

    answers: PredictorLike
    trained_parameters: int
    best_value: float
    best_loss: float
    seconds: float
    added_tokens: float
    base_bytes: int
    base_shared: bool
    task_bytes: int
    save: Callable[[Path], None]
    curve: tuple[Mapping[str, float], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    searched: tuple[Mapping[str, Any], ...] = ()
    search_seconds: float = 0.0


def make_curve(
    history: Iterable[Mapping[str, float]], seconds_at: Callable[[int], float]
) -> tuple[Mapping[str, float], ...]:
    """The evaluations of a run; ``seconds_at``: when each step was made."""
    return tuple(
        {
            "step": int(point["step"]),
            "seconds": seconds_at(int(point["step"])),
            "value": point["value"],
            "loss": point["validation_loss"],
        }
        for point in history
    )


def extra_module(name: str) -> Any:
    """Import a module of an optional package.

    Raises:
        MissingExtraError: the package is not installed.
    """
    package, extra = PACKAGES[name.partition(".")[0]]
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(package, extra) from error


def check_classification(spec: TaskSpec, what: str) -> None:
    """Raise ConfigError for a generation task."""
    if spec.kind != "classification":
        raise ConfigError(f"{what} is for classification: expected rows with a label, got a {spec.kind} task: omit it")


def count_bytes(module: nn.Module) -> int:
    """Memory of a module's weights and buffers, those that are shared counted once."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


def count_prefix_bytes(prefix: Prefix) -> int:
    """Memory that a server keeps for a prefix: keys and values, or embeddings where there is no cache."""
    if isinstance(prefix, CachedPrefix):
        layers = [] if prefix.cache is None else prefix.cache.layers
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers if layer.keys is not None)
    tensors = list(prefix.embeddings)
    if isinstance(prefix, EncodedPrefix):
        tensors += [tensor for part in (prefix.encoder, prefix.decoder) if part is not None for tensor in part.tensors]
    return sum(tensor.nbytes for tensor in tensors)


def describe_baseline(base: FrozenLM | None, spec: TaskSpec, **more: Any) -> bytes:
    """JSON of the task, of the model it is for, and of ``more``."""
    of_base = {} if base is None else {"base": {"name": base.name, "fingerprint": base.fingerprint}}
    facts = {"task": spec.to_dict(), **of_base, **more}
    return (json.dumps(seal(facts), indent=2, ensure_ascii=False) + "\n").encode()
