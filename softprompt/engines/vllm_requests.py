"""Requests of a vLLM server that name a prompt: looked at before the engine has them, so that a wrong one is refused.

``install`` wraps what makes a request of vLLM's own of a user's. It is called where the connector is imported, and in
each process of vLLM as a general plugin (``register``). Requests that name no prompt are left as they are.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from softprompt.engines.prefix_lookup import KEPT, CacheShape, PrefixLookup
from softprompt.errors import SoftpromptError

CONNECTOR = "SoftpromptConnector"
PARAMETER = "softprompt"  # of a request's ``kv_transfer_params``
FOLDER, MOST = "prompts", "most_prompts"  # of ``kv_connector_extra_config``

_lookups: WeakKeyDictionary[Any, PrefixLookup] = WeakKeyDictionary()


def name_of_prompt(sampling_params: Any) -> Any:
    """The key of the prompt that a request names; ``None`` if it names none."""
    extra = getattr(sampling_params, "extra_args", None) or {}
    return (extra.get("kv_transfer_params") or {}).get(PARAMETER)


def has_connector(config: Any) -> bool:
    """Whether a server of this configuration has the connector."""
    transfer = config.kv_transfer_config
    return transfer is not None and transfer.kv_connector == CONNECTOR


def make_lookup(config: Any, note: Any) -> PrefixLookup:
    """The prompts of a server, by its configuration; raises ValueError for a server that can take none."""
    transfer, model = config.kv_transfer_config, config.model_config
    folder = transfer.get_from_extra_config(FOLDER, None)
    if not folder or not Path(folder).is_dir():
        raise ValueError(
            f'softprompt: expected the folder of prompts in kv_connector_extra_config, as {{"{FOLDER}": "/prompts"}}, '
            f"got {folder!r}"
        )
    shape = CacheShape(model.get_total_num_hidden_layers(), model.get_total_num_kv_heads(), model.get_head_size())
    most = int(transfer.get_from_extra_config(MOST, KEPT))
    return PrefixLookup(Path(folder), shape, find_checkpoint(model), kept=most, note=note)


def find_checkpoint(model: Any) -> Path | None:
    """The folder of the weights that a server runs, if it is on this machine."""
    if Path(model.model).is_dir():
        return Path(model.model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model.model, revision=model.revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError):
        return None


def check_request(request: Any, server: Any, note: Any) -> None:
    """Give a request for a prompt its salt, or refuse it; raises ValueError.

    ``server``: what makes requests of a user's, one for each model.
    """
    key = name_of_prompt(request.sampling_params)
    if key is None:
        return
    if not has_connector(server.vllm_config):
        raise ValueError(f"this server has no {CONNECTOR}: start it with --kv-transfer-config, see softprompt's docs")
    if request.prompt_token_ids is None or request.prompt_embeds is not None:
        raise ValueError("a request for a prompt holds token ids, got embeddings")
    if request.sampling_params.prompt_logprobs is not None:
        # vLLM would read the text from its first token, and so the ids that only hold the prompt's place
        raise ValueError("log-probabilities of the text itself cannot be told behind a prompt of keys and values")
    if server not in _lookups:
        _lookups[server] = make_lookup(server.vllm_config, note)
    if request.cache_salt is None:
        request.cache_salt = str(key)
    try:
        _lookups[server].check(key, request.prompt_token_ids, request.cache_salt)
    except SoftpromptError as error:
        raise ValueError(str(error)) from error


def register() -> None:
    """``install``, as vLLM calls plugins: one that has no such place is none that the connector runs in."""
    with suppress(ImportError, AttributeError):
        install()


def install() -> None:
    """Have this process look at requests; once is enough."""
    from vllm.logger import init_logger
    from vllm.v1.engine.input_processor import InputProcessor

    made = InputProcessor.process_inputs
    if getattr(made, PARAMETER, False):
        return
    log = init_logger("vllm.softprompt")

    def process_inputs(self: Any, *given: Any, **named: Any) -> Any:
        request = made(self, *given, **named)
        check_request(request, self, log.warning)
        return request

    setattr(process_inputs, PARAMETER, True)
    InputProcessor.process_inputs = process_inputs
