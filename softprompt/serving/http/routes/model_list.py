"""``GET /v1/models``: what may be asked."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from softprompt.data.chats.chat_format import ChatFormat
from softprompt.serving.engine.prompt_registry import LoadedPrompt, ResolvedModel
from softprompt.serving.http.openapi import describe_responses
from softprompt.serving.http.request_context import ServingContext
from softprompt.serving.http.schemas.answer_schemas import MetricInterval, Model, Models
from softprompt.store.metadata import now
from softprompt.store.references import LATEST


def create_models_router(serving: ServingContext, route: type[APIRoute]) -> APIRouter:
    """The routes."""
    router, registry, started = APIRouter(route_class=route), serving.registry, int(now().timestamp())

    @router.get("/v1/models", responses=describe_responses(Models), summary="List what may be asked")
    async def list_models(request: Request) -> Response:
        """The base model, and of each prompt its name, aliases and versions, as far as the API key may ask them."""
        allows = request.state.key.allows
        names = [registry.base_name] if allows(registry.base_name) else []
        for name, listing in registry.names.items():
            if allows(name):
                which = [*sorted(listing.aliases), LATEST, *map(str, listing.numbers)]
                names += [name, *(f"{name}@{one}" for one in which)]
        found = [(one, known) for one in names if (known := registry.try_resolve(one)) is not None]
        data = [_describe_model(serving, one, known, registry.get_loaded(known.id), started) for one, known in found]
        return JSONResponse({"object": "list", "data": data})

    @router.get("/v1/models/{model:path}", responses=describe_responses(Model), summary="Tell about one of them")
    async def get_model(request: Request, model: str) -> Response:
        """The prompt is loaded, so that its labels, template and columns are told."""
        context = await serving.resolve(request, model)
        return JSONResponse(
            _describe_model(serving, model, context.found, registry.get_loaded(context.found.id), started)
        )

    return router


def _describe_model(
    serving: ServingContext, id: str, found: ResolvedModel, loaded: LoadedPrompt | None, started: int
) -> dict[str, Any]:
    """``started``: seconds; when the server did, for what has no date yet."""
    created = int(loaded.created.timestamp()) if loaded else started
    facts = None if found.number is None else _describe_prompt(serving, found, loaded)
    return {"id": id, "object": "model", "created": created, "owned_by": "softprompt", "softprompt": facts}


def _describe_prompt(serving: ServingContext, found: ResolvedModel, loaded: LoadedPrompt | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"version": found.id, "loaded": loaded is not None}
    if loaded is not None:
        spec = loaded.served.spec
        facts |= {
            "kind": spec.kind,
            "labels": list(spec.labels),
            "template": spec.template,
            "columns": sorted(spec.compiled.names),
            "virtual_tokens": loaded.length,
            **({} if spec.chat is None else {"chat": _describe_chat(spec.chat)}),
            **({} if loaded.learned_in is None else {"learned_in": loaded.learned_in}),
        }
        if (measured := _read_metric(loaded)) is not None:
            facts["measured"] = measured
        if (example := serving.config.examples.get(found.name, loaded.example)) is not None:
            facts["example"] = example
    elif (reason := serving.registry.get_failure(found.id)) is not None:
        facts["error"] = reason
    return facts


def _describe_chat(chat: ChatFormat) -> dict[str, Any]:
    names = [str(one["function"]["name"]) for one in chat.tools]
    takes_system = chat.system is not None or not chat.shared
    return {"system": chat.system, "takes_system": takes_system, "tools": names}


def _read_metric(loaded: LoadedPrompt) -> dict[str, Any] | None:
    """How well the prompt did, on what it had not seen if that is known; whoever saved it wrote this."""
    for split in ("test", "validation"):
        if isinstance(found := loaded.metrics.get(split), Mapping):
            with suppress(ValidationError):
                return MetricInterval.model_validate({**found, "split": split}).model_dump()
    return None
