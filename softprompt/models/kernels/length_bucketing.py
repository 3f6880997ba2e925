"""Which texts of a pass attention reads in one call.

Those behind one prompt, of like length: keys and values of the prompt stand there once for all of them, and little is
padded. Where many prompts have a few texts each, the calls cost more than the prompts do: then texts of like length
behind prompts of one length, with a copy of keys and values for each text.
"""

from collections.abc import Sequence
from math import inf

# padded positions that cost as much time in attention as one more call does
CALL = 64
# keys and values of a prompt that are copied in the time that a padded position costs
COPIED = 24


def arrange_texts(
    counts: Sequence[int], which: Sequence[int], lengths: Sequence[int], *, copies: bool
) -> list[list[int]]:
    """Texts to read together, as places in ``counts``; within each group shorter ones first.

    Args:
        counts: tokens of each text.
        which: the prompt that each stands behind.
        lengths: tokens of each prompt.
        copies: whether a group may stand behind several prompts.
    """
    behind: dict[int, list[int]] = {}
    for text in sorted(range(len(counts)), key=lambda text: (which[text], counts[text])):
        behind.setdefault(which[text], []).append(text)
    alike: dict[int, list[int]] = {}
    for prompt in behind:
        alike.setdefault(lengths[prompt] if copies else prompt, []).append(prompt)
    groups = []
    for prompts in alike.values():
        chosen = [group for prompt in prompts for group in _split_by_length(behind[prompt], counts)]
        if len(prompts) > 1:
            texts = sorted((text for prompt in prompts for text in behind[prompt]), key=lambda text: counts[text])
            together, copied = _split_by_length(texts, counts), len(texts) * lengths[prompts[0]] / COPIED
            if _estimate_cost(together, counts) + copied < _estimate_cost(chosen, counts):
                chosen = together
        groups += chosen
    return groups


def bucket_lengths(counts: Sequence[int]) -> list[int]:
    """How many of texts with ``counts`` tokens, sorted, to read together, so that padding and calls cost least.

    No text is alone among several: what is 1 is compiled for itself.
    """
    # for so many of the first texts: what they cost at least, and how many of them are the last group
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(counts) + 1):
        sizes = range(min(2, len(counts)), end + 1)
        best.append(
            min(((best[end - size][0] + size * counts[end - 1] + CALL, size) for size in sizes), default=(inf, 0))
        )
    groups, end = [], len(counts)
    while end:
        groups.append(best[end][1])
        end -= groups[-1]
    return groups[::-1]


def _split_by_length(texts: Sequence[int], counts: Sequence[int]) -> list[list[int]]:
    """``texts``, sorted by length, in groups of like length."""
    groups, start = [], 0
    for size in bucket_lengths([counts[text] for text in texts]):
        groups.append(list(texts[start : start + size]))
        start += size
    return groups


def _estimate_cost(groups: Sequence[Sequence[int]], counts: Sequence[int]) -> int:
    """Padded positions, and calls."""
    return sum(len(group) * counts[group[-1]] + CALL for group in groups)
