"""``softprompt serve`` and ``softprompt keys``."""

from dataclasses import fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softprompt import __version__
from softprompt.cli.options import GIVEN, PLACE, Line, compile_option, json_option, load_base, print_result, say
from softprompt.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from softprompt.serving.engine.inference_engine import Engine, Limits
    from softprompt.serving.engine.prompt_registry import Registry
    from softprompt.serving.engine.vllm_engine import VllmEngine
    from softprompt.serving.http.prometheus import Metrics
    from softprompt.serving.http.server_settings import ServeConfig
    from softprompt.store.prompt_sources import FolderSource, StoreSource

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "httpx")  # of the extra ``serve``


@click.command()
@click.option("--config", type=PLACE, help="Settings from a .toml or .yaml file (docs/serve.md has them all).")
@click.option("--model", type=GIVEN, help="Hub name, folder, .gguf file, embedded:gemma-3-270m, or a baked checkpoint.")
@click.option("--store", type=GIVEN, help="Folder or URL of a store; its prompts come and go while the server runs.")
@click.option(
    "--prompt", "prompts", type=GIVEN, multiple=True, metavar="[NAME=]FOLDER", help="A saved prompt, or more."
)
@click.option(
    "--engine",
    "engine_kind",
    type=click.Choice(["own", "vllm"]),
    help="What runs the model: this process, or a vLLM server with the baked checkpoint.  [default: own]",
)
@click.option("--engine-url", type=GIVEN, help="Address of the vLLM server; its API key is SOFTPROMPT_ENGINE_KEY.")
@click.option("--host", type=GIVEN, help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on, 0: a free one.  [default: 8000]")
@click.option("--keys", type=GIVEN, help="File of API keys, as softprompt keys makes it.")
@click.option("--no-auth", is_flag=True, default=None, help="Answer everybody, on any address.")
@click.option("--base-name", type=GIVEN, help="What requests call the base model.  [default: its own name]")
@click.option("--refresh", type=float, help="Seconds between looks at the store.  [default: 10]")
@click.option("--timeout", type=float, help="Seconds for a request.  [default: 60]")
@click.option("--drain-delay", type=float, help="Seconds on SIGTERM in which only /readyz is 503.  [default: 5]")
@click.option("--shutdown-timeout", type=int, help="Seconds to finish what runs when stopped.  [default: 30]")
@click.option("--log-text", is_flag=True, default=None, help="Write texts and answers to the log.")
@click.option("--sample-file", type=GIVEN, help="Keep samples of requests there: SQLite, or JSON lines in a .jsonl.")
@click.option("--sample-rate", type=float, help="Share of the requests that are kept.  [default: 0.01]")
@click.option("--sample-text", is_flag=True, default=None, help="Keep texts and completions in the samples.")
@click.option(
    "--sample-keep", type=GIVEN, metavar="N|Nd", help="Rows of samples that stay, or days.  [default: 100000]"
)
@click.option("--device", help="cpu, cuda, cuda:1, mps. Default: a GPU if there is one.")
@click.option("--dtype", help="float32, bfloat16 or float16. Default: what is fast here.")
@click.option("--quantise", help="int8 (torchao), bnb-int8 or bnb-nf4 (bitsandbytes). Default: weights as saved.")
@compile_option("labels")
@click.option("--trust-remote-code", is_flag=True, help="Let the model's repository run its own code.")
def serve(config: Path | None, trust_remote_code: bool, **options: Any) -> None:
    """Serve prompts over HTTP: many tasks on one frozen model.

    An OpenAI-compatible API (docs/serve.md). Settings also come from --config and from the environment, as
    SOFTPROMPT_PORT; options win over the environment, the environment over the file.
    """
    settings = _settings(config, {**options, "prompts": options["prompts"] or None})

    from softprompt.serving.app import create_app
    from softprompt.serving.engine.inference_engine import Limits
    from softprompt.serving.http.auth import Access
    from softprompt.serving.http.connections import Bounds
    from softprompt.serving.http.prometheus import Metrics
    from softprompt.serving.logging_config import start_logging
    from softprompt.serving.request_log.request_sampler import Sampler
    from softprompt.serving.request_log.request_samples import Keep
    from softprompt.serving.request_log.sample_files import open_samples
    from softprompt.serving.runner import Server, listen
    from softprompt.store.prompt_sources import profile_in

    # what is quickly checked comes before what takes long
    limits = _limits(Limits, settings.engine)
    access = Access(settings.keys_path, open_admin=settings.is_private, origins=settings.cors_origins)
    source = _source(settings)
    source.stock({})
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
                registry.base, samples, partial(profile_in, source), metrics.sampled, rate=rate, text=text
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


@click.group()
def keys() -> None:
    """API keys for softprompt serve."""


FILE = click.option("--file", "path", type=PLACE, required=True, help="The file of keys.")


@keys.command()
@click.argument("name", type=GIVEN)
@FILE
@click.option("--prompts", type=GIVEN, multiple=True, metavar="PATTERN", help="Names it may ask, as 'spam-*'; or more.")
@click.option("--admin", is_flag=True, help="It may reload and read the metrics too.")
@json_option
def add(name: str, path: Path, prompts: tuple[str, ...], admin: bool, as_json: bool) -> None:
    """Make a key and print it; only its hash is kept."""
    from softprompt.serving.http.api_keys import add_key

    token = add_key(path, name, prompts, admin=admin)
    print_result({"name": name, "key": token, "prompts": list(prompts) or ["*"], "admin": admin}, [token], as_json)


@keys.command(name="list")
@FILE
@json_option
def list_keys(path: Path, as_json: bool) -> None:
    """Tell which keys there are."""
    from softprompt.serving.http.api_keys import read_keys

    found = [key.model_dump(mode="json", exclude={"sha256"}) for key in read_keys(path).keys]
    lines: list[Line] = [
        (key["name"], ",".join(key["prompts"]), "admin" if key["admin"] else "-", key["created"]) for key in found
    ]
    print_result({"keys": found}, lines or ["no keys"], as_json)


@keys.command()
@click.argument("name", type=GIVEN)
@FILE
@json_option
def remove(name: str, path: Path, as_json: bool) -> None:
    """Take a key out; a running server sees it at its next look at the store."""
    from softprompt.serving.http.api_keys import remove_key

    remove_key(path, name)
    print_result({"removed": name}, [f"removed {name}"], as_json)


def _settings(config: Path | None, options: dict[str, Any]) -> "ServeConfig":
    for package in PACKAGES:
        if find_spec(package) is None:
            raise MissingExtraError(package.replace("_", "-"), "serve")
    from softprompt.serving.http.server_settings import ServeConfig

    return ServeConfig.gathered(config, options)


def _source(settings: "ServeConfig") -> "StoreSource | FolderSource":
    from softprompt.store.prompt_sources import FolderSource, StoreSource

    return FolderSource(settings.prompts) if settings.store is None else StoreSource(settings.store)


def _own(
    settings: "ServeConfig",
    source: "StoreSource | FolderSource",
    limits: "Limits",
    metrics: "Metrics",
    trust_remote_code: bool,
) -> "tuple[Engine, Registry]":
    """The model in this process."""
    from softprompt.models.kernels.compilation import SERVED, compiles
    from softprompt.serving.engine.inference_engine import Engine
    from softprompt.serving.engine.prompt_registry import Registry

    model = {"device": settings.device, "dtype": settings.dtype, "quantise": settings.quantise}
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
    from softprompt.export.baked_checkpoint import BakedCheckpoint
    from softprompt.serving.engine.prompt_registry import Registry
    from softprompt.serving.engine.vllm_client import VllmServer
    from softprompt.serving.engine.vllm_engine import VllmEngine
    from softprompt.utils.files import expand_user

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
    from pydantic import TypeAdapter, ValidationError

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
    from softprompt.utils.files import expand_user

    path = expand_user(name)
    return path.resolve().name if path.exists() else name
