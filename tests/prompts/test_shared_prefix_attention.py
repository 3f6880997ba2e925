"""Prompts that stay where they are: the same numbers as from a copy of each in every row."""

import pytest
import torch
from helpers.tiny_models import FAMILIES, NOT_SHARING, WINDOW, as_state, random_prompt, tiny_base

from softprompt.data.encoding.batching import collate
from softprompt.data.encoding.encoder import Batch, EncodedSequence
from softprompt.inference.decoding_batch import CachedDecodingBatch, DecodingBatch, join_batches, start_decoding
from softprompt.inference.generation import Completion, GenerationConfig, next_tokens
from softprompt.models import fast_attention
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import shared_prefix_attention
from softprompt.prompts.cached_prefix import CachedPrefix, stack_prefixes
from softprompt.prompts.prefix import compute_keys_and_values, make_cached_prefix
from softprompt.prompts.shared_prefix_attention import SharedPrefixes, supports_shared_attention

ATOL = 1e-4
OWN_ATTENTION = ("gemma2", "bloom", "gpt_neo", "mpt", "mamba")  # of the model, which nothing can be put in front of
APART = [family for family in FAMILIES if family not in (*NOT_SHARING, *OWN_ATTENTION)]
LENGTHS = (1, 5, 2, 3, 4, 1, 2)
WHICH = (1, 0, 2, 1, 1, 3, 0)  # the prompt of each row: five tokens, one, none, three in the layers


def prompts(base: FrozenLM, *, longest: int = 3) -> tuple[CachedPrefix, ...]:
    states = [as_state(random_prompt(base, length, 20 + length).detach()) for length in (longest, 1)]
    return tuple(
        make_cached_prefix(base, state)
        for state in (*states, None, compute_keys_and_values(base, random_prompt(base, 2)))
    )


def items() -> list[EncodedSequence]:
    generator = torch.Generator().manual_seed(3)
    texts = [tuple(torch.randint(5, 320, (length,), generator=generator).tolist()) for length in LENGTHS]
    return [
        EncodedSequence(row, text, tuple(range(len(text) - 1, len(text))), prompt=prompt)
        for row, (text, prompt) in enumerate(zip(texts, WHICH, strict=True))
    ]


def batch_of(base: FrozenLM) -> Batch:
    return collate(items(), base.device)


@pytest.mark.parametrize("family", FAMILIES)
def test_where_prompts_stay_apart(family: str) -> None:
    assert supports_shared_attention(tiny_base(family)) == (family in APART)


@torch.no_grad()
@pytest.mark.parametrize("family", APART)
def test_scores_are_those_of_copies(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base(family)
    prefixes, batch = prompts(base), batch_of(base)
    expected = stack_prefixes(prefixes).scored(batch)
    torch.testing.assert_close(SharedPrefixes(base, prefixes).scored(batch), expected, atol=ATOL, rtol=0)
    # windows are kept to by copies, our own layers have one for all rows; elsewhere nothing is copied
    assert base.sliding_window in (None, WINDOW)
    monkeypatch.setattr(shared_prefix_attention, "find_fused_decoder", lambda base: None)
    if base.sliding_window is None:
        monkeypatch.setattr(shared_prefix_attention, "stack_prefixes", None)
    torch.testing.assert_close(SharedPrefixes(base, prefixes).scored(batch), expected, atol=ATOL, rtol=0)


@torch.no_grad()
def test_only_prompts_of_the_batch_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("llama")
    prefixes = prompts(base)
    some = collate([item for item in items() if item.prompt in (1, 3)], base.device)
    expected, seen = stack_prefixes(prefixes).scored(some), []
    monkeypatch.setattr(
        shared_prefix_attention, "stack_prefixes", lambda used: seen.append(used) or stack_prefixes(used)
    )
    torch.testing.assert_close(SharedPrefixes(base, prefixes).scored(some), expected, atol=ATOL, rtol=0)
    assert seen == [[prefixes[1], prefixes[3]]]


@torch.no_grad()
@pytest.mark.parametrize("family", ["gemma3", "mistral"])
@pytest.mark.parametrize("longest", [2, 3, 12])
def test_windows_are_kept_to(family: str, longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base(family)
    prefixes, batch = prompts(base, longest=longest), batch_of(base)
    monkeypatch.setattr(shared_prefix_attention, "find_fused_decoder", lambda base: None)
    found = SharedPrefixes(base, prefixes).scored(batch)
    torch.testing.assert_close(found, stack_prefixes(prefixes).scored(batch), atol=ATOL, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("family", APART)
@pytest.mark.parametrize("longest", [WINDOW, None])
def test_texts_grow_as_behind_copies(family: str, longest: int | None) -> None:
    """Some join and some leave meanwhile; ``WINDOW`` is a promise that lets prompts stand apart under a window too."""
    base = tiny_base(family)
    prefixes = prompts(base, longest=2)
    new = [item for item in items() if len(item.ids) < 4]
    steps = 1 if longest == WINDOW and base.sliding_window else 5
    both = [
        grown(base, kind, new, steps, longest if isinstance(kind, SharedPrefixes) else None)
        for kind in (stack_prefixes(prefixes), SharedPrefixes(base, prefixes))
    ]
    (expected, _), (found, decoding_batch) = both
    assert isinstance(decoding_batch, CachedDecodingBatch)
    assert (decoding_batch._fronts is not None) == (base.sliding_window is None or longest == WINDOW)
    assert found == expected
    assert len({tuple(tokens) for tokens in expected}) > 2


def grown(
    base: FrozenLM, prefix: CachedPrefix | SharedPrefixes, texts: list[EncodedSequence], steps: int, longest: int | None
) -> tuple[list[list[int]], DecodingBatch]:
    """Tokens of each text: the last two join after a step, the first leaves after one more."""
    completions = [Completion(base, GenerationConfig(99)) for _ in texts]
    decoding_batch, going = start_decoding(prefix, texts[:-2], longest), completions[:-2]
    for step in range(steps):
        if step == min(1, steps - 1):
            assert join_batches(decoding_batch, start_decoding(prefix, texts[-2:], longest))
            going = [*going, *completions[-2:]]
        tokens = next_tokens(base.logits(decoding_batch.last), going)
        for completion, token in zip(going, tokens, strict=True):
            completion.tokens.append(token)
        if step == 2:
            decoding_batch.keep(torch.arange(1, len(going)))
            going, tokens = going[1:], tokens[1:]
        decoding_batch.extend(torch.tensor(tokens))
    return [completion.tokens for completion in completions], decoding_batch


@torch.no_grad()
def test_long_texts_are_left_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("llama")
    prefixes, batch = prompts(base), batch_of(base)
    expected = SharedPrefixes(base, prefixes).scored(batch)
    monkeypatch.setattr(shared_prefix_attention, "find_fused_decoder", lambda base: None)
    monkeypatch.setattr(fast_attention, "SHORT_ATTENTION", 0)
    monkeypatch.setattr(shared_prefix_attention.RowPrefixes, "hidden", None)
    torch.testing.assert_close(SharedPrefixes(base, prefixes).scored(batch), expected, atol=ATOL, rtol=0)
