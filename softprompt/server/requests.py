"""Requests on their way between the event loop and the thread that runs the model."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from softprompt.base import FrozenLM
from softprompt.batch import Item
from softprompt.generate import Completion, Sampling
from softprompt.objective import Objective
from softprompt.predict import Prediction
from softprompt.server.streaming import Pieces
from softprompt.server.work import Piece, Reading, Served

Kind: TypeAlias = Literal["questions", "text"]


class Questions:
    """A request for labels.

    Attributes:
        waiting: numbers of the examples that were not taken into a batch yet.
        items: of each example: one for each path of its labels, behind each of the prompts that answer together.
        read: of each example.
        lengths: of each example, the tokens of its longest row that a forward pass reads.
        given_up: nobody waits for the answer any more.
    """

    kind: Kind = "questions"

    def __init__(
        self,
        served: Served,
        objective: Objective,
        items: Sequence[tuple[Item, ...]],
        read: Sequence[Reading],
        unshared: int,
        answer: "asyncio.Future[list[Prediction]]",
    ) -> None:
        """``unshared``: tokens of the prompt, where they are read with every text."""
        self.served, self.objective, self.items, self.read = served, objective, items, read
        self.lengths = [unshared + max(len(item.ids) for item in each) for each in items]
        self.waiting = deque(range(len(items)))
        self.given_up = False
        self._answer = answer
        self._predictions: dict[int, Prediction] = {}

    def predicted(self, prediction: Prediction) -> bool:
        """One example is answered (the worker says); whether all are."""
        self._predictions[prediction.index] = prediction
        return len(self._predictions) == len(self.items)

    def deliver(self, error: Exception | None = None) -> None:
        """Hand over what there is (in the event loop)."""
        if self._answer.done():
            return
        if error is None:
            self._answer.set_result([self._predictions[index] for index in range(len(self.items))])
        else:
            self._answer.set_exception(error)


@dataclass(frozen=True)
class Question:
    """One example of a request."""

    request: Questions
    index: int

    @property
    def items(self) -> tuple[Item, ...]:
        return self.request.items[self.index]

    @property
    def length(self) -> int:
        return self.request.lengths[self.index]


class Text:
    """A request for a completion.

    Attributes:
        item: its tokens.
        completion: what has grown so far.
        pieces: what of it may be shown.
        alone: it was in a batch that failed, and shares no batch any more.
        given_up: nobody waits for the answer any more.
    """

    kind: Kind = "text"

    def __init__(
        self,
        base: FrozenLM,
        served: Served,
        item: Item,
        read: Reading,
        sampling: Sampling,
        out: "asyncio.Queue[Piece | Exception]",
    ) -> None:
        self.served, self.item = served, item
        self.completion = Completion(base, sampling)
        self.pieces = Pieces(self.completion, base.tokenizer, read)
        # BOS counted
        self.final_length = len(base.bos_ids) + read.tokens + sampling.max_new_tokens
        self.alone = False
        self.given_up = False
        self._out = out

    def deliver(self, piece: Piece | Exception) -> None:
        """Hand over a piece, or why there will be none (in the event loop)."""
        self._out.put_nowait(piece)


Request: TypeAlias = Questions | Text
