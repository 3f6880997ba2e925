"""Attention over long texts gives what attention over short ones gives, and what transformers' models give."""

from typing import Any

import pytest
import torch
from helpers.fused_inputs import FUSED, ids_of, learned, ragged
from helpers.tiny_models import tiny_base
from torch import Tensor

from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.kernels import decoder_blocks, fused_layer, length_bucketing, long_attention
from softprompt.prompts.inline_prefix import make_learning_prefix
from softprompt.prompts.prefix import make_concatenated_prefix, make_prefix
from softprompt.prompts.state import PromptState

HEADS, GROUP, SIZE, COUNT, LENGTH, PREFIX = 3, 2, 8, 4, 9, 5


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def texts_of(sizes: list[int], *, long: bool) -> decoder_blocks.Texts:
    there = torch.arange(LENGTH) < torch.tensor(sizes)[:, None]
    seen = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril() & there[:, None]
    mask = None if long else torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[:, :, None]
    slots = None if bool(there.all()) else there.flatten().nonzero()[:, 0]
    return decoder_blocks.Texts(COUNT, LENGTH, mask, slots, 0.3, SIZE)


@pytest.mark.parametrize("sizes", [[LENGTH] * COUNT, [4, 1, 7, LENGTH]], ids=["even", "ragged"])
@pytest.mark.parametrize("rows", [0, HEADS, HEADS * COUNT], ids=["alone", "one prefix", "one each"])
def test_the_same_as_with_all_scores(sizes: list[int], rows: int) -> None:
    positions = sum(sizes)
    own = tuple(random(positions, heads * SIZE, seed=heads) for heads in (HEADS * GROUP, HEADS, HEADS))
    prefix = (random(rows, PREFIX, SIZE, seed=7), random(rows, PREFIX, SIZE, seed=8)) if rows else None
    short, long = texts_of(sizes, long=False), texts_of(sizes, long=True)
    expected, kept = decoder_blocks.attend(own, prefix, short)
    found, kept_long = long_attention.attend_long(own, prefix, long)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if rows == HEADS * COUNT:
        return  # nothing is learned behind a prefix of each text's own
    gradient = random(positions, HEADS * GROUP * SIZE, seed=9)
    expected_own, expected_prefix = decoder_blocks.attend_backward(gradient, kept, prefix, short)
    found_own, found_prefix = long_attention.attend_long_backward(gradient, kept_long, prefix, long)
    assert (found_prefix is None) == (expected_prefix is None) == (prefix is None)
    for one, right in zip((*found_own, *(found_prefix or ())), (*expected_own, *(expected_prefix or ())), strict=True):
        torch.testing.assert_close(one, right, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=FUSED)
def base(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FrozenLM:
    """A model all of whose texts count as long, those of its prompts too."""
    monkeypatch.setattr(long_attention, "LONG", 1)

    def refuse(*arguments: object) -> None:
        raise AssertionError("a long text with all of its scores")

    found = tiny_base(request.param)
    make_prefix(found, None)  # what is measured once is measured with short texts
    make_learning_prefix(found, PromptState.of_embeddings(learned(found, 2, 0)))
    monkeypatch.setattr(decoder_blocks, "attend", refuse)
    return found


@pytest.mark.parametrize("lengths", [(3,), (2, 4, 1)])
def test_hidden_states_and_gradient_of_a_model(base: FrozenLM, lengths: tuple[int, ...]) -> None:
    sizes, results = [3, 1, 3, 2, 3, 2], []
    ids, mask = ids_of(len(sizes), max(sizes)), ragged(sizes)
    which = torch.tensor([2, 0, 1, 0, 2, 1]) % len(lengths)
    for make in (make_prefix, make_concatenated_prefix):
        prompts = [learned(base, length, seed) for seed, length in enumerate(lengths)]
        hidden = make(base, *map(PromptState.of_embeddings, prompts)).hidden(ids, mask, which)[mask.bool()]
        weight = torch.linspace(-1, 1, hidden.numel()).view_as(hidden)
        results.append([hidden.detach(), *torch.autograd.grad((hidden * weight).sum(), prompts)])
    for found, right in zip(*results, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


def test_short_texts_beside_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    base, long = tiny_base("llama"), list[tuple[int, int]]()
    monkeypatch.setattr(length_bucketing, "CALL", 1)  # texts of like length in calls of their own
    sizes, attend = [30, 28, 5, 4], fused_layer.attend_long

    def counted(own: Any, prefix: Any, texts: decoder_blocks.Texts) -> Any:
        long.append((texts.batch, texts.length))
        return attend(own, prefix, texts)

    ids, mask = ids_of(len(sizes), max(sizes)), ragged(sizes)
    prompt = PromptState.of_embeddings(learned(base, 3, 0).detach())
    expected = make_concatenated_prefix(base, prompt).hidden(ids, mask)[mask.bool()]
    prefix = make_prefix(base, prompt)
    monkeypatch.setattr(long_attention, "LONG", 20)
    monkeypatch.setattr(fused_layer, "attend_long", counted)
    with torch.no_grad():
        found = prefix.hidden(ids, mask)[mask.bool()]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert long == [(2, 30)] * base.config.num_hidden_layers
