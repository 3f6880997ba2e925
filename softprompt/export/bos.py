"""A prompt as the whole of what stands in front of a text, BOS among its rows: formats that know no place behind BOS.

Shapes: ``P`` prompt length, ``H`` embedding size, ``N`` tokens of BOS (often 1, sometimes 0).
"""

from dataclasses import replace

import torch
from torch import Tensor

from softprompt.data.encoding.placement import Placement
from softprompt.errors import BaseModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import CachedPrefix, check_keys_and_values, make_cached_prefix
from softprompt.prompts.state import PromptState


def check_bos_precision(base: FrozenLM) -> None:
    """Raise BaseModelError if BOS's rows would be rounded: those of a model in bfloat16 move logits by 4e-3."""
    # quantized weights are others if they are quantized from another precision: such a model stays as it is
    if base.dtype != torch.float32 and base.quantization is None:
        raise BaseModelError(
            f"a row of this prompt is BOS as '{base.name}' has it, which is computed in float32, but the model is in "
            f"{str(base.dtype).removeprefix('torch.')}: load it in float32 (--dtype float32, or leave --dtype out)"
        )


@torch.no_grad()
def prepend_bos(base: FrozenLM, state: PromptState) -> PromptState:
    """The same prefix as ``N + P`` rows, the first of which are BOS's; the others are the prompt's, to the bit."""
    if not state.behind_bos or not base.bos_ids:
        return replace(state, placement=replace(state.placement, behind_bos=False))
    if state.kind == "embeddings":
        first = [base.embed(torch.tensor(base.bos_ids, device=base.device))]
    else:
        check_keys_and_values(base)
        first = _take_last(make_cached_prefix(base, None), len(base.bos_ids))
    tensors = tuple(
        torch.cat([one.float().cpu(), tensor.float().cpu()], dim=-2)
        for one, tensor in zip(first, state.tensors, strict=True)
    )
    return PromptState(state.kind, tensors, Placement(behind_bos=False))


@torch.no_grad()
def append_bos(base: FrozenLM, state: PromptState) -> PromptState:
    """A prompt that was learned in front of BOS, as PEFT puts it, as ``P + N`` rows, the last of which are BOS's."""
    if not base.bos_ids:
        return state
    first = replace(state, placement=replace(state.placement, behind_bos=False))
    ids = torch.tensor(base.bos_ids, device=base.device)
    if state.kind == "embeddings":
        return replace(first, tensors=(torch.cat([state.tensor, base.embed(ids).float().cpu()]),))
    prefix = make_cached_prefix(base, first)
    one = ids.new_zeros(1)
    cache = prefix.expand(one)
    prefix.hidden(ids[None], torch.ones_like(ids)[None], one, cache)
    last = _take_last(CachedPrefix(base, cache, prefix.lengths), len(ids))
    return replace(
        first,
        tensors=tuple(torch.cat(pair, dim=-2) for pair in zip(state.tensors, last, strict=True)),
    )


def _take_last(prefix: CachedPrefix, count: int) -> list[Tensor]:
    """Keys and values ``[2, heads, count, head_dim]`` of each layer's last ``count`` tokens, in float32 on the CPU."""
    return [torch.cat([layer.keys, layer.values])[:, :, -count:].float().cpu() for layer in prefix.cache.layers]
