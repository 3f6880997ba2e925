"""Text for people: what a file, a model or a request brought is shown on a terminal without being obeyed by it.

The one place for it. Errors, notes, progress, tables, answers and log lines pass here on their way out, so that whoever
writes a line need not think of what its values hold.
"""

import json
import re
import unicodedata
from typing import Any

ERROR_CHARACTERS = 2000  # of an error or a note; what is longer is cut in the middle, for its end says what to do
# joiners that Persian, Indian scripts and emoji are spelled with
_SPELLING = "\u200c\u200d"
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
# Control characters, what turns the direction of writing or is not seen at all, line separators, halves of surrogate
# pairs: all that a terminal may act on or leave out. Made of the categories, so that one expression finds them fast.
_ACTED_ON = re.compile(
    "["
    + "".join(
        re.escape(chr(code))
        for code in (*range(0x3000), *range(0xFE00, 0x1_0000), *range(0x1_1000, 0x1_E000), *range(0xE_0000, 0xE_0100))
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Zl", "Zp") and chr(code) not in _SPELLING
    )
    + "\ud800-\udfff]"
)


def shown(text: object, most: int | None = None) -> str:
    """``text`` on one line: what a terminal would act on is spelled out, as ``\\x1b``, ``\\u202e`` or ``\\n``.

    Args:
        most: characters; of a longer text the middle is left out, and said to be.
    """
    text = str(text)
    left_out = 0
    if most is not None and len(text) > most:
        # before the rest, so that a text of any size costs little
        head, tail = text[: most * 2 // 3], text[-(most // 3) :]
        left_out = len(text) - len(head) - len(tail)
        text = f"{head} ... [{left_out:,} characters left out] ... {tail}"
    return _ACTED_ON.sub(_spelled, text)


def brief(text: object, most: int) -> str:
    """The beginning of a text in a cell or line of ``most`` characters, its white space joined."""
    line = " ".join(str(text)[: 4 * most].split())
    return shown(line if len(line) <= most else f"{line[: most - 1]}…")


def shown_json(value: Any, **how: Any) -> str:
    """``value`` as JSON of one line that means the same and can be shown: characters as above are escaped in it."""
    return _ACTED_ON.sub(_escaped, json.dumps(value, ensure_ascii=False, allow_nan=False, **how))


def _spelled(found: re.Match[str]) -> str:
    character = found[0]
    if character in _SHORT:
        return _SHORT[character]
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x1_0000 else f"\\U{code:08x}"


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]
