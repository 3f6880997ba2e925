"""What every request for an answer goes through: permission, prompt, limits, a deadline, a client that may leave."""

import asyncio
import hashlib
import math
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any, TypeVar

from fastapi import Header
from starlette.requests import Request

from softprompt.data.encoding.token_bytes import token_bytes
from softprompt.data.examples import Example, count_characters, unlabelled_example
from softprompt.data.task import TaskSpec
from softprompt.errors import DataError, shorten
from softprompt.inference.chat_answers import make_bare_states
from softprompt.inference.predictions import Prediction
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.written_prompt import written_prompt
from softprompt.serving.engine.engine_requests import DeadlineExceededError, EngineClient, RawPrompt, ServedPrompt
from softprompt.serving.engine.prompt_registry import BARE_TEMPLATE, BaseModelInfo, PromptRegistry, ResolvedModel
from softprompt.serving.engine.request_preparation import count_prefix_tokens
from softprompt.serving.engine.request_timing import RequestTiming
from softprompt.serving.http.guarded_route import check_model_allowed
from softprompt.serving.http.http_errors import ApiError, ClientDisconnectedError
from softprompt.serving.http.prometheus import ServerMetrics
from softprompt.serving.http.rate_limits import CHARACTERS_A_TOKEN, Admission
from softprompt.serving.http.schemas.request_schemas import Baseline
from softprompt.serving.http.server_settings import ServerSettings
from softprompt.serving.request_log.request_sampler import RequestAnswer, RequestOutcome

KEPT = 256  # tasks whose form with the bare text is kept


def make_baseline(base: BaseModelInfo, served: ServedPrompt, asked: Baseline) -> ServedPrompt:
    """The task of ``served`` without its learned prompt: by its template, a written instruction, or the bare text.

    From any thread; takes as long as an instruction does. Raises ApiError for one where the model runs elsewhere.
    """
    spec = (served.spec if asked.template else _strip_template(served.spec)).without_prompt
    words = asked.instruction or ""
    state = None
    form = hashlib.sha256(f"{asked.template} {words}".encode()).hexdigest()[:16]
    if spec.chat is not None:
        # the written prompt of a conversation is its system message
        kept = spec.chat.system if asked.template else None
        spec = replace(spec, chat=replace(spec.chat, system=words or kept))
        return ServedPrompt(f"{served.key} as {form}", spec, make_bare_states(base, spec))
    if words:
        if not isinstance(base, FrozenLM):
            why = "instructions need the model in the server's own process, which here runs in vLLM"
            raise ApiError(422, "no_instruction", f"{why}: write it into the text", param="baseline.instruction")
        state = written_prompt(base, spec, words)
    return ServedPrompt(f"{served.key} as {form}", spec, () if state is None else (state,))


@lru_cache(KEPT)
def _strip_template(spec: TaskSpec) -> TaskSpec:
    return replace(spec, template=BARE_TEMPLATE)


T = TypeVar("T")

MOST_NAMED = 8  # columns, or texts, that are warned of in one answer

Timeout = Annotated[
    int | None,
    Header(alias="X-Request-Timeout", ge=1, le=86400, description="seconds, at most those of the server's settings"),
]


@dataclass(frozen=True)
class RequestContext:
    """A request whose model is found.

    Attributes:
        request: for the client's leaving.
        found: what answers.
        served: the same for the engine.
        deadline: when the answer is no longer wanted, on the event loop's clock.
        outcome: for log and metrics.
        model: that was asked for, with its version, which may be another than answers (a baseline).
        columns: that its template uses.
        raw: texts are read as they are, without template, and are the language model's to go on with.
    """

    request: Request
    found: ResolvedModel
    served: ServedPrompt
    deadline: float
    outcome: RequestOutcome
    model: str
    columns: frozenset[str]
    raw: bool = False

    @property
    def classifies(self) -> bool:
        """It is answered with labels."""
        return self.served.spec.kind == "classification" and not self.raw

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline; raises DeadlineExceededError behind it."""
        seconds = self.deadline - asyncio.get_running_loop().time()
        if seconds <= 0:
            raise DeadlineExceededError
        return seconds

    async def finish_or_cancel(self, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` comes to, which is cancelled when its deadline passes or the client goes away.

        Raises:
            DeadlineExceededError, ClientDisconnectedError: that happened.
        """
        task, watch = asyncio.create_task(work), asyncio.create_task(_wait_for_disconnect(self.request))
        try:
            done, _ = await asyncio.wait({task, watch}, timeout=self.seconds_left, return_when=asyncio.FIRST_COMPLETED)
            if task in done:
                return task.result()
            raise ClientDisconnectedError if watch in done else DeadlineExceededError
        finally:
            task.cancel()
            watch.cancel()
            await asyncio.gather(task, watch, return_exceptions=True)

    async def next_event(self, events: AsyncGenerator[T, None]) -> T | None:
        """The next one of a stream whose response has begun, ``None`` at its end; raises DeadlineExceededError."""
        try:
            async with asyncio.timeout(self.seconds_left):
                return await anext(events, None)
        except TimeoutError as error:
            raise DeadlineExceededError from error


class ServingContext:
    """What the routes share."""

    def __init__(
        self, engine: EngineClient, registry: PromptRegistry, config: ServerSettings, metrics: ServerMetrics
    ) -> None:
        self.engine, self.registry, self.config, self.metrics = engine, registry, config, metrics

    async def resolve(
        self,
        request: Request,
        model: str,
        seconds: int | None = None,
        baseline: Baseline | None = None,
        *,
        chat: bool = False,
    ) -> RequestContext:
        """Find what a request means, once.

        Args:
            seconds: that the client allows.
            baseline: the base model answers in place of the prompt.
            chat: a conversation is asked.

        Raises:
            ApiError, ModelNotFoundError, ModelUnavailableError: it may not be asked, is not there, or cannot be used.
        """
        deadline = asyncio.get_running_loop().time() + min(self.config.timeout, seconds or self.config.timeout)
        # before it is looked up, so that a key learns nothing of what it may not ask
        check_model_allowed(request, model if model == self.registry.base_name else model.partition("@")[0])
        if baseline is not None:
            check_model_allowed(request, self.registry.base_name)
        found = self.registry.resolve(model)
        outcome: RequestOutcome = request.state.outcome
        outcome.task, outcome.model = found.name, found.id
        bare = self.registry.bare_chat if chat else self.registry.bare
        context = RequestContext(request, found, bare, deadline, outcome, found.id, bare.spec.compiled.names)
        if found.number is not None:
            loaded = self.registry.get_loaded(found.id)
            if loaded is None:
                loaded = await context.finish_or_cancel(self.registry.load(found))
            context = replace(context, served=loaded.served, columns=loaded.served.spec.compiled.names)
            if baseline is None:
                outcome.served = loaded.served
        if baseline is not None:
            served = await context.finish_or_cancel(
                asyncio.to_thread(make_baseline, self.registry.base, context.served, baseline)
            )
            found = self.registry.resolve(self.registry.base_name)
            outcome.task, outcome.model = found.name, found.id
            context = replace(context, found=found, served=served)
        return context

    def build_examples(self, context: RequestContext, rows: Sequence[Mapping[str, Any]]) -> list[Example]:
        """Rows of a request for the engine; columns and texts that the template does not use are noted.

        Raises:
            ApiError: too many, or one too long.
            DataError: one cannot be used.
        """
        self.check_texts(len(rows))
        columns = context.served.spec.row_columns
        examples = [unlabelled_example(row, f"text {index}", columns) for index, row in enumerate(rows)]
        for index, one in enumerate(examples):
            if (length := count_characters(one)) > self.config.text_limit:
                limit = f"at most {self.config.text_limit:,} characters, got {length:,}"
                raise ApiError(422, "text_too_long", f"text {index}: expected {limit}")
        used = sorted(context.columns)
        for name in sorted({name for one in examples for name in one.columns} - context.columns)[:MOST_NAMED]:
            context.outcome.warnings.append(
                f"the column '{shorten(name, 80)}' has no effect: the template of '{context.model}' uses "
                f"{', '.join(used)}"
            )
        needed = context.served.spec.compiled.names
        if "text" not in needed and any(one.text for one in examples):
            context.outcome.warnings.append(
                f"the text has no effect: the template of '{context.model}' uses {', '.join(sorted(needed))}"
            )
        context.outcome.examples = examples
        return examples

    def build_raw_prompts(
        self, context: RequestContext, texts: Sequence[str | Sequence[int]], *, echo: bool, completed: bool
    ) -> list[RawPrompt]:
        """Texts that are read as they are, words or token ids.

        Raises:
            ApiError: too many, or one too long.
        """
        self.check_texts(len(texts))
        for index, one in enumerate(texts):
            if len(one) > self.config.text_limit:
                what = "characters" if isinstance(one, str) else "tokens"
                limit = f"at most {self.config.text_limit:,} {what}, got {len(one):,}"
                raise ApiError(422, "text_too_long", f"text {index}: expected {limit}")
        # none of the rows that its prompt is for
        context.outcome.served = None
        if self.config.log_text:
            spelling = token_bytes(self.registry.base.tokenizer)
            words = [one if isinstance(one, str) else spelling.write(one) for one in texts]
            context.outcome.examples = [Example(one) for one in words]
        return [RawPrompt(one if isinstance(one, str) else tuple(one), echo, completed) for one in texts]

    def check_texts(self, count: int, what: str = "texts") -> None:
        """Raise ApiError if a request may not have so many texts, or completions of them all."""
        # what never fits into the queue is not to be tried again and again
        most = min(self.config.batch_limit, int(self.config.engine.get("waiting", self.config.batch_limit)))
        if count > most:
            raise ApiError(422, "too_many_texts", f"a request has at most {most:,} {what}")

    def start_timing(self, context: RequestContext) -> RequestTiming:
        """What the engine is to note of this request, or of one text of it; from now on."""
        timing = RequestTiming()
        context.outcome.timings.append(timing)
        return timing

    def reserve_tokens(
        self, context: RequestContext, examples: Sequence[Example | RawPrompt], max_new_tokens: int, choices: int = 1
    ) -> None:
        """Take from what the API key may have as many tokens as answers of so many new tokens may come to.

        Raises:
            ApiError: it may not have as many now.
        """
        context.outcome.expected_tokens = sum(_estimate_tokens(context.served, one) for one in examples)
        admission: Admission | None = context.request.state.admission
        if admission is not None:
            admission.take("tokens", context.outcome.expected_tokens + max_new_tokens * len(examples) * choices)

    def build_row(self, context: RequestContext, text: str, columns: Mapping[str, Any] | None) -> dict[str, Any]:
        """The row of a text with its columns; raises DataError for a second text."""
        for name in ("text", context.served.spec.columns.text):
            if columns and name in columns:
                raise DataError(
                    f"columns: expected columns beside '{name}', which the request has already: leave it out"
                )
        return {**(columns or {}), "text": text}

    def warn_of_cut(self, context: RequestContext, index: int, tokens: int) -> None:
        """Note that a text was too long to be read whole."""
        context.outcome.cut += 1
        if context.outcome.cut <= MOST_NAMED:
            context.outcome.warnings.append(
                f"text {index} was cut: it is longer than the {tokens:,} tokens that '{context.model}' reads, prompt "
                "and template included"
            )

    def record_usage(self, outcome: RequestOutcome, prompt_tokens: int, completion_tokens: int) -> None:
        """Count what was read and generated for a request."""
        outcome.prompt_tokens += prompt_tokens
        outcome.completion_tokens += completion_tokens
        self.metrics.record_tokens(outcome.task, prompt_tokens, completion_tokens)

    def record_answers(
        self, outcome: RequestOutcome, answers: Sequence[str], predictions: Sequence[Prediction] = ()
    ) -> None:
        """Keep what was answered for samples, and put it into the log with its texts, where that is asked for."""
        if self.config.log_text:
            outcome.said = {"texts": [one.text for one in outcome.examples], "answers": list(answers)}
        outcome.answers = [RequestAnswer(str(one.label), one.probabilities) for one in predictions] or [
            RequestAnswer(one) for one in answers
        ]


def _estimate_tokens(served: ServedPrompt, example: Example | RawPrompt) -> int:
    """About as many tokens as are read."""
    virtual_tokens = count_prefix_tokens(served)
    if isinstance(example, RawPrompt):
        words = isinstance(example.text, str)
        return virtual_tokens + math.ceil(len(example.text) / (CHARACTERS_A_TOKEN if words else 1))
    around = virtual_tokens + math.ceil(len(served.spec.template) / CHARACTERS_A_TOKEN)
    return min(around + math.ceil(count_characters(example) / CHARACTERS_A_TOKEN), served.spec.max_length)


def make_warnings_field(outcome: RequestOutcome) -> dict[str, Any]:
    """What an answer has beside OpenAI's fields, where there is something to tell."""
    return {"warnings": outcome.warnings} if outcome.warnings else {}


async def _wait_for_disconnect(request: Request) -> None:
    """Wait until the client has closed the connection; the body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
