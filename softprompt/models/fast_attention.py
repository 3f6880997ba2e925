"""Two parts of a frozen model in fewer passes over memory: root-mean-square norms, and attention over short texts.

On a CPU a training step of a small model spends a third of its time in these, not in matrix products. A part is
replaced only where it gives the model's own numbers, which is measured when the model is loaded.

Shapes: ``B`` batch, ``T`` text length, ``S`` keys (prefix and text), ``D`` size of a head or of the normed axis.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from softprompt.models.exactness import is_exact

# scores of one layer held at once, B * heads * T * S; more are left to the kernel, which never holds them all
SHORT_ATTENTION = 2**22

NAME = "softprompt"  # of our attention


class PrefixAttention(Protocol):
    """What attention looks at before its keys and values."""

    def attend(self, module: nn.Module, query: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        """What queries ``[B, heads, T, D]`` find there, float32, and the logarithm of its weight ``[B, heads, T]``."""
        ...


_front: ContextVar[PrefixAttention | None] = ContextVar("front", default=None)


@contextmanager
def attend_to(front: PrefixAttention | None) -> Iterator[None]:
    """Within it, our attention looks at ``front`` too, without gradient."""
    token = _front.set(front)
    try:
        yield
    finally:
        _front.reset(token)


def replace_slow_parts(model: Any, run: Callable[[], Tensor]) -> None:
    """Replace what can be replaced in ``model``.

    Args:
        model: a ``transformers`` model, frozen.
        run: a forward pass over it, to compare before and after.
    """
    if next(model.parameters()).device.type != "cpu":
        return
    with torch.no_grad():
        for module in model.modules():
            if (scale := norm_scale(module)) is not None:
                _fuse_norm(module, *scale)
        _replace_attention(model, run)


class _RootMeanSquareNorm(torch.autograd.Function):
    """``x / rms(x) * weight``, in float32 within; the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, round_first: bool) -> Tensor:
        wide = x.to(torch.float32, copy=True)
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(epsilon))
        ctx.save_for_backward(x, inverse, weight)
        wide.mul_(inverse)
        return wide.to(x.dtype) * weight.to(x.dtype) if round_first else wide.mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        x, inverse, weight = ctx.saved_tensors
        wide = x.float()
        # in place: what is allocated anew costs more than what is computed
        gradient = grad_outputs[0].to(torch.float32, copy=True).mul_(weight)
        along = torch.linalg.vecdot(gradient, wide)[..., None] * (inverse.square() / -x.shape[-1])
        return gradient.addcmul_(wide, along).mul_(inverse).to(x.dtype), None, None, None


def norm_scale(module: nn.Module) -> tuple[Tensor, float, bool] | None:
    """What a root-mean-square norm multiplies by, its epsilon, and whether it rounds before; None for other modules."""
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if "RMSNorm" not in type(module).__name__ or not isinstance(weight, Tensor) or not isinstance(epsilon, float):
        return None
    # some norms are gated: their forward takes more than what is normed
    if len(inspect.signature(module.forward).parameters) != 1:
        return None
    probe = torch.linspace(-3, 2, 2 * weight.shape[-1], dtype=weight.dtype).view(2, -1)
    try:
        expected = module(probe)
    except (RuntimeError, TypeError, ValueError):
        return None
    for scale in (weight.float(), 1 + weight.float()):
        for round_first in (False, True):
            actual = _RootMeanSquareNorm.apply(probe, scale, epsilon, round_first)  # type: ignore[no-untyped-call]
            if isinstance(expected, Tensor) and expected.dtype == actual.dtype and torch.equal(expected, actual):
                return scale, epsilon, round_first
    return None


def _fuse_norm(module: nn.Module, scale: Tensor, epsilon: float, round_first: bool) -> None:
    def forward(hidden_states: Tensor) -> Tensor:
        fused: Tensor = _RootMeanSquareNorm.apply(hidden_states, scale, epsilon, round_first)  # type: ignore[no-untyped-call]
        return fused

    module.forward = forward


def _replace_attention(model: Any, run: Callable[[], Tensor]) -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    before = getattr(model.config, "_attn_implementation", None)
    if before != "sdpa":
        return
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, lambda **options: sdpa_mask(**{**options, "allow_is_causal_skip": False}))
    expected = run()

    def run_ours() -> Tensor:
        model.set_attn_implementation(NAME)
        return run()

    if not is_exact(run_ours, expected, expected.dtype):
        model.set_attn_implementation(before)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Any]:
    """Attention of ``query [B, heads, T, D]`` over ``key, value [B, kv_heads, S, D]``, as transformers calls it.

    Query heads that share a key head are laid side by side, so nothing is repeated.
    """
    batch, heads, length, size = query.shape
    kv_heads, keys = key.shape[1:3]
    front = _front.get()
    if front is None and (
        attention_mask is None
        or options.get("position_bias") is not None
        or batch * heads * length * keys > SHORT_ATTENTION
    ):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise ValueError("softcap and sinks are for the model's own attention")
    scaling = size**-0.5 if scaling is None else scaling
    group = heads // kv_heads
    # in float32, as the kernel it stands in for adds up; there is little to multiply
    grouped = query.float().mul(scaling).reshape(batch, kv_heads, group * length, size)
    scores = (grouped @ key.float().transpose(2, 3)).view(batch, kv_heads, group, length, keys)
    if attention_mask is None or options.get("position_bias") is not None:
        raise ValueError("a front is for attention with a mask, and without distances")
    if attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask[:, :, None], torch.finfo(torch.float32).min)
    else:
        scores = scores + attention_mask[:, :, None]
    weights = scores.softmax(-1).view(batch, kv_heads, group * length, keys)
    mixed = (weights @ value.float()).view(batch, heads, length, value.shape[-1])
    if front is not None:
        before, weight = front.attend(module, query, scaling)
        share = (weight - scores.logsumexp(-1).view(batch, heads, length)).sigmoid()
        mixed = torch.lerp(mixed, before, share[..., None])
    return mixed.transpose(1, 2).to(value.dtype).contiguous(), None
