"""``POST /v1/completions``: texts in, completions out."""

from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from softprompt.serving.engine.completion_chunks import CompletionChunk
from softprompt.serving.http.completion_service import CompletionService, build_generation_config
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
        unless ``temperature`` is above 0."""
        context = await serving.resolve(request, body.model, timeout, body.baseline)
        texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        examples = serving.build_examples(context, [serving.build_row(context, text, body.columns) for text in texts])
        generation = build_generation_config(serving, context, body, body.max_tokens)
        service = CompletionService(serving, context, examples, generation, "cmpl", exact=True)
        if body.stream:
            return await service.stream("text_completion", _make_choices, usage=body.usage_in_stream)
        return await service.respond("text_completion", _make_choice)

    return router


def _make_choices(index: int, piece: CompletionChunk, first: bool) -> list[dict[str, Any]]:
    return [_make_choice(index, piece.text, piece.finish)] if piece.text or piece.finish else []


def _make_choice(index: int, text: str, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "finish_reason": finish, "logprobs": None}
