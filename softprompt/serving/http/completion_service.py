"""Completions of texts, whichever kind of prompt: what the routes for completions and chats have in common."""

import hashlib
import logging
import math
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from starlette.responses import JSONResponse

from softprompt.data.chats.answer_reading import AnswerReader
from softprompt.data.chats.conversation import Message, ToolCall
from softprompt.data.chats.plain_text import answer_text
from softprompt.data.examples import Example
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.grammar import Grammar
from softprompt.inference.predictions import Prediction
from softprompt.serving.engine.completion_chunks import CompletionChunk, InputUsage, TokenLogprob
from softprompt.serving.engine.engine_requests import RawPrompt
from softprompt.serving.http.http_errors import CLIENT_GONE, ApiError, to_api_error
from softprompt.serving.http.request_context import RequestContext, ServingContext, make_warnings_field
from softprompt.serving.http.schemas.request_schemas import (
    BaseCompletionRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    TextFormat,
)
from softprompt.serving.http.sse import DONE, EventStream, encode_event, merge_streams

NEUTRAL = {"temperature": (None, 0), "top_k": (None, 0, -1), "top_p": (None, 1)}  # what changes nothing

log = logging.getLogger("softprompt.serving")


def build_generation_config(
    serving: ServingContext, context: RequestContext, request: BaseCompletionRequest, max_tokens: int | None
) -> GenerationConfig:
    """How to choose tokens; greedy unless asked otherwise, as softprompt predict does. What is asked for and has no
    effect is noted.

    Raises:
        ApiError: more tokens than are allowed, or a form of the answer that it cannot have.
        GrammarError: a schema that is too large.
    """
    most = serving.config.max_tokens
    if max_tokens is not None and max_tokens > most:
        raise ApiError(
            422, "too_many_tokens", f"expected at most {most:,} tokens, got {max_tokens:,}", param="max_tokens"
        )
    warm = {name for name in ("temperature", "top_k", "top_p") if getattr(request, name) not in NEUTRAL[name]}
    grammar = make_grammar(request.response_format)
    if context.classifies:
        if grammar is not None:
            message = f"response_format: '{context.found.id}' answers with the words of its labels, never in JSON"
            raise ApiError(422, "invalid_value", message, param="response_format")
        idle = {*warm, *(["max_tokens"] if max_tokens else []), *(["stop"] if request.stop else [])}
        why = f"'{context.found.id}' answers with the words of the likeliest label"
    else:
        idle = set() if request.temperature else warm
        why = "without a temperature above 0 the likeliest token is taken"
    context.outcome.warnings += [f"{name} has no effect: {why}" for name in sorted(idle)]
    if request.ignore_eos:
        context.outcome.warnings.append("ignore_eos has no effect: a completion ends where the model ends it")
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    return GenerationConfig(
        max_new_tokens=serving.config.default_max_tokens if max_tokens is None else max(1, max_tokens),
        temperature=request.temperature or 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=max(request.top_k or 0, 0),
        stop=stop,
        seed=secrets.randbelow(2**62) if request.seed is None else request.seed,
        grammar=grammar,
    )


def make_grammar(response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None) -> Grammar | None:
    """What an answer may say; ``None`` for any text.

    Raises:
        GrammarError: a schema that is too large.
    """
    if isinstance(response_format, JsonSchemaFormat):
        return Grammar.of_json_schema(response_format.json_schema.json_schema)
    return Grammar.of_json_object() if isinstance(response_format, JsonObjectFormat) else None


@dataclass
class WhitespaceTrimmer:
    """Pieces without the white space around the whole, as far as that can be told."""

    begun: bool = False
    held_back: str = ""

    def __call__(self, piece: CompletionChunk) -> CompletionChunk:
        text = self.held_back + piece.text
        if not self.begun:
            text = text.lstrip()
        kept = text.rstrip()
        self.begun |= bool(kept)
        self.held_back = text[len(kept) :]
        return replace(piece, text=kept)


@dataclass
class AnswerDivider:
    """Pieces of an answer, with its thoughts and calls apart from its text."""

    reader: AnswerReader
    most_calls: int | None = None
    called: int = 0

    def __call__(self, piece: CompletionChunk) -> CompletionChunk:
        parts = self.reader.read(piece.text)
        if piece.finish is not None:
            parts += self.reader.close()
        calls = [one.call for one in parts if one.call is not None]
        if self.most_calls is not None:
            calls = calls[: max(0, self.most_calls - self.called)]
        self.called += len(calls)
        words = {kind: "".join(one.text for one in parts if one.kind == kind) for kind in ("content", "reasoning")}
        finish = "tool_calls" if piece.finish == "stop" and self.called else piece.finish
        return replace(piece, text=words["content"], reasoning=words["reasoning"], calls=tuple(calls), finish=finish)


@dataclass
class PartialCompletion:
    """A completion as far as it has grown."""

    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    finish: str | None = None
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)

    @property
    def reasoning(self) -> str:
        """What was thought before it, where that is told apart."""
        return "".join(self.thoughts).strip()

    @property
    def told(self) -> str:
        """It, and its calls as JSON, a line each."""
        return answer_text(Message("assistant", self.text, tuple(self.calls)))

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def take(self, piece: CompletionChunk) -> None:
        self.pieces.append(piece.text)
        self.thoughts.append(piece.reasoning)
        self.calls += piece.calls
        self.logprobs += piece.logprobs
        self.tokens += piece.tokens
        self.prompt_tokens = piece.read.tokens
        self.finish = piece.finish


class CompletionService:
    """The completions of one request.

    Attributes:
        grown: the completions, of each text as many as are asked for.
    """

    def __init__(
        self,
        serving: ServingContext,
        context: RequestContext,
        examples: Sequence[Example | RawPrompt],
        generation: GenerationConfig,
        prefix: str,
        *,
        exact: bool = False,
        choices: int = 1,
        logprobs: int | None = None,
        read: Callable[[], AnswerReader] | None = None,
        most_calls: int | None = None,
    ) -> None:
        """Ask nothing yet.

        Args:
            prefix: of the id, which tells OpenAI's kinds of answers apart.
            exact: a completion goes on where its text ends, with the white space between them.
            choices: completions of each text.
            logprobs: tell the tokens' log-probabilities, and so many of the likeliest in each place.
            read: makes what tells thoughts and calls of an answer apart.
            most_calls: that an answer has.

        Raises:
            ApiError: too many completions, or more tokens than the API key may have now.
        """
        serving.check_texts(len(examples) * choices, "completions")
        room = 0 if context.classifies else generation.max_new_tokens
        serving.reserve_tokens(context, examples, room, choices)
        if context.classifies and logprobs is not None:
            context.outcome.warnings.append(
                f"logprobs has no effect: '{context.found.id}' chooses a label, whose probabilities /v1/classify tells"
            )
        if choices > 1 and not (generation.temperature or context.classifies):
            context.outcome.warnings.append(
                "n has no effect but to repeat: without a temperature above 0 all choices of a text are the same"
            )
        self._serving, self._context, self._examples, self._generation = serving, context, examples, generation
        self._exact, self._choices, self._logprobs = exact, choices, logprobs
        self._read_answer, self._most_calls = read, most_calls
        id = f"{prefix}-{secrets.token_hex(12)}"
        self._head = {"id": id, "created": int(time.time()), "model": context.found.id}
        self.grown = [PartialCompletion() for _ in range(len(examples) * choices)]
        self._predictions: list[Prediction] = []

    async def respond(self, kind: str, choice: Callable[[int, PartialCompletion], dict[str, Any]]) -> JSONResponse:
        """All of them, when they are finished.

        Args:
            kind: what OpenAI calls the object.
            choice: what tells of a completion, by its index.
        """

        async def collect() -> None:
            async for _ in self._produce():
                pass

        await self._context.finish_or_cancel(collect())
        choices = [choice(index, one) for index, one in enumerate(self.grown)]
        answer = {**self._head, "object": kind, "choices": choices, "usage": self.usage()}
        return JSONResponse({**answer, **make_warnings_field(self._context.outcome)})

    async def stream(
        self,
        kind: str,
        chunk: Callable[[int, CompletionChunk, bool], list[dict[str, Any]]],
        *,
        usage: bool | Literal["always"],
    ) -> EventStream:
        """Server-sent events, as the completions grow.

        What goes wrong before the first piece has a status of its own; later it becomes an event, and the stream ends.

        Args:
            kind: what OpenAI calls the object of each event.
            chunk: the choices, each for an event of its own, that tell of a piece of the completion of this index;
                whether it is the first one of that.
            usage: one more event at the end, and in every one what was used so far if that is ``"always"``.
        """

        head = {**self._head, "object": kind}

        async def events() -> AsyncGenerator[bytes, None]:
            begun: set[int] = set()
            told = 0
            async with aclosing(self._produce()) as pieces:
                async for index, piece in pieces:
                    for choice in chunk(index, piece, index not in begun):
                        more: dict[str, Any] = {}
                        if usage:
                            more["usage"] = self.usage() if usage == "always" else None
                        if news := self.warnings[told:]:
                            more["warnings"], told = news, len(self.warnings)
                        yield encode_event({**head, "choices": [choice], **more})
                    begun.add(index)
            if usage:
                yield encode_event({**head, "choices": [], "usage": self.usage()})

        coming = events()
        first = await self._context.finish_or_cancel(anext(coming, None))
        return EventStream(self._guard_stream(first, coming))

    @property
    def warnings(self) -> list[str]:
        """What whoever asked may not expect of the answer."""
        return self._context.outcome.warnings

    def usage(self) -> dict[str, int]:
        """Tokens of all of them."""
        return count_usage(self._read, sum(one.tokens for one in self.grown))

    @property
    def _read(self) -> list[int]:
        """Tokens of each text, which counts once for all of its completions."""
        return [
            max(one.prompt_tokens for one in self.grown[start : start + self._choices])
            for start in range(0, len(self.grown), self._choices)
        ]

    async def _guard_stream(
        self, first: bytes | None, coming: AsyncGenerator[bytes, None]
    ) -> AsyncGenerator[bytes, None]:
        outcome, ended = self._context.outcome, False
        try:
            part = first
            while part is not None:
                yield part
                part = await self._context.next_event(coming)
            yield DONE
            ended = True
        except Exception as error:
            problem = to_api_error(error)
            if problem.status_code >= 500 and problem.code == "internal_error":
                log.error("failure", exc_info=error, extra={"fields": {"request_id": outcome.id}})
            outcome.status, outcome.code, ended = problem.status_code, problem.code, True
            yield encode_event(problem.to_dict())
        finally:
            if not ended:
                outcome.status, outcome.code = CLIENT_GONE, "client_gone"
            await coming.aclose()

    async def _produce(self) -> AsyncGenerator[tuple[int, CompletionChunk], None]:
        """Pieces as they come, each kept in ``grown`` too, and all of them accounted for at the end."""
        if self._context.classifies:
            coming = self._classify()
        else:
            asked = [example for example in self._examples for _ in range(self._choices)]
            coming = merge_streams([self._generate(index, example) for index, example in enumerate(asked)])
        try:
            async for index, piece in coming:
                text, choice = divmod(index, self._choices)
                if piece.read.cut and not self.grown[index].prompt_tokens and not choice:
                    self._serving.warn_of_cut(self._context, text, piece.read.tokens)
                self.grown[index].take(piece)
                yield index, piece
        finally:
            self._serving.record_usage(self._context.outcome, sum(self._read), sum(one.tokens for one in self.grown))
            # of each text the first
            answers = [one.told for one in self.grown[:: self._choices]]
            self._serving.record_answers(self._context.outcome, answers, self._predictions)
            await coming.aclose()

    async def _generate(self, index: int, example: Example | RawPrompt) -> AsyncGenerator[CompletionChunk, None]:
        context, generation = self._context, self._generation
        if index:
            # the same text twice is not to give the same sample twice
            drawn = hashlib.sha256(f"{generation.seed}/{index}".encode()).digest()
            generation = replace(generation, seed=int.from_bytes(drawn[:7], "big"))
        coming = self._serving.engine.generate(
            context.served,
            example,
            generation,
            logprobs=self._logprobs,
            deadline=context.seconds_left,
            timing=self._serving.start_timing(context),
        )
        shown: Callable[[CompletionChunk], CompletionChunk] = (
            (lambda piece: piece) if self._exact else WhitespaceTrimmer()
        )
        divided = None if self._read_answer is None else AnswerDivider(self._read_answer(), self._most_calls)
        try:
            async for piece in coming:
                yield shown(piece if divided is None else divided(piece))
        finally:
            if isinstance(coming, AsyncGenerator):
                await coming.aclose()

    async def _classify(self) -> AsyncGenerator[tuple[int, CompletionChunk], None]:
        """A prompt for classification says the words of the likeliest label."""
        spec = self._context.served.spec
        examples = [one for one in self._examples if isinstance(one, Example)]
        self._predictions = await classify_examples(self._serving, self._context, examples)
        for index, one in enumerate(one for one in self._predictions for _ in range(self._choices)):
            words = spec.verbalizers[spec.label_index[str(one.label)]]
            yield index, CompletionChunk(words, 0, InputUsage(one.prompt_tokens or 0, one.cut), "stop")


async def classify_examples(
    serving: ServingContext, context: RequestContext, examples: Sequence[Example]
) -> list[Prediction]:
    """Labels with probabilities.

    Raises:
        ApiError: the model gave no numbers.
    """
    timing = serving.start_timing(context)
    predictions = await serving.engine.classify(context.served, examples, deadline=context.seconds_left, timing=timing)
    for one in predictions:
        if not all(math.isfinite(value) for value in (one.probabilities or {}).values()):
            raise ApiError(500, "not_finite", "the model's numbers for this text are not finite: no label can be told")
    return predictions


def count_usage(prompt_tokens: Sequence[int], completion_tokens: int) -> dict[str, int]:
    """OpenAI's count of tokens."""
    read = sum(prompt_tokens)
    return {
        "prompt_tokens": read,
        "completion_tokens": completion_tokens,
        "total_tokens": read + completion_tokens,
    }
