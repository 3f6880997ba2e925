"""The server as an ASGI application: routes, errors, keys, limits, and a store that is looked at again and again."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace

from fastapi import FastAPI, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from softprompt.errors import ConfigError, SoftpromptError
from softprompt.serving.engine.engine_requests import (
    DeadlineExceededError,
    EngineBusyError,
    EngineClient,
    EngineUnreachableError,
)
from softprompt.serving.engine.prompt_registry import (
    ModelNotFoundError,
    ModelUnavailableError,
    PromptRegistry,
    StoreChanges,
)
from softprompt.serving.http.guarded_route import Authenticator, make_guarded_route
from softprompt.serving.http.http_errors import loggable_field, to_api_error
from softprompt.serving.http.middleware import HEADER, RequestMiddleware
from softprompt.serving.http.openapi import build_openapi, make_docs_headers, render_docs
from softprompt.serving.http.prometheus import ServerMetrics
from softprompt.serving.http.rate_limits import RATE_HEADERS, RateLimiter
from softprompt.serving.http.request_context import ServingContext
from softprompt.serving.http.routes.admin import create_admin_router, create_health_router
from softprompt.serving.http.routes.chat import create_chat_router
from softprompt.serving.http.routes.classify import create_classify_router
from softprompt.serving.http.routes.completions import create_completions_router
from softprompt.serving.http.routes.model_list import create_models_router
from softprompt.serving.http.routes.playground import create_playground_router
from softprompt.serving.http.server_settings import ServerSettings
from softprompt.serving.request_log.request_sampler import RequestSampler

log = logging.getLogger("softprompt.serving")


def create_app(
    engine: EngineClient,
    registry: PromptRegistry,
    config: ServerSettings,
    authenticator: Authenticator,
    metrics: ServerMetrics,
    *,
    sampler: RequestSampler | None = None,
    stopping: Callable[[], bool] = lambda: False,
    closing: Callable[[], Awaitable[None]] | None = None,
    version: str = "unknown",
    limiter: RateLimiter | None = None,
) -> FastAPI:
    """Put the server together.

    Args:
        engine: answers.
        registry: what may be asked; to be refreshed once before, so that there is something.
        sampler: keeps some of the requests.
        stopping: whether no more requests are taken.
        closing: what is to be done when the last request has ended.
        version: of softprompt, for the OpenAPI page.
        limiter: in place of one with the settings' limits.
    """
    metrics.watch(engine, registry, authenticator)
    serving = ServingContext(engine, registry, config, metrics)

    refresh = StoreRefresh(registry, authenticator, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(refresh.repeat(config.refresh)) if config.refresh else None
        yield
        if task is not None:
            task.cancel()
        if closing is not None:
            await closing()
        if sampler is not None:
            await asyncio.to_thread(sampler.close)

    app = FastAPI(
        title="softprompt",
        version=version,
        description="Many prompts on one frozen model, by OpenAI's API.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    ours = (HTTPException, RequestValidationError, SoftpromptError)
    for kind in (
        *ours,
        ModelNotFoundError,
        ModelUnavailableError,
        EngineUnreachableError,
        EngineBusyError,
        DeadlineExceededError,
    ):
        app.add_exception_handler(kind, _answer_error)

    if limiter is None:
        limiter = RateLimiter(config.requests_per_minute, config.tokens_per_minute, count=metrics.record_rate_limited)
    limited, route = make_guarded_route(authenticator, config, limiter), make_guarded_route(authenticator, config)
    # the keys are checked by the route; this says so on the OpenAPI page
    keyed = [Security(HTTPBearer(auto_error=False))] if authenticator.needs_key else []
    for create in (create_completions_router, create_chat_router, create_classify_router):
        app.include_router(create(serving, limited), dependencies=keyed)
    app.include_router(create_models_router(serving, route), dependencies=keyed)
    app.include_router(create_admin_router(serving, route, refresh.reload), dependencies=keyed)
    app.include_router(create_health_router(serving, stopping))
    app.include_router(create_playground_router(needs_key=authenticator.needs_key))

    _add_documentation(app, config)
    if config.cors_origins:
        _admit_origins(app, config.cors_origins)
    app.add_middleware(RequestMiddleware, metrics=metrics, config=config, stopping=stopping, sampler=sampler)
    return app


class StoreRefresh:
    """The store and the keys, looked at again; the log tells what changed."""

    def __init__(self, registry: PromptRegistry, authenticator: Authenticator, metrics: ServerMetrics) -> None:
        self._registry, self._authenticator, self._metrics = registry, authenticator, metrics
        self._known_troubles: tuple[str, ...] = ()  # those that stay are said once, though each look finds them

    async def reload(self) -> StoreChanges:
        """Look once; raises SoftpromptError where the store cannot be read."""
        troubles = []
        try:
            await asyncio.to_thread(self._authenticator.reload)
        except ConfigError as error:
            log.warning("API keys not read, they stay as they were", extra={"fields": {"reason": str(error)}})
            troubles.append(str(error))
        try:
            changes = await self._registry.reload()
        except SoftpromptError:
            self._metrics.record_refresh(None)
            raise
        changes = replace(changes, troubles=(*changes.troubles, *troubles))
        self._metrics.record_refresh(changes)
        if any(asdict(replace(changes, troubles=())).values()) or changes.troubles != self._known_troubles:
            self._known_troubles = changes.troubles
            log.info("store changed", extra={"fields": asdict(changes)})
        return changes

    async def repeat(self, seconds: float) -> None:
        """Look for ever; what fails is logged, and tried again later."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.reload()
            except SoftpromptError as error:
                log.warning("store not read, all stays as it was", extra={"fields": {"reason": str(error)}})
            except Exception as error:
                log.error("store not read, all stays as it was", exc_info=error)


def _add_documentation(app: FastAPI, config: ServerSettings) -> None:
    description = build_openapi(app, config)
    app.openapi = lambda: description  # type: ignore[method-assign]

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict[str, object]:
        return description

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(render_docs(description), headers=make_docs_headers())


def _admit_origins(app: FastAPI, origins: Sequence[str]) -> None:
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "HEAD", "POST"],
        # whatever these origins' clients send: OpenAI's has a dozen of its own, more with each version
        allow_headers=["*"],
        expose_headers=[HEADER, "Retry-After", *RATE_HEADERS],
    )


async def _answer_error(request: Request, error: Exception) -> Response:
    problem = to_api_error(error)
    request.state.outcome.code = problem.code
    request.state.outcome.param = loggable_field(problem.param)
    return problem.response()
