"""Findings: what is wrong, what that means and what to try, as tables of rules that are judged by what was measured."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from softprompt.utils.records import Record

Severity = Literal["problem", "warning", "note"]
Measured = TypeVar("Measured")
_SEVEREST_FIRST = ("problem", "warning", "note")


class Finding(Record):
    """Something about the prompt's health: what was seen, what it means, what to try."""

    name: str
    severity: Severity
    title: str
    evidence: str
    meaning: str
    advice: tuple[str, ...]


@dataclass(frozen=True)
class Rule(Generic[Measured]):
    """One finding.

    Attributes:
        check: the evidence, with whatever else differs from the rule's own words; ``None``: all is well.
    """

    name: str
    severity: Severity
    title: str
    check: Callable[[Measured], str | Mapping[str, Any] | None]
    meaning: str
    advice: tuple[str, ...]

    def judge(self, measured: Measured) -> Finding | None:
        seen = self.check(measured)
        if seen is None:
            return None
        said = {name: getattr(self, name) for name in ("name", "severity", "title", "meaning", "advice")}
        return Finding(**said | ({"evidence": seen} if isinstance(seen, str) else dict(seen)))


def judge_rules(rules: Iterable[Rule[Measured]], measured: Measured) -> list[Finding]:
    """What the rules find, the most severe first."""
    found = [finding for rule in rules if (finding := rule.judge(measured)) is not None]
    return sorted(found, key=lambda one: _SEVEREST_FIRST.index(one.severity))
