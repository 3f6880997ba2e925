"""The replaced parts of a model give what the model's own parts give, in hidden states and in gradient."""

from typing import Any

import pytest
import torch
from helpers.tiny_models import FAMILIES, tiny_model, tiny_tokenizer
from torch import Tensor, nn

import softprompt.models.frozen_lm
from softprompt.models import fast_attention
from softprompt.models.frozen_lm import FrozenLM

REPLACED_NORMS = ("llama", "gemma3", "qwen3", "mistral", "gemma2", "granite")
# their own attention: a soft cap on the scores, distances in the scores, or no attention that can be exchanged
OWN_ATTENTION = ("gemma2", "bloom", "gpt_neo", "mpt", "mamba")


def build(family: str, monkeypatch: pytest.MonkeyPatch, *, fast: bool) -> FrozenLM:
    with monkeypatch.context() as patch:
        if not fast:
            patch.setattr(softprompt.models.frozen_lm, "replace_slow_parts", lambda model, run: None)
        return FrozenLM(tiny_model(family), tiny_tokenizer(family), f"tiny {family}")


def hidden_and_gradient(base: FrozenLM, side: str, length: int = 14) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(5, 320, (3, length), generator=generator)
    mask = torch.ones(3, length, dtype=torch.long)
    mask[1, 9:] = 0
    mask[2, 4:] = 0
    if side == "left":
        mask = mask.flip(1)
    embedded = base.embed(ids).detach().requires_grad_()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    output = base.run_backbone(inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False)
    hidden = output.last_hidden_state[mask.bool()]
    weights = torch.randn(hidden.shape, generator=generator)
    (hidden * weights).sum().backward()
    assert embedded.grad is not None
    return hidden.detach(), embedded.grad[mask.bool()]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_gradient_are_the_models_own(family: str, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = hidden_and_gradient(build(family, monkeypatch, fast=False), side)
    actual = hidden_and_gradient(build(family, monkeypatch, fast=True), side)
    for mine, theirs in zip(actual, expected, strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_which_parts_are_replaced(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(family, monkeypatch, fast=True).model
    norms = [module for module in model.modules() if "RMSNorm" in type(module).__name__]
    replaced = [norm for norm in norms if "forward" in vars(norm)]
    if family in REPLACED_NORMS:
        assert len(replaced) == len(norms) > 0
    uses_ours = model.config._attn_implementation == "softprompt"
    assert uses_ours == (family not in OWN_ATTENTION)


def test_long_attention_is_left_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    short = hidden_and_gradient(build("gemma3", monkeypatch, fast=True), "right")
    monkeypatch.setattr(fast_attention, "SHORT_ATTENTION", 0)
    long = hidden_and_gradient(build("gemma3", monkeypatch, fast=True), "right")
    for mine, theirs in zip(short, long, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_an_attention_that_differs_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any, **options: Any) -> tuple[Tensor, None]:
        output, weights = right(*args, **options)
        return output * 1.01, weights

    right = fast_attention._attention
    monkeypatch.setattr(fast_attention, "_attention", wrong)
    base = build("llama", monkeypatch, fast=True)
    assert base.model.config._attn_implementation == "sdpa"
    monkeypatch.setattr(fast_attention, "_attention", right)
    expected = hidden_and_gradient(build("llama", monkeypatch, fast=False), "right")[0]
    assert torch.allclose(hidden_and_gradient(base, "right")[0], expected, atol=1e-5)


class OddRMSNorm(nn.Module):
    """Called a root-mean-square norm, but no such thing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(6))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (6,), self.weight, None, self.eps)


def test_a_norm_of_another_kind_keeps_its_forward() -> None:
    assert fast_attention.norm_scale(OddRMSNorm()) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_gradient_is_that_of_the_definition(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 3, 16, generator=generator).to(dtype).requires_grad_()
    weight = torch.rand(16, generator=generator) + 0.5
    upstream = torch.randn(4, 3, 16, generator=generator).to(dtype)
    fused: Tensor = fast_attention._RootMeanSquareNorm.apply(x, weight, 1e-6, False)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    (mine,) = torch.autograd.grad(fused, x, upstream)
    (theirs,) = torch.autograd.grad(exact, x, upstream.double())
    tolerance = 1e-6 if dtype == torch.float32 else 5e-3
    assert float((mine.double() - theirs.double()).norm() / theirs.double().norm()) < tolerance


def test_loading_leaves_the_frozen_bytes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = build("gemma3", monkeypatch, fast=False)
    after = build("gemma3", monkeypatch, fast=True)
    assert before.fingerprint == after.fingerprint
    for name, parameter in after.model.named_parameters():
        assert torch.equal(parameter, before.model.get_parameter(name))
