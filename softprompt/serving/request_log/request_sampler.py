"""Samples of requests, written to a file beside the answers and never in their way.

A request that has ended is put into a bounded queue, or counted as dropped where that is full; a thread of its own
measures the texts and writes. What cannot be written is counted and logged once, and the next ones are tried again.
"""

import json
import logging
import random
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.encoding.special_tokens import TokenizingModel
from softprompt.data.examples import Example, count_characters
from softprompt.errors import SoftpromptError
from softprompt.prompts.text_encoder import make_text_encoder
from softprompt.serving.engine.engine_requests import ServedPrompt
from softprompt.serving.engine.request_preparation import WeightedCache, weigh_labels
from softprompt.serving.engine.request_timing import RequestTiming
from softprompt.serving.request_log.request_records import TEXT_CHARACTERS, RequestRecord
from softprompt.serving.request_log.sample_files import ROW_BYTES, SampleFile
from softprompt.store.input_profile import InputProfile
from softprompt.training.input_profiling import count_rare_tokens

QUEUE = 4096  # requests that wait to be written, at most
QUEUE_CHARACTERS = 2**25  # of all their texts
AT_ONCE = 256  # requests that are written together
KEPT = 256  # prompts whose encoder and profile are held
CLOSING = 60.0  # seconds that the thread has to write what is queued

log = logging.getLogger("softprompt.serving")


@dataclass(frozen=True)
class RequestAnswer:
    """What came of one text; ``text`` is the label or the completion."""

    text: str
    probabilities: Mapping[str, float] | None = None


@dataclass
class RequestOutcome:
    """What is known of a request by its end.

    Attributes:
        id: of the request; the client's own, if it sent one.
        client: address that it came from; of whoever asked a proxy, if that is trusted.
        key: name of the API key.
        task: name of the prompt, if it is one that there is.
        model: what answered, with its version.
        prompt_tokens, completion_tokens: read and generated.
        expected_tokens: of the texts, before they were read: about as many.
        route: that was asked.
        status: of the response, or what it came to where that had begun already; 0 before its end.
        code, param: of the error, if it ended in one, and of the field that is wrong.
        streamed: it was answered by a stream of events.
        timings: what the engine noted, for each of its completions, or for all of its labels.
        seconds: of the whole request.
        time: when it ended, in seconds since 1970.
        warnings: what whoever asked is told beside the answer.
        cut: texts that were too long to be read whole.
        said: texts and answers, where they are to be logged.
        served, examples, answers: of a request to a prompt, as far as it got, for samples.
    """

    id: str
    client: str = ""
    key: str = ""
    task: str = ""
    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    expected_tokens: int = 0
    route: str = ""
    status: int = 0
    code: str = ""
    param: str = ""
    streamed: bool = False
    timings: list[RequestTiming] = field(default_factory=list)
    seconds: float = 0.0
    time: float = 0.0
    warnings: list[str] = field(default_factory=list)
    cut: int = 0
    said: dict[str, Any] = field(default_factory=dict)
    served: ServedPrompt | None = None
    examples: Sequence[Example] = ()
    answers: Sequence[RequestAnswer] = ()

    @property
    def first_token_seconds(self) -> float | None:
        """Until the first token of any of its completions, or its labels; ``None`` if it came to none."""
        found = [one.first_token_seconds for one in self.timings]
        return min((seconds for seconds in found if seconds is not None), default=None)

    @property
    def characters(self) -> int:
        """Of the texts and answers that it holds in memory."""
        return sum(map(count_characters, self.examples)) + sum(len(one.text) for one in self.answers)


class RequestSampler:
    """Takes a share of the requests.

    Attributes:
        rate: the share.
    """

    def __init__(
        self,
        base: TokenizingModel,
        file: SampleFile,
        profile: Callable[[str], InputProfile | None],
        count: Callable[[str, int], None],
        *,
        rate: float,
        text: bool,
    ) -> None:
        """Start the thread.

        Args:
            profile: of ``name@version``, if it has one; may block.
            count: is told of how many requests were ``written``, ``dropped`` or ``failed``; from any thread.
            text: keep texts and completions.
        """
        self.rate = rate
        self._file, self._count, self._text = file, count, text
        self._counter = _TokenCounter(base, profile)
        self._queue: deque[RequestOutcome] = deque()
        self._characters = 0
        self._closed = self._failing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="softprompt samples", daemon=True)
        self._thread.start()

    def is_chosen(self) -> bool:
        """Whether the next request is one of the share."""
        return random.random() < self.rate

    def offer(self, outcome: RequestOutcome) -> None:
        """Have a request written, if there is room; at once, from any thread."""
        characters = outcome.characters
        with self._changed:
            full = len(self._queue) >= QUEUE or self._characters + characters > QUEUE_CHARACTERS
            if not full and not self._closed:
                self._queue.append(outcome)
                self._characters += characters
                self._changed.notify()
                return
        self._count("dropped", 1)

    def close(self) -> None:
        """Take no more, and write what is queued. Blocks."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(CLOSING)
        if self._thread.is_alive():
            log.error("samples not written in time", extra={"fields": {"requests": len(self._queue)}})

    def _run(self) -> None:
        while batch := self._take_batch():
            try:
                self._file.write([row for outcome in batch for row in self._make_records(outcome)])
            except (OSError, sqlite3.Error) as error:
                self._record_failure(batch, error)
            except Exception as error:  # whatever it is, the next ones are to be tried
                log.error("samples not written", exc_info=error)
                self._count("failed", len(batch))
            else:
                self._count("written", len(batch))
                if self._failing:
                    log.info("samples are written again")
                self._failing = False
        try:
            self._file.close()
        except (OSError, sqlite3.Error) as error:
            log.error("samples not closed", extra={"fields": {"reason": str(error)}})

    def _take_batch(self) -> list[RequestOutcome]:
        """Requests that wait, when there are some; none at the end."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), AT_ONCE))]
            self._characters -= sum(outcome.characters for outcome in batch)
            return batch

    def _record_failure(self, batch: Sequence[RequestOutcome], error: Exception) -> None:
        self._count("failed", len(batch))
        if not self._failing:  # one line, however long the disk is full
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            log.error("samples not written, tried again with the next ones", extra={"fields": {"reason": reason}})
        self._failing = True

    def _make_records(self, outcome: RequestOutcome) -> Iterator[RequestRecord]:
        assert outcome.served is not None
        tells = self._text or outcome.served.spec.kind == "classification"  # a label is none of the user's text
        for index, example in enumerate(outcome.examples):
            answer = outcome.answers[index] if index < len(outcome.answers) else None
            tokens, rare = self._counter.tokens(outcome.model, outcome.served, example)
            columns = _select_columns(example) if self._text else None
            # a conversation that is not kept whole cannot be read again
            whole = columns is not None or example.conversation is None
            yield RequestRecord(
                time=outcome.time,
                request=outcome.id,
                prompt=outcome.model,
                key=outcome.key[:300],
                route=outcome.route,
                characters=len(example.text),
                tokens=tokens,
                rare=rare,
                text=_truncate(example.text) if self._text and whole else None,
                columns=columns,
                answer=_truncate(answer.text) if answer is not None and tells else None,
                probabilities=dict(answer.probabilities) if answer is not None and answer.probabilities else None,
                milliseconds=round(1000 * outcome.seconds, 1),
                status=outcome.status,
                error=outcome.code,
            )


class _TokenCounter:
    """Tokens of texts."""

    def __init__(self, base: TokenizingModel, profile: Callable[[str], InputProfile | None]) -> None:
        self._base, self._profile = base, profile
        self._prompts: WeightedCache[tuple[ExampleEncoder, frozenset[int] | None]] = WeightedCache(
            KEPT, lambda made: weigh_labels(made[0])
        )

    def tokens(self, prompt: str, served: ServedPrompt, example: Example) -> tuple[int | None, int | None]:
        """How many a text has, and how many of them are rare; ``None`` for what cannot be told."""
        try:
            encoder, known = self._prompts.get(served.key, lambda: self._load(prompt, served))
            (ids,) = encoder.encode_texts([example])
        except SoftpromptError:
            return None, None
        return len(ids), None if known is None else count_rare_tokens(ids, known)

    def _load(self, prompt: str, served: ServedPrompt) -> tuple[ExampleEncoder, frozenset[int] | None]:
        known = None
        try:
            profile = self._profile(prompt)
            known = None if profile is None else profile.known
        except SoftpromptError as error:
            log.warning("profile not read", extra={"fields": {"model": prompt, "reason": str(error)}})
        return make_text_encoder(self._base, served.spec, served.states), known


def _truncate(text: str) -> str:
    # half of a surrogate pair is no text that can be stored
    return text[:TEXT_CHARACTERS].encode(errors="replace").decode()


def _select_columns(example: Example) -> dict[str, Any] | None:
    """Small enough to be read back, a conversation as a row has it; ``None`` if there are none, or too large ones."""
    found = {name: _truncate(value) if isinstance(value, str) else value for name, value in example.columns.items()}
    if example.conversation is not None:
        found |= example.conversation.to_row()
    return found if found and len(json.dumps(found)) < ROW_BYTES and all(len(name) <= 300 for name in found) else None
