"""Where the virtual tokens stand: what the model reads in front of them and behind them, the same for every text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LONGEST_SIDE = 100_000  # tokens in front or behind, of a saved prompt


@dataclass(frozen=True)
class Placement:
    """The shared prefix is BOS, ``before``, the virtual tokens, ``behind``; each text follows it.

    Attributes:
        behind_bos: whether BOS stands in front. A prompt that was learned elsewhere may be the first thing that the
            model sees, and hold what BOS is in its own rows.
        before: token ids between BOS and the virtual tokens: the opening of a system turn.
        behind: token ids between the virtual tokens and the texts: a written system prompt, the end of its turn.
    """

    behind_bos: bool = True
    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()

    @property
    def added(self) -> int:
        """Tokens beside BOS and the virtual tokens."""
        return len(self.before) + len(self.behind)

    def to_dict(self) -> dict[str, Any]:
        """What a saved prompt says of it; nothing of what is as usual."""
        sides = {"before": list(self.before), "behind": list(self.behind)}
        return {
            **({} if self.behind_bos else {"behind_bos": False}),
            **{name: ids for name, ids in sides.items() if ids},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Placement":
        """``to_dict`` undone; raises ValueError for what is none."""
        behind_bos = values.get("behind_bos", True)
        if type(behind_bos) is not bool:
            raise ValueError(f"behind_bos is {behind_bos!r}")
        sides = []
        for name in ("before", "behind"):
            ids = values.get(name, [])
            if not isinstance(ids, list) or len(ids) > LONGEST_SIDE or not all(type(one) is int for one in ids):
                raise ValueError(f"{name} is no list of token ids")
            if any(not 0 <= one < 2**31 for one in ids):
                raise ValueError(f"{name} has a number that is no token id")
            sides.append(tuple(ids))
        return cls(behind_bos, *sides)


BEHIND_BOS = Placement()
