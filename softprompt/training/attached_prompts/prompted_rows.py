"""Where BOS and prompt go in rows of token ids, whichever side the rows are padded on.

A row is read as BOS, prompt, text. A BOS that it begins with is taken out, for the prompt brings its own; what was
padding stays padding. So a row of ``T`` columns becomes one of ``W = T + shift``, and text that stood in column ``c``
stands in ``c + shift``: hidden states from column ``shift`` on are those of the row as it was, where the place of its
BOS is that of the prompt's last token.

Shapes: ``B`` batch, ``T`` columns of the rows, ``Q`` columns of the prefix (BOS and prompt), ``W`` columns of both.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.errors import ConfigError, DataError


@dataclass(frozen=True)
class PromptedRows:
    """Rows behind a prefix of ``Q`` columns.

    Attributes:
        source: ``[B, W]``, the column of ``[prefix, row]`` that each column is.
        mask: ``[B, W]``, 1 on prefix and text.
        alike: whether the prefix takes as many columns of each row.
    """

    source: Tensor
    mask: Tensor
    alike: bool

    def pick(self, joined: Tensor) -> Tensor:
        """Of ``joined [B, Q + T, ...]`` the columns ``[B, W, ...]``."""
        index = self.source.view(*self.source.shape, *(1 for _ in joined.shape[2:])).expand(-1, -1, *joined.shape[2:])
        return joined.gather(1, index)


def place_prefix(input_ids: Tensor, mask: Tensor, bos: tuple[int, ...], width: int) -> PromptedRows:
    """Rows ``input_ids [B, T]`` behind a prefix of ``width`` columns; ``mask [B, T]`` is 1 on text."""
    first = mask.long().argmax(dim=1, keepdim=True)
    removed = len(bos) * begins_with(input_ids, first, bos).long()[:, None]
    columns = input_ids.shape[1]
    total = width + columns - int(removed.min())
    # rows that keep a column more than others have padding in its place
    front = total - width - columns + removed + first
    place = torch.arange(total, device=mask.device).expand(len(mask), -1)
    behind = (place - front + first + removed).clamp(min=0, max=width + columns - 1)
    source = torch.where(place < front, width, torch.where(place < front + width, place - front, behind))
    joined = torch.cat([mask.new_ones(len(mask), width), mask], dim=1)
    whole = torch.where(place < front, 0, joined.gather(1, source))
    return PromptedRows(source, whole.long(), bool((removed == removed[0]).all()))


def begins_with(input_ids: Tensor, first: Tensor, bos: tuple[int, ...]) -> Tensor:
    """Whether rows ``[B]`` have the tokens ``bos`` from column ``first [B, 1]`` on."""
    if not bos:
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    columns = first + torch.arange(len(bos), device=input_ids.device)
    found = input_ids.gather(1, columns.clamp(max=input_ids.shape[1] - 1))
    return (found == input_ids.new_tensor(bos)).all(dim=1) & (columns[:, -1] < input_ids.shape[1])


def extend_mask(mask: Tensor, shift: int) -> Tensor:
    """``mask [B, T]`` of rows as they were as that of rows ``[B, T + shift]`` with a prefix in front of their text."""
    first = mask.long().argmax(dim=1, keepdim=True)
    place = torch.arange(mask.shape[1] + shift, device=mask.device).expand(len(mask), -1)
    before = mask.gather(1, (place - shift).clamp(min=0))
    return torch.where(place < first, 0, torch.where(place < first + shift, 1, before)).long()


def count_positions(mask: Tensor) -> Tensor:
    """Positions ``[B, W]`` of text and prefix where ``mask`` is 1; padding has its neighbour's."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def check_unpacked(position_ids: Tensor | None, mask: Tensor) -> None:
    """Raise ConfigError for rows that hold several texts, each of which would need the prompt in front of it."""
    if position_ids is None or position_ids.ndim != 2 or position_ids.shape != mask.shape:
        return
    texts = mask[:, 1:].bool() & mask[:, :-1].bool()
    if bool(((position_ids.diff(dim=1) != 1) & texts).any()):
        raise ConfigError(
            "a prompt stands in front of one text, got rows that hold several (packed or padding-free batches): "
            "set packing=False and padding_free=False"
        )


def check_room(columns: int, context: int | None, length: int) -> None:
    """Raise DataError for rows of ``columns`` that are longer than the model's ``context``, prompt included."""
    if context is not None and columns > context:
        raise DataError(
            f"rows of {columns - length} tokens behind a prompt of {length} are longer than the model's context of "
            f"{context}: cut them to {context - length} (max_length), or use a shorter prompt"
        )
