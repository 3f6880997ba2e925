"""What the gaps between methods say over sizes, with planted gaps."""

import pytest

from softprompt.experiments.comparison.model_sizes import describe_gaps
from softprompt.experiments.comparison.study_records import SizePoint


def point(parameters: int, **gaps: tuple[float, float, float]) -> SizePoint:
    told = {
        name: {"difference": gap, "low": low, "high": high, "p_value": 0.1, "n": 100}
        for name, (gap, low, high) in gaps.items()
    }
    return SizePoint(model=f"{parameters}M", parameters=parameters, folder="f", rows={}, gaps=told)


@pytest.mark.parametrize(
    ("large", "words"),
    [
        ((-0.01, -0.02, 0.01), "The gap closes as models grow"),
        ((-0.3, -0.35, -0.25), "The gap widens as models grow"),
        ((-0.08, -0.12, -0.04), "No clear change of the gap"),
    ],
)
def test_is_closing_widening_or_neither(large: tuple[float, float, float], words: str) -> None:
    told = describe_gaps(["prompt", "full"], [point(10, full=(-0.1, -0.15, -0.05)), point(900, full=large)])
    assert told.startswith(words)
    assert f"prompt minus the best other method: -0.100 on 10M, {large[0]:+.3f} on 900M" in told


def test_is_to_the_best_of_the_others() -> None:
    points = [
        point(10, lora=(0.2, 0.1, 0.3), full=(-0.1, -0.15, -0.05)),
        point(900, lora=(-0.01, -0.02, 0.0), full=(0.3, 0.2, 0.4)),
    ]
    assert "-0.100 on 10M, -0.010 on 900M" in describe_gaps(["prompt", "lora", "full"], points)


def test_says_nothing_of_a_single_model() -> None:
    points = [point(10, full=(-0.1, -0.15, -0.05)), point(900)]
    assert describe_gaps(["prompt", "full"], points).startswith("Too few models")
