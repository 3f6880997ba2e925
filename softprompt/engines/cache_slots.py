"""Where tokens stand in a paged cache, and which heads of it a rank has.

Shapes: ``K`` heads of keys, ``P`` tokens, ``D`` size of a head.
"""

from collections.abc import Sequence

from torch import Tensor

NULL_BLOCK = 0  # vLLM's: in the place of blocks that a window has left behind


def find_slots(blocks: Sequence[int], block_size: int, start: int, stop: int) -> tuple[list[int], list[int]]:
    """Tokens ``start`` to ``stop`` of a request that a cache holds, and the slot of each.

    Args:
        blocks: the blocks of the request, in the order of its tokens.
    """
    held = [place for place in range(start, stop) if blocks[place // block_size] != NULL_BLOCK]
    return held, [blocks[place // block_size] * block_size + place % block_size for place in held]


def take_heads(tensor: Tensor, rank: int, ranks: int) -> Tensor:
    """Those of heads ``[K, P, D]`` that one of several tensor-parallel ranks has; of fewer heads than ranks its own."""
    heads = len(tensor)
    if heads >= ranks:
        share = heads // ranks
        return tensor[rank * share : (rank + 1) * share]
    own = rank * heads // ranks
    return tensor[own : own + 1]
