"""For schemathesis: requests ask prompts that there are, else nearly all of them would be answered 404."""

from typing import Any

import schemathesis


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    if isinstance(body, dict) and isinstance(body.get("model"), str) and body["model"]:
        body = {**body, "model": "tone" if context.operation.path == "/v1/classify" else "words"}
        if isinstance(given := body.get("input"), dict | list):
            body["input"] = [with_text(row) for row in given] if isinstance(given, list) else with_text(given)
    return body


def with_text(row: Any) -> Any:
    """A row of the prompt that is asked has its text in ``text``, others may have it elsewhere."""
    return {**row, "text": "a film"} if isinstance(row, dict) and row.get("text") is None else row


@schemathesis.hook
def map_headers(context: schemathesis.HookContext, headers: Any) -> Any:
    """No deadline that a slow machine could miss."""
    return {name: value for name, value in (headers or {}).items() if name != "X-Request-Timeout"}
