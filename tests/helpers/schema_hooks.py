"""For schemathesis: requests ask prompts that there are, else nearly all of them would be answered 404."""

from typing import Any

import schemathesis
from pydantic import ValidationError

from softprompt.serving.http.schemas.request_schemas import ChatRequest

ONLY_OF_CHATS = ("tools", "tool_choice", "chat_template_kwargs")


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    if isinstance(body, dict) and isinstance(body.get("model"), str) and body["model"]:
        body = {**body, "model": "tone" if context.operation.path == "/v1/classify" else "words"}
        if isinstance(given := body.get("input"), dict | list):
            body["input"] = [with_text(row) for row in given] if isinstance(given, list) else with_text(given)
        if isinstance(given := body.get("prompt"), list):
            body["prompt"] = known_tokens(given)
        if isinstance(body.get("messages"), list) and is_chat(body):
            # that prompt was learned on single texts
            body["messages"] = [{"role": "user", "content": "a film"}]
            body = {name: one for name, one in body.items() if name not in ONLY_OF_CHATS}
        asked = body.get("response_format")
        given = asked.get("json_schema") if isinstance(asked, dict) else None
        if isinstance(asked, dict) and isinstance(given, dict) and isinstance(given.get("schema"), dict):
            body["response_format"] = {**asked, "json_schema": {**given, "schema": {"type": "object"}}}
    return body


def is_chat(body: dict[str, Any]) -> bool:
    """What is wrong with a conversation is to stay wrong."""
    try:
        ChatRequest.model_validate(body)
    except ValidationError:
        return False
    return True


def known_tokens(prompt: Any) -> Any:
    """Token ids that the tiny model has."""
    if isinstance(prompt, list):
        return [known_tokens(one) for one in prompt]
    return prompt % 300 if type(prompt) in (int, float) and prompt >= 0 else prompt


def with_text(row: Any) -> Any:
    """A row of the prompt that is asked has its text in ``text``, others may have it elsewhere."""
    return {**row, "text": "a film"} if isinstance(row, dict) and row.get("text") is None else row


@schemathesis.hook
def map_headers(context: schemathesis.HookContext, headers: Any) -> Any:
    """No deadline that a slow machine could miss."""
    return {name: value for name, value in (headers or {}).items() if name != "X-Request-Timeout"}
