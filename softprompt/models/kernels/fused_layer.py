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

from softprompt.models.fast_attention import norm_scale
from softprompt.models.kernels import decoder_blocks
from softprompt.models.kernels.decoder_blocks import FeedForward, InputProjection, Linear
from softprompt.models.kernels.elementwise import Norm
from softprompt.models.kernels.long_attention import LongAttentionCache, attend_long, attend_long_backward
from softprompt.models.quantization import is_plain

_remember: ContextVar[bool] = ContextVar("remember", default=True)

KeysAndValues = tuple[Tensor, Tensor]  # each [R, K, P, D]


@contextmanager
def checkpoint_layers() -> Iterator[None]:
    """Within it, a layer remembers what comes in and is run again in the backward pass (gradient checkpointing)."""
    token = _remember.set(False)
    try:
        yield
    finally:
        _remember.reset(token)


def keeps_activations() -> bool:
    """Whether layers keep what their backward pass needs."""
    return _remember.get()


def parse_norm(module: Any) -> Norm:
    """Raises ValueError for other norms."""
    if (found := norm_scale(module)) is None:
        raise ValueError(f"a norm of another kind: {type(module).__name__}")
    return Norm(*found)


def parse_linear(module: Any) -> Linear:
    """Raises ValueError for quantized ones and other kinds."""
    if type(module) is not nn.Linear or not is_plain(module.weight):
        raise ValueError(f"a linear layer that is not plain: {type(module).__name__}")
    return Linear(module.weight, module.bias)


@dataclass(frozen=True)
class Layer:
    """The parts of one layer, and which rotary embedding turns it, where there are several."""

    input_projection: InputProjection
    feed_forward: FeedForward
    scaling: float
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
        if (
            getattr(attention, "attn_logit_softcapping", None) is not None
            or getattr(attention, "sinks", None) is not None
        ):
            raise ValueError("attention with a soft cap, or sinks")
        outer = names > known
        input_projection = InputProjection(
            parse_norm(module.input_layernorm),
            parse_linear(attention.q_proj),
            parse_linear(attention.k_proj),
            parse_linear(attention.v_proj),
            parse_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
            parse_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
            attention.head_dim,
        )
        leaving = FeedForward(
            parse_linear(attention.o_proj),
            parse_norm(module.post_attention_layernorm) if outer else None,
            parse_norm(module.pre_feedforward_layernorm if outer else module.post_attention_layernorm),
            parse_linear(mlp.gate_proj),
            parse_linear(mlp.up_proj),
            parse_linear(mlp.down_proj),
            parse_norm(module.post_feedforward_layernorm) if outer else None,
            *curve,
        )
        return cls(input_projection, leaving, attention.scaling, getattr(attention, "layer_type", None))


@dataclass(frozen=True)
class TextGroup:
    """Texts behind one prompt or several of one length, or a prompt itself, neighbours among the packed positions.

    Attributes:
        start, stop: their positions.
        slots: ``[M]``, the place of each position among ``B * T`` of the padded form; ``None`` if nothing is padded.
        batch, length: texts, and tokens of the longest.
        attention_mask: ``[B, T, 1, T]``, float32: 0 where a query may look, ``-inf`` where not; ``None``: at all
            before it, in long texts.
        prompt: which of the ``R``; that of the first text where they stand behind several.
        behind: columns of padding before its prefix.
        each: the prompt of each text ``[B]`` where they stand behind several; nothing is learned then.
    """

    start: int
    stop: int
    slots: Tensor | None
    batch: int
    length: int
    attention_mask: Tensor | None
    prompt: int
    behind: int
    each: Tensor | None = None

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class PassPlan:
    """What all layers of one pass need to know.

    Attributes:
        groups: of texts.
        turns: cosine and sine ``[M, 1, D]``, float32, by kind of layer.
        read: positions whose output is wanted of the last layer, ``[N]``; none: its keys and values only.
        remember: whether layers keep what their backward pass needs.
        prompts: those that the groups stand behind, where they are read in the same pass, behind all texts; none where
            they are given as keys and values.
    """

    groups: tuple[TextGroup, ...]
    rotations: dict[str | None, tuple[Tensor, Tensor]]
    read: Tensor | None
    keep_activations: bool
    prompts: tuple[TextGroup, ...] = ()


class LayerRun:
    """One layer over packed positions; it keeps what its backward pass needs, and nothing else."""

    def __init__(self, layer: Layer, plan: PassPlan, last: bool) -> None:
        self.layer, self.plan, self.last = layer, plan, last
        # each with the prompt of this pass that it stands behind
        self._groups: list[tuple[TextGroup, TextGroup | None]] = [
            (group, plan.prompts[group.prompt] if plan.prompts else None) for group in plan.groups
        ]
        if not last:  # there, keys and values are all that is wanted of prompts
            self._groups += [(prompt, None) for prompt in plan.prompts]
        self._fronts: list[KeysAndValues | None] = []
        self._attended: list[decoder_blocks.AttentionCache | LongAttentionCache] = []
        self._left: decoder_blocks.FeedForwardCache | None = None

    def forward(self, x: Tensor, keys: Tensor | None, values: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """What comes out, ``[M, H]`` or of the last layer ``[N, H]``; keys, turned, and values ``[M, K * D]``.

        Args:
            x: ``[M, H]``.
            keys, values: of the prefixes, ``[R, K, P, D]``.
        """
        layer, plan = self.layer, self.plan
        # bare: what is compiled for tensors without gradient, and that are no part of another, is not for others
        self._x = x = x.detach()
        self._prefix = None if keys is None or values is None else (keys.detach(), values.detach())
        query, key, value, self._entered = decoder_blocks.project_input(
            x, layer.input_projection, *plan.rotations[layer.kind]
        )
        if self.last and plan.read is None:
            return x[:0], key, value
        parts = []
        for group, prompt in self._groups:
            own = (self._select_rows(group, query), self._select_rows(group, key), self._select_rows(group, value))
            front = self._select_prefix(group) if prompt is None else self._select_inline_prefix(prompt, key, value)
            attend = decoder_blocks.attend if group.attention_mask is not None else attend_long
            part, attended = attend(own, front, self._describe_texts(group))
            parts.append(part)
            self._fronts.append(front)
            self._attended.append(attended)
        found = _concatenate(parts)
        if self.last and plan.read is not None:
            x, found = x.index_select(0, plan.read), found.index_select(0, plan.read)
        result, self._left = decoder_blocks.feed_forward(x, found, layer.feed_forward)
        return result, key, value

    def backward(
        self, result: Tensor | None, key: Tensor | None, value: Tensor | None, *, wanted: bool
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """From the gradients of what ``forward`` gives to those of ``x`` (if ``wanted``), ``keys, values``."""
        layer, plan = self.layer, self.plan
        queries: Tensor | None = None
        coming: Tensor | None = None
        of_prefix: tuple[Tensor | None, Tensor | None] = (None, None)
        if result is not None and self._left is not None and len(result):
            coming, found = decoder_blocks.feed_forward_backward(result, self._left, layer.feed_forward)
            if self.last and plan.read is not None:
                coming, found = (
                    each.new_zeros(len(self._x), each.shape[1]).index_add_(0, plan.read, each)
                    for each in (coming, found)
                )
            parts = []
            for (group, _), front, attended in zip(self._groups, self._fronts, self._attended, strict=True):
                own = self._select_rows(group, found)
                texts = self._describe_texts(group)
                if isinstance(attended, LongAttentionCache):
                    parts.append(attend_long_backward(own, attended, front, texts))
                else:
                    parts.append(decoder_blocks.attend_backward(own, attended, front, texts))
            of_fronts = [part for _, part in parts]
            of_prefix = self._add_prefix_gradients(of_fronts)
            if not wanted:
                return None, *of_prefix
            gradients = zip(*(own for own, _ in parts), strict=True)
            queries, keys, values = (_concatenate_padded(each, len(self._x)) for each in gradients)
            self._add_inline_gradients(keys, values, of_fronts)
            key, value = keys if key is None else key + keys, values if value is None else value + values
        if not wanted or key is None or value is None:
            return None, *of_prefix
        rotations = plan.rotations[layer.kind]
        own = decoder_blocks.project_input_backward(
            coming, queries, key.detach(), value.detach(), self._x, self._entered, layer.input_projection, *rotations
        )
        return own, *of_prefix

    def _describe_texts(self, group: TextGroup) -> decoder_blocks.Texts:
        scaling, size = self.layer.scaling, self.layer.input_projection.size
        return decoder_blocks.Texts(group.batch, group.length, group.attention_mask, group.slots, scaling, size)

    def _select_rows(self, group: TextGroup, rows: Tensor) -> Tensor:
        """A group's part of all positions; a prompt's is copied, to be like that of a prompt that is read alone."""
        part = rows[group.rows]
        return _copy_contiguous(part) if any(group is prompt for prompt in self.plan.prompts) else part.detach()

    def _select_prefix(self, group: TextGroup) -> KeysAndValues | None:
        """Keys and values ``[K, P, D]`` of a group's prefix, if it has one; ``[K * B, P, D]`` of each text's own."""
        if self._prefix is None or group.behind == self._prefix[0].shape[2]:
            return None
        if group.each is not None:
            seen = (each[:, :, group.behind :].transpose(0, 1) for each in self._prefix)
            keys, values = (each.index_select(1, group.each).flatten(0, 1) for each in seen)
            return keys, values
        keys, values = (each[group.prompt, :, group.behind :] for each in self._prefix)
        return _copy_contiguous(keys), _copy_contiguous(values)

    def _select_inline_prefix(self, prompt: TextGroup, key: Tensor, value: Tensor) -> KeysAndValues:
        """Those of a prompt, out of the keys and values of all positions."""
        shape = (prompt.stop - prompt.start, -1, self.layer.input_projection.size)
        keys, values = (each[prompt.rows].view(shape).transpose(0, 1) for each in (key, value))
        return _copy_contiguous(keys), _copy_contiguous(values)

    def _add_prefix_gradients(self, parts: Sequence[KeysAndValues | None]) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of all prefixes ``[R, K, P, D]``, from those of each group's."""
        if self._prefix is None:
            return None, None
        keys, values = (torch.zeros_like(each) for each in self._prefix)
        for (group, _), part in zip(self._groups, parts, strict=True):
            if part is not None:
                keys[group.prompt, :, group.behind :] += part[0]
                values[group.prompt, :, group.behind :] += part[1]
        return keys, values

    def _add_inline_gradients(self, keys: Tensor, values: Tensor, parts: Sequence[KeysAndValues | None]) -> None:
        """To the gradients of all keys and values ``[M, K * D]``, what texts owe to those of prompts read along."""
        for (_, prompt), part in zip(self._groups, parts, strict=True):
            if prompt is not None and part is not None:
                keys[prompt.rows] += part[0].transpose(0, 1).flatten(1)
                values[prompt.rows] += part[1].transpose(0, 1).flatten(1)


def _copy_contiguous(tensor: Tensor) -> Tensor:
    """A copy of its own: strides are part of what is compiled, those of what it is a part of too."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _concatenate(parts: Sequence[Tensor]) -> Tensor:
    """``[M, ...]`` of all groups."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _concatenate_padded(parts: Sequence[Tensor], rows: int) -> Tensor:
    """``[rows, ...]`` of all groups, and zeros behind them."""
    missing = rows - sum(map(len, parts))
    return _concatenate([*parts, parts[0].new_zeros(missing, *parts[0].shape[1:])] if missing else parts)


class LayerPass(torch.autograd.Function):
    """``LayerRun`` with gradient: ``result``, ``key`` and ``value``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, keys: Tensor | None, values: Tensor | None, layer: Layer, plan: PassPlan, last: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        run = LayerRun(layer, plan, last)
        found = run.forward(x, keys, values)
        ctx.arguments = (layer, plan, last)
        ctx.save_for_backward(x, keys, values)
        ctx.run = run if plan.keep_activations and any(ctx.needs_input_grad) else None
        return found

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        run = ctx.run
        if run is None:
            run = LayerRun(*ctx.arguments)
            run.forward(*ctx.saved_tensors)
        ctx.run = None
        return (*run.backward(*grad_outputs, wanted=ctx.needs_input_grad[0]), None, None, None)
