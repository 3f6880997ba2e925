"""Passes over a frozen decoder with our own layers (fused_layer.py), where they give the model's own numbers.

What is measured, once a model: hidden states and their gradient, with and without a prefix, against ``transformers``'
layers. Where they differ, where a sliding window is outgrown, where weights may change or are not at hand as they are,
or on another device than a CPU, those run.

Shapes: as in fused_layer.py; ``N`` scored positions.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from softprompt.models.exactness import OncePerModel, is_exact
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.kernels import elementwise, long_attention
from softprompt.models.kernels.elementwise import Norm
from softprompt.models.kernels.fused_layer import (
    KeysAndValues,
    Layer,
    LayerPass,
    PassPlan,
    TextGroup,
    keeps_activations,
    parse_norm,
)
from softprompt.models.kernels.length_bucketing import arrange_texts


@dataclass(frozen=True)
class FusedDecoder:
    """A decoder's layers, first to last, and the norm behind them."""

    base: FrozenLM
    layers: tuple[Layer, ...]
    norm: Norm

    def fits(self, longest: int) -> bool:
        """Whether texts of ``longest`` tokens, prefix counted, stay within every window."""
        return self.base.sliding_window is None or longest <= self.base.sliding_window

    def read(
        self,
        embeddings: Tensor,
        mask: Tensor,
        row: Tensor,
        column: Tensor,
        which: Tensor | None = None,
        *,
        prefix: Sequence[KeysAndValues] | None = None,
        lengths: Sequence[int] = (0,),
        prompts: Sequence[Tensor] = (),
        seen: Tensor | None = None,
    ) -> Tensor:
        """Hidden states ``[N, H]`` at places ``row, column`` of texts ``embeddings [B, T, H]``, padded on the right.

        Args:
            mask: ``[B, T]``, 1 on text and 0 on padding.
            which: the prefix of each text ``[B]``; the first one if not given.
            prefix: of each layer, keys and values ``[R, K, P, D]``, shorter ones padded on the left.
            lengths: tokens of each prefix ``[R]``.
            prompts: embeddings ``[P, H]`` of each prefix, in place of the two: they are read in the same pass.
            seen: ``[B, T, T]``, which tokens of its text each looks at; all before it if not given.
        """
        lengths = [len(prompt) for prompt in prompts] or lengths
        which = row.new_zeros(len(mask)) if which is None else which
        # copied keys and values would owe their gradient to those that they are copies of
        copies = prefix is not None and not torch.is_grad_enabled()
        together = arrange_texts(mask.sum(dim=1).tolist(), which.tolist(), lengths, copies=copies)
        order = torch.tensor([row for rows in together for row in rows], device=mask.device)
        mask, which = mask[order].bool(), which[order]
        places = torch.full(mask.shape, -1, device=mask.device)
        places[mask] = torch.arange(int(mask.sum()), device=mask.device)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        starts = torch.tensor(lengths, device=mask.device)[which]
        offsets = torch.arange(mask.shape[1], device=mask.device)
        if seen is not None:
            seen = seen[order]
            offsets = seen.sum(dim=2) - 1
        positions = (starts[:, None] + offsets)[mask]
        x = embeddings[order][mask]
        along = _group_prompts(prompts, len(x))
        if prompts:
            x = torch.cat([x, *prompts])
            positions = torch.cat([positions, *(torch.arange(length, device=mask.device) for length in lengths)])
        plan = PassPlan(
            _group_texts(mask, which, [len(rows) for rows in together], lengths, seen),
            self._compute_rotations(embeddings, positions),
            places[back[row], column],
            keeps_activations(),
            along,
        )
        pairs: Sequence[tuple[Tensor | None, Tensor | None]] = prefix or [(None, None)] * len(self.layers)
        for layer, pair in zip(self.layers, pairs, strict=True):
            x, _, _ = LayerPass.apply(x, *pair, layer, plan, layer is self.layers[-1])  # type: ignore[no-untyped-call]
        return _FinalNorm.apply(x, self.norm)  # type: ignore[no-untyped-call, no-any-return]

    def compute_keys_and_values(self, embeddings: Tensor) -> list[KeysAndValues]:
        """Of each layer, what it sees of prefixes ``embeddings [R, P, H]``: ``[R, K, P, D]``, with gradient."""
        rows, length, _ = embeddings.shape
        mask = torch.ones(rows, length, dtype=torch.bool, device=embeddings.device)
        which = torch.zeros(rows, dtype=torch.long, device=embeddings.device)
        positions = torch.arange(length, device=embeddings.device).repeat(rows)
        plan = PassPlan(
            _group_texts(mask, which, (rows,), (0,)),
            self._compute_rotations(embeddings, positions),
            None,
            keeps_activations(),
        )
        x, pairs = embeddings.flatten(0, 1), []
        for layer in self.layers:
            x, *pair = LayerPass.apply(x, None, None, layer, plan, layer is self.layers[-1])  # type: ignore[no-untyped-call]
            pairs.append([each.view(rows, length, -1, layer.input_projection.size).transpose(1, 2) for each in pair])
        return [(keys, values) for keys, values in pairs]

    def _compute_rotations(self, embeddings: Tensor, positions: Tensor) -> dict[str | None, tuple[Tensor, Tensor]]:
        """Cosine and sine of each kind of layer at ``positions [M]``."""
        embed = self.base.backbone.rotary_emb
        takes_kind = "layer_type" in inspect.signature(embed.forward).parameters
        rotations: dict[str | None, tuple[Tensor, Tensor]] = {}
        for kind in {layer.kind for layer in self.layers}:
            given = embed(embeddings, positions[None], *([kind] if takes_kind else []))
            cosine, sine = (each[0, :, None].float().detach() for each in given)
            rotations[kind] = (cosine, sine)
        return rotations


class _FinalNorm(torch.autograd.Function):
    """The last norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Norm) -> Tensor:
        result, inverse = elementwise.norm(x, norm)
        ctx.save_for_backward(x, inverse)
        ctx.norm = norm
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        x, inverse = ctx.saved_tensors
        return elementwise.norm_backward(grad_outputs[0], x, inverse, ctx.norm), None


def _group_texts(
    mask: Tensor, which: Tensor, sizes: Sequence[int], lengths: Sequence[int], seen: Tensor | None = None
) -> tuple[TextGroup, ...]:
    """Texts ``mask [B, T]`` behind prompts ``which [B]``, so many in each group; the last of each is its longest."""
    groups, start, row = [], 0, 0
    for behind, own in zip(which.split(list(sizes)), mask.sum(dim=1).split(list(sizes)), strict=True):
        length, stop, prompt = int(own[-1]), start + int(own.sum()), int(behind[0])
        column = torch.arange(length, device=mask.device)
        there = column < own[:, None]
        slots = None if bool(there.all()) else there.flatten().nonzero()[:, 0]
        each = None if bool((behind == prompt).all()) else behind
        padded, attention_mask = max(lengths) - lengths[prompt], None
        if seen is not None or length < long_attention.LONG:
            texts = slice(row, row + len(own))
            looked_at = (column <= column[:, None]) if seen is None else seen[texts, :length, :length]
            hidden = (looked_at & there[:, None]).logical_not()
            attention_mask = torch.zeros(hidden.shape, device=mask.device).masked_fill(hidden, -torch.inf)[:, :, None]
        groups.append(TextGroup(start, stop, slots, len(own), length, attention_mask, prompt, padded, each))
        start, row = stop, row + len(own)
    return tuple(groups)


def _group_prompts(prompts: Sequence[Tensor], start: int) -> tuple[TextGroup, ...]:
    """Prompts ``[P, H]`` each, one behind the other behind ``start`` positions."""
    groups = []
    for prompt in prompts:
        whole = torch.ones(1, len(prompt), dtype=torch.bool, device=prompt.device)
        (group,) = _group_texts(whole, whole.new_zeros(1, dtype=torch.long), (1,), (0,))
        groups.append(replace(group, start=start, stop=start + len(prompt)))
        start += len(prompt)
    return tuple(groups)


def parse_layers(backbone: Any, config: Any) -> tuple[tuple[Layer, ...], Norm] | None:
    """The layers of a decoder with this text configuration and the norm behind them, if it is built as ours are."""
    try:
        if (getattr(config, "rope_parameters", None) or {}).get("llama_4_scaling_beta"):
            return None  # queries that grow with their place, which a few tokens would not show
        curve = elementwise.ACTIVATIONS[getattr(config, "hidden_activation", None) or config.hidden_act]
        return tuple(Layer.of(module, curve) for module in backbone.layers), parse_norm(backbone.norm)
    except (AttributeError, KeyError, ValueError):
        return None


@OncePerModel
def find_fused_decoder(base: FrozenLM) -> FusedDecoder | None:
    """Our layers for this model, if they give its numbers."""
    others = base.device.type != "cpu" or base.architecture != "decoder-only" or base.dtype == torch.float16
    if others or not base.lasting or (parts := parse_layers(base.backbone, base.config)) is None:
        return None
    decoder = FusedDecoder(base, *parts)
    run_ours, expected = partial(_run_probe, base, decoder), _run_probe(base, None)
    return decoder if is_exact(run_ours, expected, base.dtype, float32=1e-4, rounded=6e-2) else None


@torch.enable_grad()
def _run_probe(base: FrozenLM, decoder: FusedDecoder | None) -> tuple[Tensor, Tensor]:
    """Hidden states behind a prefix, and their gradient to it: by our layers, or the model's own."""
    known = min(base.vocabulary_size - 1, 31)
    learned = base.embed(1 + torch.arange(3, device=base.device) % known).float().requires_grad_()
    start, texts = learned.to(base.dtype), base.embed(1 + torch.arange(10, device=base.device).view(2, 5) % known)
    ends = (5, 3)
    if decoder is not None:
        mask = (torch.arange(5, device=base.device) < torch.tensor(ends, device=base.device)[:, None]).long()
        prefix = decoder.compute_keys_and_values(start[None])
        hidden = decoder.read(texts, mask, *mask.nonzero(as_tuple=True), prefix=prefix, lengths=(3,))
    else:
        rows = [torch.cat([start, text[:end]])[None] for text, end in zip(texts, ends, strict=True)]
        passed = [base.run_backbone(inputs_embeds=row, use_cache=False).last_hidden_state for row in rows]
        hidden = torch.cat([each[0, 3:] for each in passed])
    wanted = torch.linspace(-1, 1, base.embedding_size, device=base.device, dtype=base.dtype)
    return hidden.detach(), torch.autograd.grad((hidden * wanted).sum(), learned)[0]
