"""Which texts attention reads together: what costs least, and each text once."""

import pytest
import torch

from softprompt.models.kernels import length_bucketing


@pytest.mark.parametrize(
    ("counts", "groups"),
    [
        ([7], [1]),
        ([5, 5, 5], [3]),
        ([3] * 40 + [30] * 40, [40, 40]),
        ([9, 10] * 8 + [11] * 8, [24]),  # padding that costs less than a call
        ([4] * 30 + [90], [29, 2]),  # one is not left alone
    ],
)
def test_texts_are_read_with_those_of_like_length(counts: list[int], groups: list[int]) -> None:
    assert length_bucketing.bucket_lengths(sorted(counts)) == groups


def test_no_padding_is_read_that_pays_to_leave_out() -> None:
    """Against the best of all ways to cut a few texts into groups of at least two."""
    counts = sorted(int(one) for one in torch.randint(1, 90, (9,), generator=torch.Generator().manual_seed(3)))

    def cost(sizes: list[int]) -> int:
        ends = [sum(sizes[: at + 1]) for at in range(len(sizes))]
        return sum(size * counts[end - 1] + length_bucketing.CALL for size, end in zip(sizes, ends, strict=True))

    def ways(left: int) -> list[list[int]]:
        return [[left]] + [[*way, size] for size in range(2, left - 1) for way in ways(left - size)]

    assert cost(length_bucketing.bucket_lengths(counts)) == min(map(cost, ways(len(counts)))) < cost([len(counts)])


WORDS = [5, 9, 5, 6, 7, 8, 9, 9]


@pytest.mark.parametrize(
    ("which", "lengths", "groups"),
    [
        ([0] * 8, [20], [[0, 2, 3, 4, 5, 1, 6, 7]]),
        # one length: a few texts each, and one call for all of them
        ([0, 1, 2, 3, 0, 1, 2, 3], [20] * 4, [[0, 2, 3, 4, 5, 1, 6, 7]]),
        # other lengths stay apart
        ([0, 1, 2, 3, 0, 1, 2, 3], [20, 20, 10, 10], [[0, 4, 5, 1], [2, 3, 6, 7]]),
        ([0, 1, 2, 0, 0, 1, 2, 0], [20, 5, 1], [[0, 3, 4, 7], [5, 1], [2, 6]]),
        # a copy of so long a prompt for each text costs more than a call
        ([0, 1] * 4, [2000, 2000], [[0, 2, 4, 6], [3, 5, 1, 7]]),
        ([], [20], []),
    ],
)
def test_prompts_of_one_length_share_a_call(which: list[int], lengths: list[int], groups: list[list[int]]) -> None:
    assert length_bucketing.arrange_texts(WORDS[: len(which)], which, lengths, copies=True) == groups


def test_without_copies_each_prompt_has_its_own() -> None:
    found = length_bucketing.arrange_texts(WORDS, [0, 1, 2, 3, 0, 1, 2, 3], [20] * 4, copies=False)
    assert found == [[0, 4], [5, 1], [2, 6], [3, 7]]
