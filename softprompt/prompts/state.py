"""PromptState, what a method leaves behind, and virtual tokens put in front of padded texts.

Shapes: ``B`` batch, ``T`` text length, ``P`` prompt length, ``H`` embedding size.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from softprompt.data.encoding.placement import BEHIND_BOS, Placement
from softprompt.utils.notebook_display import Displayed
from softprompt.utils.summaries import summarize


@dataclass(frozen=True)
class PromptState(Displayed):
    """What a method leaves behind after learning, and all that evaluation, store and export see of it.

    Attributes:
        kind: ``embeddings``, virtual tokens at the model's input, before the text; or ``key_values``, what each
            layer's attention sees in front of the text.
        tensors: float32. ``embeddings``: one, ``[P, H]``, in the scale in which the first layer sees token embeddings.
            ``key_values``: one a layer, ``[2, kv_heads, P, head_dim]``, keys (rotated already) and values; of an
            encoder-decoder model the encoder's layers first.
        placement: what the model reads in front of it and behind it, before each text.
        words: whether it is written text, which the texts behind it go on from, and not the beginning of a text.
        label_rows: of the output layer, ``[C, H]`` float32, one a label, where they were learned with it (a soft
            verbalizer); ``None``: labels are words of the model.
    """

    kind: Literal["embeddings", "key_values"]
    tensors: tuple[Tensor, ...]
    placement: Placement = BEHIND_BOS
    words: bool = False
    label_rows: Tensor | None = None

    def __repr__(self) -> str:
        return summarize(self, describe_state(self), words=self.words or None)

    @classmethod
    def of_embeddings(cls, virtual_tokens: Tensor) -> "PromptState":
        """``virtual_tokens``: ``[P, H]``."""
        return cls("embeddings", (virtual_tokens,))

    @property
    def length(self) -> int:
        """Virtual tokens ``P``."""
        return self.tensors[0].shape[-2]

    @property
    def behind_bos(self) -> bool:
        """Whether BOS stands in front of it."""
        return self.placement.behind_bos

    @property
    def tensor(self) -> Tensor:
        """The virtual tokens ``[P, H]`` of the kind ``embeddings``."""
        if self.kind != "embeddings":
            raise TypeError(f"expected a prompt of the kind embeddings, got {self.kind}")
        return self.tensors[0]

    @property
    def numbers(self) -> tuple[Tensor, ...]:
        """All of its tensors."""
        return self.tensors if self.label_rows is None else (*self.tensors, self.label_rows)

    @property
    def digest(self) -> str:
        """What tells it from another prompt."""
        numbers = hashlib.sha256()
        for tensor in self.numbers:
            numbers.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return numbers.hexdigest()[:16]

    def detached(self) -> "PromptState":
        """A copy without gradient."""
        rows = None if self.label_rows is None else self.label_rows.detach().clone()
        return replace(self, tensors=tuple(tensor.detach().clone() for tensor in self.tensors), label_rows=rows)


def describe_state(state: PromptState) -> str:
    """Kind and size in words."""
    labels = "" if state.label_rows is None else f", {len(state.label_rows)} labels learned with them"
    if state.kind == "embeddings":
        return f"{state.length} virtual tokens of {state.tensor.shape[1]}{labels}"
    return f"{state.length} virtual tokens as keys and values of {len(state.tensors)} layers{labels}"


def concatenate_prefixes(
    prefixes: Sequence[Tensor], texts: Tensor, mask: Tensor, which: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows of prefix, text, padding, whichever side the texts were padded on.

    Args:
        prefixes: ``[P', H]`` each.
        texts: embeddings ``[B, T, H]``.
        mask: ``[B, T]``, 1 on text and 0 on padding.
        which: ``[B]``, the prefix of each row.

    Returns:
        Embeddings ``[B, T', H]``, no wider than the longest row, and the length ``[B, 1]`` of each row.
    """
    (batch, length), device = mask.shape, mask.device
    sizes = torch.tensor([len(prefix) for prefix in prefixes], device=device)[which, None]
    ends = sizes + mask.sum(dim=1, keepdim=True)
    width = max(len(prefix) for prefix in prefixes)
    padded = [torch.nn.functional.pad(prefix, (0, 0, 0, width - len(prefix))) for prefix in prefixes]
    text_first = mask.argsort(dim=1, descending=True, stable=True)
    texts = texts.gather(1, text_first[..., None].expand(-1, -1, texts.shape[-1]))
    column = torch.arange(int(ends.max()), device=device).expand(batch, -1)
    source = torch.where(column < sizes, column, (column - sizes + width).clamp(max=width + length - 1))
    rows = torch.cat([torch.stack(padded)[which], texts], dim=1)
    return rows.gather(1, source[..., None].expand(-1, -1, rows.shape[-1])), ends
