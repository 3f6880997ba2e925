"""Steps that fit into a time."""

import pytest

from softprompt.errors import ConfigError, TrainingError
from softprompt.experiments.comparison.time_budget import StepTimes, fit_steps, parse_seconds


def times(steps: list[float], evaluations: list[float]) -> StepTimes:
    seen = StepTimes()
    seen.steps, seen.evaluations = steps, evaluations
    return seen


class TestStepsWithin:
    def test_counts_steps_and_their_evaluations(self) -> None:
        # 100 steps of a second and one evaluation of 20 a hundred: 5 times 120 fit into 600
        assert fit_steps(600, times([9, 5, 1, 1], [20]), lambda steps: 100) == 500

    def test_first_step_does_not_count(self) -> None:
        assert fit_steps(10, times([50, 1, 1, 1], []), lambda steps: 100) == 10

    def test_makes_one_step_at_least(self) -> None:
        assert fit_steps(0.1, times([5], [5]), lambda steps: 1) == 1

    def test_never_takes_longer(self) -> None:
        for seconds in (7, 33, 200, 1234):
            steps = fit_steps(seconds, times([1, 0.7], [3]), lambda steps: -(-steps // 3))
            every = -(-steps // 3)
            assert steps * 0.7 + -(-steps // every) * 3 <= seconds or steps == 1

    def test_needs_a_step(self) -> None:
        with pytest.raises(TrainingError, match="made none"):
            fit_steps(10, times([], []), lambda steps: 1)


def test_times_are_those_since_the_event_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("softprompt.experiments.comparison.time_budget.time.perf_counter", lambda: now)
    seen = StepTimes()
    now = 10.0  # loading is no part of a step
    seen.on_train_begin(0, 2, 1, 1)
    now = 12.0
    seen.on_step_end(1, 1.0, 0.1, 1.0)
    now = 15.0
    seen.on_evaluate(1, "accuracy", 0.5, 1.0, True)
    now = 16.0
    seen.on_step_end(2, 1.0, 0.1, 1.0)
    assert (seen.steps, seen.evaluations) == ([2.0, 1.0], [3.0])


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("45", 45), (" 2m ", 120)])
def test_times_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "10 minutes", "-5m", "0s", "1e3"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a time such as 90s, 10m or"):
        parse_seconds(text)
