"""Every way to put a prompt in front of texts, measured against plain concatenation.

The reference is BOS, virtual tokens and one text, as input embeddings, without mask, through the model's own forward
pass and its own attention; a decoder beside an encoder is given a random answer. Texts are seeded random tokens, some
longer than a sliding window; prompts are seeded random vectors as large as the token embeddings.

    error     the largest, over the texts, of  ||logits - reference|| / ||reference||
    gradient  ||g - reference|| / ||reference||,  g the gradient of a cross-entropy over all texts to the prompts

Shapes: ``B`` batch, ``T`` text length, ``P`` prompt length, ``H`` embedding size, ``V`` vocabulary, ``N`` positions.
"""

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from softprompt.data.encoding.batching import collate
from softprompt.data.encoding.encoder import Batch, EncodedSequence
from softprompt.errors import BaseModelError
from softprompt.models import fast_attention, last_layer
from softprompt.models.exactness import relative_error
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.attention_prefix import strip_prompt_suffix
from softprompt.prompts.prefix import (
    CachedPrefix,
    Prefix,
    check_keys_and_values,
    compute_keys_and_values,
    make_cached_prefix,
    make_concatenated_prefix,
    make_prefix,
)
from softprompt.prompts.state import PromptState

LONG_TEXT = 48  # tokens of the long texts, where no window asks for more
LONGEST_WINDOW = 1024  # tokens; texts beyond a wider window would cost too much
STEPS = 2  # tokens behind the cache
SPREAD = 6  # positions of a text that are compared, beside its last ones


@dataclass(frozen=True)
class ParityCase:
    """A batch of texts, and what they should give.

    Attributes:
        prompts: virtual tokens ``[P, H]`` requiring gradient; ``None`` is no prompt.
        items: texts, each behind one of the prompts.
        logits: reference of each text, ``[N, V]``.
        gradient: reference, of all prompts in one row.
    """

    prompts: tuple[Tensor | None, ...]
    items: tuple[EncodedSequence, ...]
    logits: tuple[Tensor, ...]
    gradient: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        """The prompts to which a gradient is taken."""
        return [prompt for prompt in self.prompts if prompt is not None]

    @property
    def states(self) -> list[PromptState | None]:
        """The prompts as every method leaves them."""
        return [None if prompt is None else PromptState.of_embeddings(prompt) for prompt in self.prompts]


@dataclass(frozen=True)
class ParityErrors:
    """Relative errors; ``gradient`` is ``None`` where none is taken."""

    logits: float
    gradient: float | None


def make_cases(base: FrozenLM, seed: int) -> tuple[list[ParityCase], list[ParityCase]]:
    """Short texts and long texts behind one prompt, and the same behind several prompts of different lengths.

    Raises:
        Exception: whatever the model's own forward pass raises at input embeddings that are no token's.
    """
    generator = torch.Generator().manual_seed(seed)
    prompts = [_random_prompt(base, length, generator) for length in _prompt_lengths(base)]
    one, several = (prompts[0],), (*prompts, None)
    lengths = _text_lengths(base)
    return (
        [_case(base, one, _items(base, batch, 1, generator)) for batch in lengths],
        [_case(base, several, _items(base, batch, len(several), generator)) for batch in lengths],
    )


def measure_rounding(base: FrozenLM, among: Sequence[ParityCase], seed: int) -> ParityErrors:
    """How far the references move when every input embedding moves by up to half a unit in its last place.

    Measured on random models of 2 to 32 layers in bfloat16 and float16: 0.8 to 2.5 times what the order of the same
    operations does.
    """
    noise = torch.Generator().manual_seed(seed)
    moved = [_case(base, case.prompts, case.items, noise) for case in among]
    return ParityErrors(
        largest([largest_relative_error(other.logits, case.logits) for other, case in zip(moved, among, strict=True)]),
        largest([relative_error(other.gradient, case.gradient) for other, case in zip(moved, among, strict=True)]),
    )


def measure_right_padded(base: FrozenLM, case: ParityCase) -> ParityErrors:
    """Texts of different lengths, padding behind them."""
    batch = collate(case.items, base.device)
    hidden = make_concatenated_prefix(base, *case.states).hidden(batch.input_ids, batch.mask, batch.which)
    return compare_with_reference(_logits(base, hidden, batch), case)


def measure_left_padded(base: FrozenLM, case: ParityCase) -> ParityErrors:
    """The same with padding in front."""
    batch = collate(case.items, base.device)
    length = batch.mask.shape[1]
    shift = length - batch.mask.sum(dim=1)
    source = (torch.arange(length, device=base.device) - shift[:, None]) % length
    ids, mask = batch.input_ids.gather(1, source), batch.mask.gather(1, source)
    hidden = make_concatenated_prefix(base, *case.states).hidden(ids, mask, batch.which)
    return compare_with_reference(_logits(base, hidden, batch, shift), case)


def measure_shared_prefix(base: FrozenLM, case: ParityCase) -> ParityErrors:
    """Keys and values of the prompt computed once, whether softprompt chooses so for this model or not.

    Raises:
        BaseModelError: the model's cache holds something else.
    """
    batch = collate(case.items, base.device)
    hidden = _cached(base, case).hidden(batch.input_ids, batch.mask, batch.which)
    return compare_with_reference(_logits(base, hidden, batch), case)


def measure_mixed_prompts(base: FrozenLM, case: ParityCase) -> ParityErrors:
    """Several prompts in one batch, in the way that softprompt chooses for this model."""
    batch = collate(case.items, base.device)
    return compare_with_reference(scored_logits(make_prefix(base, *case.states), batch), case)


def measure_keys_and_values(base: FrozenLM, case: ParityCase) -> ParityErrors:
    """Keys and values in place of the embeddings they came from.

    Their gradient, carried on through the model's own pass over the prompt alone, is the gradient to the prompt.

    Raises:
        BaseModelError: the model keeps no such cache, or keys and values differ in size.
    """
    from transformers import DynamicCache

    check_keys_and_values(base)
    prompt = case.leaves[0]
    own: Any = DynamicCache()
    with original_modules(base.model):
        base.run_backbone(inputs_embeds=_embedded(base, prompt, ()), past_key_values=own, use_cache=True)
    pairs = [torch.cat([layer.keys, layer.values])[:, :, len(base.bos_ids) :].float() for layer in own.layers]
    tensors = tuple(tensor.requires_grad_() for tensor in compute_keys_and_values(base, prompt.detach()).tensors)
    batch = collate(case.items, base.device)
    prefix = make_cached_prefix(base, PromptState("key_values", tensors))
    logits = _logits(base, prefix.hidden(batch.input_ids, batch.mask, batch.which), batch)
    to_tensors = torch.autograd.grad(sum_loss(logits, case.items), tensors)
    (gradient,) = torch.autograd.grad(pairs, prompt, to_tensors)
    return ParityErrors(largest_relative_error(logits, case.logits), relative_error(gradient.flatten(), case.gradient))


@torch.no_grad()
def measure_generation(base: FrozenLM, case: ParityCase) -> ParityErrors:
    """The last tokens of each text one by one behind the cache, in batches as ``generate.complete`` forms them.

    Raises:
        BaseModelError: the model's cache holds something else than keys and values.
    """
    prefix = _cached(base, case)
    order = sorted(range(len(case.items)), key=lambda index: len(case.items[index].ids))
    longest = prefix.width + len(case.items[order[-1]].ids)
    fits = base.sliding_window is None or longest <= base.sliding_window
    groups = [order] if fits else [list(group) for _, group in groupby(order, key=lambda i: len(case.items[i].ids))]
    errors = []
    for group in groups:
        logits = _extended(base, prefix, [case.items[index] for index in group])
        errors.append(largest_relative_error(logits.unbind(1), [case.logits[index][-STEPS:] for index in group]))
    return ParityErrors(largest(errors), None)


def _cached(base: FrozenLM, case: ParityCase) -> CachedPrefix:
    prefix = make_cached_prefix(base, case.states[0])
    kinds = {type(layer).__name__ for layer in prefix.cache.layers}
    if others := sorted(kinds - {"DynamicLayer", "DynamicSlidingWindowLayer"}):
        raise BaseModelError(f"its cache holds {', '.join(others)}, which is more than keys and values")
    return prefix


def largest(errors: Sequence[float]) -> float:
    """The largest; not a number if one of them is not."""
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _prompt_lengths(base: FrozenLM) -> tuple[int, int]:
    context = base.context_length or 64
    return max(2, min(5, context // 8)), 1


def _text_lengths(base: FrozenLM) -> list[tuple[int, ...]]:
    """Of two batches: short texts, and texts longer than a sliding window, and up to where positions change."""
    # a window reaches further back with every layer
    places = [0 if base.sliding_window is None else base.sliding_window + 16, base.batch_independent_length or 0]
    longest = max(LONG_TEXT, *(place for place in places if place <= LONGEST_WINDOW + 16))
    if base.context_length is not None:
        longest = min(
            longest,
            base.context_length - len((*base.bos_ids, *base.special_tokens.suffix)) - max(_prompt_lengths(base)),
        )
    batches = [(3, 7, 12, 5), (longest, longest - 9, 3)]
    return [tuple(max(STEPS + 1, min(length, longest)) for length in lengths) for lengths in batches]


def _random_prompt(base: FrozenLM, length: int, generator: torch.Generator) -> Tensor:
    """``[P, H]`` float32, as large as token embeddings."""
    prompt = torch.randn(length, base.embedding_size, generator=generator) * base.embedding_std
    return prompt.to(base.device).requires_grad_()


def _items(
    base: FrozenLM, lengths: Sequence[int], prompts: int, generator: torch.Generator
) -> tuple[EncodedSequence, ...]:
    """Random texts behind each of ``prompts`` in turn, with random targets at their last positions and some before."""
    special = set(base.tokenizer.all_special_ids)
    most = min(base.vocabulary_size, max(base.tokenizer.get_vocab().values()) + 1)
    known = torch.tensor([token for token in range(most) if token not in special])
    items = []
    for index, length in enumerate(lengths):
        ids, following = known[torch.randint(len(known), (2, length), generator=generator)].tolist()
        spread = {round(step * (length - 1) / (SPREAD - 1)) for step in range(SPREAD)}
        positions = tuple(sorted(spread | {length - step for step in range(1, STEPS + 1)}))
        if base.architecture == "encoder-decoder":
            start = base.special_tokens.decoder_start
            answer = [*start, *following[: min(length, STEPS + index)]]
            targets = tuple(known[torch.randint(len(known), (len(answer),), generator=generator)].tolist())
            prompt, whole = index % prompts, (*ids, *base.special_tokens.suffix)
            items.append(EncodedSequence(index, whole, tuple(range(len(answer))), targets, (), prompt, tuple(answer)))
            continue
        targets = tuple(following[position] for position in positions)
        items.append(EncodedSequence(index, tuple(ids), positions, targets, prompt=index % prompts))
    return tuple(items)


def _case(
    base: FrozenLM,
    prompts: Sequence[Tensor | None],
    items: tuple[EncodedSequence, ...],
    noise: torch.Generator | None = None,
) -> ParityCase:
    """With its reference: one text at a time, without padding; ``noise`` moves the embeddings."""
    logits = []
    gradients = [None if prompt is None else torch.zeros_like(prompt) for prompt in prompts]
    with original_modules(base.model):
        for item in items:
            prompt, gradient = prompts[item.prompt], gradients[item.prompt]
            embeddings = _embedded(base, prompt, item.ids)
            if noise is not None:
                share = torch.rand(embeddings.shape, generator=noise).to(base.device) - 0.5
                embeddings = (embeddings * (1 + torch.finfo(base.dtype).eps * share)).to(base.dtype)
            rows = _plain_logits(base, embeddings, item)
            logits.append(rows.detach())
            if prompt is not None and gradient is not None:
                gradient += torch.autograd.grad(sum_loss([rows], [item]), prompt)[0]
    flat = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
    return ParityCase(tuple(prompts), items, tuple(logits), flat)


def _plain_logits(base: FrozenLM, embeddings: Tensor, item: EncodedSequence) -> Tensor:
    """``[N, V]`` in float32, at the positions of the item, whose text ends ``embeddings [1, T', H]``."""
    if item.decoder_ids:
        answer = torch.tensor([item.decoder_ids], device=base.device)
        given: Tensor = base.model(inputs_embeds=embeddings, decoder_input_ids=answer, use_cache=False).logits[0]
        return given[list(item.positions)].float()
    first = embeddings.shape[1] - len(item.ids)
    columns = torch.tensor([first + position for position in item.positions], device=base.device)
    if "logits_to_keep" in inspect.signature(base.model.forward).parameters:
        kept: Tensor = base.model(inputs_embeds=embeddings, use_cache=False, logits_to_keep=columns).logits[0]
        return kept.float()
    whole: Tensor = base.model(inputs_embeds=embeddings, use_cache=False).logits[0]
    return whole[columns].float()


def _embedded(base: FrozenLM, prompt: Tensor | None, ids: Sequence[int]) -> Tensor:
    """BOS, virtual tokens and text, ``[1, T', H]``."""
    bos, text = (base.embed(torch.tensor(part, dtype=torch.long, device=base.device)) for part in (base.bos_ids, ids))
    between = [] if prompt is None else [prompt.to(bos.dtype)]
    return torch.cat([bos, *between, text])[None]


@contextmanager
def original_modules(model: Any) -> Iterator[None]:
    """Put the norms and the attention back that softprompt replaced, for a while."""
    forwards = [(module, vars(module).get("forward")) for module in model.modules()]
    ours = (fast_attention.__name__, last_layer.__name__)
    replaced = [pair for pair in forwards if getattr(pair[1], "__module__", None) in ours]
    attention = getattr(model.config, "_attn_implementation", None)
    plain = strip_prompt_suffix(attention) if attention else attention
    plain = "sdpa" if plain == fast_attention.NAME else plain
    try:
        for module, _ in replaced:
            del module.forward
        if plain != attention:
            model.set_attn_implementation(plain)
        yield
    finally:
        for module, forward in replaced:
            module.forward = forward
        if plain != attention:
            model.set_attn_implementation(attention)


def _extended(base: FrozenLM, prefix: CachedPrefix, items: Sequence[EncodedSequence]) -> Tensor:
    """Logits ``[STEPS, B, V]`` behind each of the last tokens, which come one by one."""
    batch = collate([EncodedSequence(i, item.ids[:-STEPS], ()) for i, item in enumerate(items)], base.device)
    cache = prefix.expand(batch.which)
    prefix.hidden(batch.input_ids, batch.mask, batch.which, cache)
    mask = torch.cat([prefix.mask(batch.which), batch.mask], dim=1)
    positions = prefix.starts(batch.which) + batch.mask.sum(dim=1)
    logits = []
    for step in range(STEPS):
        tokens = torch.tensor([item.ids[step - STEPS] for item in items], device=base.device)
        mask = torch.cat([mask, mask.new_ones(len(items), 1)], dim=1)
        logits.append(base.logits(prefix.extend(tokens, mask, positions + step, cache)))
    return torch.stack(logits)


def _logits(base: FrozenLM, hidden: Tensor, batch: Batch, shift: Tensor | None = None) -> tuple[Tensor, ...]:
    """Of each text, ``[N, V]`` at its positions, which ``shift [B]`` moves to the right."""
    column = batch.column if shift is None else batch.column + shift[batch.row]
    counts = torch.bincount(batch.row, minlength=len(hidden)).tolist()
    rows: tuple[Tensor, ...] = base.logits(hidden[batch.row, column]).split(counts)
    return rows


def scored_logits(prefix: Prefix, batch: Batch) -> tuple[Tensor, ...]:
    """Of each item, ``[N, V]`` at its scored positions."""
    counts = torch.bincount(batch.row, minlength=len(batch.which)).tolist()
    rows: tuple[Tensor, ...] = prefix.base.logits(prefix.scored(batch)).split(counts)
    return rows


def sum_loss(logits: Sequence[Tensor], items: Sequence[EncodedSequence]) -> Tensor:
    """Cross-entropy over all positions of all texts, summed."""
    targets = torch.tensor([target for item in items for target in item.targets], device=logits[0].device)
    return torch.nn.functional.cross_entropy(torch.cat(list(logits)), targets, reduction="sum")


def compare_with_reference(logits: Sequence[Tensor], case: ParityCase) -> ParityErrors:
    """Logits of each text, and their gradient to the prompts, against the references."""
    loss, gradient = sum_loss(logits, case.items), torch.zeros_like(case.gradient)
    # logits that do not depend on the prompt have a gradient too: zero
    if loss.requires_grad:
        gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, case.leaves)])
    return ParityErrors(largest_relative_error(logits, case.logits), relative_error(gradient, case.gradient))


def largest_relative_error(logits: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative error of a pair."""
    return largest([relative_error(*pair) for pair in zip(logits, expected, strict=True)])
