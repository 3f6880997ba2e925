"""Prompts that are read in the same pass as their texts give what they give when they are read before them."""

import pytest
import torch
from helpers.fused_inputs import FUSED, ids_of, learned, ragged
from helpers.tiny_models import WINDOW, tiny_base
from torch import Tensor

from softprompt.data.encoding.batching import collate
from softprompt.data.encoding.encoder import Batch, EncodedSequence
from softprompt.data.encoding.placement import Placement
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.kernels import compilation as compiling
from softprompt.models.kernels import fused_layer
from softprompt.prompts.cached_prefix import CachedPrefix
from softprompt.prompts.inline_prefix import InlinePrompts, make_learning_prefix
from softprompt.prompts.prefix import compute_keys_and_values, make_concatenated_prefix, make_prefix
from softprompt.prompts.state import PromptState
from softprompt.training.gradient_checkpointing import checkpoint_gradients

SIZES = [3, 1, 3, 2, 3, 2]  # with the prompts before them they stay within every window


@pytest.fixture(params=FUSED)
def base(request: pytest.FixtureRequest) -> FrozenLM:
    return tiny_base(request.param)


def batch_of(prompts: int, sizes: list[int] = SIZES) -> Batch:
    """Texts behind prompts in turn, read at their last position, the first text at its first one too."""
    mask = ragged(sizes)
    row = torch.tensor([0, *range(len(sizes))])
    column = torch.tensor([0, *(size - 1 for size in sizes)])
    which = torch.tensor([2, 0, 1, 0, 2, 1])[: len(sizes)] % prompts
    ids = ids_of(*mask.shape)
    return Batch(ids, mask, row, column, row, row, which, ids[:, :0], torch.arange(len(ids)))


def outcome(prefix: object, batch: Batch, prompts: list[Tensor]) -> list[Tensor]:
    """Hidden states, and the gradient of something made of them."""
    hidden = prefix.scored(batch)  # type: ignore[attr-defined]
    weight = torch.linspace(-1, 1, hidden.numel()).view_as(hidden)
    return [hidden.detach(), *torch.autograd.grad((hidden * weight).sum(), prompts)]


@pytest.mark.parametrize("lengths", [(3,), (3, 3), (2, 4, 1)])
@pytest.mark.parametrize("again", [False, True])
def test_hidden_states_and_gradient(base: FrozenLM, lengths: tuple[int, ...], again: bool) -> None:
    batch, results = batch_of(len(lengths)), []
    for make in (make_learning_prefix, make_concatenated_prefix):
        prompts = [learned(base, length, seed) for seed, length in enumerate(lengths)]
        with checkpoint_gradients(base, again and make is make_learning_prefix):
            prefix = make(base, *map(PromptState.of_embeddings, prompts))
            assert isinstance(prefix, InlinePrompts) == (make is make_learning_prefix)
            results.append(outcome(prefix, batch, prompts))
    for found, right in zip(*results, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


def test_one_pass_over_the_layers(base: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    positions: list[int] = []
    original = fused_layer.LayerPass.apply
    monkeypatch.setattr(
        fused_layer.LayerPass, "apply", lambda x, *given: positions.append(len(x)) or original(x, *given)
    )
    state = PromptState.of_embeddings(learned(base, 3, 0))
    make_learning_prefix(base, state).scored(batch_of(1))
    assert positions == [sum(SIZES) + 3 + len(base.bos_ids)] * base.config.num_hidden_layers


def test_a_prompt_that_stands_behind_no_bos(base: FrozenLM) -> None:
    batch, results = batch_of(1), []
    for make in (make_learning_prefix, make_prefix):
        prompt = learned(base, 3, 0)
        results.append(
            outcome(make(base, PromptState("embeddings", (prompt,), Placement(behind_bos=False))), batch, [prompt])
        )
    for found, right in zip(*results, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gemma3", "mistral"])
def test_an_outgrown_window_is_left_to_the_model(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, results = tiny_base(family), []
    batch = batch_of(1, [WINDOW, 2])
    for make in (make_learning_prefix, make_concatenated_prefix):
        prompt = learned(base, 3, 0)
        results.append(outcome(make(base, PromptState.of_embeddings(prompt)), batch, [prompt]))
    for found, right in zip(*results, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


def test_others_are_read_before_their_texts() -> None:
    llama, gpt = tiny_base("llama"), tiny_base("gpt2")
    assert isinstance(make_learning_prefix(gpt, PromptState.of_embeddings(learned(gpt, 3, 0))), CachedPrefix)
    assert isinstance(
        make_learning_prefix(llama, compute_keys_and_values(llama, learned(llama, 3, 0).detach())), CachedPrefix
    )


@pytest.mark.slow
@pytest.mark.skipif(compiling.shutil.which("g++") is None, reason="no C++ compiler is installed")
def test_compiled_gives_the_same_and_nothing_is_compiled_later() -> None:
    base = tiny_base("gemma3")
    results: list[list[Tensor]] = []
    for enabled in (False, True):
        results.append([])
        with compiling.compiled(base, enabled, pytest.fail), torch.compiler.set_stance("fail_on_recompile"):
            for lengths, sizes in (
                ((4,), [3, 1, 3, 2, 1]),
                ((3,), [2, 2]),
                ((3, 4, 3), [3, 2, 3, 1, 2, 2]),
                ((4,), [9, 8]),
            ):
                prompts = [learned(base, length, seed) for seed, length in enumerate(lengths)]
                prefix = make_learning_prefix(base, *map(PromptState.of_embeddings, prompts))
                results[-1] += outcome(prefix, batch_of(len(lengths), sizes), prompts)
    for found, right in zip(*results, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


def test_branches_behind_a_text(base: FrozenLM) -> None:
    """Of each token what it has as a text of its own, read with the prompt or behind its keys and values."""
    items = [
        EncodedSequence(0, (3, 4, 5, 6, 7), (1, 3, 4, 2), prompt=1, parents=(1, 1, 3)),
        EncodedSequence(1, (9, 8), (0, 1)),
        EncodedSequence(2, (5, 6, 7, 8), (3, 0, 2), parents=(0, 0, 0)),
    ]
    batch, results = collate(items, base.device), []
    for make in (make_learning_prefix, make_prefix, make_concatenated_prefix):
        prompts = [learned(base, length, seed) for seed, length in enumerate((2, 3))]
        results.append(outcome(make(base, *map(PromptState.of_embeddings, prompts)), batch, prompts))
    for expected, *found in zip(*reversed(results), strict=True):
        for one in found:
            torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-4)
    # against plain texts, one by one
    hidden = results[0][0].split([4, 2, 3])
    front = [learned(base, length, seed).detach() for seed, length in enumerate((2, 3))]
    ways = [[(3, 4), (3, 4, 6), (3, 4, 6, 7), (3, 4, 5)], [(9,), (9, 8)], [(5, 8), (5,), (5, 7)]]
    for rows, texts, prompt in zip(hidden, ways, (1, 0, 0), strict=True):
        for row, text in zip(rows, texts, strict=True):
            start = base.embed(torch.tensor(base.bos_ids, dtype=torch.long))
            whole = torch.cat([start, front[prompt], base.embed(torch.tensor(text))])
            with torch.no_grad():
                alone = base.run_backbone(inputs_embeds=whole[None], use_cache=False).last_hidden_state[0, -1]
            torch.testing.assert_close(row, alone, rtol=1e-4, atol=1e-4)
