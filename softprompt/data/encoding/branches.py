"""Continuations of one text side by side in its row, and what reads such a row as several plain ones.

Labels of several tokens part in many places, and at each of them the model is asked. A text that is read once with all
of them behind it, each token looking at the text and at those that it follows, costs the tokens of text and labels; a
row for each label costs the text as often as there are labels. Tree attention, as in SpecInfer (Miao et al. 2024).

Shapes: as in encoder.py.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from softprompt.data.encoding.batching import batch_by_token_budget, collate
from softprompt.data.encoding.encoder import Batch, EncodedSequence

PASS_TOKENS = 2048  # padded, of each pass over branches that are read as plain texts


def read_separately(read: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
    """Hidden states ``[N, H]`` at the scored positions of a batch with branches, each branch read as a plain text.

    Args:
        read: gives those of a batch without any.
    """
    found, order = [], []
    for chunk in batch_by_token_budget(list(_separate(batch)), PASS_TOKENS):
        found.append(read(collate(chunk, batch.input_ids.device)))
        order += [number for item in chunk for number in item.targets]
    back = torch.tensor(order, device=batch.row.device).argsort()
    return torch.cat(found)[back]


def _separate(batch: Batch) -> Iterator[EncodedSequence]:
    """The plain texts on which every scored position stands once; their targets are the numbers of the positions."""
    assert batch.seen is not None
    asked: list[dict[int, list[int]]] = [{} for _ in batch.mask]  # of each row the numbers, by their column
    for number, (row, column) in enumerate(zip(batch.row.tolist(), batch.column.tolist(), strict=True)):
        asked[row].setdefault(column, []).append(number)
    ids, prompts, seen = batch.input_ids.tolist(), batch.which.tolist(), batch.seen.cpu()
    for row, columns in enumerate(asked):
        while columns:
            # the last one looks at all that stands on its way
            way = seen[row, max(columns)].nonzero()[:, 0].tolist()
            place = {column: index for index, column in enumerate(way)}
            taken = [(place[column], number) for column in way for number in columns.pop(column, ())]
            yield EncodedSequence(
                row,
                tuple(ids[row][column] for column in way),
                tuple(position for position, _ in taken),
                tuple(number for _, number in taken),
                prompt=prompts[row],
            )
