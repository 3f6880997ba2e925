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

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from softprompt import segments
from softprompt.faster import norm_scale
from softprompt.quantised import is_plain
from softprompt.segments import NO_NORM, Linear, Norm

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


def norm_of(module: Any) -> Norm:
    """Raises ValueError for other norms."""
    if (found := norm_scale(module)) is None:
        raise ValueError(f"a norm of another kind: {type(module).__name__}")
    return Norm(*found)


@dataclass(frozen=True)
class Layer:
    """The parts of one layer."""

    query: Linear
    key: Linear
    value: Linear
    out: Linear
    gate: Linear
    up: Linear
    down: Linear
    before_attention: Norm
    after_attention: Norm
    before_mlp: Norm
    after_mlp: Norm
    of_query: Norm
    of_key: Norm
    size: int
    scaling: float
    curve: tuple[float, float]
    kind: str | None

    @property
    def entrance(self) -> tuple[Any, ...]:
        """What ``segments.enter`` takes of it."""
        return self.before_attention, self.query, self.key, self.value, self.of_query, self.of_key

    @property
    def exit(self) -> tuple[Any, ...]:
        """What ``segments.leave`` takes of it."""
        return self.out, self.after_attention, self.before_mlp, self.gate, self.up, self.down, self.after_mlp

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
            *(
                Linear(part.weight, part.bias)
                for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
            ),
            *(Linear(part.weight, part.bias) for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)),
            norm_of(module.input_layernorm),
            norm_of(module.post_attention_layernorm) if outer else NO_NORM,
            norm_of(module.pre_feedforward_layernorm if outer else module.post_attention_layernorm),
            norm_of(module.post_feedforward_layernorm) if outer else NO_NORM,
            norm_of(attention.q_norm) if hasattr(attention, "q_norm") else NO_NORM,
            norm_of(attention.k_norm) if hasattr(attention, "k_norm") else NO_NORM,
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
        slots: ``[M]``, the place of each position among ``B * T`` of the padded form; ``None`` where there is no padding.
        hidden: ``[B, T, 1, T]``, float32: 0 where a query may look, ``-inf`` where not.
        prompt: which of the ``R``.
        behind: columns of padding before its prefix.
    """

    start: int
    stop: int
    slots: Tensor | None
    hidden: Tensor
    prompt: int
    behind: int


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


class Run:
    """One layer over packed positions, with what its backward pass needs.

    Attributes:
        result: what comes out, ``[M, H]``, or of the last layer ``[N, H]``.
        entered: its keys, turned, and values are ``key, value [M, K * D]``.
    """

    def __init__(self, layer: Layer, plan: Plan, last: bool, x: Tensor, keys: Any = None, values: Any = None) -> None:
        """``keys, values``: of the prefixes, ``[R, K, P, D]``."""
        # detached: what was compiled for tensors without gradient is not compiled for others
        self.layer, self.plan, self.last, self.x = layer, plan, last, x.detach()
        self.prefix = None if keys is None else (keys.detach(), values.detach())
        self.entered = segments.enter(self.x, *layer.entrance, *plan.turns[layer.kind], layer.size)
        self.left: segments.Left | None = None
        self.result = self.x[:0]
        if last and plan.read is None:
            return
        self.attended = [self._attended(group) for group in plan.groups]
        x, found = self.x, _joined([each.found for each in self.attended])
        if last and plan.read is not None:
            x, found = x.index_select(0, plan.read), found.index_select(0, plan.read)
        self.left = segments.leave(x, found, *layer.exit, *layer.curve)
        self.result = self.left.result

    def backward(
        self, result: Tensor | None, key: Tensor | None, value: Tensor | None, *, wanted: bool
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """From the gradients of what the attributes are called to those of ``x`` (if ``wanted``), ``keys, values``."""
        layer, plan = self.layer, self.plan
        queries: Tensor | None = None
        coming: Tensor | None = None
        of_prefix: tuple[Tensor | None, Tensor | None] = (None, None)
        if result is not None and self.left is not None and len(result):
            coming, found = segments.leave_backward(result, self.left, *layer.exit, *layer.curve)
            if self.last and plan.read is not None:
                coming, found = (
                    each.new_zeros(len(self.x), each.shape[1]).index_add_(0, plan.read, each)
                    for each in (coming, found)
                )
            parts = [
                segments.attend_backward(
                    found[group.start : group.stop],
                    attended,
                    *self._before(group),
                    group.hidden,
                    group.slots,
                    layer.scaling,
                )
                for group, attended in zip(plan.groups, self.attended, strict=True)
            ]
            of_prefix = self._of_prefix([part[3] for part in parts])
            if not wanted:
                return None, *of_prefix
            queries, keys, values = (_joined([part[place] for part in parts]) for place in range(3))
            key, value = keys if key is None else key + keys, values if value is None else value + values
        if not wanted or key is None or value is None:
            return None, *of_prefix
        turns = plan.turns[layer.kind]
        own = segments.enter_backward(
            coming, queries, key, value, self.x, self.entered, *layer.entrance, *turns, layer.size
        )
        return own, *of_prefix

    def _attended(self, group: Group) -> segments.Attended:
        own = (each[group.start : group.stop] for each in self.entered[:3])
        layer = self.layer
        return segments.attend(*own, *self._before(group), group.hidden, group.slots, layer.scaling, layer.size)

    def _before(self, group: Group) -> tuple[Tensor | None, Tensor | None]:
        """Keys and values ``[K, P, D]`` of a group's prefix."""
        if self.prefix is None or group.behind == self.prefix[0].shape[2]:
            return None, None
        keys, values = (each[group.prompt, :, group.behind :] for each in self.prefix)
        # strides are part of what is compiled, those of what it is a part of too
        return keys.clone(memory_format=torch.contiguous_format), values.clone(memory_format=torch.contiguous_format)

    def _of_prefix(self, parts: Sequence[KeysAndValues | None]) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of all prefixes ``[R, K, P, D]``, from those of each group's."""
        if self.prefix is None:
            return None, None
        keys, values = (torch.zeros_like(each) for each in self.prefix)
        for group, part in zip(self.plan.groups, parts, strict=True):
            if part is not None:
                keys[group.prompt, :, group.behind :] += part[0]
                values[group.prompt, :, group.behind :] += part[1]
        return keys, values


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """``[M, ...]`` of all groups."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


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
        return run.result, run.entered.key, run.entered.value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        run = ctx.run or Run(*ctx.arguments, *ctx.saved_tensors)
        ctx.run = None
        return (*run.backward(*grad_outputs, wanted=ctx.needs_input_grad[0]), None, None, None)
