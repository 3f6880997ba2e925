"""What those who run the server ask: ``/healthz``, ``/readyz``, ``/health``, ``/metrics``, ``POST /admin/reload``."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict

from fastapi import APIRouter
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from softprompt.errors import SoftpromptError
from softprompt.serving.engine.engine_requests import RemoteEngine
from softprompt.serving.engine.prompt_registry import StoreChanges
from softprompt.serving.http.guarded_route import check_admin
from softprompt.serving.http.http_errors import ApiError
from softprompt.serving.http.openapi import describe_responses
from softprompt.serving.http.request_context import ServingContext
from softprompt.serving.http.schemas.answer_schemas import Health, ReloadResult


def create_health_router(serving: ServingContext, stopping: Callable[[], bool]) -> APIRouter:
    """What is answered without a key. ``stopping``: whether the server takes no more requests."""
    router = APIRouter()

    @router.get("/healthz", response_model=Health, summary="Does the process answer?")
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    # as vLLM's servers call it, which load testers ask before they begin
    @router.get("/health", include_in_schema=False)
    @router.get("/readyz", responses={200: {"model": Health}, 503: {"model": Health}}, summary="Can it be asked?")
    async def readyz() -> Response:
        """503 before the store was read for the first time, while an engine that runs elsewhere cannot be asked, and
        while the server stops."""
        status = "stopping" if stopping() else "ok" if serving.registry.refreshed else "starting"
        if status == "ok" and isinstance(serving.engine, RemoteEngine) and not await serving.engine.is_reachable():
            status = "waiting for the engine"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    return router


def create_admin_router(
    serving: ServingContext, route: type[APIRoute], reload: Callable[[], Awaitable[StoreChanges]]
) -> APIRouter:
    """What needs an admin."""
    router = APIRouter(route_class=route)

    @router.get(
        "/metrics",
        responses=describe_responses(None, text="Prometheus's text format"),
        summary="Figures for Prometheus",
    )
    async def metrics(request: Request) -> Response:
        if not serving.config.public_metrics:
            check_admin(request)
        return Response(serving.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @router.post("/admin/reload", responses=describe_responses(ReloadResult), summary="Look at the store now")
    async def reload_now(request: Request) -> Response:
        """Also reads the API keys again."""
        check_admin(request)
        try:
            return JSONResponse(asdict(await reload()))
        except SoftpromptError as error:
            raise ApiError(503, "not_reloaded", f"all stays as it was: {error}") from error

    return router
