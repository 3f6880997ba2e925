"""The layers of a frozen decoder with their gradient written out: matrix products, and few passes between them.

A frozen layer owes gradient to what comes in and to the prefix that it sees, to nothing else. So no linear layer keeps
its input, texts are packed (no padding outside of attention), queries look at a prefix in one product for all texts
behind it and at their own text in another, and a prompt's keys and values are never copied. It serves families built
like Llama: root-mean-square norms, rotary positions, a gated feed-forward part, grouped-query attention. Whether it
gives a model's own numbers, and gradient, is measured; where it does not, where a window is outgrown, or on other
devices than a CPU, ``transformers``' own layers run.

Shapes: ``M`` positions of all texts, ``B`` texts, ``T`` length of the longest, ``R`` prompts, ``P`` prefix length,
``H`` hidden size, ``K`` key heads, ``G`` query heads to each, ``D`` head size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from softprompt import passes
from softprompt.faster import norm_scale
from softprompt.quantised import is_plain

_remember: ContextVar[bool] = ContextVar("remember", default=True)

KeysAndValues = tuple[Tensor, Tensor]  # each [R, K, P, D]


@contextmanager
def forgetful() -> Iterator[None]:
    """Within it, a layer remembers what comes in and is run again in the backward pass (gradient checkpointing)."""
    token = _remember.set(False)
    try:
        yield
    finally:
        _remember.reset(token)


def remembering() -> bool:
    """Whether layers keep what their backward pass needs."""
    return _remember.get()


@dataclass(frozen=True)
class Norm:
    """A root-mean-square norm: ``scale`` in float32, and whether it rounds before it scales."""

    scale: Tensor
    epsilon: float
    round_first: bool

    @property
    def settings(self) -> tuple[Tensor, float, bool]:
        return self.scale, self.epsilon, self.round_first

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return passes.norm(x, *self.settings)


def norm_of(module: Any) -> Norm:
    """Raises ValueError for other norms."""
    if (found := norm_scale(module)) is None:
        raise ValueError(f"a norm of another kind: {type(module).__name__}")
    return Norm(*found)


@dataclass(frozen=True)
class Layer:
    """The parts of one layer."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    out: nn.Linear
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear
    before_attention: Norm
    after_attention: Norm | None
    before_mlp: Norm
    after_mlp: Norm | None
    of_query: Norm | None
    of_key: Norm | None
    size: int
    scaling: float
    curve: tuple[float, float]
    kind: str | None

    @classmethod
    def of(cls, module: Any, curve: tuple[float, float]) -> "Layer":
        """Raises AttributeError or ValueError where a layer is built otherwise."""
        attention, mlp = module.self_attn, module.mlp
        known = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
        wrapped = {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
        names = {name for name, _ in module.named_children()}
        if names not in (known, known | wrapped):
            raise ValueError(f"a layer of other parts: {sorted(names)}")
        others = {name for part in (attention, mlp) for name, _ in part.named_children()} - {"act_fn"}
        parts = {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
        if not parts <= others <= parts | {"q_norm", "k_norm"}:
            raise ValueError(f"attention or a feed-forward part of other parts: {sorted(others)}")
        linears = [getattr(attention if name[0] in "qkvo" else mlp, name) for name in sorted(parts)]
        if not all(type(part) is nn.Linear and is_plain(part.weight) for part in linears):
            raise ValueError("linear layers that are not plain")
        if (
            getattr(attention, "attn_logit_softcapping", None) is not None
            or getattr(attention, "sinks", None) is not None
        ):
            raise ValueError("attention with a soft cap, or sinks")
        outer = names > known
        return cls(
            attention.q_proj,
            attention.k_proj,
            attention.v_proj,
            attention.o_proj,
            mlp.gate_proj,
            mlp.up_proj,
            mlp.down_proj,
            norm_of(module.input_layernorm),
            norm_of(module.post_attention_layernorm) if outer else None,
            norm_of(module.pre_feedforward_layernorm if outer else module.post_attention_layernorm),
            norm_of(module.post_feedforward_layernorm) if outer else None,
            norm_of(attention.q_norm) if hasattr(attention, "q_norm") else None,
            norm_of(attention.k_norm) if hasattr(attention, "k_norm") else None,
            attention.head_dim,
            attention.scaling,
            curve,
            getattr(attention, "layer_type", None),
        )


@dataclass(frozen=True)
class Group:
    """Texts behind one prompt, neighbours among the packed positions.

    Attributes:
        start, stop: their positions.
        texts, length: ``B`` and ``T`` of the padded form, in which they attend.
        slots: ``[M]``, the place of each position among ``B * T``; ``None`` where there is no padding.
        hidden: ``[B, T, 1, T]``, float32: 0 where a query may look, ``-inf`` where not.
        prompt: which of the ``R``.
        behind: columns of padding before its prefix.
    """

    start: int
    stop: int
    texts: int
    length: int
    slots: Tensor | None
    hidden: Tensor
    prompt: int
    behind: int

    def padded(self, packed: Tensor, kv_heads: int, size: int) -> Tensor:
        """``[M, heads * D]`` of all groups to ``[K, B, T * G, D]`` of this one."""
        own = packed[self.start : self.stop]
        if self.slots is not None:
            own = own.new_zeros(self.texts * self.length, own.shape[1]).index_copy_(0, self.slots, own)
        heads = own.view(self.texts, self.length, kv_heads, -1, size).permute(2, 0, 1, 3, 4)
        return heads.reshape(kv_heads, self.texts, -1, size)

    def packed(self, padded: Tensor) -> Tensor:
        """The way back: ``[K, B, T * G, D]`` to ``[M, heads * D]``."""
        kv_heads, texts, _, size = padded.shape
        rows = (
            padded.view(kv_heads, texts, self.length, -1, size).permute(1, 2, 0, 3, 4).reshape(texts * self.length, -1)
        )
        return rows if self.slots is None else rows.index_select(0, self.slots)


@dataclass(frozen=True)
class Plan:
    """What all layers of one pass need to know.

    Attributes:
        turns: cosine and sine ``[M, 1, D]``, float32, by kind of layer.
        read: positions whose output is wanted of the last layer, ``[N]``; none: its keys and values only.
        remember: whether layers keep what their backward pass needs.
    """

    groups: tuple[Group, ...]
    turns: dict[str | None, tuple[Tensor, Tensor]]
    read: Tensor | None
    remember: bool


class Attended:
    """Attention of one group, and its gradient."""

    def __init__(self, layer: Layer, group: Group, query: Tensor, key: Tensor, value: Tensor, prefix: Any) -> None:
        """``query, key, value [M, heads * D]``; ``prefix``: keys and values ``[K, P, D]``, or ``None``."""
        self.layer, self.group, self.prefix = layer, group, prefix
        self.kv_heads = key.shape[1] // layer.size
        self.query = group.padded(query, self.kv_heads, layer.size)
        self.key, self.value = (group.padded(each, self.kv_heads, layer.size) for each in (key, value))
        wide = self.query.float()
        shape = (self.kv_heads, group.texts, group.length, self.query.shape[2] // group.length)
        text = (wide @ self.key.float().transpose(2, 3)).view(*shape, group.length)
        if prefix is None:
            self.before, after = None, passes.only_text_weights(text, group.hidden, layer.scaling, query.dtype)
        else:
            front = (wide.flatten(1, 2) @ prefix[0].float().transpose(1, 2)).view(*shape, -1)
            self.before, after = passes.weights(front, text, group.hidden, layer.scaling, query.dtype)
        self.after = after.flatten(2, 3)

    def found(self) -> Tensor:
        """What the queries find, packed ``[M, heads * D]``."""
        mixed = self.after @ self.value
        if self.before is not None:
            mixed = torch.baddbmm(mixed.flatten(1, 2), self.before.flatten(1, 3), self.prefix[1]).view_as(mixed)
        return self.group.packed(mixed)

    def backward(self, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, KeysAndValues | None]:
        """From the gradient of ``found`` to those of queries, keys and values (padded), and of the prefix."""
        coming = self.group.padded(gradient, self.kv_heads, self.layer.size)
        coming_after = coming @ self.value.transpose(2, 3)
        values = self.after.transpose(2, 3) @ coming
        if self.before is None:
            scores = passes.only_text_weights_backward(self.after, coming_after, self.layer.scaling)
            return scores @ self.key, scores.transpose(2, 3) @ self.query, values, None
        keys, front_values = self.prefix
        joined, before = coming.flatten(1, 2), self.before.flatten(1, 3)
        coming_before = joined @ front_values.transpose(1, 2)
        front, scores = passes.weights_backward(
            before, self.after.flatten(1, 2), coming_before, coming_after.flatten(1, 2), self.layer.scaling
        )
        scores = scores.view_as(self.after)
        query = torch.baddbmm((scores @ self.key).flatten(1, 2), front, keys).view_as(self.query)
        of_prefix = (front.transpose(1, 2) @ self.query.flatten(1, 2), before.transpose(1, 2) @ joined)
        return query, scores.transpose(2, 3) @ self.query, values, of_prefix


class Run:
    """One layer over packed positions, with what its backward pass needs.

    Attributes:
        result: what comes out, ``[M, H]``, or of the last layer ``[N, H]``.
        key, value: its keys, turned, and values: ``[M, K * D]``.
    """

    def __init__(self, layer: Layer, plan: Plan, last: bool, x: Tensor, keys: Any = None, values: Any = None) -> None:
        """``keys, values``: of the prefixes, ``[R, K, P, D]``."""
        self.layer, self.plan, self.last, self.x, self.keys, self.values = layer, plan, last, x, keys, values
        normed, self.x_inverse = layer.before_attention(x)
        self.query_in, self.key_in = layer.query(normed), layer.key(normed)
        self.value = layer.value(normed)
        query, self.query_inverse = self._turned(self.query_in, layer.of_query)
        self.key, self.key_inverse = self._turned(self.key_in, layer.of_key)
        if last and plan.read is None:
            self.result = x[:0]
            return
        self.attended = [
            Attended(layer, group, query, self.key, self.value, self._before(group)) for group in plan.groups
        ]
        parts = [each.found() for each in self.attended]
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
        if last and plan.read is not None:
            found, x = found.index_select(0, plan.read), x.index_select(0, plan.read)
        self.mixed = layer.out(found)
        self.middle, self.mixed_inverse, normed, self.middle_inverse = passes.joined_and_normed(
            x, self.mixed, *_settings(layer.after_attention), *layer.before_mlp.settings
        )
        self.gate, self.up = layer.gate(normed), layer.up(normed)
        self.through = layer.down(passes.gated(self.gate, self.up, *layer.curve))
        self.result, self.through_inverse = passes.joined(self.middle, self.through, *_settings(layer.after_mlp))

    def backward(
        self, result: Tensor | None, key: Tensor | None, value: Tensor | None, *, wanted: bool
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """From the gradients of what the attributes are called to those of ``x`` (if ``wanted``), ``keys, values``."""
        layer, positions = self.layer, len(self.x)
        queries: Tensor | None = None
        coming: Tensor | None = None
        of_keys: Tensor | None = None
        of_values: Tensor | None = None
        if result is not None and len(result):
            inner = passes.joined_backward(result, self.through, self.through_inverse, _settings(layer.after_mlp)[0])
            gate, up = passes.gated_backward(inner @ layer.down.weight, self.gate, self.up, *layer.curve)
            coming, found = passes.joined_and_normed_backward(
                result,
                torch.addmm(gate @ layer.gate.weight, up, layer.up.weight),
                self.middle,
                self.middle_inverse,
                layer.before_mlp.scale,
                self.mixed,
                self.mixed_inverse,
                _settings(layer.after_attention)[0],
            )
            found = found @ layer.out.weight
            if self.last and self.plan.read is not None:
                coming, found = (
                    each.new_zeros(positions, each.shape[1]).index_add_(0, self.plan.read, each)
                    for each in (coming, found)
                )
            if self.keys is not None:
                of_keys, of_values = torch.zeros_like(self.keys), torch.zeros_like(self.values)
            parts = []
            for each in self.attended:
                own = each.group
                *texts, of_prefix = each.backward(found)
                if of_prefix is not None and of_keys is not None and of_values is not None:
                    of_keys[own.prompt, :, own.behind :] += of_prefix[0]
                    of_values[own.prompt, :, own.behind :] += of_prefix[1]
                if wanted:
                    parts.append([own.packed(part) for part in texts])
            if not wanted:
                return None, of_keys, of_values
            queries, keys, values = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
            key, value = keys if key is None else key + keys, values if value is None else value + values
        if not wanted or key is None or value is None:
            return None, of_keys, of_values
        inner = torch.addmm(
            self._unturned(key, self.key_in, self.key_inverse, layer.of_key) @ layer.key.weight,
            value,
            layer.value.weight,
        )
        if queries is not None:
            through = self._unturned(queries, self.query_in, self.query_inverse, layer.of_query)
            inner = torch.addmm(inner, through, layer.query.weight)
        before = (self.x, self.x_inverse, layer.before_attention.scale)
        if coming is None:
            return passes.norm_backward(inner, *before), of_keys, of_values
        return passes.normed_and_joined_backward(coming, inner, *before), of_keys, of_values

    def _before(self, group: Group) -> KeysAndValues | None:
        """Keys and values ``[K, P, D]`` of a group's prefix."""
        if self.keys is None or group.behind == self.keys.shape[2]:
            return None
        return self.keys[group.prompt, :, group.behind :], self.values[group.prompt, :, group.behind :]

    def _turned(self, heads: Tensor, norm: Norm | None) -> tuple[Tensor, Tensor | None]:
        """``[M, heads * D]`` normed and turned, and the norm's inverse."""
        apart = heads.view(len(heads), -1, self.layer.size)
        turned, inverse = passes.heads(apart, *_settings(norm), *self.plan.turns[self.layer.kind])
        return turned.flatten(1), inverse

    def _unturned(self, gradient: Tensor, heads: Tensor, inverse: Tensor | None, norm: Norm | None) -> Tensor:
        shape = (len(heads), -1, self.layer.size)
        own = (heads.view(shape), inverse, _settings(norm)[0])
        return passes.heads_backward(gradient.view(shape), *own, *self.plan.turns[self.layer.kind]).flatten(1)


def _settings(norm: Norm | None) -> tuple[Tensor | None, float, bool]:
    return (None, 0.0, False) if norm is None else norm.settings


class LayerPass(torch.autograd.Function):
    """``Run`` with gradient: ``result``, ``key`` and ``value``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, keys: Tensor | None, values: Tensor | None, layer: Layer, plan: Plan, last: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        run = Run(layer, plan, last, x, keys, values)
        ctx.arguments = (layer, plan, last)
        ctx.save_for_backward(x, keys, values)
        ctx.run = run if plan.remember and any(ctx.needs_input_grad) else None
        return run.result, run.key, run.value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        run = ctx.run or Run(*ctx.arguments, *ctx.saved_tensors)
        ctx.run = None
        return (*run.backward(*grad_outputs, wanted=ctx.needs_input_grad[0]), None, None, None)
