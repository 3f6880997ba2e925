"""A server put together of its settings, for the command line and for programs alike."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter, ValidationError

from softprompt.engines.baked_checkpoint import BakedCheckpoint
from softprompt.engines.exported_model import ExportedModel
from softprompt.engines.prefix_folder import fill_folder
from softprompt.errors import ConfigError
from softprompt.models.deferred_base import BaseCheck
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.kernels.compilation import SERVED, should_compile
from softprompt.serving.app import create_app
from softprompt.serving.engine.inference_engine import EngineLimits, InferenceEngine
from softprompt.serving.engine.prompt_registry import PromptRegistry
from softprompt.serving.engine.vllm_client import VllmClient
from softprompt.serving.engine.vllm_engine import VllmEngine
from softprompt.serving.http.guarded_route import Authenticator
from softprompt.serving.http.prometheus import ServerMetrics
from softprompt.serving.http.server_settings import ServerSettings
from softprompt.serving.request_log.request_records import Retention
from softprompt.serving.request_log.request_sampler import RequestSampler
from softprompt.serving.request_log.sample_files import open_samples
from softprompt.serving.uvicorn_server import ConnectionLimits, Server, listen
from softprompt.store.prompt_sources import FolderSource, StoreSource, read_served_profile
from softprompt.utils.files import expand_user
from softprompt.utils.version import VERSION

LoadBase = Callable[[BaseCheck], FrozenLM]


@dataclass(frozen=True)
class OpenedServer:
    """A server that listens and has yet to answer.

    Attributes:
        url: where it is reached.
    """

    app: FastAPI
    server: Server
    listening: socket.socket

    @property
    def url(self) -> str:
        host, port = self.listening.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def serve(self) -> None:
        """Answer until an interrupt, SIGTERM or the server's ``stop``."""
        self.server.serve(self.app, self.listening)


@contextmanager
def open_server(
    settings: ServerSettings, source: StoreSource | FolderSource, load: LoadBase, say: Callable[[str], None]
) -> Iterator[OpenedServer]:
    """A server that listens, its model loaded; closed behind it.

    Args:
        source: of the prompts.
        load: gives the base model, if the engine is this process; takes a check of it.
        say: receives what there is to know, a line each.

    Raises:
        ConfigError, StoreError, PromptFileError, BaseModelError: it cannot be put together so.
    """
    # what is quickly checked comes before what takes long
    limits = _build_limits(settings.engine)
    authenticator = Authenticator(settings.keys_path, open_admin=settings.is_private, origins=settings.cors_origins)
    source.read_catalog({})
    keep = Retention.parse(settings.sample_keep)
    samples = None if settings.samples_path is None else open_samples(settings.samples_path, keep)
    with listen(settings.host, settings.port) as listening:
        bounds = ConnectionLimits(settings.max_connections, settings.header_timeout, settings.timeout)
        if bounds.effective_connections < bounds.max_connections:
            most = f"{bounds.effective_connections:,}"
            say(f"at most {most} connections at once: this process may open no more files (ulimit -n)")
        metrics = ServerMetrics()
        server = Server(
            shutdown_timeout=settings.shutdown_timeout,
            drain=settings.drain_delay,
            bounds=bounds,
            proxies=settings.forwarded_allow_ips,
        )
        engine: InferenceEngine | VllmEngine
        if settings.engine_kind == "vllm":
            engine, registry = _create_vllm_engine(settings, source, limits, load, say)
        else:
            engine, registry = _create_own_engine(settings, source, limits, metrics, load, say)
        registry.refresh()
        sampler = None
        if samples is not None:
            rate, text = settings.sample_rate, settings.sample_text
            profile = partial(read_served_profile, source)
            sampler = RequestSampler(registry.base, samples, profile, metrics.record_samples, rate=rate, text=text)
        app = create_app(
            engine,
            registry,
            settings,
            authenticator,
            metrics,
            sampler=sampler,
            stopping=lambda: server.stopping,
            closing=engine.close,
            version=VERSION,
        )
        try:
            yield OpenedServer(app, server, listening)
        finally:
            if sampler is not None:  # a second signal ends the server without its last step
                sampler.close()


def _create_own_engine(
    settings: ServerSettings,
    source: StoreSource | FolderSource,
    limits: EngineLimits,
    metrics: ServerMetrics,
    load: LoadBase,
    say: Callable[[str], None],
) -> tuple[InferenceEngine, PromptRegistry]:
    """The model in this process."""
    base = load(source.check_base)
    source.check_base(base)
    if should_compile(base, settings.compile, SERVED):
        say("compiling: up to two minutes the first time, less later (--compile never leaves it out)")
    engine = InferenceEngine(base, limits, metrics, compile=settings.compile, note=say)
    return engine, PromptRegistry(base, source, **_registry_options(settings, base.name))


def _create_vllm_engine(
    settings: ServerSettings,
    source: StoreSource | FolderSource,
    limits: EngineLimits,
    load: LoadBase,
    say: Callable[[str], None],
) -> tuple[VllmEngine, PromptRegistry]:
    """A vLLM server; what is here of its model are the tokenizer and what was exported of it."""
    exported: ExportedModel
    if settings.engine_prompts is None:
        exported = BakedCheckpoint(expand_user(str(settings.model)))
    else:
        exported = fill_folder(expand_user(settings.engine_prompts), load, source.check_base)
    source.check_base(exported)
    engine = VllmEngine(exported, VllmClient(str(settings.engine_url), settings.engine_key), limits)
    registry = PromptRegistry(exported, source, check=engine.check_prompt, **_registry_options(settings, exported.name))
    those = ", ".join(exported.names) or f"the prompts of '{exported.folder}'"
    say(f"vLLM at {settings.engine_url} runs '{engine.model}' with {those}")
    return engine, registry


def _registry_options(settings: ServerSettings, base_name: str) -> dict[str, Any]:
    """What a registry is told by the settings."""
    return {
        "base_name": settings.base_name or _shorten_name(base_name),
        "default_alias": settings.default_alias,
        "max_loaded": settings.max_loaded,
    }


def _build_limits(given: dict[str, Any]) -> EngineLimits:
    """The engine's limits; raises ConfigError for a name it does not have, or a value of another type."""
    known = {field.name for field in fields(EngineLimits)}
    if unknown := sorted(given.keys() - known):
        raise ConfigError(f"unknown setting 'engine.{unknown[0]}': expected one of {', '.join(sorted(known))}")
    try:
        return TypeAdapter(EngineLimits).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"setting 'engine.{first['loc'][0]}': {first['msg']}, got {first['input']!r}") from error


def _shorten_name(name: str) -> str:
    """A model's name for requests, which need not know folders of this machine."""
    path = expand_user(name)
    return path.resolve().name if path.exists() else name
