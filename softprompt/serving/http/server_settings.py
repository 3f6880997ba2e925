"""Settings of the server: each default written once, each number with its unit."""

import ipaddress
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from softprompt.config import Settings
from softprompt.errors import ConfigError
from softprompt.serving.http.api_keys import MOST_A_MINUTE
from softprompt.serving.request_log.request_records import Retention
from softprompt.store.references import check_alias
from softprompt.utils.files import expand_user

SAMPLING = {"sample_rate", "sample_text", "sample_keep"}
COMPILE = "compile parts of the model's work on a CPU; auto: where it pays and there is a C++ compiler"
_OWN_NAMES = ("localhost", "127.0.0.1", "::1")
_PROBES = ("/healthz", "/readyz", "/health")  # whether the server answers, and can be asked


class ServerSettings(Settings):
    """What ``softprompt serve`` is told."""

    model: str | None = Field(
        None, description="hub name, folder, .gguf file, embedded:gemma-3-270m, or a baked checkpoint"
    )
    store: str | None = Field(
        None, description="folder or URL of a store, whose prompts come and go while the server runs"
    )
    prompts: tuple[str, ...] = Field((), description="a saved prompt instead of a store, or more, as [NAME=]FOLDER")
    device: str | None = Field(None, description="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    dtype: str | None = Field(None, description="float32, bfloat16 or float16 (default: what is fast here)")
    quantize: str | None = Field(None, description="int8, bnb-int8 or bnb-nf4 (default: weights as saved)")
    compile: Literal["auto", "always", "never"] = Field("auto", description=COMPILE)
    engine_kind: Literal["own", "vllm"] = Field(
        "own", description="what runs the model: this process, or a vLLM server"
    )
    engine_url: str | None = Field(None, description="address of the vLLM server; its API key is SOFTPROMPT_ENGINE_KEY")
    engine_prompts: str | None = Field(
        None, description="folder that the vLLM server's connector reads; without it --model is a baked checkpoint"
    )
    engine_key: str | None = Field(None, repr=False, description="API key of the vLLM server, if it wants one")
    engine: dict[str, int | float | str | bool] = Field(
        default_factory=dict, description="how much the engine takes at once (docs/how-to/serve.md)"
    )

    base_name: str | None = Field(
        None,
        min_length=1,
        description="what requests call the base model (default: its name, of a folder its last part)",
    )
    default_alias: str = Field("prod", description="where a name without version or alias leads, if it has this alias")
    refresh: float = Field(10, ge=0, le=86400, description="seconds between looks at the store, 0: only when told to")
    max_loaded: int = Field(1024, ge=1, description="prompts held in memory; the least recently used go first")

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on, 0: a free one")
    root_path: str = Field("", description="path below which a reverse proxy has the server")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="names that requests may have as Host (default: those of this machine without keys, else any)"
    )
    cors_origins: tuple[str, ...] = Field((), description="web origins whose pages may ask (default: none)")
    forwarded_allow_ips: tuple[str, ...] = Field(
        (), description="addresses or networks of proxies whose X-Forwarded-For says who asks (default: none)"
    )
    keys: str | None = Field(None, description="file of API keys, as softprompt keys writes it")
    no_auth: bool = Field(False, description="answer everybody, on any address")
    requests_per_minute: int | None = Field(
        None, ge=1, le=MOST_A_MINUTE, description="requests of an API key that has no limit of its own (default: any)"
    )
    tokens_per_minute: int | None = Field(
        None, ge=1, le=MOST_A_MINUTE, description="tokens of an API key that has no limit of its own (default: any)"
    )
    public_metrics: bool = Field(False, description="give /metrics to everybody, without an admin's key")

    body_limit: int = Field(2**20, ge=1024, le=2**26, description="bytes of a request's body")
    depth_limit: int = Field(32, ge=4, le=100, description="levels of nesting in a request's JSON")
    text_limit: int = Field(100_000, ge=1, description="characters of a text with its columns")
    batch_limit: int = Field(128, ge=1, description="texts in one request")
    max_tokens: int = Field(1024, ge=1, description="tokens that a request may ask for")
    default_max_tokens: int = Field(128, ge=1, description="tokens of a completion where the request does not say")
    chat: Literal["single", "last"] = Field(
        "single", description="a chat is one message of the user, or the last of several, the others being left out"
    )
    timeout: float = Field(60, gt=0, le=86400, description="seconds for a request")
    max_connections: int = Field(1000, ge=1, description="connections at once; fewer if this process has fewer files")
    header_timeout: float = Field(10, gt=0, le=3600, description="seconds for the headers of a request")
    drain_delay: float = Field(
        5, ge=0, le=3600, description="seconds on SIGTERM in which only /readyz is 503, and all else is still answered"
    )
    shutdown_timeout: int = Field(30, ge=0, le=3600, description="seconds to finish what runs when stopped")
    examples: dict[str, str] = Field(
        default_factory=dict, description="a text for each name of a prompt, which the page offers to begin with"
    )
    log_text: bool = Field(False, description="write texts and answers to the log")

    sample_file: str | None = Field(
        None, min_length=1, description="file for samples of requests: SQLite, or JSON lines if it ends with .jsonl"
    )
    sample_rate: float = Field(0.01, gt=0, le=1, description="share of the requests that are sampled")
    sample_text: bool = Field(False, description="keep texts and completions in the samples")
    sample_keep: str = Field("100000", description="rows of samples that stay, or their age, as 30d; the oldest go")

    @model_validator(mode="after")
    def _check_token_limits(self) -> Self:
        if self.default_max_tokens > self.max_tokens:
            raise ValueError(
                f"default_max_tokens ({self.default_max_tokens}) must be at most max_tokens ({self.max_tokens})"
            )
        return self

    def check(self) -> None:
        """Raise ConfigError for settings that contradict each other, or let anybody in without saying so."""
        if self.model is None:
            raise ConfigError("expected a base model, got none: give --model, model in the file, or SOFTPROMPT_MODEL")
        self._check_engine()
        if (self.store is None) == (not self.prompts):
            got = "neither" if self.store is None else "both"
            raise ConfigError(f"expected a store or saved prompts, got {got}: give --store or --prompt")
        check_alias(self.default_alias)
        for proxy in self.forwarded_allow_ips:
            try:
                ipaddress.ip_network(proxy)
            except ValueError as error:
                raise ConfigError(
                    f"forwarded_allow_ips: expected an address as 127.0.0.1, or a network as 10.0.0.0/8, got '{proxy}'"
                ) from error
        if self.sample_file is None and (given := sorted(SAMPLING & self.model_fields_set)):
            raise ConfigError(f"{given[0]} is for samples of requests: give --sample-file too, or leave it out")
        Retention.parse(self.sample_keep)
        if self.keys is not None and self.no_auth:
            raise ConfigError("--no-auth lets everybody in, and keys are given: leave one of them out")
        if self.keys is None and not self.no_auth and not self.is_private:
            where = f"the address '{self.host}'" if not self.is_local else "the server through a proxy"
            raise ConfigError(
                f"others reach {where}, and there are no API keys: make some (softprompt keys add) and give their "
                "file with --keys, or say --no-auth"
            )

    def _check_engine(self) -> None:
        if self.engine_kind == "own":
            if self.engine_url is not None:
                raise ConfigError(
                    "--engine-url is the address of a vLLM server: give --engine vllm too, or leave it out"
                )
            if self.engine_prompts is not None:
                raise ConfigError("--engine-prompts is for a vLLM server: give --engine vllm too, or leave it out")
            return
        if self.engine_url is None:
            raise ConfigError("--engine vllm asks a vLLM server: give its address with --engine-url http://HOST:PORT")
        if not self.engine_url.startswith(("http://", "https://")):
            raise ConfigError(f"--engine-url: expected http://HOST:PORT or https://, got '{self.engine_url}'")
        for name in ("device", "dtype", "quantize"):
            if getattr(self, name) is not None:
                raise ConfigError(f"--{name} is for a model that is loaded here, and vLLM loads it: leave it out")
        if self.compile != "auto":
            raise ConfigError("--compile is for a model that runs here, and vLLM runs it: leave it out")

    @property
    def keys_path(self) -> Path | None:
        """The file of keys."""
        return None if self.keys is None else expand_user(self.keys)

    @property
    def samples_path(self) -> Path | None:
        """The file of samples."""
        return None if self.sample_file is None else expand_user(self.sample_file)

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the address."""
        return ipaddress.ip_address(self.host).is_loopback if is_address(self.host) else self.host == "localhost"

    @property
    def is_private(self) -> bool:
        """Whether only this machine is meant to ask: no proxy is told of, by a path or a name of its own."""
        return (
            self.is_local and not self.root_path and {host_name(one) for one in self.allowed_hosts} <= set(_OWN_NAMES)
        )

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names that a request may have as Host; empty for any.

        A page of the web can make a browser on this machine ask a local server under the page's own name (DNS
        rebinding): without keys, nothing else would stop it.
        """
        if self.allowed_hosts or self.keys is not None or not self.is_local:
            return tuple(map(host_name, self.allowed_hosts))
        return tuple(dict.fromkeys((self.host, *_OWN_NAMES)))

    def accepts_host(self, host: str, path: str) -> bool:
        """Whether a request for ``path`` may have this Host.

        Probes and scrapers ask the process by its address, whatever its name is for others. An address is never the
        name of a page of the web, and what such a page could learn by the probes is nothing.
        """
        name = host_name(host)
        if not self.hosts or name in self.hosts:
            return True
        path = path.removeprefix(self.root_path)
        return path in _PROBES or (path == "/metrics" and (self._metrics_guarded or is_address(name)))

    @property
    def _metrics_guarded(self) -> bool:
        """Whether what is asked for as ``/metrics`` depends on something else than the name of the server."""
        return self.keys is not None or self.public_metrics


def host_name(host: str) -> str:
    """``Host`` without the port and the brackets of IPv6, lower-case."""
    if host.count(":") > 1 and not host.startswith("["):
        return host.lower()
    name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    return name.lower()


def is_address(name: str) -> bool:
    """Whether a name of ``host_name`` is an address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
