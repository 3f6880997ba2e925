"""Words of text in any script, and which of sacrebleu's tokenizers suits it.

A word is a run of letters, digits and their combining marks, in lower case. Scripts that put no blanks between words
(Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) have none to find without a dictionary: there each letter with
its marks counts as a word. Text without a letter or digit, as ``:-)``, is cut at its blanks.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from statistics import median

LETTERS_OF_A_WORD = 2  # of a word in a script without blanks, about

_HAN = (
    *((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3100, 0x312F), (0x31A0, 0x31BF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF)),
    *((0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
)
# kana; Thai, Lao, Tibetan; Burmese; Khmer and its symbols; more of Burmese
_OTHERS = (
    *((0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x19E0, 0x19FF), (0x3040, 0x30FF)),
    *((0x31F0, 0x31FF), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F), (0xFF66, 0xFF9F)),
)
_WITHOUT_BLANKS = sorted((*_HAN, *_OTHERS))
_STARTS = [first for first, _ in _WITHOUT_BLANKS]


@lru_cache(maxsize=65536)
def split_words(text: str) -> tuple[str, ...]:
    """The words of ``text``, composed (NFC) and in lower case."""
    words: list[str] = []
    word = ""
    for character in unicodedata.normalize("NFC", text).lower():
        kind = unicodedata.category(character)[0]
        goes_on = kind in "LN" and not stands_alone(character) and not (word and stands_alone(word[0]))
        if goes_on or (word and kind == "M"):
            word += character
        else:
            if word:
                words.append(word)
            word = character if kind in "LN" else ""
    words += [word] if word else []
    return tuple(words) or tuple(text.split())


def stands_alone(letter: str) -> bool:
    """Whether it is of a script that puts no blanks between words."""
    place = bisect_right(_STARTS, ord(letter)) - 1
    return place >= 0 and ord(letter) <= _WITHOUT_BLANKS[place][1]


def median_word_count(references: Iterable[str]) -> float:
    """Median number of words."""
    return median(
        sum(1 / LETTERS_OF_A_WORD if stands_alone(word[0]) else 1 for word in split_words(one)) for one in references
    )


def choose_bleu_tokenizer(references: Iterable[Sequence[str]]) -> str:
    """Which of sacrebleu's tokenizers suits the script that most letters of ``references`` are of.

    ``13a`` where blanks stand between words, ``zh`` for Chinese, ``char`` for other scripts without blanks; Japanese
    has a better one, which needs a dictionary of its own.
    """
    letters = alone = han = 0
    for row in references:
        for letter in row[0]:
            if unicodedata.category(letter)[0] == "L":
                letters += 1
                alone += stands_alone(letter)
                han += _is_han(letter)
    if 2 * alone <= letters:
        return "13a"
    # Chinese has no kana; a few come in names
    return "zh" if 10 * han >= 9 * alone else "char"


def _is_han(letter: str) -> bool:
    return any(first <= ord(letter) <= last for first, last in _HAN)
