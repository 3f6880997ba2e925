"""``softprompt plan``: what training a prompt and serving many of them need in memory, before any weight is loaded.

Each part is a formula of the model's sizes (activation_memory.py) with its numbers put in.
"""

import math
from dataclasses import replace
from typing import Any

import torch

from softprompt.analysis.diagnostics.activation_memory import FLOAT, Activations, activations, count_weight_bytes
from softprompt.analysis.diagnostics.memory_estimate import GB, ROOM, MemoryEstimate, MemoryPart, MemoryPlan, Workload
from softprompt.analysis.diagnostics.meta_model import MetaModel, count, count_cache_bytes, make_cache
from softprompt.analysis.diagnostics.plan_commands import serving_commands, training_command
from softprompt.config import TrainConfig
from softprompt.errors import ConfigError
from softprompt.inference.scoring import learning_tokens
from softprompt.prompts.methods.method_registry import METHODS, check_method
from softprompt.prompts.state import PromptState
from softprompt.serving.engine.inference_engine import EngineLimits

PROCESS = 450 * 10**6  # bytes of Python with PyTorch and transformers (measured, on a CPU)
TOKEN = 1040  # bytes of a tokenizer for each token of its vocabulary (measured, on that of Gemma 3)
BLOCK = 16  # tokens that vLLM's cache of keys and values is divided into
ANSWER = 128  # tokens of a completion that is planned for, as the server gives where a request does not say


def plan_memory(meta: MetaModel, workload: Workload, bos: int = 1) -> MemoryPlan:
    """What ``wish`` needs with this model.

    Args:
        bos: tokens in front of the prompt, which the tokenizer knows.

    Raises:
        ConfigError: what is wished cannot be.
        BaseModelError: the model cannot be run without numbers.
    """
    workload.check()
    if workload.sharding is None:
        alone = _training(meta, replace(workload, sharding="none"), bos)
        several = workload.gpus > 1 and workload.quantize is None and meta.architecture == "decoder-only"
        workload = replace(workload, sharding="fsdp" if several and not alone.fits else "none")
    if workload.sharding == "fsdp" and meta.architecture != "decoder-only":
        raise ConfigError("sharding fsdp is for decoder-only models: leave it out")
    facts = {
        "name": meta.name,
        "class": type(meta.model).__name__,
        "architecture": meta.architecture,
        "parameters": meta.parameters,
        "layers": len(meta.layers),
        "hidden_size": meta.embedding_size,
        "vocabulary": meta.vocabulary_size,
        "tied": meta.is_tied,
        "dtype": str(meta.dtype).removeprefix("torch."),
    }
    serving = [_serving(meta, workload, bos)]
    # what a vocabulary can hold, and a cache of keys and values
    if workload.gpus and METHODS[workload.method].kind == "embeddings" and (cache := make_cache(meta, 1)) is not None:
        serving.append(_serving_on_vllm(meta, workload, bos, cache))
    return MemoryPlan(workload, facts, _training(meta, workload, bos), tuple(serving))


def count_learned(meta: MetaModel, workload: Workload) -> tuple[int, int, int]:
    """Numbers of a method: those that learn, those that it starts from, those of the prompt it gives."""
    length, size = workload.length, meta.embedding_size
    with torch.device("meta"):
        tensors: tuple[torch.Tensor, ...] = (torch.empty(length, size),)
        kind = METHODS[workload.method].kind
        if kind == "key_values":
            if (cache := make_cache(meta, length)) is None:
                raise ConfigError(
                    f"method {workload.method}: the keys and values of '{meta.name}' are not known from its "
                    "configuration: plan for prompt-tuning"
                )
            tensors = tuple(torch.cat([layer.keys, layer.values]).float() for layer in cache.layers)
        module = METHODS[workload.method].build(PromptState(kind, tensors), 1.0, 0, check_method(workload.method))
    held = sum(buffer.numel() for buffer in module.buffers())
    return count(module), held, sum(tensor.numel() for tensor in tensors)


def _training(meta: MetaModel, workload: Workload, bos: int) -> MemoryEstimate:
    size, on_cpu = meta.dtype.itemsize, workload.gpus == 0
    kept = activations(
        meta,
        workload.length + bos,
        workload.text_length,
        own_layers=on_cpu and workload.quantize is None and meta.dtype != torch.float16,
        checkpointing=workload.checkpointing,
        generation=workload.generation,
        learned_cache=METHODS[workload.method].kind == "key_values",
    )
    processes = max(1, workload.gpus)
    # as train.py cuts a step: over processes, then at the budget of padded tokens
    most = max(1, learning_tokens(TrainConfig().token_budget, on_cpu=on_cpu) // workload.text_length)
    texts = min(math.ceil(workload.batch_size / processes), most)
    parts = [
        *(_process(meta) if on_cpu else ()),
        *_weights(meta, workload),
        *_prompt(meta, workload),
        *_of_cache(kept),
        MemoryPart("activations kept", kept.kept(texts), _told(kept, texts)),
        MemoryPart("at work", kept.at_work(texts), _told_work(kept, texts)),
    ]
    if workload.quantize:
        parts.append(MemoryPart("a matrix unpacked", size * meta.largest_linear, f"{meta.largest_linear:,} x {size}"))
    room = workload.memory if on_cpu else int(ROOM * workload.memory)
    fixed = sum(part.bytes for part in parts) - kept.kept(texts) - kept.at_work(texts)
    at_once = _most(lambda n: fixed + kept.kept(n) + kept.at_work(n) <= room)
    estimate = MemoryEstimate(
        f"training one prompt ({workload.method}), {texts} of {workload.batch_size} texts a pass",
        tuple(parts),
        room,
        at_once,
    )
    notes = []
    if at_once is not None and at_once < texts:
        notes.append(f"a pass over {at_once} fits: --micro-batch-size {at_once}")
    if not estimate.fits and at_once is None and not workload.checkpointing:
        notes.append("try --gradient-checkpointing, or a --quantize scheme")
    if not kept.own:
        notes.append("layers of transformers under autograd; what they keep is counted on a pass without numbers")
    return replace(estimate, notes=tuple(notes), commands=training_command(meta, workload, at_once))


def _process(meta: MetaModel) -> list[MemoryPart]:
    formula = f"{PROCESS // 10**6} MB + {meta.vocabulary_size:,} x {TOKEN:,} bytes (measured)"
    return [MemoryPart("Python, libraries, tokenizer", PROCESS + TOKEN * meta.vocabulary_size, formula)]


def _weights(meta: MetaModel, workload: Workload) -> list[MemoryPart]:
    size, whole = meta.dtype.itemsize, count_weight_bytes(meta, workload.quantize)
    billions = meta.parameters / GB
    if workload.sharding != "fsdp":
        if workload.quantize is None:
            return [MemoryPart("weights", whole, f"{billions:.3g} billion x {size} bytes")]
        packed, kind = meta.in_linears / GB, workload.quantize
        return [
            MemoryPart(
                "weights", whole, f"{packed:.3g} billion in {kind}, {billions - packed:.3g} billion x {size} bytes"
            )
        ]
    in_layers = [count(layer) for layer in meta.layers]
    rest = meta.parameters - sum(in_layers)
    share = math.ceil(sum(in_layers) / workload.gpus)
    formula = f"({sum(in_layers) / GB:.3g} / {workload.gpus} + {rest / GB:.3g}) billion x {size} bytes"
    return [
        MemoryPart("weights", size * (share + rest), formula),
        MemoryPart(
            "two layers whole", 2 * size * max(in_layers), f"2 x {max(in_layers) / GB:.3g} billion x {size} bytes"
        ),
    ]


def _prompt(meta: MetaModel, workload: Workload) -> list[MemoryPart]:
    learns, held, given = count_learned(meta, workload)
    return [
        MemoryPart("prompt", FLOAT * (2 * learns + held + given), f"4 bytes x (2 x {learns:,} + {held:,} + {given:,})"),
        MemoryPart("its gradient and Adam's two moments", 3 * FLOAT * learns, f"3 x 4 bytes x {learns:,}"),
    ]


def _of_cache(kept: Activations) -> list[MemoryPart]:
    if not kept.passes.cache:
        return []
    each = kept.passes.cache // kept.prefix
    return [
        MemoryPart("keys and values of the prefix", kept.passes.cache, f"{kept.prefix:,} positions x {each:,} bytes")
    ]


def _told(kept: Activations, texts: int) -> str:
    positions, layers = texts * kept.text + kept.prefix, len(kept.passes.text.layers)
    what = f"({texts} x {kept.text:,} + {kept.prefix:,}) positions"
    if kept.checkpointing:
        return f"{layers} layers x {what} x {kept.passes.text.entering // kept.text:,} bytes + one layer"
    return f"{what} x {layers} layers x {kept.kept(texts) // positions // layers:,} bytes"


def _told_work(kept: Activations, texts: int) -> str:
    if kept.logits > max(texts * kept.text, kept.prefix) * kept.work:
        return "64 logits over the vocabulary"
    return f"{max(texts * kept.text, kept.prefix):,} positions x {kept.work:,} bytes, of one layer"


def _serving(meta: MetaModel, workload: Workload, bos: int) -> MemoryEstimate:
    """By our own engine, on one GPU or the processor."""
    size, limits, on_cpu = meta.dtype.itemsize, EngineLimits(), workload.gpus == 0
    whole = workload.length + bos
    cache = make_cache(meta, whole)
    each = size * whole * meta.embedding_size if cache is None else count_cache_bytes(cache)
    batch = limits.batch_tokens or (2048 if on_cpu else 16_384)
    work = 6 * size * _widest(meta)
    parts = [
        *(_process(meta) if on_cpu else ()),
        *_weights(meta, replace(workload, sharding="none")),
        MemoryPart("a pass at work", batch * work, f"{batch:,} tokens x {work:,} bytes (6 x the widest part)"),
    ]
    room = workload.memory if on_cpu else int(ROOM * workload.memory)
    left = room - sum(part.bytes for part in parts)
    tokens = whole + workload.text_length + (ANSWER if workload.generation else 0)
    request = each * tokens // whole if cache is not None else size * tokens * meta.embedding_size
    # requests come first: a prefix that is not there can be computed again
    requests = min(limits.rows, limits.running_tokens // tokens, max(left - each, 0) // max(request, 1))
    held = max(1, min(workload.tasks, (left - requests * request) // each))
    parts.append(MemoryPart("prefixes", held * each, f"{held:,} of {workload.tasks:,} tasks x {each:,} bytes"))
    parts.append(MemoryPart("requests", requests * request, f"{requests} x {request:,} bytes for {tokens:,} tokens"))
    title = f"serving {workload.tasks:,} tasks, softprompt's engine on {'the processor' if on_cpu else 'one GPU'}"
    if not requests:
        note = "the model does not fit: take vLLM on several GPUs, or a --quantize scheme"
        return MemoryEstimate(title, tuple(parts), room, None, (note,))
    usual = min(limits.prefix_bytes // each, workload.tasks)
    notes = [f"{usual:,} prefixes are kept by default (engine.prefix_bytes {limits.prefix_bytes:,})"]
    if held < workload.tasks:
        notes.append("what is not kept is computed again when it is asked for, the least recently used goes first")
    commands = serving_commands(meta, workload, prefix_bytes=held * each)
    return MemoryEstimate(title, tuple(parts), room, requests, tuple(notes), commands)


def _serving_on_vllm(meta: MetaModel, workload: Workload, bos: int, cache: Any) -> MemoryEstimate:
    """By vLLM with prompts baked into the vocabulary, each layer divided over the GPUs; ``cache``: of one position."""
    size, gpus, hidden = meta.dtype.itemsize, workload.gpus, meta.embedding_size
    untying = meta.vocabulary_size if meta.is_tied else 0
    rows = workload.tasks * workload.length
    baked = size * hidden * (2 * rows + untying)
    heads = min(layer.keys.shape[1] for layer in cache.layers if layer.keys is not None)
    # where there are fewer heads than GPUs, several have the same
    token = math.ceil(count_cache_bytes(cache) / min(gpus, heads))
    blocks = math.ceil((workload.length + bos) / BLOCK)
    whole, prefixes = count_weight_bytes(meta, None), workload.tasks * blocks * BLOCK * token
    parts = [
        MemoryPart("weights", math.ceil(whole / gpus), f"{meta.parameters / GB:.3g} billion x {size} bytes / {gpus}"),
        MemoryPart(
            "prompts in the vocabulary",
            math.ceil(baked / gpus),
            f"(2 x {workload.tasks:,} x {workload.length} + {untying:,}) rows x {hidden:,} x {size} bytes / {gpus}",
        ),
        MemoryPart(
            "prefixes", prefixes, f"{workload.tasks:,} tasks x {blocks} blocks x {BLOCK} tokens x {token:,} bytes"
        ),
    ]
    room = int(ROOM * workload.memory)
    left = room - sum(part.bytes for part in parts)
    tokens = math.ceil((workload.text_length + ANSWER) / BLOCK) * BLOCK
    title = f"serving {workload.tasks:,} tasks, vLLM on {gpus} GPU{'s' if gpus > 1 else ''}"
    if left < tokens * token:
        return MemoryEstimate(title, tuple(parts), room, None)
    notes = (
        f"{left / GB:.1f} GB are left to vLLM for its own work and for requests, {tokens * token:,} bytes for {tokens} "
        "tokens behind a prefix that is there",
        f"the export loads the whole model into the machine's memory: {whole / GB:.1f} GB",
    )
    commands = serving_commands(meta, workload, prefix_bytes=None)
    return MemoryEstimate(title, tuple(parts), room, left // (tokens * token), notes, commands)


def _widest(meta: MetaModel) -> int:
    """Outputs of the widest linear part of a layer."""
    return max((max(part.in_features, part.out_features) for part in meta.linears), default=4 * meta.embedding_size)


def _most(fits: Any) -> int | None:
    """The largest number that ``fits``, up to 65,536; ``None`` if not even 1 does."""
    if not fits(1):
        return None
    low, high = 1, 2**16
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
