"""``softprompt plan``: what training a prompt and serving many of them need in memory, before any weight is loaded.

Each part is a formula of the model's sizes (footprint.py) with its numbers put in.
"""

import math
from dataclasses import replace
from typing import Any

import torch

from softprompt.analysis.diagnostics.activation_memory import FLOAT, Activations, activations, weights_bytes
from softprompt.analysis.diagnostics.memory_estimate import GB, ROOM, Bill, Part, Plan, Wish
from softprompt.analysis.diagnostics.meta_model import Skeleton, cache_bytes, cache_of, count
from softprompt.analysis.diagnostics.plan_commands import serving_commands, training_command
from softprompt.config import TrainConfig
from softprompt.errors import ConfigError
from softprompt.inference.scoring import learning_tokens
from softprompt.prompts.methods.method_registry import METHODS, check_method
from softprompt.prompts.state import PromptState
from softprompt.serving.engine.inference_engine import Limits

PROCESS = 450 * 10**6  # bytes of Python with PyTorch and transformers (measured, on a CPU)
TOKEN = 1040  # bytes of a tokenizer for each token of its vocabulary (measured, on that of Gemma 3)
BLOCK = 16  # tokens that vLLM's cache of keys and values is divided into
ANSWER = 128  # tokens of a completion that is planned for, as the server gives where a request does not say


def plan(skeleton: Skeleton, wish: Wish, bos: int = 1) -> Plan:
    """What ``wish`` needs with this model.

    Args:
        bos: tokens in front of the prompt, which the tokenizer knows.

    Raises:
        ConfigError: what is wished cannot be.
        BaseModelError: the model cannot be run without numbers.
    """
    wish.check()
    if wish.sharding is None:
        alone = _training(skeleton, replace(wish, sharding="none"), bos)
        several = wish.gpus > 1 and wish.quantise is None and skeleton.architecture == "decoder-only"
        wish = replace(wish, sharding="fsdp" if several and not alone.fits else "none")
    if wish.sharding == "fsdp" and skeleton.architecture != "decoder-only":
        raise ConfigError("sharding fsdp is for decoder-only models: leave it out")
    facts = {
        "name": skeleton.name,
        "class": type(skeleton.model).__name__,
        "architecture": skeleton.architecture,
        "parameters": skeleton.parameters,
        "layers": len(skeleton.layers),
        "hidden_size": skeleton.embedding_size,
        "vocabulary": skeleton.vocabulary_size,
        "tied": skeleton.is_tied,
        "dtype": str(skeleton.dtype).removeprefix("torch."),
    }
    serving = [_serving(skeleton, wish, bos)]
    # what a vocabulary can hold, and a cache of keys and values
    if wish.gpus and METHODS[wish.method].kind == "embeddings" and (cache := cache_of(skeleton, 1)) is not None:
        serving.append(_serving_on_vllm(skeleton, wish, bos, cache))
    return Plan(wish, facts, _training(skeleton, wish, bos), tuple(serving))


def learned(skeleton: Skeleton, wish: Wish) -> tuple[int, int, int]:
    """Numbers of a method: those that learn, those that it starts from, those of the prompt it gives."""
    length, size = wish.length, skeleton.embedding_size
    with torch.device("meta"):
        tensors: tuple[torch.Tensor, ...] = (torch.empty(length, size),)
        kind = METHODS[wish.method].kind
        if kind == "key_values":
            if (cache := cache_of(skeleton, length)) is None:
                raise ConfigError(
                    f"method {wish.method}: the keys and values of '{skeleton.name}' are not known from its "
                    "configuration: plan for prompt-tuning"
                )
            tensors = tuple(torch.cat([layer.keys, layer.values]).float() for layer in cache.layers)
        module = METHODS[wish.method].build(PromptState(kind, tensors), 1.0, 0, check_method(wish.method))
    held = sum(buffer.numel() for buffer in module.buffers())
    return count(module), held, sum(tensor.numel() for tensor in tensors)


def _training(skeleton: Skeleton, wish: Wish, bos: int) -> Bill:
    size, on_cpu = skeleton.dtype.itemsize, wish.gpus == 0
    kept = activations(
        skeleton,
        wish.length + bos,
        wish.text_length,
        own_layers=on_cpu and wish.quantise is None and skeleton.dtype != torch.float16,
        checkpointing=wish.checkpointing,
        generation=wish.generation,
        learned_cache=METHODS[wish.method].kind == "key_values",
    )
    processes = max(1, wish.gpus)
    # as train.py cuts a step: over processes, then at the budget of padded tokens
    most = max(1, learning_tokens(TrainConfig().token_budget, on_cpu=on_cpu) // wish.text_length)
    texts = min(math.ceil(wish.batch_size / processes), most)
    parts = [
        *(_process(skeleton) if on_cpu else ()),
        *_weights(skeleton, wish),
        *_prompt(skeleton, wish),
        *_of_cache(kept),
        Part("activations kept", kept.kept(texts), _told(kept, texts)),
        Part("at work", kept.at_work(texts), _told_work(kept, texts)),
    ]
    if wish.quantise:
        parts.append(Part("a matrix unpacked", size * skeleton.largest_linear, f"{skeleton.largest_linear:,} x {size}"))
    room = wish.memory if on_cpu else int(ROOM * wish.memory)
    fixed = sum(part.bytes for part in parts) - kept.kept(texts) - kept.at_work(texts)
    at_once = _most(lambda n: fixed + kept.kept(n) + kept.at_work(n) <= room)
    bill = Bill(
        f"training one prompt ({wish.method}), {texts} of {wish.batch_size} texts a pass", tuple(parts), room, at_once
    )
    notes = []
    if at_once is not None and at_once < texts:
        notes.append(f"a pass over {at_once} fits: --micro-batch-size {at_once}")
    if not bill.fits and at_once is None and not wish.checkpointing:
        notes.append("try --gradient-checkpointing, or a --quantise scheme")
    if not kept.own:
        notes.append("layers of transformers under autograd; what they keep is counted on a pass without numbers")
    return replace(bill, notes=tuple(notes), commands=training_command(skeleton, wish, at_once))


def _process(skeleton: Skeleton) -> list[Part]:
    formula = f"{PROCESS // 10**6} MB + {skeleton.vocabulary_size:,} x {TOKEN:,} bytes (measured)"
    return [Part("Python, libraries, tokenizer", PROCESS + TOKEN * skeleton.vocabulary_size, formula)]


def _weights(skeleton: Skeleton, wish: Wish) -> list[Part]:
    size, whole = skeleton.dtype.itemsize, weights_bytes(skeleton, wish.quantise)
    billions = skeleton.parameters / GB
    if wish.sharding != "fsdp":
        if wish.quantise is None:
            return [Part("weights", whole, f"{billions:.3g} billion x {size} bytes")]
        packed, kind = skeleton.in_linears / GB, wish.quantise
        return [
            Part("weights", whole, f"{packed:.3g} billion in {kind}, {billions - packed:.3g} billion x {size} bytes")
        ]
    in_layers = [count(layer) for layer in skeleton.layers]
    rest = skeleton.parameters - sum(in_layers)
    share = math.ceil(sum(in_layers) / wish.gpus)
    formula = f"({sum(in_layers) / GB:.3g} / {wish.gpus} + {rest / GB:.3g}) billion x {size} bytes"
    return [
        Part("weights", size * (share + rest), formula),
        Part("two layers whole", 2 * size * max(in_layers), f"2 x {max(in_layers) / GB:.3g} billion x {size} bytes"),
    ]


def _prompt(skeleton: Skeleton, wish: Wish) -> list[Part]:
    learns, held, given = learned(skeleton, wish)
    return [
        Part("prompt", FLOAT * (2 * learns + held + given), f"4 bytes x (2 x {learns:,} + {held:,} + {given:,})"),
        Part("its gradient and Adam's two moments", 3 * FLOAT * learns, f"3 x 4 bytes x {learns:,}"),
    ]


def _of_cache(kept: Activations) -> list[Part]:
    if not kept.passes.cache:
        return []
    each = kept.passes.cache // kept.prefix
    return [Part("keys and values of the prefix", kept.passes.cache, f"{kept.prefix:,} positions x {each:,} bytes")]


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


def _serving(skeleton: Skeleton, wish: Wish, bos: int) -> Bill:
    """By our own engine, on one GPU or the processor."""
    size, limits, on_cpu = skeleton.dtype.itemsize, Limits(), wish.gpus == 0
    whole = wish.length + bos
    cache = cache_of(skeleton, whole)
    each = size * whole * skeleton.embedding_size if cache is None else cache_bytes(cache)
    batch = limits.batch_tokens or (2048 if on_cpu else 16_384)
    work = 6 * size * _widest(skeleton)
    parts = [
        *(_process(skeleton) if on_cpu else ()),
        *_weights(skeleton, replace(wish, sharding="none")),
        Part("a pass at work", batch * work, f"{batch:,} tokens x {work:,} bytes (6 x the widest part)"),
    ]
    room = wish.memory if on_cpu else int(ROOM * wish.memory)
    left = room - sum(part.bytes for part in parts)
    tokens = whole + wish.text_length + (ANSWER if wish.generation else 0)
    request = each * tokens // whole if cache is not None else size * tokens * skeleton.embedding_size
    # requests come first: a prefix that is not there can be computed again
    requests = min(limits.rows, limits.running_tokens // tokens, max(left - each, 0) // max(request, 1))
    held = max(1, min(wish.tasks, (left - requests * request) // each))
    parts.append(Part("prefixes", held * each, f"{held:,} of {wish.tasks:,} tasks x {each:,} bytes"))
    parts.append(Part("requests", requests * request, f"{requests} x {request:,} bytes for {tokens:,} tokens"))
    title = f"serving {wish.tasks:,} tasks, softprompt's engine on {'the processor' if on_cpu else 'one GPU'}"
    if not requests:
        note = "the model does not fit: take vLLM on several GPUs, or a --quantise scheme"
        return Bill(title, tuple(parts), room, None, (note,))
    usual = min(limits.prefix_bytes // each, wish.tasks)
    notes = [f"{usual:,} prefixes are kept by default (engine.prefix_bytes {limits.prefix_bytes:,})"]
    if held < wish.tasks:
        notes.append("what is not kept is computed again when it is asked for, the least recently used goes first")
    commands = serving_commands(skeleton, wish, prefix_bytes=held * each)
    return Bill(title, tuple(parts), room, requests, tuple(notes), commands)


def _serving_on_vllm(skeleton: Skeleton, wish: Wish, bos: int, cache: Any) -> Bill:
    """By vLLM with prompts baked into the vocabulary, each layer divided over the GPUs; ``cache``: of one position."""
    size, gpus, hidden = skeleton.dtype.itemsize, wish.gpus, skeleton.embedding_size
    untying = skeleton.vocabulary_size if skeleton.is_tied else 0
    rows = wish.tasks * wish.length
    baked = size * hidden * (2 * rows + untying)
    heads = min(layer.keys.shape[1] for layer in cache.layers if layer.keys is not None)
    # where there are fewer heads than GPUs, several have the same
    token = math.ceil(cache_bytes(cache) / min(gpus, heads))
    blocks = math.ceil((wish.length + bos) / BLOCK)
    whole, prefixes = weights_bytes(skeleton, None), wish.tasks * blocks * BLOCK * token
    parts = [
        Part("weights", math.ceil(whole / gpus), f"{skeleton.parameters / GB:.3g} billion x {size} bytes / {gpus}"),
        Part(
            "prompts in the vocabulary",
            math.ceil(baked / gpus),
            f"(2 x {wish.tasks:,} x {wish.length} + {untying:,}) rows x {hidden:,} x {size} bytes / {gpus}",
        ),
        Part("prefixes", prefixes, f"{wish.tasks:,} tasks x {blocks} blocks x {BLOCK} tokens x {token:,} bytes"),
    ]
    room = int(ROOM * wish.memory)
    left = room - sum(part.bytes for part in parts)
    tokens = math.ceil((wish.text_length + ANSWER) / BLOCK) * BLOCK
    title = f"serving {wish.tasks:,} tasks, vLLM on {gpus} GPU{'s' if gpus > 1 else ''}"
    if left < tokens * token:
        return Bill(title, tuple(parts), room, None)
    notes = (
        f"{left / GB:.1f} GB are left to vLLM for its own work and for requests, {tokens * token:,} bytes for {tokens} "
        "tokens behind a prefix that is there",
        f"the export loads the whole model into the machine's memory: {whole / GB:.1f} GB",
    )
    commands = serving_commands(skeleton, wish, prefix_bytes=None)
    return Bill(title, tuple(parts), room, left // (tokens * token), notes, commands)


def _widest(skeleton: Skeleton) -> int:
    """Outputs of the widest linear part of a layer."""
    parts = (part for layer in skeleton.layers for part in layer.modules() if isinstance(part, torch.nn.Linear))
    return max((max(part.in_features, part.out_features) for part in parts), default=4 * skeleton.embedding_size)


def _most(fits: Any) -> int | None:
    """The largest number that ``fits``, up to 65,536; ``None`` if not even 1 does."""
    if not fits(1):
        return None
    low, high = 1, 2**16
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
