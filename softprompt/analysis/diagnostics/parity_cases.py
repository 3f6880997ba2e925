"""Texts with prompts in front, and what a model makes of them by plain concatenation.

The reference is BOS, virtual tokens and one text, as input embeddings, without mask, through the model's own forward
pass and its own attention; a decoder beside an encoder is given a random answer. Texts are seeded random tokens, some
longer than a sliding window; prompts are seeded random vectors as large as the token embeddings.

Shapes: ``P`` prompt length, ``H`` embedding size, ``V`` vocabulary, ``N`` positions.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softprompt.data.encoding.encoder import EncodedSequence
from softprompt.models import fast_attention, last_layer
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.attention_prefix import strip_prompt_suffix
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
        [make_case(base, one, _items(base, batch, 1, generator)) for batch in lengths],
        [make_case(base, several, _items(base, batch, len(several), generator)) for batch in lengths],
    )


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


def make_case(
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
            embeddings = embed_text(base, prompt, item.ids)
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


def embed_text(base: FrozenLM, prompt: Tensor | None, ids: Sequence[int]) -> Tensor:
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


def sum_loss(logits: Sequence[Tensor], items: Sequence[EncodedSequence]) -> Tensor:
    """Cross-entropy over all positions of all texts, summed."""
    targets = torch.tensor([target for item in items for target in item.targets], device=logits[0].device)
    return torch.nn.functional.cross_entropy(torch.cat(list(logits)), targets, reduction="sum")
