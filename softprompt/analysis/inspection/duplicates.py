"""Near-duplicate rows in and across splits, in time that grows with their number and not with its square.

MinHash (Broder 1997) over character shingles, in bands (Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets",
chapter 3): only texts that agree on one band of their signatures are compared, by the true Jaccard similarity of their
shingles. With 16 bands of 4, texts of similarity 0.8 meet with a probability above 0.999, those of 0.3 with 0.12.
"""

import sys
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import cache

import numpy as np

from softprompt.analysis.inspection.answers import expected_answer
from softprompt.analysis.inspection.inspection_records import DuplicateGroup, DuplicateRow, Duplicates
from softprompt.data.examples import Example
from softprompt.data.row_identity import input_key

ALIKE = 0.8  # Jaccard similarity of near duplicates
SHINGLE = 5  # characters
BANDS, ROWS = 16, 4
COMPARED = 8  # texts of a bucket that another one is compared with: all alike, they are one group by then
LISTED, ROWS_LISTED = 20, 6


def find_duplicates(
    splits: Mapping[str, Sequence[Example]], names: Collection[str] | None = None
) -> tuple[Duplicates, dict[int, list[str]], set[tuple[str, int]]]:
    """Groups of near duplicates over all splits: rows that are alike in each column that is read of them.

    Args:
        names: the columns that the template uses; all without.

    Returns:
        What is told of them; by training index, the answers of its near duplicates in train; and held-out rows, by
        split and index, with a near duplicate there.
    """
    rows = [(split, index, example) for split, some in splits.items() for index, example in enumerate(some)]
    groups = [
        group
        for group in _groups([[words for _, words in input_key(example, names)] for _, _, example in rows])
        if len(group) > 1
    ]
    redundant = 0
    leaked: set[tuple[str, int]] = set()
    twins: dict[int, list[str]] = {}
    made = []
    for group in groups:
        here = [rows[place] for place in group]
        in_train = [(index, expected_answer(example)) for split, index, example in here if split == "train"]
        redundant += max(0, len(in_train) - 1)
        leaked |= {(split, index) for split, index, _ in here if in_train and split != "train"}
        for index, _ in in_train:
            twins[index] = [answer for other, answer in in_train if other != index]
        conflicting = len({expected_answer(example) for _, _, example in here}) > 1
        made.append((not conflicting, -len(group), group[0], here))
    listed = tuple(
        DuplicateGroup(
            rows=tuple(
                DuplicateRow(split=split, index=index, answer=expected_answer(example), text=example.text)
                for split, index, example in here[:ROWS_LISTED]
            ),
            size=len(here),
            conflicting=not agreeing,
        )
        for agreeing, _, _, here in sorted(made, key=lambda one: one[:3])[:LISTED]
    )
    found = Duplicates(
        rows=len(rows),
        groups=len(groups),
        redundant=redundant,
        leaked=len(leaked),
        held_out=sum(split != "train" for split, _, _ in rows),
        conflicting=sum(not agreeing for agreeing, *_ in made),
        listed=listed,
    )
    return found, twins, leaked


def hash_shingles(text: str) -> np.ndarray:
    """Hashes of the character shingles of the text's words, sorted, each once; case and punctuation do not count."""
    plain = " ".join(text.casefold().translate(_punctuation()).split()) or text
    found = {zlib.crc32(plain[start : start + SHINGLE].encode()) for start in range(max(1, len(plain) - SHINGLE + 1))}
    return np.array(sorted(found), dtype=np.uint64)


@cache
def _punctuation() -> dict[int, str]:
    """Punctuation and symbols of all scripts, each to a blank; marks stay, some of which are vowels."""
    return {code: " " for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] in "PS"}


def _groups(inputs: Sequence[Sequence[str]]) -> list[list[int]]:
    """Indices of inputs that are near duplicates column by column, directly or by others between them."""
    sets = [[hash_shingles(words) for words in columns] for columns in inputs]
    buckets: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
    parents = list(range(len(inputs)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for index, own in enumerate(sets):
        # rows meet where all columns agree on a band: a long one that thousands share must not fill their bucket
        for band, part in enumerate(map(b"".join, zip(*map(_signature, own), strict=True))):
            bucket = buckets[band, part]
            for other in bucket:
                if root(other) != root(index) and _alike(sets[other], own):
                    # the lowest index is the root, whatever the order
                    low, high = sorted((root(other), root(index)))
                    parents[high] = low
            if len(bucket) < COMPARED:
                bucket.append(index)
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for index in range(len(inputs)):
        groups[root(index)].append(index)
    return list(groups.values())


# odd multipliers and offsets of multiply-shift hashing (Dietzfelbinger et al. 1997), the same on every machine
_GENERATOR = np.random.default_rng(0)
_FACTORS = _GENERATOR.integers(1, 2**63, size=BANDS * ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS = _GENERATOR.integers(0, 2**63, size=BANDS * ROWS, dtype=np.uint64)


def _signature(own: np.ndarray) -> list[bytes]:
    """The least hash of the shingles under each function, band by band."""
    hashed = (own[:, None] * _FACTORS[None] + _OFFSETS[None]) >> np.uint64(32)
    least = hashed.min(axis=0).astype(np.uint32)
    return [least[band * ROWS : (band + 1) * ROWS].tobytes() for band in range(BANDS)]


def _alike(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    """Whether each column is: a long one in common must not hide a short one that differs."""
    return len(some) == len(others) and all(_jaccard(a, b) >= ALIKE for a, b in zip(some, others, strict=True))


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)
