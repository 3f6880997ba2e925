"""Keys and values of a prompt in front of what the self-attention of each layer sees, where no cache can bring them in.

An encoder takes no cache, and a decoder's cache moves absolute positions by its length. So they are put in front within
``transformers``' attention interface: every layer calls one function with its queries, keys, values, mask and distance
bias, and hands on to it what the encoder or decoder was called with. Nothing else changes: texts and answers keep the
positions that they have without a prompt, and distances (T5) are counted as if the prompt stood right before them.

Shapes: ``K`` prompts, ``B`` batch, ``Q`` queries, ``S`` keys, ``W`` length of the longest prompt, ``D`` head size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from softprompt.errors import BaseModelError
from softprompt.models import fast_attention
from softprompt.models.architecture import decode, encode
from softprompt.models.exactness import OncePerModel
from softprompt.models.frozen_lm import FrozenLM

_SUFFIX = "_behind_prompt"


class AttentionInputs(NamedTuple):
    """What one call of attention looks at: ``[B, heads, S, D]`` keys and values, mask and bias ``[B, heads, Q, S]``."""

    key: Tensor
    value: Tensor
    mask: Tensor | None
    bias: Tensor | None


class SelfAttentionLayers(NamedTuple):
    """The self-attention modules of each layer, first to last."""

    encoder: tuple[nn.Module, ...]
    decoder: tuple[nn.Module, ...]


@dataclass(frozen=True)
class LayerPrefixes:
    """Several prompts in the layers of an encoder or a decoder.

    Attributes:
        modules: the self-attention of each layer.
        tensors: of each layer, ``[K, 2, heads, W, D]``; shorter prompts are padded in front.
        mask: ``[K, W]``, true on a prompt and false on the padding before it.
        which: ``[B]``, the prompt of each row.
    """

    modules: tuple[nn.Module, ...]
    tensors: tuple[Tensor, ...]
    mask: Tensor
    which: Tensor

    @classmethod
    def of(cls, modules: tuple[nn.Module, ...], prompts: Sequence[Sequence[Tensor]], which: Tensor) -> "LayerPrefixes":
        """``prompts``: of each, a tensor ``[2, heads, P, D]`` a layer, or none at all; ``which`` may be empty."""
        lengths = [tensors[0].shape[2] if tensors else 0 for tensors in prompts]
        width = max(lengths)
        full = prompts[lengths.index(width)]
        layers = [
            torch.stack(
                [
                    nn.functional.pad(tensors[index] if tensors else model[:, :, :0], (0, 0, width - length, 0))
                    for tensors, length in zip(prompts, lengths, strict=True)
                ]
            )
            for index, model in enumerate(full)
        ]
        column = torch.arange(width, device=which.device)
        mask = column >= width - torch.tensor(lengths, device=which.device)[:, None]
        return cls(modules, tuple(layers), mask, which)

    def rows(self, which: Tensor) -> "LayerPrefixes":
        """The same prompts for other rows."""
        return LayerPrefixes(self.modules, self.tensors, self.mask, which)

    @cached_property
    def _index(self) -> dict[nn.Module, int]:
        return {module: index for index, module in enumerate(self.modules)}

    def extend_inputs(self, module: nn.Module, query: Tensor, seen: AttentionInputs) -> AttentionInputs:
        if module not in self._index:
            return seen
        own = self.tensors[self._index[module]]
        own = own.expand(len(query), -1, -1, -1, -1) if len(own) == 1 else own[self.which]
        queries, keys, width = query.shape[2], seen.key.shape[2], own.shape[3]
        mask = seen.mask
        if mask is None:
            mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=query.device)
            if getattr(module, "is_causal", False):
                mask = mask.tril(keys - queries)
        front = self.mask[self.which][:, None, None].expand(-1, -1, queries, -1)
        if mask.dtype != torch.bool:
            front = torch.zeros_like(front, dtype=mask.dtype).masked_fill(~front, torch.finfo(mask.dtype).min)
        bias = seen.bias
        if bias is not None:
            # the first layer's table of distances serves all that have none
            table: Any = module if hasattr(module, "relative_attention_bias") else self.modules[0]
            whole = width + keys
            ahead = table.compute_bias(queries, whole, device=query.device, past_seen_tokens=whole - queries)
            bias = torch.cat([ahead[..., :width].to(bias.dtype).expand(len(bias), -1, -1, -1), bias], dim=-1)
        return AttentionInputs(
            torch.cat([own[:, 0], seen.key], dim=2),
            torch.cat([own[:, 1], seen.value], dim=2),
            torch.cat([front, mask.expand(len(query), -1, -1, -1)], dim=-1),
            bias,
        )


class AttentionRecorder:
    """Takes note of what attention sees, and changes nothing."""

    def __init__(self) -> None:
        self.calls: list[tuple[nn.Module, AttentionInputs]] = []

    def extend_inputs(self, module: nn.Module, query: Tensor, seen: AttentionInputs) -> AttentionInputs:
        self.calls.append((module, seen))
        return seen

    def seen_by(self, modules: Sequence[nn.Module]) -> list[AttentionInputs]:
        """What each of ``modules`` saw."""
        by_module = dict(self.calls)
        return [by_module[module] for module in modules]


def strip_prompt_suffix(name: str) -> str:
    """The attention that ``name`` stands for, apart from prompts."""
    return name.removesuffix(_SUFFIX)


@OncePerModel
@torch.no_grad()
def find_prompted_layers(base: FrozenLM) -> SelfAttentionLayers:
    """The self-attention of an encoder-decoder model, found by watching it; from then on it takes a ``prompt``.

    Raises:
        BaseModelError: its layers do not go through the attention interface.
    """
    model = base.model
    refused = BaseModelError(
        f"'{base.name}' ({type(model).__name__}) has layers that take no keys and values of a prompt: use a method "
        "that learns virtual tokens, such as prompt-tuning"
    )
    name = str(getattr(model.config, "_attn_implementation", None))
    if not name.endswith(_SUFFIX) and not _admit_prompts(model, name):
        raise refused
    ids = torch.ones(1, 3, dtype=torch.long, device=base.device)
    in_encoder, in_decoder = AttentionRecorder(), AttentionRecorder()
    encoded = encode(model, base.embed(ids.new_ones(1, 5)), prompt=in_encoder)
    decode(model, encoded, None, input_ids=ids, prompt=in_decoder)
    own = tuple(module for module, _ in in_encoder.calls)
    # where the decoder looks at the encoder, there are as many keys as the encoder has tokens
    answering = tuple(module for module, seen in in_decoder.calls if seen.key.shape[2] == 3)
    if not own or not answering:
        raise refused
    return SelfAttentionLayers(own, answering)


def _admit_prompts(model: Any, name: str) -> bool:
    """Let the model's attention take a prompt; whether it can."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    # others have masks of other forms, or are not called through the interface
    if name not in ("sdpa", fast_attention.NAME):
        return False
    AttentionInterface.register(name + _SUFFIX, partial(_attention, ALL_ATTENTION_FUNCTIONS[name]))
    AttentionMaskInterface.register(name + _SUFFIX, ALL_MASK_ATTENTION_FUNCTIONS[name])
    model.set_attn_implementation(name + _SUFFIX)
    return True


def _attention(
    inner: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    prompt: LayerPrefixes | AttentionRecorder | None = None,
    position_bias: Tensor | None = None,
    **options: Any,
) -> Any:
    """``inner`` attention, as transformers calls it, behind ``prompt``."""
    seen = AttentionInputs(key, value, attention_mask, position_bias)
    if prompt is not None:
        seen = prompt.extend_inputs(module, query, seen)
    if seen.bias is not None:
        options["position_bias"] = seen.bias
    return inner(module, query, seen.key, seen.value, seen.mask, **options)
