"""What learns in the training loop: its parameters and optimiser, its data, where it stands, the best it has been."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from softprompt.config import TrainConfig
from softprompt.data.encoding.encoder import EncodedSequence
from softprompt.data.task import Task
from softprompt.inference.scoring import learning_tokens
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.methods.method_registry import fold_method, make_method, read_state
from softprompt.prompts.methods.soft_verbalizer import make_soft_verbalizer
from softprompt.prompts.state import PromptState
from softprompt.training.data_loader import DataLoader
from softprompt.training.initialization import initialize
from softprompt.training.optimization import learning_unit, make_optimizer, rate_factor
from softprompt.training.validation import Validator

WINDOW = 50  # steps that the training loss is averaged over
STILL_LEARNING = 0.1  # of the validation loss, that went between the last two evaluations


@dataclass(frozen=True)
class ReferenceLoss:
    """The loss (nats) of having learned nothing, which a run that learns gets below.

    Attributes:
        loss: ``None`` is the loss of the first steps.
        what: what it is called.
        enough: a loss that leaves nothing to learn, wherever the bar is.
        look: what to look at first where a run does not learn.
    """

    loss: float | None
    what: str = "the loss at the start"
    enough: float = 0.0
    look: str = "are the labels right, does the template show the text?"


@dataclass
class Progress:
    """Where a learner stands: everything beside tensors that a checkpoint has to keep."""

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    best_value: float = -math.inf
    best_loss: float = math.inf
    highest_value: float = -math.inf
    stale: int = 0
    recent: list[float] = field(default_factory=list)
    first_losses: list[float] = field(default_factory=list)
    alarmed: bool = False
    stopped_early: bool = False
    failed: bool = False
    stream: dict[str, Any] | None = None

    @property
    def recent_loss(self) -> float:
        """Mean training loss of the last steps."""
        return sum(self.recent) / len(self.recent)

    def record_step(self, loss: float) -> None:
        """Take note of a step's loss."""
        self.recent = [*self.recent, loss][-WINDOW:]

    def record_evaluation(self, step: int, value: float, loss: float, error: float, patience: int = 0) -> bool:
        """Take note of an evaluation; whether it was the best so far. ``patience`` of them without gain end the run.

        Values within one standard ``error`` of the highest cannot be told apart: of those the lowest loss is best. An
        accuracy over some hundred examples moves by more than a point by chance, the loss by much less.
        """
        self.highest_value = max(self.highest_value, value)
        level = value >= self.highest_value - error
        best = value > self.best_value + error or (level and loss < self.best_loss)
        if best:
            self.best_step, self.best_value, self.best_loss = step, value, loss
        # a mean of the steps before, beside figures of now: it is said of how many
        trained = {"train_loss": self.recent_loss, "train_loss_steps": len(self.recent)} if self.recent else {}
        self.history.append({"step": step, **trained, "value": value, "validation_loss": loss})
        self.stale = 0 if best else self.stale + 1
        self.stopped_early = bool(patience) and self.stale >= patience
        return best


class Learner(ABC):
    """What the training loop knows of a learner; several can share the forward passes of one frozen model.

    Attributes:
        name: what it is called beside others; empty if it is alone.
        config: its settings.
        parameters, optimizer: what learns; none where they are those of a partner.
        loader, validation: its data.
        partners: learners that share parameters, itself among them: if one fails, all do.
        progress: where it stands.
    """

    changes_base = False  # whether it is the model itself that learns
    loader: DataLoader
    validation: Validator
    best: PromptState

    def __init__(
        self, name: str, config: TrainConfig, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer | None
    ) -> None:
        self.name, self.config, self.optimizer = name, config, optimizer
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.partners: Sequence[Learner] = (self,)
        self.progress = Progress()

    @property
    def learned(self) -> int:
        """Parameters that learn."""
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def rate(self) -> float:
        """The learning rate of the step to come."""
        return self.config.learning_rate * rate_factor(self.progress.step, self.config)

    @property
    def done(self) -> bool:
        """Whether there is nothing left to learn."""
        return self.progress.step >= self.config.steps or self.progress.stopped_early

    @property
    def advice(self) -> str:
        """What to do where the loss is no number."""
        return f"--restart and a lower rate (--learning-rate {self.config.learning_rate / 10:.2g})"

    def token_budget(self, *, on_cpu: bool) -> int:
        """Padded tokens of a forward pass, at most."""
        return learning_tokens(self.config.token_budget, on_cpu=on_cpu)

    def next_batch(self, step: int) -> list[Sequence[EncodedSequence]]:
        """The items of each example of a step."""
        batch = self.loader.batch(step)
        self.progress.stream = self.loader.position
        return batch

    @abstractmethod
    def state(self) -> PromptState | None:
        """The prompt as it stands, with gradient; ``None``, or of no virtual tokens: it is the model that learns."""

    @abstractmethod
    def candidate(self) -> PromptState | None:
        """The prompt as it would be saved now."""

    def record_best(self, candidate: PromptState | None) -> None:
        """Have it as the best so far."""
        assert candidate is not None
        self.best = candidate

    def collect_gradients(self) -> None:  # noqa: B027 (a hook; most learners need none)
        """Called after each backward pass."""

    def clip_gradients(self) -> float:
        """Cut the gradient to the longest norm allowed; returns the norm before."""
        return float(nn.utils.clip_grad_norm_(self.parameters, self.config.clip))

    def update(self) -> None:
        """Make the step that the gradient asks for."""
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * group["factor"]
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1

    def record_step(self, loss: float) -> str | None:
        """Take note of a step's loss; returns what to say of it, if anything."""
        self.progress.record_step(loss)
        return None

    def is_last(self, step: int) -> bool:
        """Whether no step comes behind this one, whatever the evaluation says."""
        return step == self.config.steps

    def describe_stop(self) -> str | None:
        """What to say where an evaluation has just ended the run: early, or while it still learned."""
        progress, steps = self.progress, self.config.steps
        if progress.step >= steps:
            return self._describe_rest()
        if not progress.stopped_early:
            return None
        return f"stopped at step {progress.step}: no better since step {progress.best_step}"

    def _describe_rest(self) -> str | None:
        """What to say of a run whose last steps gained more than chance does."""
        if len(self.progress.history) < 2 or self.progress.best_step != self.progress.step:
            return None
        before, last = self.progress.history[-2:]
        loss, value = last["validation_loss"], last["value"]
        if loss > (1 - STILL_LEARNING) * before["validation_loss"]:
            return None
        if value - before["value"] <= self.validation.standard_error(value):
            return None
        return (
            f"still learning when its steps ended: validation loss {before['validation_loss']:.3f} at step "
            f"{before['step']:.0f}, {loss:.3f} at {last['step']:.0f}: more steps may gain more "
            f"(--steps {2 * self.config.steps})"
        )

    def learned_tensors(self) -> list[Tensor]:
        """What all processes begin with alike."""
        return [*self.parameters]

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, the optimiser's state apart; ``restore`` takes it back."""
        raise NotImplementedError

    def restore(self, tensors: Mapping[str, Tensor], optimizer: dict[str, Any], progress: Mapping[str, Any]) -> None:
        """Go back to where ``tensors`` were taken."""
        if self.optimizer is not None:
            self.optimizer.load_state_dict(optimizer)
        self.progress = Progress(**progress)


class PromptLearner(Learner):
    """One prompt that learns.

    Attributes:
        method: the module that holds its parameters.
        best: the prompt of its best evaluation.
    """

    def __init__(
        self,
        base: FrozenLM,
        task: Task,
        config: TrainConfig,
        name: str = "",
        reference: ReferenceLoss | None = None,
        start: PromptState | None = None,
        *,
        soft_verbalizer: bool = False,
    ) -> None:
        """Begin at the start that ``config`` names.

        Args:
            reference: what to get below; by default the loss of knowing the label frequencies.
            start: what ``init='teacher'`` begins as.
            soft_verbalizer: learn the labels too.

        Raises:
            ConfigError, PromptFileError, BaseModelError: the settings cannot be used.
        """
        torch.manual_seed(config.seed)
        start = initialize(config.init, base, task.spec, config.length, config.seed, task.train, start)
        self.method: Any = make_method(
            config.method, config.method_options, base, start, learning_unit(base, config), config.seed
        )
        if soft_verbalizer:
            self.method.verbalizer = make_soft_verbalizer(base, task.spec, start.label_rows)
        super().__init__(name, config, list(self.method.parameters()), make_optimizer(self.method, config))
        self.averaged = {name: parameter.detach().clone() for name, parameter in self.method.named_parameters()}
        self.best = fold_method(self.method)
        self._reference = reference or _label_prior_loss(task)

    def state(self) -> PromptState:
        return read_state(self.method)

    def learned_tensors(self) -> list[Tensor]:
        return [*self.method.state_dict().values(), *self.averaged.values()]

    def update(self) -> None:
        super().update()
        if self.config.averaging:
            for name, parameter in self.method.named_parameters():
                self.averaged[name].lerp_(parameter.detach(), 1 - self.config.averaging)

    def candidate(self) -> PromptState:
        if not self.config.averaging:
            return fold_method(self.method)
        current = {name: parameter.detach().clone() for name, parameter in self.method.named_parameters()}
        self.method.load_state_dict(self.averaged, strict=False)
        try:
            return fold_method(self.method)
        finally:
            self.method.load_state_dict(current, strict=False)

    def record_step(self, loss: float) -> str | None:
        """Take note of a step's loss; returns, once, what to say if the run is not learning.

        Learning is being better than what knowing only the label frequencies gives, or than the first steps.
        """
        progress = self.progress
        progress.record_step(loss)
        if len(progress.first_losses) < 10:
            progress.first_losses.append(loss)
        if progress.alarmed or progress.step < self.config.alarm_after:
            return None
        bar = self._reference.loss
        if bar is None:
            bar = sum(progress.first_losses) / len(progress.first_losses)
        recent = progress.recent_loss
        if recent < max(0.98 * bar, self._reference.enough):
            return None
        progress.alarmed = True
        rate = self.config.learning_rate
        return (
            f"not learning: after {progress.step} steps the training loss is {recent:.3f}, {self._reference.what} is "
            f"{bar:.3f}. Look at a few rows first ({self._reference.look}); "
            "then try a rate three times lower or higher "
            f"(--learning-rate {rate / 3:.2g} or {rate * 3:.2g}), another --init or more --steps"
        )

    def tensors(self) -> dict[str, Tensor]:
        kept = {f"method/{name}": tensor for name, tensor in self.method.state_dict().items()}
        kept |= {f"averaged/{name}": tensor for name, tensor in self.averaged.items()}
        return kept | {f"best/{index}": tensor for index, tensor in enumerate(self.best.numbers)}

    def restore(self, tensors: Mapping[str, Tensor], optimizer: dict[str, Any], progress: Mapping[str, Any]) -> None:
        device = self.parameters[0].device

        def group(start: str) -> dict[str, Tensor]:
            return {name.removeprefix(start): t.to(device) for name, t in tensors.items() if name.startswith(start)}

        self.method.load_state_dict(group("method/"))
        self.averaged = group("averaged/")
        best = group("best/")
        numbers = [best[str(index)] for index in range(len(best))]
        rows = None if self.best.label_rows is None else numbers.pop()
        self.best = replace(self.best, tensors=tuple(numbers), label_rows=rows)
        super().restore(tensors, optimizer, progress)


def _label_prior_loss(task: Task) -> ReferenceLoss:
    """The loss (nats an example) of knowing nothing but how frequent each label is; in generation that at the start."""
    if task.spec.kind != "classification":
        return ReferenceLoss(None)
    counts = [sum(example.label == label for example in task.train) for label in task.spec.labels]
    shares = [count / len(task.train) for count in counts if count]
    return ReferenceLoss(-sum(share * math.log(share) for share in shares), "the label prior")
