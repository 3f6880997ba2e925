"""A decoder layer in three parts, forward and backward: into attention, attention of one group of texts, out of it.

Plain functions of tensors around what stands in passes.py. Each is one call where they are compiled: what its many
small operations cost the interpreter is then as much as its matrix products on a small model.

Shapes: as in fused_layer.py.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional

from softprompt import passes

_Function = TypeVar("_Function", bound=Callable[..., Any])
_compiled: ContextVar[bool] = ContextVar("compiled", default=False)


@contextmanager
def compiled() -> Iterator[None]:
    """Within it, a C++ compiler's work runs for each of them, made the first time that it is called."""
    token = _compiled.set(True)
    try:
        yield
    finally:
        _compiled.reset(token)


def is_compiled() -> bool:
    """Whether it is within ``compiled``."""
    return _compiled.get()


def _one_call(plain: _Function) -> _Function:
    """``plain``, or within ``compiled`` what a compiler made of it."""
    made: list[Any] = []

    @functools.wraps(plain)
    def run(*given: Any) -> Any:
        if not _compiled.get():
            return plain(*given)
        if not made:
            made.append(torch.compile(plain, dynamic=True))
        return made[0](*given)

    return cast(_Function, run)

class Linear(NamedTuple):
    """A linear part: ``weight [out, in]``, ``bias [out]``."""

    weight: Tensor
    bias: Tensor | None


class Norm(NamedTuple):
    """A root-mean-square norm: ``scale`` in float32, and whether it rounds before it scales. No scale: no norm."""

    scale: Tensor | None
    epsilon: float
    round_first: bool


NO_NORM = Norm(None, 0.0, False)


class Entered(NamedTuple):
    """What goes into attention, ``[M, heads * D]``: queries and keys turned, values; and what its gradient needs."""

    query: Tensor
    key: Tensor
    value: Tensor
    inverse: Tensor
    query_in: Tensor
    query_inverse: Tensor | None
    key_in: Tensor
    key_inverse: Tensor | None


class Attended(NamedTuple):
    """What the queries of a group found, ``[M, heads * D]``, and what its gradient needs.

    Attributes:
        query: padded, ``[K, B, T * G, D]``; key and value with ``G = 1``.
        before, after: weights of the prefix ``[K, B, T, G, P]``, and of the texts ``[K, B, T * G, T]``.
    """

    found: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    before: Tensor | None
    after: Tensor


class Left(NamedTuple):
    """What comes out of the layer, ``[M, H]``, and what its gradient needs."""

    result: Tensor
    mixed: Tensor
    mixed_inverse: Tensor | None
    middle: Tensor
    middle_inverse: Tensor
    gate: Tensor
    up: Tensor
    through: Tensor
    through_inverse: Tensor | None


@_one_call
def enter(
    x: Tensor,
    before: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    of_query: Norm,
    of_key: Norm,
    cosine: Tensor,
    sine: Tensor,
    size: int,
) -> Entered:
    """``x [M, H]`` to what attends; ``cosine, sine [M, 1, D]``, ``size`` is ``D``."""
    normed, inverse = passes.norm(x, *before)
    query_in, key_in = functional.linear(normed, *query), functional.linear(normed, *key)
    turned_query, query_inverse = passes.heads(query_in.view(len(x), -1, size), *of_query, cosine, sine)
    turned_key, key_inverse = passes.heads(key_in.view(len(x), -1, size), *of_key, cosine, sine)
    return Entered(
        turned_query.flatten(1),
        turned_key.flatten(1),
        functional.linear(normed, *value),
        inverse,
        query_in,
        query_inverse,
        key_in,
        key_inverse,
    )


@_one_call
def enter_backward(
    coming: Tensor | None,
    queries: Tensor | None,
    keys: Tensor,
    values: Tensor,
    x: Tensor,
    entered: Entered,
    before: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    of_query: Norm,
    of_key: Norm,
    cosine: Tensor,
    sine: Tensor,
    size: int,
) -> Tensor:
    """Gradient with respect to ``x``, from those of ``query, key, value`` and ``coming``, which goes past them."""
    shape = (len(x), -1, size)
    through = passes.heads_backward(
        keys.view(shape), entered.key_in.view(shape), entered.key_inverse, of_key.scale, cosine, sine
    )
    inner = torch.addmm(through.flatten(1) @ key.weight, values, value.weight)
    if queries is not None:
        through = passes.heads_backward(
            queries.view(shape), entered.query_in.view(shape), entered.query_inverse, of_query.scale, cosine, sine
        )
        inner = torch.addmm(inner, through.flatten(1), query.weight)
    own = passes.norm_backward(inner, x, entered.inverse, before.scale)
    return own if coming is None else coming + own


@_one_call
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor | None,
    values: Tensor | None,
    hidden: Tensor,
    slots: Tensor | None,
    scaling: float,
    size: int,
) -> Attended:
    """Attention of packed texts over a prefix's ``keys, values [K, P, D]``, where there is one, and over themselves.

    Args:
        hidden: ``[B, T, 1, T]``, float32: 0 where a query may look, ``-inf`` where not.
        slots: ``[M]``, the place of each position among ``B * T``; ``None`` where there is no padding.
    """
    texts, length = hidden.shape[:2]
    heads = key.shape[1] // size
    query, key, value = (_padded(each, texts, length, heads, size, slots) for each in (query, key, value))
    wide, shape = query.float(), (heads, texts, length, -1, length)
    text = (wide @ key.float().transpose(2, 3)).view(shape)
    if keys is None or values is None:
        before = None
        after = passes.only_text_weights(text, hidden, scaling, query.dtype).flatten(2, 3)
        found = after @ value
    else:
        front = (wide.flatten(1, 2) @ keys.float().transpose(1, 2)).view(*text.shape[:-1], keys.shape[1])
        before, after = passes.weights(front, text, hidden, scaling, query.dtype)
        after = after.flatten(2, 3)
        found = torch.baddbmm((after @ value).flatten(1, 2), before.flatten(1, 3), values).view_as(query)
    return Attended(_packed(found, length, slots), query, key, value, before, after)


@_one_call
def attend_backward(
    gradient: Tensor,
    attended: Attended,
    keys: Tensor | None,
    values: Tensor | None,
    hidden: Tensor,
    slots: Tensor | None,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """From the gradient of ``found`` to those of queries, keys and values, packed, and of the prefix."""
    texts, length = hidden.shape[:2]
    _, query, key, value, before, after = attended
    coming = _padded(gradient, texts, length, query.shape[0], query.shape[3], slots)
    coming_after = coming @ value.transpose(2, 3)
    of_values = after.transpose(2, 3) @ coming
    of_prefix = None
    if before is None or keys is None or values is None:
        scores = passes.only_text_weights_backward(after, coming_after, scaling)
        of_query = scores @ key
    else:
        joined, first = coming.flatten(1, 2), before.flatten(1, 3)
        front, scores = passes.weights_backward(
            first, after.flatten(1, 2), joined @ values.transpose(1, 2), coming_after.flatten(1, 2), scaling
        )
        scores = scores.view_as(after)
        of_query = torch.baddbmm((scores @ key).flatten(1, 2), front, keys).view_as(query)
        of_prefix = (front.transpose(1, 2) @ query.flatten(1, 2), first.transpose(1, 2) @ joined)
    of_keys = scores.transpose(2, 3) @ query
    return *(_packed(each, length, slots) for each in (of_query, of_keys, of_values)), of_prefix


@_one_call
def leave(
    x: Tensor,
    found: Tensor,
    out: Linear,
    after: Norm,
    before_mlp: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
    after_mlp: Norm,
    slope: float,
    bend: float,
) -> Left:
    """``x [M, H]`` and what attention found for it to what comes out; ``slope`` and ``bend`` as in ``CURVES``."""
    mixed = functional.linear(found, *out)
    middle, mixed_inverse = passes.joined(x, mixed, *after)
    normed, middle_inverse = passes.norm(middle, *before_mlp)
    gated, raised = functional.linear(normed, *gate), functional.linear(normed, *up)
    through = functional.linear(passes.gated(gated, raised, slope, bend), *down)
    result, through_inverse = passes.joined(middle, through, *after_mlp)
    return Left(result, mixed, mixed_inverse, middle, middle_inverse, gated, raised, through, through_inverse)


@_one_call
def leave_backward(
    gradient: Tensor,
    left: Left,
    out: Linear,
    after: Norm,
    before_mlp: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
    after_mlp: Norm,
    slope: float,
    bend: float,
) -> tuple[Tensor, Tensor]:
    """From the gradient of ``result`` to those of ``x``, past attention, and of what attention found."""
    inner = passes.joined_backward(gradient, left.through, left.through_inverse, after_mlp.scale)
    gated, raised = passes.gated_backward(inner @ down.weight, left.gate, left.up, slope, bend)
    inner = torch.addmm(gated @ gate.weight, raised, up.weight)
    coming = gradient + passes.norm_backward(inner, left.middle, left.middle_inverse, before_mlp.scale)
    mixed = passes.joined_backward(coming, left.mixed, left.mixed_inverse, after.scale)
    return coming, mixed @ out.weight


def _padded(packed: Tensor, texts: int, length: int, heads: int, size: int, slots: Tensor | None) -> Tensor:
    """``[M, K * G * D]`` to ``[K, B, T * G, D]``."""
    if slots is not None:
        packed = packed.new_zeros(texts * length, packed.shape[1]).index_copy_(0, slots, packed)
    rows = packed.view(texts, length, heads, -1, size).permute(2, 0, 1, 3, 4)
    return rows.reshape(heads, texts, -1, size)


def _packed(padded: Tensor, length: int, slots: Tensor | None) -> Tensor:
    """The way back."""
    heads, texts, _, size = padded.shape
    rows = padded.view(heads, texts, length, -1, size).permute(1, 2, 0, 3, 4).reshape(texts * length, -1)
    return rows if slots is None else rows.index_select(0, slots)
