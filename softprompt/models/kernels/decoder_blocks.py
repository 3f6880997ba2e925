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

from softprompt.models.kernels import elementwise
from softprompt.models.kernels.elementwise import Norm

Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]
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


def _make_compilable(plain: _Function) -> _Function:
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

    @property
    def inputs(self) -> int:
        """Numbers that go in for each position."""
        return self.weight.shape[1]

    @property
    def outputs(self) -> int:
        """Numbers that come out."""
        return self.weight.shape[0]


class InputProjection(NamedTuple):
    """What a layer does before attention: a norm, three linear parts, queries and keys normed in some families.

    Attributes:
        size: ``D``.
    """

    before: Norm
    query: Linear
    key: Linear
    value: Linear
    of_query: Norm | None
    of_key: Norm | None
    size: int


class FeedForward(NamedTuple):
    """What it does behind attention: a linear part, and the feed-forward part, its sums normed in some families.

    Attributes:
        slope, bend: as in ``passes.ACTIVATIONS``.
    """

    out: Linear
    after: Norm | None
    before_mlp: Norm
    gate: Linear
    up: Linear
    down: Linear
    after_mlp: Norm | None
    slope: float
    bend: float


class Texts(NamedTuple):
    """Packed texts behind one prefix.

    Attributes:
        batch, length: ``B`` and ``T``.
        attention_mask: ``[B, T, 1, T]``, float32: 0 where a query may look, ``-inf`` where not; ``None``: at all
            before it, in long texts.
        slots: ``[M]``, the place of each position among ``B * T`` of the padded form; ``None`` if nothing is padded.
        scaling: what scores are multiplied by.
        size: ``D``.
    """

    batch: int
    length: int
    attention_mask: Tensor | None
    slots: Tensor | None
    scaling: float
    size: int


class InputProjectionCache(NamedTuple):
    """What the gradient of ``project_input`` needs: queries and keys before they are normed, and inverse roots."""

    inverse: Tensor
    query: Tensor
    query_inverse: Tensor | None
    key: Tensor
    key_inverse: Tensor | None


class AttentionCache(NamedTuple):
    """What the gradient of ``attend`` needs.

    Attributes:
        query: padded, ``[K, B, T * G, D]``; key and value with ``G = 1``.
        before, after: weights of the prefix ``[K, B, T, G, P]``, and of the texts ``[K, B, T * G, T]``.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    before: Tensor | None
    after: Tensor


class FeedForwardCache(NamedTuple):
    """What the gradient of ``feed_forward`` needs."""

    mixed: Tensor
    mixed_inverse: Tensor | None
    middle: Tensor
    middle_inverse: Tensor
    gate: Tensor
    up: Tensor
    through: Tensor
    through_inverse: Tensor | None


@_make_compilable
def project_input(
    x: Tensor, parts: InputProjection, cosine: Tensor, sine: Tensor
) -> tuple[Tensor, Tensor, Tensor, InputProjectionCache]:
    """``x [M, H]`` to queries and keys, turned, and values ``[M, heads * D]``; ``cosine, sine [M, 1, D]``."""
    shape = (len(x), -1, parts.size)
    normed, inverse = elementwise.norm(x, parts.before)
    query_in, key_in = functional.linear(normed, *parts.query), functional.linear(normed, *parts.key)
    query, query_inverse = elementwise.rotate_heads(query_in.view(shape), parts.of_query, cosine, sine)
    key, key_inverse = elementwise.rotate_heads(key_in.view(shape), parts.of_key, cosine, sine)
    value = functional.linear(normed, *parts.value)
    return (
        query.flatten(1),
        key.flatten(1),
        value,
        InputProjectionCache(inverse, query_in, query_inverse, key_in, key_inverse),
    )


@_make_compilable
def project_input_backward(
    coming: Tensor | None,
    queries: Tensor | None,
    keys: Tensor,
    values: Tensor,
    x: Tensor,
    entered: InputProjectionCache,
    parts: InputProjection,
    cosine: Tensor,
    sine: Tensor,
) -> Tensor:
    """Gradient with respect to ``x``, from those of ``query, key, value`` and ``coming``, which goes past them."""
    shape = (len(x), -1, parts.size)
    key_in, query_in = entered.key.view(shape), entered.query.view(shape)
    through = elementwise.rotate_heads_backward(
        keys.view(shape), key_in, entered.key_inverse, parts.of_key, cosine, sine
    )
    inner = torch.addmm(through.flatten(1) @ parts.key.weight, values, parts.value.weight)
    if queries is not None:
        through = elementwise.rotate_heads_backward(
            queries.view(shape), query_in, entered.query_inverse, parts.of_query, cosine, sine
        )
        inner = torch.addmm(inner, through.flatten(1), parts.query.weight)
    own = elementwise.norm_backward(inner, x, entered.inverse, parts.before)
    return own if coming is None else coming + own


def attend(own: Triple, prefix: Pair | None, texts: Texts) -> tuple[Tensor, AttentionCache]:
    """What the queries of packed texts find, ``[M, K * G * D]``, in their own text and in a prefix, where there is one.

    Args:
        own: their queries, keys and values, ``[M, heads * D]``.
        prefix: keys and values ``[K, P, D]`` for all texts, or ``[K * B, P, D]``.
    """
    assert texts.attention_mask is not None
    heads = own[1].shape[1] // texts.size
    query, key, value = (pad(each, heads, texts) for each in own)
    found, attended = _attend(query, key, value, _by_text(prefix, heads), texts.attention_mask, texts.scaling)
    return pack(found, texts), attended


def attend_backward(
    gradient: Tensor, attended: AttentionCache, prefix: Pair | None, texts: Texts
) -> tuple[Triple, Pair | None]:
    """From the gradient of what was found to those of ``own`` and ``prefix``."""
    heads = attended.key.shape[0]
    coming = pad(gradient, heads, texts)
    own, of_prefix = _attend_backward(coming, attended, _by_text(prefix, heads), texts.scaling)
    query, key, value = (pack(each, texts) for each in own)
    return (query, key, value), of_prefix


def _by_text(prefix: Pair | None, heads: int) -> Pair | None:
    """``[K, P, D]`` as they are, ``[K * B, P, D]`` as ``[K, B, P, D]``.

    Sizes that go into what is compiled are sizes of tensors: quotients of them are divided anew at every number.
    """
    if prefix is None or len(prefix[0]) == heads:
        return prefix
    keys, values = (each.view(heads, -1, *each.shape[1:]) for each in prefix)
    return keys, values


@_make_compilable
def _attend(
    query: Tensor, key: Tensor, value: Tensor, prefix: Pair | None, attention_mask: Tensor, scaling: float
) -> tuple[Tensor, AttentionCache]:
    """``query [B, T, K, G, D]``, ``key`` and ``value`` with ``G = 1``, to what is found in the form of ``query``."""
    count, length, heads, group, size = query.shape
    query, key, value = (_sort_by_head(each) for each in (query, key, value))
    wide, shape = query.float(), (heads, count, length, group, length)
    text = (wide @ key.float().transpose(2, 3)).view(shape)
    if prefix is None:
        before = None
        after = elementwise.text_attention_weights(text, attention_mask, scaling, query.dtype).flatten(2, 3)
        found = after @ value
    else:
        keys, values = (each.flatten(0, -3) for each in prefix)
        seen_by = (len(keys), (count if prefix[0].dim() == 3 else 1) * length * group, size)
        front = _multiply_in_float32(query.reshape(seen_by), wide.reshape(seen_by), keys)
        front = front.view(*shape[:-1], keys.shape[1])
        before, after = elementwise.attention_weights(front, text, attention_mask, scaling, query.dtype)
        after = after.flatten(2, 3)
        seen = before.reshape(len(keys), seen_by[1], keys.shape[1])
        found = torch.baddbmm((after @ value).reshape(seen_by), seen, values)
    found = found.view(heads, count, length, group, size).permute(1, 2, 0, 3, 4).contiguous()
    return found, AttentionCache(query, key, value, before, after)


@_make_compilable
def _attend_backward(
    coming: Tensor, attended: AttentionCache, prefix: Pair | None, scaling: float
) -> tuple[Triple, Pair | None]:
    """From the gradient of what ``_attend`` found to those of its first three arguments, and of ``prefix``."""
    count, length, heads, group, size = coming.shape
    query, key, value, before, after = attended
    coming = _sort_by_head(coming)
    coming_after = coming @ value.transpose(2, 3)
    of_values = after.transpose(2, 3) @ coming
    of_prefix = None
    if before is None or prefix is None:
        scores = elementwise.text_attention_weights_backward(after, coming_after, scaling)
        of_query = scores @ key
    else:
        keys, values = prefix
        joined, first = coming.flatten(1, 2), before.flatten(1, 3)
        front, scores = elementwise.attention_weights_backward(
            first, after.flatten(1, 2), joined @ values.transpose(1, 2), coming_after.flatten(1, 2), scaling
        )
        scores = scores.view_as(after)
        of_query = torch.baddbmm((scores @ key).flatten(1, 2), front, keys)
        of_prefix = (front.transpose(1, 2) @ query.flatten(1, 2), first.transpose(1, 2) @ joined)
    of_keys = scores.transpose(2, 3) @ query
    own = (
        of_query.view(heads, count, length, group, size).permute(1, 2, 0, 3, 4).contiguous(),
        of_keys.view(heads, count, length, 1, size).permute(1, 2, 0, 3, 4).contiguous(),
        of_values.view(heads, count, length, 1, size).permute(1, 2, 0, 3, 4).contiguous(),
    )
    return own, of_prefix


def _sort_by_head(texts: Tensor) -> Tensor:
    """``[B, T, K, G, D]`` to ``[K, B, T * G, D]``."""
    count, length, heads, group, size = texts.shape
    return texts.permute(2, 0, 1, 3, 4).reshape(heads, count, length * group, size)


@_make_compilable
def feed_forward(x: Tensor, found: Tensor, parts: FeedForward) -> tuple[Tensor, FeedForwardCache]:
    """``x [M, H]`` and what attention found for it to what comes out."""
    mixed = functional.linear(found, *parts.out)
    middle, mixed_inverse = elementwise.add_residual(x, mixed, parts.after)
    normed, middle_inverse = elementwise.norm(middle, parts.before_mlp)
    gate, up = functional.linear(normed, *parts.gate), functional.linear(normed, *parts.up)
    through = functional.linear(elementwise.activate_gate(gate, up, parts.slope, parts.bend), *parts.down)
    result, through_inverse = elementwise.add_residual(middle, through, parts.after_mlp)
    return result, FeedForwardCache(mixed, mixed_inverse, middle, middle_inverse, gate, up, through, through_inverse)


@_make_compilable
def feed_forward_backward(gradient: Tensor, left: FeedForwardCache, parts: FeedForward) -> tuple[Tensor, Tensor]:
    """From the gradient of what comes out to those of ``x``, past attention, and of what attention found."""
    inner = elementwise.add_residual_backward(gradient, left.through, left.through_inverse, parts.after_mlp)
    gate, up = elementwise.activate_gate_backward(
        inner @ parts.down.weight, left.gate, left.up, parts.slope, parts.bend
    )
    inner = torch.addmm(gate @ parts.gate.weight, up, parts.up.weight)
    coming = gradient + elementwise.norm_backward(inner, left.middle, left.middle_inverse, parts.before_mlp)
    mixed = elementwise.add_residual_backward(coming, left.mixed, left.mixed_inverse, parts.after)
    return coming, mixed @ parts.out.weight


def _multiply_in_float32(query: Tensor, wide: Tensor, keys: Tensor) -> Tensor:
    """``[N, Q, P]``, float32, of queries ``[N, Q, D]``, which ``wide`` are in float32, and ``keys [N, P, D]``.

    Compiled, in bfloat16: a product, and what rounding took from it. Each takes a quarter of the time of the product in
    float32, to which their sum is equal to 1 in 2^16. One by one, the passes over memory between them take it up again.
    """
    turned = keys.transpose(1, 2)
    if query.dtype != torch.bfloat16 or not torch.compiler.is_compiling():
        return wide @ turned.float()
    rounded = query @ turned
    return rounded.float() + torch.baddbmm(rounded, query, turned, beta=-1).float()


def pad(packed: Tensor, heads: int, texts: Texts) -> Tensor:
    """``[M, K * G * D]`` to ``[B, T, K, G, D]``."""
    if texts.slots is not None:
        packed = packed.new_zeros(texts.batch * texts.length, packed.shape[1]).index_copy_(0, texts.slots, packed)
    return packed.view(texts.batch, texts.length, heads, -1, texts.size)


def pack(padded: Tensor, texts: Texts) -> Tensor:
    """The way back."""
    rows = padded.flatten(0, 1).flatten(1)
    return rows if texts.slots is None else rows.index_select(0, texts.slots)
