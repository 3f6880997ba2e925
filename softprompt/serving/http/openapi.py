"""The OpenAPI page: what each route answers, limits of this server's settings; ``/docs`` without assets of others."""

import base64
import hashlib
from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from softprompt.serving.http.schemas.answer_schemas import Error
from softprompt.serving.http.schemas.request_schemas import MAX_SEED
from softprompt.serving.http.server_settings import ServerSettings

REASONS = {
    400: "The body is no JSON that can be read, or its schema is none that an answer can follow.",
    401: "No API key, a wrong or an expired one.",
    403: "The API key is not for this.",
    404: "There is no such model.",
    405: "Not by this method.",
    408: "The body was not there in time.",
    413: "The body is too large.",
    415: "The body is not announced as JSON.",
    422: "A field has a wrong value, or the template cannot take the text.",
    429: "The queue is full, or the API key has asked too much; Retry-After says when to try again.",
    500: "A failure of the server.",
    503: "The prompt, or the engine, is damaged or out of reach.",
    504: "The answer was not there in time.",
}


STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}"
    "td{padding:.3rem .8rem .3rem 0;vertical-align:top}th{text-align:left}"
)


def describe_responses(
    model: type[BaseModel] | None, *, streams: bool = False, text: str | None = None
) -> dict[int | str, Any]:
    """What a route answers, for FastAPI's ``responses``.

    Args:
        model: of the JSON.
        streams: server-sent events too.
        text: what the plain text is, if it answers with that.
    """
    content: dict[str, Any] = {}
    if streams:
        event = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
        content["text/event-stream"] = {"itemSchema": event}
    if text is not None:
        content["text/plain"] = {"schema": {"type": "string", "description": text}}
    good: dict[str, Any] = {"description": "The answer.", "content": content}
    if model is not None:
        good["model"] = model
    return {
        200: good,
        **{status: {"model": Error, "description": reason} for status, reason in REASONS.items()},
    }


def build_openapi(app: FastAPI, config: ServerSettings) -> dict[str, Any]:
    """The page of ``app``, with the limits of ``config`` in its schemas."""
    page = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    page["servers"] = [{"url": config.root_path or "/"}]
    schemas = page["components"]["schemas"]
    # of a seed again: FastAPI makes floats of bounds, which rounds these
    bounds = {name: {"maximum": config.max_tokens} for name in ("max_tokens", "max_completion_tokens")}
    bounds["seed"] = {"minimum": -MAX_SEED - 1, "maximum": MAX_SEED}
    for body in schemas.values():
        for name, limits in bounds.items():
            for one in _list_alternatives(body.get("properties", {}).get(name, {})):
                if one.get("type") == "integer":
                    one.update(limits)
    for body, name in (("CompletionRequest", "prompt"), ("ClassifyRequest", "input")):
        for one in _list_alternatives(schemas[body]["properties"][name]):
            if one.get("type") == "array":
                tokens = one.get("items", {}).get("type") == "integer"
                one["maxItems"] = config.text_limit if tokens else config.batch_limit
    # a header is there or not, it is never null
    for path in page["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", ()):
                (kind,) = [
                    one for one in _list_alternatives(parameter["schema"]) if one.get("type") not in (None, "null")
                ]
                parameter["schema"] = kind
    # FastAPI's own form of invalid requests, which this server does not send
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return page


def render_docs(page: dict[str, Any]) -> str:
    """``/docs``: the routes in a table, readable without JavaScript and without a network."""
    rows = "".join(
        f"<tr><td>{method.upper()}</td><td><code>{escape(path)}</code></td>"
        f"<td>{escape(facts.get('summary', ''))}</td>"
        f"<td>{escape(' '.join(facts.get('description', '').split()))}</td></tr>"
        for path, methods in page["paths"].items()
        for method, facts in methods.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(page['info']['title'])}</title>"
        f"<style>{STYLE}</style>"
        f'<h1>{escape(page["info"]["title"])}</h1><p>The schemas are in <a href="openapi.json">openapi.json</a>.</p>'
        f"<table><thead><tr><th>Method<th>Path<th>What<th>More</tr></thead><tbody>{rows}</tbody></table></html>"
    )


def make_docs_headers() -> dict[str, str]:
    """Of ``/docs``: its own style is all that a browser may take for more than text."""
    style = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}


def _list_alternatives(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    yield from schema.get("anyOf", ())
