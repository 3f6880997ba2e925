"""Completions of texts, whichever kind of prompt: what the routes for completions and chats have in common."""

import hashlib
import logging
import math
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from softprompt.data import Example
from softprompt.generate import Sampling
from softprompt.predict import Prediction
from softprompt.server.desk import Asked, Desk
from softprompt.server.problems import CLIENT_GONE, ApiError, problem_of
from softprompt.server.schema import Asking
from softprompt.server.streams import END, EventStream, event, merged
from softprompt.server.work import Piece

log = logging.getLogger("softprompt.server")


def sampling_of(desk: Desk, request: Asking, max_tokens: int | None) -> Sampling:
    """How to choose tokens; greedy unless asked otherwise, as softprompt predict does.

    Raises:
        ApiError: more tokens than are allowed.
    """
    most = desk.config.max_tokens
    if max_tokens is not None and max_tokens > most:
        raise ApiError(
            422, "too_many_tokens", f"expected at most {most:,} tokens, got {max_tokens:,}", param="max_tokens"
        )
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    return Sampling(
        max_new_tokens=max_tokens or desk.config.default_max_tokens,
        temperature=request.temperature or 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=request.top_k or 0,
        stop=stop,
        seed=secrets.randbelow(2**62) if request.seed is None else request.seed,
    )


@dataclass
class Grown:
    """A completion as far as it has grown."""

    text: list[str] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int | None = None
    finish: str | None = None

    def take(self, piece: Piece) -> None:
        self.text.append(piece.text)
        self.tokens += piece.tokens
        self.prompt_tokens = piece.prompt_tokens
        self.finish = piece.finish


class Completing:
    """The completions of one request.

    Attributes:
        id, created, model: of the answer and of every event of it.
        grown: the completions, one for each text.
    """

    def __init__(self, desk: Desk, asked: Asked, examples: Sequence[Example], sampling: Sampling, prefix: str) -> None:
        """``prefix``: of the id, which tells OpenAI's kinds of answers apart."""
        self._desk, self._asked, self._examples, self._sampling = desk, asked, examples, sampling
        self.id, self.created, self.model = f"{prefix}-{secrets.token_hex(12)}", int(time.time()), asked.found.id
        self.grown = [Grown() for _ in examples]
        self._counted = True
        self._predictions: list[Prediction] = []

    async def whole(self) -> list[Grown]:
        """All of them, when they are finished."""

        async def collect() -> list[Grown]:
            async for _ in self._pieces():
                pass
            return self.grown

        return await self._asked.attended(collect())

    async def stream(
        self, chunk: Callable[[int, Piece, bool], list[dict[str, Any]]], head: dict[str, Any], *, usage: bool
    ) -> EventStream:
        """Server-sent events, as the completions grow.

        What goes wrong before the first piece has a status of its own; later it becomes an event, and the stream ends.

        Args:
            chunk: the choices, each for an event of its own, that tell of a piece of the completion of this index;
                whether it is the first one of that.
            head: what every event has beside them.
            usage: one more event at the end.
        """

        async def events() -> AsyncGenerator[bytes, None]:
            begun: set[int] = set()
            async with aclosing(self._pieces()) as pieces:
                async for index, piece in pieces:
                    for choice in chunk(index, piece, index not in begun):
                        yield event({**head, "choices": [choice], **({"usage": None} if usage else {})})
                    begun.add(index)
            if usage:
                yield event({**head, "choices": [], "usage": self.usage()})

        coming = events()
        first = await self._asked.attended(anext(coming, None))
        return EventStream(self._guarded(first, coming))

    def usage(self) -> dict[str, int] | None:
        """Tokens of all of them; ``None`` if the engine did not count what it read."""
        read = [one.prompt_tokens if self._counted else None for one in self.grown]
        return usage_of(read, sum(one.tokens for one in self.grown))

    async def _guarded(self, first: bytes | None, coming: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        facts, ended = self._asked.facts, False
        try:
            part = first
            while part is not None:
                yield part
                part = await self._asked.in_time(coming)
            yield END
            ended = True
        except Exception as error:
            problem = problem_of(error)
            if problem.status_code >= 500 and problem.code == "internal_error":
                log.error("failure", exc_info=error, extra={"facts": {"request_id": facts.id}})
            facts.status, facts.code, ended = problem.status_code, problem.code, True
            yield event(problem.to_dict())
        finally:
            if not ended:
                facts.status, facts.code = CLIENT_GONE, "client_gone"
            await coming.aclose()

    async def _pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """Pieces as they come, each kept in ``grown`` too, and all of them accounted for at the end."""
        if self._asked.served.spec.kind == "classification":
            coming = self._labels()
        else:
            coming = merged([self._generated(index, example) for index, example in enumerate(self._examples)])
        try:
            async for index, piece in coming:
                self.grown[index].take(piece)
                yield index, piece
        finally:
            read = sum(one.prompt_tokens or 0 for one in self.grown)
            self._desk.account(self._asked.facts, read, sum(one.tokens for one in self.grown))
            self._desk.note(self._asked.facts, ["".join(one.text) for one in self.grown], self._predictions)
            await coming.aclose()

    def _generated(self, index: int, example: Example) -> AsyncIterator[Piece]:
        asked, sampling = self._asked, self._sampling
        if index:
            # the same text twice is not to give the same sample twice
            drawn = hashlib.sha256(f"{sampling.seed}/{index}".encode()).digest()
            sampling = replace(sampling, seed=int.from_bytes(drawn[:7], "big"))
        return self._desk.engine.generate(asked.served, example, sampling, deadline=asked.left)

    async def _labels(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """A prompt for classification says the words of the likeliest label."""
        spec = self._asked.served.spec
        self._predictions = await classified(self._desk, self._asked, self._examples)
        for index, one in enumerate(self._predictions):
            self._counted &= one.prompt_tokens is not None
            words = spec.verbalizers[spec.label_index[str(one.label)]]
            yield index, Piece(words, 0, one.prompt_tokens or 0, "stop")


async def classified(desk: Desk, asked: Asked, examples: Sequence[Example]) -> list[Prediction]:
    """Labels with probabilities.

    Raises:
        ApiError: the model gave no numbers.
    """
    predictions = await desk.engine.classify(asked.served, examples, deadline=asked.left)
    for one in predictions:
        if not all(math.isfinite(value) for value in (one.probabilities or {}).values()):
            raise ApiError(500, "not_finite", "the model's numbers for this text are not finite: no label can be told")
    return predictions


def usage_of(prompt_tokens: Sequence[int | None], completion_tokens: int) -> dict[str, int] | None:
    """OpenAI's count of tokens; ``None`` if some are not known."""
    known = [count for count in prompt_tokens if count is not None]
    if len(known) < len(prompt_tokens):
        return None
    read = sum(known)
    return {
        "prompt_tokens": read,
        "completion_tokens": completion_tokens,
        "total_tokens": read + completion_tokens,
    }
