"""For schemathesis: requests ask prompts that there are, else nearly all of them would be answered 404."""

from typing import Any

import schemathesis


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    if isinstance(body, dict) and isinstance(body.get("model"), str) and body["model"]:
        body = {**body, "model": "tone" if context.operation.path == "/v1/classify" else "words"}
    return body


@schemathesis.hook
def map_headers(context: schemathesis.HookContext, headers: Any) -> Any:
    """No deadline that a slow machine could miss."""
    return {name: value for name, value in (headers or {}).items() if name != "X-Request-Timeout"}
