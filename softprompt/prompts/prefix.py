"""Prompts in front of texts: one entrance for both architectures, and the exact shared-prefix forward pass.

In a causal model the prefix (BOS and prompt) never sees the text behind it, so its keys and values are the same for
every example. They are computed once, with gradient, and expanded over the batch:

    prefix  [1, P', H]  --backbone-->  keys, values of every layer  [1, heads, P', head_dim]
    text    [B, T, H]   --backbone, with those expanded to B-->     hidden states  [B, T, H]

``P'`` counts BOS too; positions of the text start there. The text is padded on the right, so padding stands behind
everything that looks at it and neither positions nor sliding windows shift. Several prompts can stand in one batch,
each row behind its own: shorter prefixes are padded on the left, where only the mask and the positions know of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from softprompt.data.encoding.branches import read_separately
from softprompt.data.encoding.encoder import Batch
from softprompt.data.encoding.placement import BEHIND_BOS, Placement
from softprompt.errors import BaseModelError, PromptFileError
from softprompt.models.exactness import OncePerModel, is_exact, relative_error
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.sharding import find_layer_devices
from softprompt.prompts.attention_prefix import find_prompted_layers
from softprompt.prompts.cached_prefix import CachedPrefix, compute_cache, stack_prefixes
from softprompt.prompts.seq2seq_prefix import EncodedPrefix, compute_seq2seq_keys_and_values, make_encoded_prefix
from softprompt.prompts.state import PromptState, concatenate_prefixes


@dataclass(frozen=True)
class ConcatenatedPrefix:
    """BOS and prompt put in front of every text anew: the reference, and the way for models without such a cache.

    Attributes:
        embeddings: of each prefix, ``[P', H]``, BOS first.
    """

    base: FrozenLM
    embeddings: tuple[Tensor, ...]

    def hidden(self, input_ids: Tensor, mask: Tensor, which: Tensor | None = None) -> Tensor:
        """Hidden states ``[B, T, H]`` of texts ``[B, T]``; ``mask [B, T]`` may pad on either side."""
        which = input_ids.new_zeros(len(input_ids)) if which is None else which
        # behind the text no family sees padding, however it counts and remembers
        rows, ends = concatenate_prefixes(self.embeddings, self.base.embed(input_ids), mask, which)
        column = torch.arange(rows.shape[1], device=mask.device).expand(len(rows), -1)
        hidden: Tensor = self.base.run_backbone(
            inputs_embeds=rows,
            attention_mask=(column < ends).long(),
            position_ids=torch.minimum(column, ends - 1),
            use_cache=False,
        ).last_hidden_state
        sizes = ends - mask.sum(dim=1, keepdim=True)
        back = sizes + (mask.cumsum(dim=1) - 1).clamp(min=0)
        return hidden.gather(1, back.clamp(max=hidden.shape[1] - 1)[..., None].expand(-1, -1, hidden.shape[-1]))

    def scored(self, batch: Batch) -> Tensor:
        """Hidden states ``[N, H]`` at the batch's scored positions."""
        if batch.seen is not None:
            return read_separately(self.scored, batch)
        return self.hidden(batch.input_ids, batch.mask, batch.which)[batch.row, batch.column]


Prefix = CachedPrefix | ConcatenatedPrefix | EncodedPrefix


def make_prefix(base: FrozenLM, *states: PromptState | None) -> Prefix:
    """BOS and each prompt as a prefix for right-padded texts, the fastest exact way for this model.

    Gradient flows to the states. ``None`` is BOS alone.

    Raises:
        BaseModelError: a prompt of keys and values on a model that keeps none.
    """
    if base.architecture == "encoder-decoder":
        return make_encoded_prefix(base, *states)
    if shares_prefix(base):
        return stack_prefixes([make_cached_prefix(base, state) for state in states])
    return make_concatenated_prefix(base, *states)


def make_concatenated_prefix(base: FrozenLM, *states: PromptState | None) -> ConcatenatedPrefix:
    """BOS followed by virtual tokens, in the model's dtype; raises as ``make_prefix`` does."""
    for state in states:
        if state is not None and state.kind != "embeddings":
            check_keys_and_values(base)
    return ConcatenatedPrefix(base, tuple(_embed_prefix(base, state) for state in states))


def front_ids(base: FrozenLM, placement: Placement) -> tuple[int, ...]:
    """What stands before the virtual tokens, BOS first."""
    return (*(base.bos_ids if placement.behind_bos else ()), *placement.before)


def _embed_ids(base: FrozenLM, ids: Sequence[int]) -> Tensor:
    return base.embed(torch.tensor(ids, dtype=torch.long, device=base.device))


def _embed_prefix(base: FrozenLM, state: PromptState | None) -> Tensor:
    """``[P', H]``: BOS and all that stands around the virtual tokens, and these."""
    if state is None:
        return _embed_ids(base, base.bos_ids)
    front = _embed_ids(base, front_ids(base, state.placement))
    parts = [front, state.tensor.to(front.device, front.dtype)]
    if state.placement.behind:
        parts.append(_embed_ids(base, state.placement.behind))
    return torch.cat(parts)


def check_keys_and_values(base: FrozenLM) -> None:
    """Raise BaseModelError unless the model can take a prompt as keys and values."""
    if base.architecture == "encoder-decoder":
        find_prompted_layers(base)
        return
    if not shares_prefix(base):
        raise BaseModelError(
            f"a prompt of keys and values needs a shared prefix, which is not exact on '{base.name}' (softprompt "
            "doctor measures it): use a method that learns virtual tokens, such as prompt-tuning"
        )
    from transformers import DynamicCache

    with torch.no_grad():
        cache = compute_cache(base, base.embed(torch.ones(1, dtype=torch.long, device=base.device)), DynamicCache())
    if any(layer.keys.shape != layer.values.shape for layer in cache.layers):
        raise BaseModelError(
            f"'{base.name}' keeps keys and values of different sizes, as no prompt of keys and values has them: use "
            "a method that learns virtual tokens, such as prompt-tuning"
        )


def make_cached_prefix(base: FrozenLM, state: PromptState | None) -> CachedPrefix:
    """Keys and values of BOS and one prompt: computed once, or taken as they are."""
    if state is not None and state.kind == "key_values":
        return _make_given_prefix(base, state)
    embeddings = make_concatenated_prefix(base, state).embeddings[0]
    return CachedPrefix(base, compute_cache(base, embeddings), (len(embeddings),))


def compute_keys_and_values(base: FrozenLM, virtual_tokens: Tensor, placement: Placement = BEHIND_BOS) -> PromptState:
    """What every layer's attention sees of virtual tokens ``[P, H]`` in their place; without gradient.

    Raises:
        BaseModelError: the model keeps no such cache.
    """
    if base.architecture == "encoder-decoder":
        return compute_seq2seq_keys_and_values(base, virtual_tokens)
    words = PromptState("embeddings", (virtual_tokens,), placement)
    pairs = [torch.stack(pair)[:, :, -words.length :] for pair in compute_whole_prefix(base, words)]
    return PromptState("key_values", tuple(pair.float() for pair in pairs), placement)


@torch.no_grad()
def compute_whole_prefix(base: FrozenLM, state: PromptState) -> list[tuple[Tensor, Tensor]]:
    """Keys and values ``[K, P', D]`` of each layer: of BOS, what stands before the virtual tokens, and these.

    Windows leave none of them out.

    Raises:
        BaseModelError: a decoder that keeps no such cache.
    """
    from transformers import DynamicCache

    check_keys_and_values(base)
    first = replace(state, placement=replace(state.placement, behind=()))
    # a cache that was not told of sliding windows keeps all of the tokens
    if state.kind == "key_values":
        cache = _make_given_prefix(base, first, DynamicCache()).cache
    else:
        cache = compute_cache(base, make_concatenated_prefix(base, first).embeddings[0], DynamicCache())
    return [(layer.keys[0], layer.values[0]) for layer in cache.layers]


def read_one_more(base: FrozenLM, token_ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
    """Hidden states ``[B, H]`` of one token each, ``[B]``, at ``positions [B]`` behind what ``cache`` holds.

    ``mask [B, S + 1]``: 1 where the cache's ``S`` columns are no padding, and on the token.
    """
    hidden: Tensor = base.run_backbone(
        inputs_embeds=base.embed(token_ids[:, None]),
        attention_mask=mask,
        position_ids=positions[:, None],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return hidden[:, -1]


def _make_given_prefix(base: FrozenLM, state: PromptState, cache: Any = None) -> CachedPrefix:
    """``cache``: an empty one, to be filled; one that keeps what the model's windows hold, if not given."""
    from transformers import DynamicCache

    front = front_ids(base, state.placement)
    known, devices = _cache_bos(base), find_layer_devices(base.backbone, base.device)
    sizes = [(pair.shape[1], pair.shape[3]) for pair in state.tensors]
    if known is not None and sizes != [(layer.keys.shape[1], layer.keys.shape[3]) for layer in known.layers]:
        raise PromptFileError(
            f"this prompt has keys and values of {len(sizes)} layers that are not as '{base.name}' has them: it is "
            "damaged, learn it again"
        )
    before = known if front == tuple(base.bos_ids) else _cache_ids(base, front)
    cache = DynamicCache(config=base.model.config) if cache is None else cache
    for index, pair in enumerate(state.tensors):
        keys, values = pair.to(devices[index] if devices else base.device, base.dtype)[:, None]
        if before is not None:
            keys = torch.cat([before.layers[index].keys, keys], dim=2)
            values = torch.cat([before.layers[index].values, values], dim=2)
        cache.update(keys, values, index)
    length = len(front) + state.length
    if behind := state.placement.behind:
        _read_behind(base, behind, cache, length)
    return CachedPrefix(base, cache, (length + len(behind),))


def _read_behind(base: FrozenLM, ids: Sequence[int], cache: Any, length: int) -> None:
    """Have ``cache``, of ``length`` columns, hold what stands behind it too."""
    positions = torch.arange(length, length + len(ids), device=base.device)
    base.run_backbone(
        inputs_embeds=_embed_ids(base, ids)[None],
        position_ids=positions[None],
        past_key_values=cache,
        use_cache=True,
    )


@OncePerModel
@torch.no_grad()
def _cache_bos(base: FrozenLM) -> Any:
    """The cache of BOS alone, with all of its columns; ``None`` for a model without BOS."""
    return _cache_ids(base, base.bos_ids)


@torch.no_grad()
def _cache_ids(base: FrozenLM, ids: Sequence[int]) -> Any:
    from transformers import DynamicCache

    return compute_cache(base, _embed_ids(base, ids), DynamicCache())


@OncePerModel
@torch.no_grad()
def shares_prefix(base: FrozenLM) -> bool:
    """Whether a prefix computed once may stand in for it in every example: measured once a model, not assumed."""
    if base.architecture != "decoder-only":
        return False
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    state = PromptState.of_embeddings(base.embed(torch.arange(1, 4, device=base.device)))
    # the same texts, once whole and once with their last token generated behind the padding; the more of it, the
    # plainer are the faults of families that count it, but padding counts in windows, which nobody lets it outgrow
    room = min(size for size in (base.context_length, base.sliding_window, 32) if size is not None)
    width = max(3, room - len(base.bos_ids) - state.length - 1)
    known = min(base.vocabulary_size - 1, 31)
    whole = 1 + torch.arange(2 * (width + 1), device=base.device).view(2, -1) % known
    ends = torch.tensor([[width], [2]], device=base.device)
    texts, mask = whole[:, :-1], (torch.arange(width, device=base.device) < ends).long()
    whole[1, 2] = whole[0, -1]
    one = mask.new_ones(2, 1)
    full = make_concatenated_prefix(base, state).hidden(whole, torch.cat([one, mask], dim=1))
    last = mask.sum(dim=1)
    expected = torch.cat([full[:, :-1][mask.bool()], full[torch.arange(2, device=base.device), last]])

    def share() -> Tensor:
        prefix = make_cached_prefix(base, state)
        # hybrid layers hold more than keys and values, which expand() would leave at batch 1
        if not all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in prefix.cache.layers):
            raise TypeError("layers that hold more than keys and values")
        which = whole.new_zeros(2)
        cache = prefix.expand(which)
        of_texts = prefix.hidden(texts, mask, which, cache)[mask.bool()]
        seen = torch.cat([prefix.mask(which), mask, one], dim=1)
        new = read_one_more(base, whole[:1, -1].expand(2), seen, prefix.starts(which) + last, cache)
        return torch.cat([of_texts, new])

    rounded = 0.0 if base.dtype == torch.float32 else min(5e-1, 4 * _measure_rounding(base, state, whole[0]))
    return is_exact(share, expected, base.dtype, float32=1e-3, rounded=rounded)


def _measure_rounding(base: FrozenLM, state: PromptState, ids: Tensor) -> float:
    """How far hidden states move when every input embedding moves by up to half a unit in its last place.

    It grows with depth, as does what another order of the same operations does.
    """
    embeddings = torch.cat([make_concatenated_prefix(base, state).embeddings[0], base.embed(ids)])[None]
    share = torch.rand(embeddings.shape, generator=torch.Generator().manual_seed(0)).to(base.device) - 0.5
    noisy = (embeddings * (1 + torch.finfo(base.dtype).eps * share)).to(base.dtype)
    before, after = (base.run_backbone(inputs_embeds=each, use_cache=False) for each in (embeddings, noisy))
    return relative_error(after.last_hidden_state, before.last_hidden_state)
