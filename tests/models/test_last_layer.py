"""The last layer computes scored positions only, and what it gives there is what it always gave."""

from typing import Any

import pytest
import torch
from helpers.tiny_models import FAMILIES, as_state, random_prompt, tiny_base, tiny_model, tiny_tokenizer
from torch import Tensor, nn

from softprompt.data.encoding.encoder import Batch
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.last_layer import find_layers, limit_last_layer, shorten_last_layer
from softprompt.prompts.cached_prefix import CachedPrefix
from softprompt.prompts.prefix import ConcatenatedPrefix, make_concatenated_prefix, make_prefix
from softprompt.training.gradient_checkpointing import checkpoint_gradients

IDS = torch.randint(5, 320, (3, 9), generator=torch.Generator().manual_seed(2))
MASK = torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] * 2 + [0] * 7])
ROW, COLUMN = torch.tensor([0, 0, 1, 2]), torch.tensor([3, 8, 4, 1])
NONE, EVERY = torch.zeros(0, dtype=torch.long), torch.arange(3)
BATCH = Batch(IDS, MASK, ROW, COLUMN, NONE, NONE, torch.zeros_like(EVERY), IDS[:, :0], EVERY)


def hidden_and_gradient(base: FrozenLM, *, shortened: bool, recompute: bool = False) -> tuple[Tensor, Tensor]:
    prompt = random_prompt(base, 4)
    with checkpoint_gradients(base, recompute):
        prefix = make_prefix(base, as_state(prompt))
        assert isinstance(prefix, CachedPrefix | ConcatenatedPrefix)
        scored = prefix.scored(BATCH)
        hidden = scored if shortened else prefix.hidden(IDS, MASK)[ROW, COLUMN]
        weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3))
        (gradient,) = torch.autograd.grad((hidden * weights).sum(), prompt)
    return hidden.detach(), gradient


def rows_seen(module: nn.Module, base: FrozenLM) -> int:
    """How many tokens the inner part of ``module`` works on when four are scored."""
    seen: list[int] = []
    part = next(child for child in module.modules() if isinstance(child, nn.Linear))
    handle = part.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:-1].numel()))
    with torch.no_grad():
        prefix = make_prefix(base, None)
        seen.clear()
        prefix.scored(BATCH)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_scored_positions_are_as_before(family: str) -> None:
    base = tiny_base(family)
    expected = hidden_and_gradient(base, shortened=False)
    for found, right in zip(hidden_and_gradient(base, shortened=True), expected, strict=True):
        assert float((found - right).norm()) < 1e-5 * float(right.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_shortened(family: str) -> None:
    base = tiny_base(family)
    layers = find_layers(base.backbone)
    forwards = [vars(part).get("forward") for layer in layers for part in layer.modules()]
    exchanged = [
        forward for forward in forwards if getattr(forward, "__module__", "") == "softprompt.models.last_layer"
    ]
    assert exchanged


def test_the_feed_forward_part_sees_scored_tokens_only() -> None:
    base = tiny_base("gemma2")
    assert rows_seen(base.backbone.layers[0].mlp, base) == IDS.numel()
    assert rows_seen(base.backbone.layers[-1].mlp, base) == len(ROW)


def test_layers_that_run_twice_see_the_same_positions() -> None:
    base = tiny_base("gemma3")
    expected = hidden_and_gradient(base, shortened=False)
    for found, right in zip(hidden_and_gradient(base, shortened=True, recompute=True), expected, strict=True):
        torch.testing.assert_close(found, right)


def test_a_concatenated_prefix_is_right_everywhere() -> None:
    base = tiny_base("llama")
    prefix = make_concatenated_prefix(base, as_state(random_prompt(base, 4)))
    found = prefix.scored(BATCH)
    torch.testing.assert_close(found, prefix.hidden(IDS, MASK)[ROW, COLUMN])


class Mixing(nn.Module):
    """A part with the name of a position-wise one that is none: each position sees the one before."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        mixed: Tensor = self.inner(hidden + hidden.roll(1, dims=1))
        return mixed


class Gating(Mixing):
    """A part that gives more than one tensor, as some mixtures of experts do."""

    def forward(self, hidden: Tensor) -> Any:
        return (self.inner(hidden),)[0] if hidden.shape[1] > 2 else (self.inner(hidden), hidden)


@pytest.mark.parametrize("part", [Mixing, Gating])
def test_a_layer_that_would_change_is_left_alone(part: type[Mixing]) -> None:
    model: Any = tiny_model("llama")
    model.model.layers[-1].mlp = part(model.model.layers[-1].mlp)
    base = FrozenLM(model, tiny_tokenizer("llama"), "mixing")
    with limit_last_layer(torch.tensor([2])):
        hidden = base.run_backbone(inputs_embeds=base.embed(IDS)).last_hidden_state
    torch.testing.assert_close(hidden, base.run_backbone(inputs_embeds=base.embed(IDS)).last_hidden_state)


def test_shortening_again_changes_nothing() -> None:
    base = tiny_base("qwen3")
    before = [vars(part).get("forward") for part in base.backbone.modules()]
    shorten_last_layer(base.backbone, base._probe)
    assert [vars(part).get("forward") for part in base.backbone.modules()] == before
