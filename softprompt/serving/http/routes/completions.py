"""``POST /v1/completions``: texts in, completions out."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from softprompt.data.examples import Example
from softprompt.serving.engine.completion_chunks import CompletionChunk, TokenLogprob
from softprompt.serving.engine.engine_requests import RawPrompt
from softprompt.serving.http.completion_service import CompletionService, PartialCompletion, build_generation_config
from softprompt.serving.http.conversations import read_rows
from softprompt.serving.http.http_errors import ApiError
from softprompt.serving.http.logprobs import CompletionLogprobs
from softprompt.serving.http.openapi import describe_responses
from softprompt.serving.http.request_context import ServingContext, Timeout
from softprompt.serving.http.schemas.answer_schemas import Completion
from softprompt.serving.http.schemas.request_schemas import CompletionRequest


def create_completions_router(serving: ServingContext, route: type[APIRoute]) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=route)

    @router.post("/v1/completions", responses=describe_responses(Completion, streams=True), summary="Complete texts")
    async def complete(request: Request, body: CompletionRequest, timeout: Timeout = None) -> Response:
        """Each text becomes the ``text`` of the prompt's template; the completion goes on where that ends, with the
        white space between them. A prompt for classification answers with the words of the likeliest label. Greedy
        unless ``temperature`` is above 0. Token ids, and all texts with ``echo``, are read as they are behind the
        prompt, without its template, and whatever the prompt is for, the language model goes on with them."""
        if body.max_tokens == 0 and not body.echo:
            raise ApiError(
                422, "invalid_value", "max_tokens: expected at least 1 without echo, got 0", param="max_tokens"
            )
        context = await serving.resolve(request, body.model, timeout, body.baseline)
        texts = _list_texts(body.prompt)
        examples: Sequence[Example | RawPrompt]
        if body.echo or not isinstance(texts[0], str):
            context = replace(context, raw=True)
            if body.columns:
                context.outcome.warnings.append("columns has no effect: the text is read without the template")
            examples = serving.build_raw_prompts(context, texts, echo=bool(body.echo), completed=body.max_tokens != 0)
        else:
            rows = [serving.build_row(context, text, body.columns) for text in texts if isinstance(text, str)]
            examples = serving.build_examples(context, rows)
        generation = build_generation_config(serving, context, body, body.max_tokens)
        choices, logprobs = body.n or 1, body.logprobs
        context, generation, form = await read_rows(serving, context, generation)
        service = CompletionService(
            serving,
            context,
            examples,
            generation,
            "cmpl",
            exact=True,
            choices=choices,
            logprobs=logprobs,
            read=None if form is None else form.reader,
        )
        shape = _CompletionShape(told=logprobs is not None and not context.classifies)
        if body.stream:
            return await service.stream("text_completion", shape.make_choices, usage=body.usage_in_stream)
        return await service.respond("text_completion", shape.make_choice)

    return router


def _list_texts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """Each text, words or token ids."""
    if isinstance(prompt, str):
        return [prompt]
    ids = [one for one in prompt if isinstance(one, int)]
    return [ids] if ids else [one for one in prompt if not isinstance(one, int)]


class _CompletionShape:
    """Completions as OpenAI writes them."""

    def __init__(self, *, told: bool) -> None:
        """``told``: log-probabilities are."""
        self._logprobs: defaultdict[int, CompletionLogprobs] | None = defaultdict(CompletionLogprobs) if told else None

    def make_choice(self, index: int, whole: PartialCompletion) -> dict[str, Any]:
        """A completion that is finished."""
        return self._write(index, whole.text, whole.finish, whole.logprobs)

    def make_choices(self, index: int, piece: CompletionChunk, first: bool) -> list[dict[str, Any]]:
        """A piece of one that grows."""
        told = piece.text or piece.finish or piece.logprobs
        return [self._write(index, piece.text, piece.finish, piece.logprobs)] if told else []

    def _write(self, index: int, text: str, finish: str | None, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        logprobs = None if self._logprobs is None else self._logprobs[index].describe(tokens)
        return {"index": index, "text": text, "finish_reason": finish, "logprobs": logprobs}
