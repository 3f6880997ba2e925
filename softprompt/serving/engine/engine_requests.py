"""Requests on their way between the event loop and the thread that runs the model."""

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias

from torch import Tensor

from softprompt.data.encoding.encoder import EncodedSequence, ExampleEncoder
from softprompt.data.encoding.verbalizer import Verbalizer
from softprompt.inference.generation import Completion, GenerationConfig
from softprompt.inference.predictor import Prediction
from softprompt.inference.scoring import AnswerScorer
from softprompt.models.frozen_lm import FrozenLM
from softprompt.serving.engine.detokenizer import Detokenizer
from softprompt.serving.engine.engine_types import CompletionChunk, InputUsage, ServedPrompt

RequestKind: TypeAlias = Literal["classification", "generation"]


@dataclass(frozen=True)
class LabelQuery:
    """What a task asks of each of its texts: an item for each path of its labels, behind each of the prompts.

    There may be thousands of them, so they are made when they are asked.
    """

    encoder: ExampleEncoder
    objective: AnswerScorer
    prompts: int

    @cached_property
    def count(self) -> int:
        """Items of a text."""
        return len(self._verbalizer.paths) * self.prompts

    @cached_property
    def longest(self) -> int:
        """Tokens that stand behind a text in its longest item."""
        apart = self.encoder.base.architecture == "encoder-decoder"
        return 0 if apart else max(map(len, self._verbalizer.paths))

    def items(self, text: tuple[int, ...], numbers: range) -> list[EncodedSequence]:
        """Some of the items of a text, ``numbers`` within ``count``."""
        return [
            replace(self.encoder.scoring_item(0, text, number // self.prompts), prompt=number % self.prompts)
            for number in numbers
        ]

    @property
    def _verbalizer(self) -> Verbalizer:
        assert self.objective.verbalizer is not None
        return self.objective.verbalizer


class ClassificationRequest:
    """A request for labels.

    Attributes:
        waiting: numbers of the examples of which not all was taken into batches yet.
        asked: of each example, how many of its items were taken; the others come in later batches.
        texts: tokens of each example.
        read: of each example.
        lengths: of each example, the tokens of its longest row that a forward pass reads.
        given_up: nobody waits for the answer any more.
    """

    kind: RequestKind = "classification"

    def __init__(
        self,
        served: ServedPrompt,
        asking: LabelQuery,
        texts: Sequence[tuple[int, ...]],
        read: Sequence[InputUsage],
        unshared: int,
        answer: "asyncio.Future[list[Prediction]]",
    ) -> None:
        """``unshared``: tokens of the prompt, where they are read with every text."""
        self.served, self.asking, self.texts, self.read = served, asking, texts, read
        self.lengths = [unshared + len(text) + asking.longest for text in texts]
        self.waiting = deque(range(len(texts)))
        self.scheduled: Counter[int] = Counter()
        self.cancelled = False
        self._answer = answer
        self._scores: dict[int, Tensor] = {}
        self._predictions: dict[int, Prediction] = {}

    def schedule_example(self, index: int, most: int) -> "ScheduledExample":
        """The next ``most`` items of an example, or as many as are left."""
        start = self.scheduled[index]
        return ScheduledExample(self, index, range(start, min(start + most, self.asking.count)))

    def add_scores(self, question: "ScheduledExample", scores: Tensor) -> Tensor | None:
        """Scores of all items of an example, once its last ones are here (the worker says), and ``None`` before."""
        if question.index in self._scores:
            scores = self._scores.pop(question.index) + scores
        if question.last:
            return scores
        self._scores[question.index] = scores
        return None

    def add_prediction(self, prediction: Prediction) -> bool:
        """One example is answered (the worker says); whether all are."""
        self._predictions[prediction.index] = prediction
        return len(self._predictions) == len(self.texts)

    def deliver(self, error: Exception | None = None) -> None:
        """Hand over what there is (in the event loop)."""
        if self._answer.done():
            return
        if error is None:
            self._answer.set_result([self._predictions[index] for index in range(len(self.texts))])
        else:
            self._answer.set_exception(error)


@dataclass(frozen=True)
class ScheduledExample:
    """What is asked of one example of a request in one batch: all of its items, or where there are many, the next."""

    request: ClassificationRequest
    index: int
    numbers: range

    @cached_property
    def items(self) -> list[EncodedSequence]:
        return self.request.asking.items(self.request.texts[self.index], self.numbers)

    @property
    def last(self) -> bool:
        """Nothing more is asked of this example."""
        return self.numbers.stop == self.request.asking.count

    @property
    def length(self) -> int:
        return self.request.lengths[self.index]


class GenerationRequest:
    """A request for a completion.

    Attributes:
        item: its tokens.
        completion: what has grown so far.
        pieces: what of it may be shown.
        alone: it was in a batch that failed, and shares no batch any more.
        given_up: nobody waits for the answer any more.
    """

    kind: RequestKind = "generation"

    def __init__(
        self,
        base: FrozenLM,
        served: ServedPrompt,
        item: EncodedSequence,
        read: InputUsage,
        generation: GenerationConfig,
        out: "asyncio.Queue[CompletionChunk | Exception]",
    ) -> None:
        self.served, self.item = served, item
        self.completion = Completion(base, generation)
        self.detokenizer = Detokenizer(self.completion, base.tokenizer, read)
        # BOS counted
        self.final_length = len(base.bos_ids) + read.tokens + generation.max_new_tokens
        self.isolated = False
        self.cancelled = False
        self._out = out

    def deliver(self, piece: CompletionChunk | Exception) -> None:
        """Hand over a piece, or why there will be none (in the event loop)."""
        self._out.put_nowait(piece)


EngineRequest: TypeAlias = ClassificationRequest | GenerationRequest
