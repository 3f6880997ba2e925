"""What the rooms of the server hand each other: a prompt that is served, pieces of an answer, reasons to refuse."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictor import Prediction
from softprompt.prompts.state import PromptState


@dataclass(frozen=True)
class ServedPrompt:
    """A prompt as the engine sees it.

    Attributes:
        key: what tells it from every other one ever served, ``name@version`` for a version of a store: versions
            never change, so whatever is computed from it can be kept under it.
        spec: its task.
        states: the prompt; several that answer together; none for the bare template.
    """

    key: str
    spec: TaskSpec
    states: tuple[PromptState, ...]


@dataclass(frozen=True)
class InputUsage:
    """What an engine reads of an example.

    Attributes:
        tokens: of virtual tokens, template and text.
        cut: the text is longer than what is read of it.
    """

    tokens: int
    cut: bool


@dataclass(frozen=True)
class CompletionChunk:
    """A piece of a completion.

    Attributes:
        text: what is new of the text; pieces joined are the completion.
        tokens: how many tokens it took.
        read: for the completion, the same in every piece.
        finish: in the last piece, why it is the last: a stop string or end of text, or the limit of tokens.
    """

    text: str
    tokens: int
    read: InputUsage
    finish: Literal["stop", "length"] | None = None


class EngineBusyError(Exception):
    """The queue is full: to be tried again after ``retry_after`` seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the queue is full, try again after {retry_after:.0f} s")
        self.retry_after = retry_after


class DeadlineExceededError(Exception):
    """The answer was not there at its deadline."""


@runtime_checkable
class RemoteEngine(Protocol):
    """An engine that runs in another process."""

    async def is_reachable(self) -> bool:
        """Whether it can be asked now."""
        ...


class EngineUnreachableError(Exception):
    """The engine runs elsewhere and cannot be asked now; the message is for whoever asked."""


@asynccontextmanager
async def expire_at(until: float | None) -> AsyncIterator[None]:
    """DeadlineExceededError if what is in it takes until then, by the event loop's clock."""
    try:
        async with asyncio.timeout_at(until) as timeout:
            yield
    except TimeoutError as error:
        if not timeout.expired():
            raise
        raise DeadlineExceededError("the answer was not there at its deadline") from error


def deadline_after(seconds: float | None) -> float | None:
    """So many seconds from now, by the event loop's clock."""
    return None if seconds is None else asyncio.get_running_loop().time() + seconds


class EngineClient(Protocol):
    """An engine: answers requests for any mix of prompts.

    Cancelling the task that waits (or closing the iterator) takes a request out of the queue or the running batch.
    """

    async def classify(
        self, served: ServedPrompt, examples: Sequence[Example], *, deadline: float | None = None
    ) -> list[Prediction]:
        """One prediction for each example, in their order, with what was read for it.

        Args:
            deadline: seconds from now after which the answer is no longer wanted.

        Raises:
            EngineBusyError, DeadlineExceededError, TemplateError, DataError: what concerns this request alone.
            EngineUnreachableError: the engine runs elsewhere, and does not answer.
        """
        ...

    def generate(
        self, served: ServedPrompt, example: Example, generation: GenerationConfig, *, deadline: float | None = None
    ) -> AsyncIterator[CompletionChunk]:
        """The completion of one example, piece by piece as it grows; raises as ``classify``."""
        ...
