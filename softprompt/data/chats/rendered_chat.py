"""What a chat template made of a conversation, and the signs that stand in it for marks which the data spells."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from softprompt.data.encoding.tokenization import Span
from softprompt.errors import DataError

SIGNS = range(0x100000, 0x10FFFE)  # of Unicode's last plane, which is for private use
PRIVATE_USE = re.compile(f"[{chr(SIGNS[0])}-{chr(SIGNS[-1])}]")


@dataclass(frozen=True)
class RenderedChat:
    """What the template made of a conversation.

    Attributes:
        text: the whole of it.
        fields: ranges of ``text`` that are marks which the data spelled, hence none: half open, ascending, disjoint.
        place: where in ``text`` the virtual tokens stand.
        generated: ranges that the template's ``{% generation %}`` marks as the assistant's.
    """

    text: str
    fields: tuple[Span, ...]
    place: int
    generated: tuple[Span, ...] = ()

    def part(self, start: int, end: int | None = None) -> tuple[str, list[Span]]:
        """The text from ``start`` to ``end``, and which ranges of it the data brought."""
        stop = len(self.text) if end is None else end
        inside = [(max(a, start) - start, min(b, stop) - start) for a, b in self.fields if a < stop and b > start]
        return self.text[start:stop], inside


class Signs:
    """Signs in place of marks, of which the data has none.

    Attributes:
        place: the sign of where the virtual tokens stand.
    """

    def __init__(self, data: Any, pattern: re.Pattern[str]) -> None:
        texts = list(_strings(data))
        used = {sign for text in texts for sign in PRIVATE_USE.findall(text)}
        free = (sign for sign in map(chr, SIGNS) if sign not in used)
        self.place, self._pattern = next(free), pattern
        found = {mark for text in texts for mark in pattern.findall(text)}
        self._by_mark = {mark: next(free) for mark in sorted(found)}
        self._words = {self.place: "", **{sign: mark for mark, sign in self._by_mark.items()}}

    def hide(self, value: Any, spoken: frozenset[str] | set[str]) -> Any:
        """``value`` with signs for the marks in its strings, but for those that are ``spoken``."""
        if not self._by_mark:
            return value
        if isinstance(value, str):
            return self._pattern.sub(lambda mark: mark[0] if mark[0] in spoken else self._by_mark[mark[0]], value)
        if isinstance(value, Mapping):
            return {self.hide(key, spoken): self.hide(one, spoken) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(one, spoken) for one in value]
        return value

    def reveal(self, text: str, generated: Sequence[Span]) -> RenderedChat:
        """What was written, with marks for signs, and where they and the virtual tokens stand."""
        pieces: list[str] = []
        fields: list[Span] = []
        places: list[int] = []
        starts, shifts = [-1], [0]  # behind each sign everything moves
        last = 0
        for sign in PRIVATE_USE.finditer(text):
            if (word := self._words.get(sign[0])) is None:
                continue
            start = sign.start() + shifts[-1]
            if word:
                fields.append((start, start + len(word)))
            else:
                places.append(start)
            pieces += [text[last : sign.start()], word]
            last = sign.end()
            starts.append(sign.start())
            shifts.append(shifts[-1] + len(word) - 1)
        pieces.append(text[last:])

        def moved(at: int) -> int:
            return at + shifts[bisect_left(starts, at) - 1]

        spans = tuple((moved(start), moved(end)) for start, end in generated)
        if len(places) > 1:
            raise DataError("the chat template writes the system message more than once: put the virtual tokens first")
        return RenderedChat("".join(pieces), tuple(fields), places[0] if places else 0, spans)


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _strings(key)
            yield from _strings(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _strings(one)
