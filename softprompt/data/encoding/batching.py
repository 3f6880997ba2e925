"""Token ids to padded batches."""

import random
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from softprompt.data.encoding.encoder import Batch, EncodedSequence


def collate(items: Sequence[EncodedSequence], device: torch.device, pad_id: int = 0) -> Batch:
    """Pad items on the right to the longest; texts that an encoder reads for several items stand there once."""
    reads: list[int] = list(range(len(items)))
    texts = [item.ids for item in items]
    if items[0].decoder_ids:
        rows: dict[tuple[tuple[int, ...], int], int] = {}
        reads = [rows.setdefault((item.ids, item.prompt), len(rows)) for item in items]
        texts = [ids for ids, _ in rows]

    def padded(sequences: Sequence[tuple[int, ...]]) -> Tensor:
        whole = torch.full((len(sequences), max(map(len, sequences))), pad_id, dtype=torch.long)
        for i, ids in enumerate(sequences):
            whole[i, : len(ids)] = torch.tensor(ids)
        return whole

    def flat(values: Iterable[int]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.long, device=device)

    input_ids = padded(texts)
    lengths = torch.tensor([len(ids) for ids in texts])
    return Batch(
        input_ids.to(device),
        (torch.arange(input_ids.shape[1]) < lengths[:, None]).long().to(device),
        flat(i for i, item in enumerate(items) for _ in item.positions),
        flat(position for item in items for position in item.positions),
        flat(target for item in items for target in item.targets),
        flat(decision for item in items for decision in item.decisions),
        flat(item.prompt for item in items),
        padded([item.decoder_ids for item in items]).to(device),
        flat(reads),
        _find_seen(items, input_ids.shape[1], device),
    )


def _find_seen(items: Sequence[EncodedSequence], width: int, device: torch.device) -> Tensor | None:
    """``Batch.seen`` of items in rows of ``width`` tokens; ``None`` where every one of them is a plain text."""
    first = min((len(item.ids) - len(item.parents) for item in items if item.parents), default=None)
    if first is None:
        return None
    parents = torch.arange(-1, width - 1).repeat(len(items), 1)
    for row, item in enumerate(items):
        end = len(item.ids)
        parents[row, end - len(item.parents) : end] = torch.tensor(item.parents, dtype=torch.long)
    seen = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(items), 1, 1)
    rows = torch.arange(len(items))
    for column in range(max(first, 1), width):
        seen[:, column] = seen[rows, parents[:, column]]
        seen[:, column, column] = True
    return seen.to(device)


def epoch_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int | str) -> list[list[int]]:
    """Indices of one epoch's batches: shuffled, similar lengths together, a pure function of its arguments.

    The epoch's order is random; within pools of 32 batches it is sorted by length, so that batches hold little
    padding, and the batches are shuffled again. The rest that fills no batch comes in other epochs.
    """
    shuffle = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    shuffle.shuffle(order)
    if len(order) <= batch_size:
        return [order]
    order = order[: len(order) // batch_size * batch_size]
    batches = []
    for start in range(0, len(order), 32 * batch_size):
        pool = sorted(order[start : start + 32 * batch_size], key=lambda index: lengths[index])
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    shuffle.shuffle(batches)
    return batches


def batch_by_token_budget(
    items: Sequence[EncodedSequence], token_budget: int, most: int | None = None
) -> Iterator[list[EncodedSequence]]:
    """Cut ``items``, longest first, into lists of at most ``most`` items and ``token_budget`` padded tokens.

    A single item longer than the budget forms a list of its own.
    """
    chunk: list[EncodedSequence] = []
    answer = 0
    for item in sorted(items, key=lambda item: len(item.ids), reverse=True):
        answer = max(answer, len(item.decoder_ids))
        if chunk and ((len(chunk) + 1) * (len(chunk[0].ids) + answer) > token_budget or len(chunk) == most):
            yield chunk
            chunk, answer = [], len(item.decoder_ids)
        chunk.append(item)
    if chunk:
        yield chunk
