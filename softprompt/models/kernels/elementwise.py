"""What a decoder layer does between its matrix products, forward and backward, each in as few passes as can be.

Plain functions of tensors: no gradient is recorded through them, the backward ones are written out. On a CPU they take
longer than the matrix products when every operation makes a pass over memory of its own; compiled (segments.py), each
is one loop.

Shapes: ``M`` rows (positions), ``H`` hidden size, ``F`` feed-forward size, ``N`` heads, ``D`` head size, ``Q`` queries,
``P`` prefix length, ``T`` text length. Whatever comes in in the model's dtype goes out in it; within, float32.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# sigmoid(slope * (x + bend * x^3)) times x: GELU by tanh (Hendrycks and Gimpel 2016), and SiLU
ACTIVATIONS = {"gelu_pytorch_tanh": (1.5957691216057308, 0.044715), "gelu_new": (1.5957691216057308, 0.044715)}
ACTIVATIONS |= {"silu": (1.0, 0.0), "swish": (1.0, 0.0)}


class Norm(NamedTuple):
    """A root-mean-square norm: ``scale [D]`` in float32; some families round before they scale."""

    scale: Tensor
    epsilon: float
    round_first: bool


def norm(x: Tensor, by: Norm) -> tuple[Tensor, Tensor]:
    """``x [..., D]`` normed, and the inverse root ``[..., 1]``."""
    wide = x.float()
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + by.epsilon)
    normed = wide * inverse
    normed = normed.to(x.dtype).float() if by.round_first else normed
    return (normed * by.scale).to(x.dtype), inverse


def norm_backward(gradient: Tensor, x: Tensor, inverse: Tensor, by: Norm) -> Tensor:
    """Gradient with respect to ``x`` of ``norm``."""
    wide, coming = x.float(), gradient.float() * by.scale
    along = (coming * wide).mean(-1, keepdim=True) * inverse.square()
    return ((coming - wide * along) * inverse).to(x.dtype)


def rotate_heads(x: Tensor, by: Norm | None, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor | None]:
    """Heads ``x [M, N, D]`` normed, where they are, and turned; and the norm's inverse.

    Turned is rotary embedding (Su et al. 2021), halves apart, by ``cosine, sine [M, 1, D]``.
    """
    inverse = None
    if by is not None:
        x, inverse = norm(x, by)
    wide, half = x.float(), x.shape[-1] // 2
    other = torch.cat([-wide[..., half:], wide[..., :half]], dim=-1)
    return (wide * cosine + other * sine).to(x.dtype), inverse


def rotate_heads_backward(
    gradient: Tensor, x: Tensor, inverse: Tensor | None, by: Norm | None, cosine: Tensor, sine: Tensor
) -> Tensor:
    """Gradient with respect to ``x`` of ``rotate_heads``."""
    wide, half = gradient.float(), gradient.shape[-1] // 2
    leaning = wide * sine
    turned = wide * cosine + torch.cat([leaning[..., half:], -leaning[..., :half]], dim=-1)
    if by is None or inverse is None:
        return turned.to(x.dtype)
    return norm_backward(turned, x, inverse, by)


def add_residual(x: Tensor, inner: Tensor, by: Norm | None) -> tuple[Tensor, Tensor | None]:
    """The residual connection ``x + inner``, ``inner`` normed where it is; and the norm's inverse."""
    if by is None:
        return x + inner, None
    normed, inverse = norm(inner, by)
    return x + normed, inverse


def add_residual_backward(gradient: Tensor, inner: Tensor, inverse: Tensor | None, by: Norm | None) -> Tensor:
    """Gradient with respect to ``inner`` of ``add_residual``; that to ``x`` is the one that comes."""
    return gradient if by is None or inverse is None else norm_backward(gradient, inner, inverse, by)


def activate_gate(gate: Tensor, up: Tensor, slope: float, bend: float) -> Tensor:
    """The feed-forward part's ``activation(gate) * up``, ``[M, F]``; ``slope`` and ``bend`` as in ``ACTIVATIONS``."""
    wide = gate.float()
    share = torch.sigmoid(slope * (wide + bend * wide * wide * wide))
    return (wide * share * up.float()).to(gate.dtype)


def activate_gate_backward(
    gradient: Tensor, gate: Tensor, up: Tensor, slope: float, bend: float
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to ``gate`` and ``up`` of ``activate_gate``."""
    wide, coming = gate.float(), gradient.float()
    square = wide * wide
    share = torch.sigmoid(slope * (wide + bend * wide * square))
    steepness = share + wide * share * (1 - share) * slope * (1 + 3 * bend * square)
    return (coming * up.float() * steepness).to(gate.dtype), (coming * wide * share).to(gate.dtype)


def attention_weights(
    prefix: Tensor, text: Tensor, attention_mask: Tensor, scaling: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Attention weights, one softmax over both parts.

    Args:
        prefix: scores ``[..., Q, P]``, float32; ``-inf`` where a shorter prefix has none.
        text: scores ``[..., Q, T]``, float32.
        attention_mask: what to add to them, ``[..., Q, T]``, float32: 0 where a query may look, ``-inf`` where not.

    Returns:
        The weights of both in ``dtype``.
    """
    before, after = prefix * scaling, text * scaling + attention_mask
    most = torch.maximum(before.amax(-1, keepdim=True), after.amax(-1, keepdim=True))
    before, after = (before - most).exp(), (after - most).exp()
    whole = 1 / (before.sum(-1, keepdim=True) + after.sum(-1, keepdim=True))
    return (before * whole).to(dtype), (after * whole).to(dtype)


def attention_weights_backward(
    before: Tensor, after: Tensor, coming_before: Tensor, coming_after: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to the scores of ``attention_weights``, which it gave as ``before`` and ``after``."""
    first, second = before.float(), after.float()
    coming_first, coming_second = coming_before.float(), coming_after.float()
    along = (first * coming_first).sum(-1, keepdim=True) + (second * coming_second).sum(-1, keepdim=True)
    return (
        (first * (coming_first - along) * scaling).to(before.dtype),
        (second * (coming_second - along) * scaling).to(after.dtype),
    )


def text_attention_weights(text: Tensor, attention_mask: Tensor, scaling: float, dtype: torch.dtype) -> Tensor:
    """``attention_weights`` where no prefix is."""
    return (text * scaling + attention_mask).softmax(-1).to(dtype)


def text_attention_weights_backward(after: Tensor, coming: Tensor, scaling: float) -> Tensor:
    """Gradient with respect to the scores of ``text_attention_weights``."""
    share, wide = after.float(), coming.float()
    return (share * (wide - (share * wide).sum(-1, keepdim=True)) * scaling).to(after.dtype)
