"""What an engine is asked and answers: prompts that are served, requests on their way to the model, pieces, errors."""

import asyncio
import hashlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from softprompt.data.encoding.encoder import EncodedSequence, ExampleEncoder
from softprompt.data.encoding.verbalizer import Verbalizer
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.inference.generation import Completion, GenerationConfig
from softprompt.inference.grammar import GrammarState
from softprompt.inference.predictions import Prediction
from softprompt.inference.scoring import AnswerScorer
from softprompt.inference.token_logprobs import ScoredToken
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.state import PromptState
from softprompt.serving.engine.completion_chunks import CompletionChunk, Detokenizer, InputUsage
from softprompt.serving.engine.request_timing import RequestTiming


@dataclass(frozen=True)
class ServedPrompt:
    """A prompt as the engine sees it.

    Attributes:
        key: what tells it from every other one ever served, ``name@version`` for a version of a store: versions
            never change, so whatever is computed from it can be kept under it.
        spec: its task.
        states: the prompt; several that answer together; none for the bare template.
        parent: the prompt that this is one form of, for conversations that begin otherwise, or that may be longer.
    """

    key: str
    spec: TaskSpec
    states: tuple[PromptState, ...]
    parent: "ServedPrompt | None" = None

    @cached_property
    def prefix_key(self) -> str:
        """What tells its prefix from others': the same for all forms that begin alike."""
        if self.parent is None:
            return self.key
        places = [str(one.placement) for one in self.states]
        if places == [str(one.placement) for one in self.parent.states]:
            return self.parent.prefix_key
        return f"{self.parent.prefix_key} in {hashlib.sha256(repr(places).encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class RawPrompt:
    """A text that is read as it is behind a prompt, in place of an example in the task's template.

    Attributes:
        text: words, in which nothing is a special token, or token ids.
        echo: the completion begins with it.
        completed: whether anything is to follow it; it is only read otherwise.
    """

    text: str | tuple[int, ...]
    echo: bool = False
    completed: bool = True


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
        self,
        served: ServedPrompt,
        examples: Sequence[Example],
        *,
        deadline: float | None = None,
        timing: RequestTiming | None = None,
    ) -> list[Prediction]:
        """One prediction for each example, in their order, with what was read for it.

        Args:
            deadline: seconds from now after which the answer is no longer wanted.
            timing: is noted there.

        Raises:
            EngineBusyError, DeadlineExceededError, TemplateError, DataError: what concerns this request alone.
            EngineUnreachableError: the engine runs elsewhere, and does not answer.
        """
        ...

    def generate(
        self,
        served: ServedPrompt,
        example: Example | RawPrompt,
        generation: GenerationConfig,
        *,
        logprobs: int | None = None,
        deadline: float | None = None,
        timing: RequestTiming | None = None,
    ) -> AsyncIterator[CompletionChunk]:
        """The completion of one example, piece by piece as it grows.

        Args:
            logprobs: tell the tokens' log-probabilities, and so many of the likeliest in each place.

        Raises:
            GrammarError: what it may say cannot be followed.
            EngineBusyError, ...: as ``classify``.
        """
        ...


RequestKind: TypeAlias = Literal["classification", "generation"]


@dataclass(frozen=True)
class EchoedText:
    """What the answer to a raw text begins with: its words, and the tokens in front of those that are read behind the
    prompt (BOS, which stands in front of everything)."""

    text: str
    before: tuple[int, ...] = ()


@dataclass(frozen=True)
class EncodedText:
    """A text that something may follow.

    Attributes:
        item: its tokens.
        read: of it.
        echo: what the answer begins with, if it does with the text.
        only_read: nothing follows it.
    """

    item: EncodedSequence
    read: InputUsage
    echo: EchoedText | None = None
    only_read: bool = False


@dataclass(frozen=True)
class LabelQuery:
    """What a task asks of each of its texts: an item for each tree of its labels, behind each of the prompts.

    There may be thousands of them, so they are made when they are asked.
    """

    encoder: ExampleEncoder
    objective: AnswerScorer
    prompts: int

    @cached_property
    def count(self) -> int:
        """Items of a text."""
        return len(self._verbalizer.trees) * self.prompts

    @cached_property
    def longest(self) -> int:
        """Tokens that stand behind a text in its longest item."""
        apart = self.encoder.base.architecture == "encoder-decoder"
        return 0 if apart else max(len(tree.tokens) for tree in self._verbalizer.trees)

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
        scheduled: of each example, how many of its items were taken; the others come in later batches.
        texts: tokens of each example.
        read: of each example.
        lengths: of each example, the tokens of its longest row that a forward pass reads.
        timing: what the worker notes.
        cancelled: nobody waits for the answer any more.
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
        timing: RequestTiming | None = None,
    ) -> None:
        """``unshared``: tokens of the prompt, where they are read with every text."""
        self.served, self.asking, self.texts, self.read = served, asking, texts, read
        self.timing = timing or RequestTiming()
        self.lengths = [unshared + len(text) + asking.longest for text in texts]
        self.waiting = deque(range(len(texts)))
        self.scheduled: Counter[int] = Counter()
        self.cancelled = False
        self._answer = answer
        self._scores: dict[int, Tensor] = {}
        self._predictions: dict[int, Prediction] = {}

    def schedule_example(self, index: int, limit: int) -> "ScheduledExample":
        """The next ``limit`` items of an example, or as many as are left."""
        start = self.scheduled[index]
        return ScheduledExample(self, index, range(start, min(start + limit, self.asking.count)))

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
        read: of its text.
        scored: tokens of the completion, and the one that ends it, with what the model gave them, where that is asked
            for.
        tops: how many of the likeliest tokens are told in each place; ``None``: nothing is.
        echo: what its answer begins with, until that is told.
        only_read: nothing follows it.
        detokenizer: what of it may be shown.
        isolated: it was in a batch that failed, and shares no batch any more.
        timing: what the worker notes.
        cancelled: nobody waits for the answer any more.
    """

    kind: RequestKind = "generation"

    def __init__(
        self,
        base: FrozenLM,
        served: ServedPrompt,
        encoded: EncodedText,
        generation: GenerationConfig,
        out: "asyncio.Queue[CompletionChunk | Exception]",
        timing: RequestTiming | None = None,
        *,
        grammar: GrammarState | None = None,
        logprobs: int | None = None,
    ) -> None:
        """``grammar``: that of ``generation``, at its beginning; ``logprobs``: see ``EngineClient.generate``."""
        self.served, self.item, self.read = served, encoded.item, encoded.read
        self.timing = timing or RequestTiming()
        self.completion = Completion(base, generation, grammar=grammar)
        self.scored: list[ScoredToken] = []
        self.tops, self.echo, self.only_read = logprobs, encoded.echo, encoded.only_read
        self.detokenizer = Detokenizer(self.completion, base.tokenizer, encoded.read, self.scored)
        # BOS counted
        self.final_length = len(base.bos_ids) + encoded.read.tokens + generation.max_new_tokens
        self.isolated = False
        self.cancelled = False
        self._out = out

    def deliver(self, piece: CompletionChunk | Exception) -> None:
        """Hand over a piece, or why there will be none (in the event loop)."""
        self._out.put_nowait(piece)


EngineRequest: TypeAlias = ClassificationRequest | GenerationRequest
