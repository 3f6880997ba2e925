"""Where a run is written down for others to look at: TensorBoard."""

from pathlib import Path
from typing import Any

from softprompt.errors import MissingExtraError, map_write_errors
from softprompt.training.callbacks.callback import Callback
from softprompt.training.validation import LOSS_ITSELF


class TensorBoardLogger(Callback):
    """Scalars for TensorBoard in a folder, which is made when the run starts."""

    def __init__(self, folder: str | Path) -> None:
        """Raises MissingExtraError if TensorBoard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tensorboard", "tensorboard") from error
        self._make, self._folder = SummaryWriter, Path(folder)
        self._writer: Any = None
        self._early: list[str] = []

    def on_train_begin(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        """Raises OutputError if the folder cannot be made or written."""
        with map_write_errors(self._folder, "give another --tensorboard"):
            # a resumed run writes anew what came behind its checkpoint
            self._writer = self._make(str(self._folder), purge_step=first_step + 1 if first_step else None)
        self._writer.add_text("run", f"{learned} learned, {frozen} frozen parameters", first_step)
        for text in self._early:
            self._writer.add_text("notes", text)

    def on_step_end(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        self._writer.add_scalar("train/loss", loss, step)
        self._writer.add_scalar("train/learning_rate", learning_rate, step)
        self._writer.add_scalar("train/examples_per_second", examples_per_second, step)

    def on_evaluate(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        if not metric.startswith(LOSS_ITSELF):
            self._writer.add_scalar(f"validation/{metric.replace(' ', '_')}", value, step)
        self._writer.add_scalar("validation/loss", loss, step)
        self._writer.flush()

    def on_message(self, text: str) -> None:
        if self._writer is None:
            self._early.append(text)
        else:
            self._writer.add_text("notes", text)

    def on_train_end(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
