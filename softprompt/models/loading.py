"""A base model from a name or a folder, checked and fingerprinted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from softprompt.errors import BaseModelError, SoftpromptError
from softprompt.models.architecture import is_encoder_decoder, read_special_tokens
from softprompt.models.builtin_models import MODEL_NAME as EMBEDDED_NAME
from softprompt.models.devices import choose_device, default_dtype, parse_dtype
from softprompt.models.distributed import SINGLE_PROCESS, ProcessGroup
from softprompt.models.fingerprint import UnloadedModel, config_sha256, tokenizer_sha256
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.gguf_conversion import no_progress_bars
from softprompt.models.model_files import ModelSource, find_source
from softprompt.models.quantization import (
    check_quantized,
    find_quantization,
    keep_packed,
    loading_options,
    silence_logging,
)
from softprompt.models.sharding import align_hidden_states, check_placement, shard
from softprompt.utils.arguments import check_arguments


@check_arguments
def load_model(
    name: str | Path,
    *,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    sharding: str | None = None,
    processes: ProcessGroup = SINGLE_PROCESS,
    trust_remote_code: bool = False,
    progress: Callable[[str], None] | None = None,
    check: Callable[[UnloadedModel], None] | None = None,
) -> FrozenLM:
    """Load and freeze a language model, decoder-only or encoder-decoder.

    Args:
        name: a Hugging Face hub name, a local folder, a ``.gguf`` file, or ``embedded:gemma-3-270m``.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; chosen if not given.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``saved`` for that of the weights as they are saved; chosen
            if not given (see ``default_dtype``).
        quantize: ``int8`` (torchao), ``bnb-int8`` or ``bnb-nf4`` (bitsandbytes): how to store the weights of linear
            layers. A model that is saved quantized is loaded as it is.
        device_map: ``auto``: over all devices, memory and disk; or a device for each module (``from_pretrained``).
        sharding: ``fsdp``: each of several processes holds a part of every layer.
        processes: those of the run (``join_process_group``), which will share its work.
        trust_remote_code: let the model's repository run its own code. Off unless you trust it.
        progress: receives a line of text when something takes long.
        check: raises for a model that is not wanted (``Prompt.check_base``), before its weights are loaded.

    Raises:
        BaseModelError: nothing usable is there under this name, or it cannot be quantized or shared so.
        ConfigError: it cannot be placed so.
        MissingExtraError: a package is not installed.
    """
    check_placement(device_map, sharding, device, quantize, processes)
    chosen_device = choose_device(processes.device(device))
    chosen_dtype = default_dtype(chosen_device) if dtype is None else None if dtype == "saved" else parse_dtype(dtype)
    source = find_source(str(name), trust_remote_code=trust_remote_code, progress=progress)
    options = {} if device_map is None else {"device_map": device_map}
    model, tokenizer = _read_model(source, chosen_device, chosen_dtype, quantize, options, check, progress)
    keep_packed(model)
    if sharding is not None:
        shard(model, chosen_device, processes, source.name)
    elif device_map is not None:
        align_hidden_states(model, source.name)
    elif "device_map" not in options:
        model = model.to(chosen_device)
    # what is moved or shared cannot be folded into faster parts
    base = FrozenLM(model, tokenizer, source.name, lasting=device_map is None and sharding is None)
    base.processes = replace(processes, in_lockstep=sharding is not None)
    if sharding is not None:
        _ = base.fingerprint  # read by all processes together, once
    return base


def silence_transformers() -> None:
    """Keep what transformers warns of off the terminal, for good."""
    from transformers.utils import logging

    logging.set_verbosity_error()


def _read_model(
    source: ModelSource,
    device: torch.device,
    dtype: torch.dtype | None,
    quantize: str | None,
    options: dict[str, Any],
    check: Callable[[UnloadedModel], None] | None,
    progress: Callable[[str], None] | None,
) -> tuple[Any, Any]:
    """Model and tokenizer; in the dtype that the weights are saved in, if none is given.

    Args:
        options: of ``from_pretrained``; those that quantization needs are put into it.
    """
    with silence_logging():
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    try:
        with silence_logging(), no_progress_bars():
            source = source.convert_gguf(dtype or default_dtype(device), progress)
            config: Any = AutoConfig.from_pretrained(source.place, **source.options)
            family: Any = AutoModelForSeq2SeqLM if is_encoder_decoder(config) else AutoModelForCausalLM
            dtype = dtype or config.dtype or torch.float32
            for option, value in loading_options(config, quantize, device, dtype, source.name).items():
                options.setdefault(option, value)
            tokenizer = source.tokenizer()
            # code of one's own may change its configuration later
            if check is not None and not source.options["trust_remote_code"]:
                check(_describe_unloaded(config, tokenizer, source.name, quantize))
            model, info = family.from_pretrained(
                source.place, dtype=dtype, use_safetensors=True, output_loading_info=True, **source.options, **options
            )
    except SoftpromptError:
        raise
    except Exception as error:  # what damaged files raise is not of one family
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BaseModelError(
            f"cannot load the base model '{source.name}': {reason} (expected a hub name, a folder with config.json and "
            f"safetensors weights, a .gguf file, or '{EMBEDDED_NAME}')"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise BaseModelError(
            f"the base model '{source.name}' lacks weights: expected all of them, {len(missing)} are missing, such as "
            f"'{missing[0]}': get the complete model"
        )
    if quantize is not None:
        check_quantized(model, quantize, source.name)
    return model, tokenizer


def _describe_unloaded(config: Any, tokenizer: Any, name: str, quantize: str | None) -> UnloadedModel:
    parts = {"config": config_sha256(config)}
    # where answers of an encoder-decoder model start may be told by its generation_config.json only
    if not is_encoder_decoder(config) or isinstance(getattr(config, "decoder_start_token_id", None), int):
        parts["tokenizer"] = tokenizer_sha256(
            tokenizer, read_special_tokens(SimpleNamespace(config=config), tokenizer, name)
        )
    return UnloadedModel(name, find_quantization(config) or quantize, parts)
