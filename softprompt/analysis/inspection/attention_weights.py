"""What the position that answers looks at: the model's own attention weights, layer by layer.

Only eager attention gives its weights, so it is switched on for a moment and off again. Weights say where a layer
reads, not what that does to the answer (Jain and Wallace 2019, "Attention is not Explanation"): read them beside the
effect of removing a token.

Shapes: ``B`` batch, ``T`` text length, ``W`` prefix length (BOS, prompt, and what stands around it), ``L`` layers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softprompt.analysis.inspection.inspection_records import Attention
from softprompt.data.encoding.batching import batch_by_token_budget, collate
from softprompt.data.encoding.encoder import Batch
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.errors import BaseModelError
from softprompt.inference.scoring import EVALUATION_TOKENS
from softprompt.metrics.bootstrap import Floats
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import front_ids, make_cached_prefix, make_concatenated_prefix
from softprompt.prompts.state import PromptState, concatenate_prefixes
from softprompt.prompts.text_encoder import make_text_encoder


@torch.no_grad()
def measure_attention(
    base: FrozenLM, spec: TaskSpec, state: PromptState, examples: Sequence[Example]
) -> tuple[Attention, Floats]:
    """Shares of attention over the examples, and those of each virtual token ``[P, L]``.

    Raises:
        BaseModelError: this family does not give its attention weights, with the reason.
    """
    if base.architecture == "encoder-decoder":
        raise BaseModelError(f"'{base.name}' reads its prompt in an encoder, whose attention is not told")
    encoder = make_text_encoder(base, spec, [state])
    front, length = len(front_ids(base, state.placement)), state.length
    width = front + length + len(state.placement.behind)
    rows, even = [], []
    with _eager(base):
        for chunk in batch_by_token_budget(encoder.question_items(examples), EVALUATION_TOKENS, 16):
            batch = collate(chunk, base.device)
            weights = _weights(base, state, batch, width)
            rows.append(weights)
            lengths = batch.mask.sum(dim=1).cpu()
            even += (length / (width + lengths)).tolist()
    shares = np.concatenate(rows).mean(axis=0)  # [L, W]
    bos, prompt = shares[:, :front].sum(axis=1), shares[:, front : front + length]
    rest = np.clip(1 - bos - prompt.sum(axis=1), 0, 1)
    found = Attention(
        examples=len(examples),
        bos=tuple(bos.tolist()),
        prompt=tuple(prompt.sum(axis=1).tolist()),
        text=tuple(rest.tolist()),
        even=float(np.mean(even)),
    )
    return found, prompt.T


def _weights(base: FrozenLM, state: PromptState, batch: Batch, width: int) -> Floats:
    """Weights that the last text token of each row gives to the prefix, mean over heads: ``[B, L, W]``."""
    lengths = batch.mask.sum(dim=1)
    row = torch.arange(len(lengths), device=base.device)
    if state.kind == "embeddings":
        embeddings = make_concatenated_prefix(base, state).embeddings
        rows, ends = concatenate_prefixes(embeddings, base.embed(batch.input_ids), batch.mask, batch.which)
        column = torch.arange(rows.shape[1], device=base.device).expand(len(rows), -1)
        inputs: dict[str, Any] = {
            "inputs_embeds": rows,
            "attention_mask": (column < ends).long(),
            "position_ids": torch.minimum(column, ends - 1),
            "use_cache": False,
        }
        asked, behind = (ends[:, 0] - 1), rows.shape[1]
    else:
        prefix = make_cached_prefix(base, state)
        inputs = {
            "inputs_embeds": base.embed(batch.input_ids),
            "attention_mask": torch.cat([prefix.mask(batch.which), batch.mask], dim=1),
            "position_ids": prefix.starts(batch.which)[:, None] + batch.mask.cumsum(dim=1) - 1,
            "past_key_values": prefix.expand(batch.which),
            "use_cache": True,
        }
        asked, behind = lengths - 1, width + batch.input_ids.shape[1]
    layers = [_of_prefix(layer[row, :, asked], width, behind) for layer in _attentions(base, inputs)]
    whole: Floats = torch.stack(layers, dim=1).double().cpu().numpy()
    return whole


def _of_prefix(weights: Tensor, width: int, behind: int) -> Tensor:
    """``[B, heads, keys]`` to ``[B, W]``; a layer with a window may have dropped the first keys, which get nothing."""
    mean = weights.float().mean(dim=1)
    dropped = behind - mean.shape[1]
    return torch.nn.functional.pad(mean[:, : width - dropped], (min(dropped, width), 0)) if dropped else mean[:, :width]


def _attentions(base: FrozenLM, inputs: dict[str, Any]) -> Sequence[Tensor]:
    """Weights of each layer that has attention, ``[B, heads, queries, keys]``."""
    known = {name: value for name, value in inputs.items() if name in base._accepts}
    try:
        found = base.backbone(**known, output_attentions=True).attentions
    except (AttributeError, TypeError, ValueError, RuntimeError, KeyError, IndexError) as error:
        raise BaseModelError(f"'{base.name}' does not give its attention weights ({type(error).__name__})") from error
    layers = [layer for layer in found or () if isinstance(layer, Tensor) and layer.ndim == 4]
    sums = [layer.float().sum(dim=-1) for layer in layers]
    # a learned sink takes its part before the others, so a row may add up to less than 1, never to more
    if not layers or any(bool((total > 1.05).any()) or not bool(total.isfinite().all()) for total in sums):
        raise BaseModelError(f"'{base.name}' does not give its attention weights")
    return layers


@contextmanager
def _eager(base: FrozenLM) -> Iterator[None]:
    model, before = base.model, getattr(base.model.config, "_attn_implementation", None)
    try:
        model.set_attn_implementation("eager")
    except (AttributeError, ValueError, KeyError, TypeError) as error:
        raise BaseModelError(f"'{base.name}' has no eager attention, which alone gives its weights") from error
    try:
        yield
    finally:
        model.set_attn_implementation(before)
