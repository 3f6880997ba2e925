"""A base model without its weights: shapes from its configuration alone, on PyTorch's meta device.

So a model of any size is there in seconds, wherever its weights are, and passes over it can be made that compute
nothing and show what the real ones keep.

Shapes: ``B`` texts, ``T`` text length, ``P'`` prefix length with BOS, ``H`` hidden size, ``S`` keys.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from softprompt.errors import BaseModelError
from softprompt.models.architecture import decode, encode, is_encoder_decoder
from softprompt.models.builtin_models import MODEL_NAME
from softprompt.models.kernels.fused_decoder import parse_layers
from softprompt.models.kernels.fused_layer import Layer
from softprompt.models.last_layer import find_layers
from softprompt.models.model_files import find_source
from softprompt.models.quantization import silence_logging
from softprompt.prompts.kv_cache import map_tensors, read_only

ANSWER = 8  # tokens of an answer that a decoder is given

_ATTENTION = "softprompt-meta"


@dataclass(frozen=True)
class MetaModel:
    """A model's parts without numbers.

    Attributes:
        name: what the user called it.
        model: the ``transformers`` model, every tensor on the meta device, in the dtype that it would be loaded in.
    """

    name: str
    model: Any

    @property
    def architecture(self) -> str:
        return "encoder-decoder" if is_encoder_decoder(self.model.config) else "decoder-only"

    @property
    def dtype(self) -> torch.dtype:
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight.dtype

    @property
    def embedding_size(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def vocabulary_size(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def is_tied(self) -> bool:
        """Whether the output layer is the token embeddings."""
        head = self.model.get_output_embeddings()
        return head is not None and head.weight is self.model.get_input_embeddings().weight

    @property
    def parameters(self) -> int:
        """How many there are, tied ones counted once."""
        return count(self.model)

    @cached_property
    def layers(self) -> tuple[nn.Module, ...]:
        """First to last; of an encoder-decoder model those of both."""
        return tuple(find_layers(self.model.base_model))

    @cached_property
    def linears(self) -> set[nn.Linear]:
        """The layers' linear parts."""
        return {part for layer in self.layers for part in layer.modules() if isinstance(part, nn.Linear)}

    @property
    def in_linears(self) -> int:
        """Parameters that a quantization packs: matrices of the layers' linear parts."""
        return sum(part.weight.numel() for part in self.linears)

    @property
    def largest_linear(self) -> int:
        """Parameters of the largest of them."""
        return max((part.weight.numel() for part in self.linears), default=0)

    @cached_property
    def own_layers(self) -> tuple[Layer, ...] | None:
        """The sizes of our own layers (fused_layer.py), if the model is built so."""
        if self.architecture != "decoder-only":
            return None
        with _norms_with_numbers(self.model):
            built = parse_layers(self.model.base_model, self.model.config.get_text_config())
        return None if built is None else built[0]


def count(module: nn.Module) -> int:
    """Parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def make_meta_model(name: str, dtype: torch.dtype, *, trust_remote_code: bool = False) -> MetaModel:
    """The model called ``name`` as ``softprompt.load_model`` understands it, of which only the configuration is read.

    Raises:
        BaseModelError: no usable configuration is there under this name.
        MissingExtraError: a package is not installed.
    """
    source = find_source(name, trust_remote_code=trust_remote_code)
    with silence_logging():
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    try:
        with silence_logging(), torch.device("meta"):
            config: Any = AutoConfig.from_pretrained(source.place, **source.options)
            # a quantized model's weights are counted as what they stand for
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            family: Any = AutoModelForSeq2SeqLM if is_encoder_decoder(config) else AutoModelForCausalLM
            model = family.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    except Exception as error:  # what a damaged configuration raises is not of one family
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BaseModelError(
            f"cannot read the configuration of '{name}': {reason} (expected a hub name, a folder with config.json, a "
            f".gguf file, or '{MODEL_NAME}')"
        ) from error
    return MetaModel(name, model.eval().requires_grad_(False))


@dataclass(frozen=True)
class SavedBytes:
    """Bytes that one pass keeps until gradient has come back.

    Attributes:
        layers: of each layer, first to last.
        entering: of each layer, what enters it from the one before.
    """

    layers: tuple[int, ...]
    entering: int

    @property
    def whole(self) -> int:
        return sum(self.layers)

    @property
    def largest(self) -> int:
        return max(self.layers, default=0)


@dataclass(frozen=True)
class StepBytes:
    """What a training step's passes keep, counted on a pass without numbers.

    Attributes:
        prefix: of the prefix's ``P'`` positions; ``None`` where the prefix stands in every text.
        text: of one text.
        cache: bytes of the prefix's keys and values.
    """

    prefix: SavedBytes | None
    text: SavedBytes
    cache: int


def make_cache(meta: MetaModel, prefix: int, *, learned: bool = False) -> Any:
    """Keys and values of ``prefix`` positions, on the meta device; ``None`` where the model keeps none to share.

    Args:
        learned: with gradient.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if meta.architecture != "decoder-only":
        return None
    cache: Any = DynamicCache(config=meta.model.config)
    try:
        with _attending(meta.model), torch.device("meta"), torch.set_grad_enabled(learned):
            start = torch.empty(1, prefix, meta.embedding_size, dtype=meta.dtype).requires_grad_(learned)
            _read(meta, start, cache, 0)
    except (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError, IndexError):
        return None
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
    return cache if plain and cache.layers else None


def count_cache_bytes(cache: Any) -> int:
    """Bytes of keys and values."""
    tensors = [each for layer in cache.layers if layer.keys is not None for each in (layer.keys, layer.values)]
    return sum(each.numel() * each.element_size() for each in tensors)


def count_saved_bytes(meta: MetaModel, prefix: int, text: int, *, given: bool = False) -> StepBytes:
    """What ``transformers``' layers keep of a prefix, and of a text of ``text`` tokens behind it.

    Args:
        given: the prefix is keys and values that learn, not virtual tokens.

    Raises:
        BaseModelError: the model cannot be run without numbers.
    """
    size, dtype = meta.embedding_size, meta.dtype
    try:
        with _attending(meta.model), torch.device("meta"), torch.enable_grad():
            if meta.architecture == "encoder-decoder":
                watch = _Watch(meta)
                with watch:
                    learned = torch.empty(1, prefix + text, size, dtype=dtype, requires_grad=True)
                    _answer(meta, learned)
                return StepBytes(None, watch.kept((prefix + text) * size * dtype.itemsize), 0)
            watch = _Watch(meta)
            with watch:
                cache = make_cache(meta, prefix, learned=True)
            of_text = _Watch(meta)
            if cache is None:
                with of_text:
                    learned = torch.empty(1, prefix + text, size, dtype=dtype, requires_grad=True)
                    _read(meta, learned, None, 0)
                return StepBytes(None, of_text.kept((prefix + text) * size * dtype.itemsize), 0)
            held = count_cache_bytes(cache)
            kept = SavedBytes((0,) * len(watch.sizes), 0) if given else watch.kept(prefix * size * dtype.itemsize)
            if given:
                cache = map_tensors(cache, lambda tensor: tensor.detach().requires_grad_())
            own = watch.known | {_key(each) for layer in cache.layers for each in (layer.keys, layer.values)}
            of_text.known |= own
            with of_text:
                _read(meta, torch.empty(1, text, size, dtype=dtype), read_only(cache), prefix)
            return StepBytes(kept, of_text.kept(text * size * dtype.itemsize), held)
    except (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError, IndexError, KeyError) as error:
        raise BaseModelError(
            f"'{meta.name}' ({type(meta.model).__name__}) cannot be run without numbers, so what it keeps is "
            f"not known ({type(error).__name__}): measure a step of it instead"
        ) from error


def _read(meta: MetaModel, embeddings: Tensor, cache: Any, start: int) -> None:
    positions = torch.arange(start, start + embeddings.shape[1], device="meta")[None]
    meta.model.base_model(
        inputs_embeds=embeddings, position_ids=positions, past_key_values=cache, use_cache=cache is not None
    )


def _answer(meta: MetaModel, embeddings: Tensor) -> None:
    ids = torch.ones(1, ANSWER, dtype=torch.long, device="meta")
    decode(meta.model, encode(meta.model, embeddings), None, input_ids=ids)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _Watch:
    """Takes note of what autograd saves, by layer, weights apart; each piece of memory once."""

    def __init__(self, meta: MetaModel) -> None:
        self._layers = meta.layers
        self.known = {_key(each) for each in (*meta.model.parameters(), *meta.model.buffers())}
        self.sizes = [0] * len(self._layers)
        self._alive: list[Tensor] = []
        self._current = 0

    def __enter__(self) -> None:
        self._hooks = [
            layer.register_forward_pre_hook(lambda *_, index=index: setattr(self, "_current", index))
            for index, layer in enumerate(self._layers)
        ]
        self._saving = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._saving.__enter__()

    def __exit__(self, *reason: Any) -> None:
        self._saving.__exit__(*reason)
        for hook in self._hooks:
            hook.remove()

    def kept(self, entering: int) -> SavedBytes:
        return SavedBytes(tuple(self.sizes), entering)

    def _pack(self, tensor: Tensor) -> Tensor:
        if (key := _key(tensor)) not in self.known:
            self.known.add(key)
            # what lives on keeps its address from being another's
            self._alive.append(tensor)
            self.sizes[self._current] += tensor.untyped_storage().nbytes()
        return tensor


class _Attention(torch.autograd.Function):
    """What the kernels of CPU and GPU keep of attention: queries, keys, values, result and a number a query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found = query.new_empty(*query.shape[:3], value.shape[3])
        ctx.save_for_backward(query, key, value, found, query.new_empty(query.shape[:3], dtype=torch.float32))
        return found

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError("there are no numbers here")


def _attention(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    # behind a prefix there is a mask, and then transformers gives every query head keys of its own
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and key.shape[2] > query.shape[2]:
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    found: Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return found.transpose(1, 2).contiguous(), None


@contextmanager
def _norms_with_numbers(model: Any) -> Iterator[None]:
    """Within it, norms have numbers: few, and what kind of norm one is, is found by what it computes."""
    norms = [module for module in model.modules() if "RMSNorm" in type(module).__name__]
    for norm in norms:
        norm.to_empty(device="cpu")
        for parameter in norm.parameters():
            parameter.data.fill_(1.0)
    try:
        yield
    finally:
        for norm in norms:
            norm.to("meta")


@contextmanager
def _attending(model: Any) -> Iterator[None]:
    """Within it, attention makes nothing but what the kernels would keep."""
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, _attention)
    before = getattr(model.config, "_attn_implementation", None)
    if before == _ATTENTION or before is None:
        yield
        return
    # families that cannot change theirs say so, and keep it
    with silence_logging():
        model.set_attn_implementation(_ATTENTION)
    try:
        yield
    finally:
        with silence_logging():
            model.set_attn_implementation(before)
