"""``POST /v1/chat/completions``: a message of the user in, the assistant's out.

A learned prompt takes the place of a system message and was learned from single texts, so a chat has one message, of
the user, whose text becomes that of the template. Anything else is refused, for it would be expected to have a say in
the answer. Clients that cannot help sending more are served with the setting ``chat = "last"``: then the last message,
which must be the user's, is answered, and the others are left out.
"""

from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from softprompt.serving.engine.completion_chunks import CompletionChunk
from softprompt.serving.http.completion_service import CompletionService, PartialCompletion, build_generation_config
from softprompt.serving.http.http_errors import ApiError
from softprompt.serving.http.logprobs import describe_chat_logprobs
from softprompt.serving.http.openapi import describe_responses
from softprompt.serving.http.request_context import ServingContext, Timeout
from softprompt.serving.http.schemas.answer_schemas import ChatCompletion
from softprompt.serving.http.schemas.request_schemas import ChatRequest, LastMessageRequest, UserMessage


def create_chat_router(serving: ServingContext, route: type[APIRoute]) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=route)
    kind: Any = ChatRequest if serving.config.chat == "single" else LastMessageRequest

    async def complete(request: Request, body: ChatRequest | LastMessageRequest, timeout: Timeout = None) -> Response:
        """The message's text becomes the ``text`` of the prompt's template. A prompt for classification answers with
        the words of the likeliest label. Greedy unless ``temperature`` is above 0."""
        context = await serving.resolve(request, body.model, timeout, body.baseline)
        last = body.messages[-1]
        if not isinstance(last, UserMessage):
            raise ApiError(422, "invalid_value", "messages: expected a last one of the user", param="messages")
        content = last.content
        text = content if isinstance(content, str) else "\n".join(part.text for part in content)
        generation = build_generation_config(serving, context, body, body.max_completion_tokens or body.max_tokens)
        examples = serving.build_examples(context, [serving.build_row(context, text, body.columns)])
        if body.top_logprobs and not body.logprobs:
            context.outcome.warnings.append("top_logprobs has no effect without logprobs")
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        service = CompletionService(
            serving, context, examples, generation, "chatcmpl", choices=body.n or 1, logprobs=logprobs
        )
        if body.stream:
            return await service.stream("chat.completion.chunk", _make_deltas, usage=body.usage_in_stream)
        return await service.respond("chat.completion", _make_message)

    complete.__annotations__["body"] = kind
    responses = describe_responses(ChatCompletion, streams=True)
    router.post("/v1/chat/completions", responses=responses, summary="Answer a message")(complete)
    return router


def _make_message(index: int, whole: PartialCompletion) -> dict[str, Any]:
    message = {"role": "assistant", "content": whole.text, "refusal": None}
    logprobs = describe_chat_logprobs(whole.logprobs) if whole.logprobs else None
    return {"index": index, "message": message, "finish_reason": whole.finish, "logprobs": logprobs}


def _make_deltas(index: int, piece: CompletionChunk, first: bool) -> list[dict[str, Any]]:
    """A role first, then what is new of the content."""
    choices = []
    if first:
        delta = {"role": "assistant", "content": ""}
        choices.append({"index": index, "delta": delta, "finish_reason": None, "logprobs": None})
    if piece.text or piece.finish or piece.logprobs:
        delta = {"content": piece.text} if piece.text else {}
        logprobs = describe_chat_logprobs(piece.logprobs) if piece.logprobs else None
        choices.append({"index": index, "delta": delta, "finish_reason": piece.finish, "logprobs": logprobs})
    return choices
