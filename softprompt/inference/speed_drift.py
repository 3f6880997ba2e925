"""Speeds that were measured one after another, on a machine whose own speed changed meanwhile.

Beside each the same requests were answered by one reference, in turns. What slowed it is taken to have slowed the other
as much, so ratios to it can be compared where milliseconds cannot.
"""

from collections.abc import Iterable, Sequence
from statistics import mean

from softprompt.metrics.scores import Speed

DRIFT = 1.1  # of the reference's latency over a study, from which on milliseconds are not told


def find_speed_drift(speeds: Iterable[Speed | None]) -> tuple[float, float] | None:
    """The least and the largest latency of the reference, where they differ by more than ``DRIFT``."""
    found = _list_references(speeds)
    return (min(found), max(found)) if found and max(found) > DRIFT * min(found) else None


def normalize_speeds(speeds: Sequence[Speed | None]) -> list[Speed | None]:
    """Each as it would be at the machine's mean speed; as they are, where one has no reference."""
    references = _list_references(speeds)
    if not references or len(references) < sum(speed is not None for speed in speeds):
        return list(speeds)
    usual = mean(references)
    return [None if speed is None else _rescale_speed(speed, usual) for speed in speeds]


def make_comparable(speeds: Sequence[Speed | None]) -> list[Speed | None]:
    """As they were measured, where they can be compared so; else ``normalize_speeds``."""
    return normalize_speeds(speeds) if find_speed_drift(speeds) else list(speeds)


def describe_drift(changed: tuple[float, float]) -> str:
    """What to say beside figures, where ``find_speed_drift`` found something."""
    least, most = changed
    return (
        f"The machine's speed changed while this was measured: the same request with the bare template, timed beside "
        f"each method, took {least:.1f} to {most:.1f} ms. So latencies are told as multiples of that request, and "
        "rates as they would be at its mean."
    )


def _list_references(speeds: Iterable[Speed | None]) -> list[float]:
    return [speed.reference_ms for speed in speeds if speed is not None and speed.reference_ms]


def _rescale_speed(speed: Speed, usual: float) -> Speed:
    assert speed.reference_ms
    slower = speed.reference_ms / usual
    return speed.model_copy(
        update={
            "p50_ms": speed.p50_ms / slower,
            "p95_ms": speed.p95_ms / slower,
            "examples_per_second": speed.examples_per_second * slower,
            "reference_ms": usual,
        }
    )
