"""``serve``: prompts over HTTP."""

from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from softprompt import __version__
from softprompt.cli.base_loading import load_base
from softprompt.cli.printing import say
from softprompt.errors import ConfigError
from softprompt.export.baked_checkpoint import BakedCheckpoint
from softprompt.models.kernels.compilation import SERVED, compiles
from softprompt.serving.app import create_app
from softprompt.serving.engine.inference_engine import Engine, Limits
from softprompt.serving.engine.prompt_registry import Registry
from softprompt.serving.engine.vllm_client import VllmServer
from softprompt.serving.engine.vllm_engine import VllmEngine
from softprompt.serving.http.auth import Access
from softprompt.serving.http.connections import Bounds
from softprompt.serving.http.prometheus import Metrics
from softprompt.serving.http.server_settings import ServeConfig
from softprompt.serving.logging_config import start_logging
from softprompt.serving.request_log.request_sampler import Sampler
from softprompt.serving.request_log.request_samples import Keep
from softprompt.serving.request_log.sample_files import open_samples
from softprompt.serving.runner import Server, listen
from softprompt.store.prompt_sources import FolderSource, StoreSource, read_served_profile
from softprompt.utils.files import expand_user


def run_serve(config: Path | None, trust_remote_code: bool, **options: Any) -> None:
    settings = ServeConfig.gathered(config, {**options, "prompts": options["prompts"] or None})

    # what is quickly checked comes before what takes long
    limits = _limits(Limits, settings.engine)
    access = Access(settings.keys_path, open_admin=settings.is_private, origins=settings.cors_origins)
    source = _source(settings)
    source.read_catalog({})
    keep = Keep.of(settings.sample_keep)
    samples = None if settings.samples_path is None else open_samples(settings.samples_path, keep)
    with listen(settings.host, settings.port) as listening:
        bounds = Bounds(settings.max_connections, settings.header_timeout, settings.timeout)
        if bounds.possible < bounds.most:
            say(f"at most {bounds.possible:,} connections at once: this process may open no more files (ulimit -n)")
        metrics = Metrics()
        server = Server(shutdown_timeout=settings.shutdown_timeout, drain=settings.drain_delay, bounds=bounds)
        engine: Engine | VllmEngine
        if settings.engine_kind == "vllm":
            engine, registry = _on_vllm(settings, source, limits)
        else:
            engine, registry = _own(settings, source, limits, metrics, trust_remote_code)
        start_logging(text=settings.log_text)
        registry.refresh()
        sampler = None
        if samples is not None:
            rate, text = settings.sample_rate, settings.sample_text
            sampler = Sampler(
                registry.base, samples, partial(read_served_profile, source), metrics.sampled, rate=rate, text=text
            )
        app = create_app(
            engine,
            registry,
            settings,
            access,
            metrics,
            sampler=sampler,
            stopping=lambda: server.stopping,
            closing=engine.close,
            version=__version__,
        )
        host, port = listening.getsockname()[:2]
        say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}, docs at /docs")
        try:
            server.serve(app, listening)
        finally:
            if sampler is not None:  # a second signal ends the server without its last step
                sampler.close()


def _source(settings: "ServeConfig") -> "StoreSource | FolderSource":
    return FolderSource(settings.prompts) if settings.store is None else StoreSource(settings.store)


def _own(
    settings: "ServeConfig",
    source: "StoreSource | FolderSource",
    limits: "Limits",
    metrics: "Metrics",
    trust_remote_code: bool,
) -> "tuple[Engine, Registry]":
    """The model in this process."""
    model = {"device": settings.device, "dtype": settings.dtype, "quantize": settings.quantize}
    base = load_base(str(settings.model), {**model, "trust_remote_code": trust_remote_code}, source.check_base)
    source.check_base(base)
    if compiles(base, settings.compile, SERVED):
        say("compiling: up to two minutes the first time, less later (--compile never leaves it out)")
    engine = Engine(base, limits, metrics, compile=settings.compile, note=say)
    return engine, Registry(base, source, **_registered(settings, base.name))


def _on_vllm(
    settings: "ServeConfig", source: "StoreSource | FolderSource", limits: "Limits"
) -> "tuple[VllmEngine, Registry]":
    """A vLLM server; what is here of the checkpoint are its tokenizer and what it says of its tasks."""
    checkpoint = BakedCheckpoint(expand_user(str(settings.model)))
    source.check_base(checkpoint)
    engine = VllmEngine(checkpoint, VllmServer(str(settings.engine_url), settings.engine_key), limits)
    registry = Registry(checkpoint, source, check=checkpoint.check, **_registered(settings, checkpoint.name))
    say(f"vLLM at {settings.engine_url} runs '{engine.model}' with {', '.join(checkpoint.names)}")
    return engine, registry


def _registered(settings: "ServeConfig", base_name: str) -> dict[str, Any]:
    """What a registry is told by the settings."""
    return {
        "base_name": settings.base_name or _short(base_name),
        "default_alias": settings.default_alias,
        "most": settings.max_loaded,
    }


def _limits(kind: "type[Limits]", given: dict[str, Any]) -> "Limits":
    """The engine's limits; raises ConfigError for a name it does not have, or a value of another type."""
    known = {field.name for field in fields(kind)}
    if unknown := sorted(given.keys() - known):
        raise ConfigError(f"unknown setting 'engine.{unknown[0]}': expected one of {', '.join(sorted(known))}")
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"setting 'engine.{first['loc'][0]}': {first['msg']}, got {first['input']!r}") from error


def _short(name: str) -> str:
    """A model's name for requests, which need not know folders of this machine."""
    path = expand_user(name)
    return path.resolve().name if path.exists() else name
