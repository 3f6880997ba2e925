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
from starlette.responses import JSONResponse, Response

from softprompt.serving.engine.engine_types import Piece
from softprompt.serving.http.completion_service import Completing, generation_of
from softprompt.serving.http.http_errors import ApiError
from softprompt.serving.http.openapi import answers
from softprompt.serving.http.request_context import Desk, Timeout, warned
from softprompt.serving.http.schemas import ChatCompletion, ChatRequest, LastMessageRequest, UserMessage


def chat(desk: Desk, route: type[APIRoute]) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=route)
    kind: Any = ChatRequest if desk.config.chat == "single" else LastMessageRequest

    async def complete(request: Request, body: ChatRequest | LastMessageRequest, timeout: Timeout = None) -> Response:
        """The message's text becomes the ``text`` of the prompt's template. A prompt for classification answers with
        the words of the likeliest label. Greedy unless ``temperature`` is above 0."""
        asked = await desk.ask(request, body.model, timeout, body.baseline)
        last = body.messages[-1]
        if not isinstance(last, UserMessage):
            raise ApiError(422, "invalid_value", "messages: expected a last one of the user", param="messages")
        content = last.content
        text = content if isinstance(content, str) else "\n".join(part.text for part in content)
        generation = generation_of(desk, asked, body, body.max_completion_tokens or body.max_tokens)
        examples = desk.examples(asked, [desk.row(asked, text, body.columns)])
        completing = Completing(desk, asked, examples, generation, "chatcmpl")
        head: dict[str, Any] = {"id": completing.id, "created": completing.created, "model": completing.model}
        if body.stream:
            head["object"] = "chat.completion.chunk"
            return await completing.stream(_deltas, head, usage=body.usage_in_stream)
        (grown,) = await completing.whole()
        message = {"role": "assistant", "content": "".join(grown.text), "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": grown.finish, "logprobs": None}
        answer = {**head, "object": "chat.completion", "choices": [choice], "usage": completing.usage()}
        return JSONResponse({**answer, **warned(asked.facts)})

    complete.__annotations__["body"] = kind
    responses = answers(ChatCompletion, streams=True)
    router.post("/v1/chat/completions", responses=responses, summary="Answer a message")(complete)
    return router


def _deltas(index: int, piece: Piece, first: bool) -> list[dict[str, Any]]:
    """A role first, then what is new of the content."""
    deltas: list[tuple[dict[str, str], str | None]] = [({"role": "assistant", "content": ""}, None)] if first else []
    if piece.text or piece.finish:
        deltas.append(({"content": piece.text} if piece.text else {}, piece.finish))
    return [{"index": index, "delta": delta, "finish_reason": end, "logprobs": None} for delta, end in deltas]
