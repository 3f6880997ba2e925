"""What each step learns from: examples that are all in memory, or that are streamed, a bounded number at a time."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from softprompt.config import TrainConfig
from softprompt.data.encoding.batching import epoch_batches
from softprompt.data.encoding.encoder import EncodedSequence, ExampleEncoder
from softprompt.data.example_stream import ExampleStream
from softprompt.errors import DataError


class BatchSampler:
    """Which examples each step takes."""

    def __init__(self, lengths: list[int], config: TrainConfig) -> None:
        self._lengths, self._config = lengths, config
        self._epoch, self._batches = -1, [[0]]

    def batch(self, step: int) -> list[int]:
        per_epoch = max(1, len(self._lengths) // self._config.batch_size)
        epoch, index = divmod(step, per_epoch)
        if epoch != self._epoch:
            self._batches = epoch_batches(self._lengths, self._config.batch_size, self._config.seed, epoch)
            self._epoch = epoch
        return self._batches[index]


class DataLoader(Protocol):
    """The items of each example of each step's batch; steps are asked for in their order."""

    @property
    def position(self) -> dict[str, Any] | None:
        """Where it stands, for a checkpoint; ``None`` where the step says it all."""
        ...

    @property
    def truncated(self) -> int:
        """Texts that it has cut."""
        ...

    def batch(self, step: int) -> list[Sequence[EncodedSequence]]: ...

    def seek(self, position: Mapping[str, Any] | None) -> None:
        """Stand where ``position`` was taken."""
        ...


class InMemoryLoader:
    """Examples that are all in memory."""

    position: None = None
    truncated = 0  # the encoder has counted them already

    def __init__(self, examples: Sequence[Sequence[EncodedSequence]], config: TrainConfig) -> None:
        self._examples = examples
        self._order = BatchSampler([len(items[0].ids) for items in examples], config)

    def batch(self, step: int) -> list[Sequence[EncodedSequence]]:
        return [self._examples[index] for index in self._order.batch(step)]

    def seek(self, position: Mapping[str, Any] | None) -> None:
        """The step says it all."""


class StreamingLoader:
    """Examples that are read and tokenised block by block: one block is in memory, shuffled, sorted by length in pools.

    A block's batches are a pure function of its rows, the seed and its number, so a run goes on exactly: from the place
    in the stream at which the block begins. A shuffle buffer that refills row by row would have to be kept whole.
    """

    def __init__(self, stream: ExampleStream, encoder: ExampleEncoder, config: TrainConfig) -> None:
        self._rows, self._encoder, self._config = stream.open(), encoder, config
        self._source = stream.source
        self._size = max(1, config.shuffle_buffer // config.batch_size) * config.batch_size
        self._begun: dict[str, Any] = {"epoch": 0, "block": -1, "first_step": 0, "truncated": 0, "rows": None}
        self.truncated = 0
        self._items: list[EncodedSequence] = []
        self._batches: list[list[int]] = []

    @property
    def position(self) -> dict[str, Any]:
        return self._begun

    def batch(self, step: int) -> list[Sequence[EncodedSequence]]:
        while step >= self._begun["first_step"] + len(self._batches):
            self._next_block()
        return [(self._items[index],) for index in self._batches[step - self._begun["first_step"]]]

    def seek(self, position: Mapping[str, Any] | None) -> None:
        if position is None:
            return
        self._rows.seek(position["rows"])
        self.truncated = position["truncated"]
        if not self._read_block(dict(position)):
            raise DataError(f"'{self._source}' has fewer rows than when the run was left: start again with --restart")

    def _next_block(self) -> None:
        begun = self._begun
        following = {
            "epoch": begun["epoch"],
            "block": begun["block"] + 1,
            "first_step": begun["first_step"] + len(self._batches),
            "truncated": self.truncated,
            "rows": self._rows.position,
        }
        if self._read_block(following):
            return
        if not following["block"]:
            raise DataError(
                f"'{self._source}' has fewer rows than a batch ({self._config.batch_size}): give more rows, or a "
                "smaller --batch-size"
            )
        self._rows.rewind()
        self._read_block({**following, "epoch": begun["epoch"] + 1, "block": 0, "rows": self._rows.position})

    def _read_block(self, begun: dict[str, Any]) -> bool:
        """Have the block that begins here in place of the one before; whether there is a batch in it."""
        # the one before is let go first: never two in memory
        self._items, self._batches = [], []
        examples = self._rows.read(self._size)
        if len(examples) < self._config.batch_size:
            return False
        before = self._encoder.truncated
        self._items = self._encoder.training_items(examples)
        self.truncated += self._encoder.truncated - before
        self._encoder.truncated = before
        lengths = [len(item.ids) for item in self._items]
        order = f"{begun['epoch']}/{begun['block']}"
        self._batches = epoch_batches(lengths, self._config.batch_size, self._config.seed, order)
        self._begun = begun
        return True
