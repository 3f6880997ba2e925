"""What a benchmark is to reach, in one form for all of them, so that their results make one table."""

from typing import Any


def judged(what: str, value: float, aim: float, unit: str, *, at_most: bool = False) -> dict[str, Any]:
    """One figure beside its aim: at least ``aim``, or ``at_most`` that."""
    met = value <= aim if at_most else value >= aim
    return {"what": what, "value": value, "aim": aim, "unit": unit, "at_most": at_most, "met": met}


def aim_lines(report: dict[str, Any]) -> list[str]:
    """For people: whether each aim was met."""
    return [
        f"aim {'met' if one['met'] else 'missed'}: {one['what']}: {one['value']:.3g} {one['unit']}, expected "
        f"{'at most' if one['at_most'] else 'at least'} {one['aim']:g}"
        for one in report["aims"]
    ]
