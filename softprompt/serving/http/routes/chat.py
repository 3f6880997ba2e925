"""``POST /v1/chat/completions``: a conversation in, the assistant's turn out.

A conversation is written by the chat template that the prompt was learned with, the base model's by its own. What was
learned on single texts in a plain template answers one message of the user, whose text becomes that of the template;
anything else is refused, for it would be expected to have a say in the answer. Clients that cannot help sending more
are served with the setting ``chat = "last"``: then the last message, which must be the user's, is answered, and the
others are left out.
"""

import json
import secrets
from collections import Counter
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from softprompt.data.chats.conversation import ToolCall
from softprompt.serving.engine.completion_chunks import CompletionChunk
from softprompt.serving.http.completion_service import CompletionService, PartialCompletion, build_generation_config
from softprompt.serving.http.conversations import answer_chat, read_chat, require_call
from softprompt.serving.http.logprobs import describe_chat_logprobs
from softprompt.serving.http.openapi import describe_responses
from softprompt.serving.http.request_context import ServingContext, Timeout
from softprompt.serving.http.schemas.answer_schemas import ChatCompletion
from softprompt.serving.http.schemas.request_schemas import ChatRequest


def create_chat_router(serving: ServingContext, route: type[APIRoute]) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=route)
    responses = describe_responses(ChatCompletion, streams=True)

    @router.post("/v1/chat/completions", responses=responses, summary="Answer a conversation")
    async def complete(request: Request, body: ChatRequest, timeout: Timeout = None) -> Response:
        """The conversation is written by the chat template that the prompt was learned with. A system message takes the
        place of the one that was kept beside the virtual tokens; a prompt that was learned without one refuses it. A
        prompt that was learned on texts in a plain template takes one message of the user, which becomes the ``text``
        of the template. A prompt for classification answers with the words of the likeliest label. Greedy unless
        ``temperature`` is above 0."""
        context = await serving.resolve(request, body.model, timeout, body.baseline, chat=True)
        generation = build_generation_config(serving, context, body, body.max_completion_tokens or body.max_tokens)
        asked = await read_chat(serving, context, body, constrained=generation.grammar is not None)
        generation = require_call(serving, asked, body, answer_chat(serving, asked, generation))
        if body.top_logprobs and not body.logprobs:
            context.outcome.warnings.append("top_logprobs has no effect without logprobs")
        form = asked.form
        service = CompletionService(
            serving,
            asked.context,
            [asked.example],
            generation,
            "chatcmpl",
            choices=body.n or 1,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            read=None if form is None else lambda: form.reader(asked.tools),
            most_calls=1 if body.parallel_tool_calls is False else None,
        )
        shape = _ChatShape(short_ids=form is not None and form.calls is not None and form.calls.short_ids)
        if body.stream:
            return await service.stream("chat.completion.chunk", shape.make_deltas, usage=body.usage_in_stream)
        return await service.respond("chat.completion", shape.make_message)

    return router


class _ChatShape:
    """Answers as OpenAI writes them."""

    def __init__(self, *, short_ids: bool) -> None:
        """``short_ids``: the chat template takes ids of calls of nine letters only."""
        self._short_ids = short_ids
        self._called: Counter[int] = Counter()

    def make_message(self, index: int, whole: PartialCompletion) -> dict[str, Any]:
        """An answer that is finished."""
        content = whole.text if whole.text or not whole.calls else None
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if whole.reasoning:
            message["reasoning_content"] = whole.reasoning
        if whole.calls:
            message["tool_calls"] = [self._write_call(one) for one in whole.calls]
        logprobs = describe_chat_logprobs(whole.logprobs) if whole.logprobs else None
        return {"index": index, "message": message, "finish_reason": whole.finish, "logprobs": logprobs}

    def make_deltas(self, index: int, piece: CompletionChunk, first: bool) -> list[dict[str, Any]]:
        """A role first, then what is new of the answer."""
        choices = []
        if first:
            delta: dict[str, Any] = {"role": "assistant", "content": ""}
            choices.append({"index": index, "delta": delta, "finish_reason": None, "logprobs": None})
        delta = {"content": piece.text} if piece.text else {}
        if piece.reasoning:
            delta["reasoning_content"] = piece.reasoning
        if piece.calls:
            start = self._called[index]
            delta["tool_calls"] = [
                {"index": number, **self._write_call(one)} for number, one in enumerate(piece.calls, start)
            ]
            self._called[index] += len(piece.calls)
        if delta or piece.finish or piece.logprobs:
            logprobs = describe_chat_logprobs(piece.logprobs) if piece.logprobs else None
            choices.append({"index": index, "delta": delta, "finish_reason": piece.finish, "logprobs": logprobs})
        return choices

    def _write_call(self, call: ToolCall) -> dict[str, Any]:
        id = secrets.token_hex(5)[:9] if self._short_ids else f"call_{secrets.token_hex(12)}"
        arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
        return {"id": id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
