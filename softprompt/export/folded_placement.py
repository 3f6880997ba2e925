"""A prompt as the whole of what stands in front of a text, for formats that know no place for it.

BOS is among its rows then, and so is what stands before and behind its virtual tokens in a conversation.

Shapes: ``P`` prompt length, ``H`` embedding size, ``N`` tokens of BOS (often 1, sometimes 0).
"""

from dataclasses import replace

import torch
from torch import Tensor

from softprompt.data.encoding.placement import Placement
from softprompt.errors import BaseModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.cached_prefix import CachedPrefix
from softprompt.prompts.prefix import check_keys_and_values, front_ids, make_cached_prefix
from softprompt.prompts.state import PromptState

NOTHING_AROUND = Placement(behind_bos=False)


def check_bos_precision(base: FrozenLM) -> None:
    """Raise BaseModelError if BOS's rows, or other words', would be rounded: those in bfloat16 move logits by 4e-3."""
    # quantized weights are others if they are quantized from another precision: such a model stays as it is
    if base.dtype != torch.float32 and base.quantization is None:
        raise BaseModelError(
            f"a row of this prompt is BOS or a word as '{base.name}' has it, which is computed in float32, but the "
            f"model is in {str(base.dtype).removeprefix('torch.')}: load it in float32 (--dtype float32, or leave "
            "--dtype out)"
        )


@torch.no_grad()
def fold_placement(base: FrozenLM, state: PromptState) -> PromptState:
    """The same prefix with BOS and all that stands around the prompt as rows of it; the prompt's stay to the bit.

    Raises:
        BaseModelError: keys and values behind more tokens than the model's windows hold.
    """
    place = state.placement
    front = front_ids(base, place)
    if not front and not place.behind:
        return replace(state, placement=NOTHING_AROUND)
    if state.kind == "embeddings":
        rows = [base.embed(torch.tensor(ids, dtype=torch.long, device=base.device)) for ids in (front, place.behind)]
        around = [tuple(one.float().cpu() for one in rows)]
    else:
        check_keys_and_values(base)
        prefix = make_cached_prefix(base, state)
        columns = _take_last(prefix, prefix.width)
        if any(whole.shape[-2] != prefix.width for whole in columns):
            raise BaseModelError(
                f"'{base.name}' keeps no more than {base.sliding_window} tokens in some layers, and {prefix.width} "
                "stand in front of each text: serve the prompt with softprompt"
            )
        around = [(whole[:, :, : len(front)], whole[:, :, len(front) + state.length :]) for whole in columns]
    tensors = tuple(
        torch.cat([before, tensor.float().cpu(), behind], dim=-2)
        for (before, behind), tensor in zip(around, state.tensors, strict=True)
    )
    return replace(state, tensors=tensors, placement=NOTHING_AROUND)


def unfold_placement(state: PromptState, front: int, placement: Placement) -> PromptState:
    """``fold_placement`` undone: the rows behind ``front`` ones and in front of those that ``placement`` has behind."""
    end = state.length - len(placement.behind)
    tensors = tuple(tensor[..., front:end, :].contiguous() for tensor in state.tensors)
    return replace(state, tensors=tensors, placement=placement)


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
