"""One prompt learned by the training loop, without a folder or an evaluation at the end."""

from softprompt.config import TrainConfig
from softprompt.data.task import Task
from softprompt.models.frozen_lm import FrozenLM
from softprompt.training.callbacks.callback import Callback
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.loop import TrainingResult, train_together


def train(
    base: FrozenLM, task: Task, config: TrainConfig, callback: Callback, checkpoint: Checkpoint | None = None
) -> TrainingResult:
    """What learning one prompt gives."""
    return train_together(base, task, {"": config}, callback, checkpoint)[0]
