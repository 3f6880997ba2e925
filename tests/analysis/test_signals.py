"""What is told from profile and samples: planted drift is found in each signal, and none where there is none."""

import json
from typing import Any

import numpy as np
import pytest
from helpers.planted_traffic import SIZE, World, profile, sample, samples
from scipy import stats

from softprompt.analysis.drift import distribution_tests
from softprompt.analysis.drift.drift_findings import (
    RULES,
    describe_significance,
    describe_values,
    select_examples,
)
from softprompt.analysis.drift.signals import LEAST, LEAST_TRAINED, ComparedSignal, compare_signals, judge_signal
from softprompt.metrics import hypothesis_tests
from softprompt.metrics.hypothesis_tests import holm_adjust
from softprompt.store.input_profile import (
    POINTS,
    Distribution,
    HiddenProfile,
    InputProfile,
    TokenShare,
    choose_coordinates,
    encode_ids,
)
from softprompt.utils.seals import unseal

NAMES = ["length", "rare", "labels", "confidence", "hidden"]


def measured(seed: int, n: int = 400, away: float = 0.0, trained: int = 800, **planted: Any) -> list[ComparedSignal]:
    """Signals of ``n`` live rows beside a profile of other rows of the same world, judged."""
    world = World(seed)
    known = profile(world, trained)
    live = samples(world.draw(n, **planted))
    assert known.hidden is not None
    apart = known.hidden.distances_of(world.states(min(n, 400), away))
    found = compare_signals(known, live, dict(enumerate(apart.tolist())))
    adjusted = iter(holm_adjust([one.signal.p_value for one in found if one.signal.p_value is not None]))
    return [
        ComparedSignal(
            judge_signal(one.signal, None if one.signal.p_value is None else next(adjusted)),
            one.rows,
            one.values,
            one.weights,
        )
        for one in found
    ]


def verdicts(found: list[ComparedSignal]) -> dict[str, str]:
    return {one.signal.name: one.signal.verdict for one in found}


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_cried_where_nothing_changed(seed: int) -> None:
    found = verdicts(measured(seed))
    assert list(found) == NAMES
    assert set(found.values()) <= {"none", "small"}


def test_what_is_called_sure_is_sure() -> None:
    # one run in a hundred may be wrong, by the significance level
    wrong = sum("small" in verdicts(measured(seed)).values() for seed in range(100, 200))
    assert wrong <= 4


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [100, 5000])
def test_nor_with_few_or_many(seed: int, n: int) -> None:
    assert set(verdicts(measured(seed, n)).values()) <= {"none", "small"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "planted"),
    [
        ("length", {"longer": 1.5}),
        ("length", {"longer": 0.6}),
        ("rare", {"odd": 0.2}),
        ("rare", {"odd": 0.03}),
        ("labels", {"good": 0.8}),
        ("confidence", {"unsure": 0.6}),
        ("hidden", {"away": 1.0}),
    ],
)
def test_planted_drift_is_found_where_it_was_planted(seed: int, name: str, planted: dict[str, float]) -> None:
    found = measured(seed, **planted)
    drifting = {one.signal.name for one in found if one.signal.verdict == "drift"}
    # how long a text is moves the share of its rare tokens no further than chance does
    assert drifting == {name}


def test_a_little_is_called_little() -> None:
    (one,) = [one.signal for one in measured(0, 20_000, trained=5000, longer=1.1) if one.signal.name == "length"]
    assert one.verdict == "small"
    assert one.adjusted is not None
    assert one.adjusted < 1e-6
    assert one.effect is not None
    assert one.effect < one.bar


@pytest.mark.parametrize(("n", "trained"), [(LEAST - 1, 800), (400, LEAST_TRAINED - 1)])
def test_too_few_to_tell(n: int, trained: int) -> None:
    found = measured(0, n, trained=trained, longer=3.0, odd=0.9, good=1.0, unsure=1.0, away=9.0)
    assert verdicts(found) == dict.fromkeys(NAMES, "too few")
    assert describe_significance(found[0].signal) == "too few samples to tell"
    assert all(one.signal.adjusted is None and not one.weights.any() for one in found)


def test_what_is_not_there_is_not_compared() -> None:
    world = World(0)
    bare = profile(world).model_copy(update={"labels": {}, "confidence": None, "hidden": None})
    live = [sample(row, i, rare=None, tokens=None) for i, row in enumerate(world.draw(200))]
    found = compare_signals(bare, live, {})
    assert [(one.signal.name, one.signal.live_n) for one in found] == [("length", 0), ("rare", 0)]
    assert describe_values(found[0].signal) == "nothing to compare"


def test_samples_that_show_it() -> None:
    world = World(1)
    known = profile(world)
    live = samples(world.draw(300)) + [
        sample({"tokens": 90, "rare": 3, "label": "good", "confidence": 0.9}, 1000 + i, text=f"long {i % 8}")
        for i in range(200)
    ]
    found = {one.signal.name: one for one in compare_signals(known, live, {})}
    shown = select_examples(found["length"], live)
    assert [one.why for one in shown] == ["90 tokens"] * 5
    assert [one.text for one in shown] == ["long 7", "long 6", "long 5", "long 4", "long 3"]
    assert shown[0].time == "2026-11-25 10:06:39"
    told = RULES["length"].judge(judge_signal(found["length"].signal, 1e-9))
    assert told is not None
    assert (told.name, told.severity) == ("drift-length", "problem")
    assert "live; PSI" in told.evidence
    assert told.evidence.endswith("p<0.0001")


def test_each_signal_is_shown_by_what_moved() -> None:
    found = {one.signal.name: one for one in measured(3, odd=0.02, good=0.9, unsure=0.8, away=2.0)}
    live = samples(World(0).draw(400))
    for name, word in (("rare", "tokens are rare"), ("labels", "answered"), ("hidden", "distance")):
        assert all(word in one.why for one in select_examples(found[name], live))
    # fewer rare tokens are shown by texts that have fewer than is usual
    rare = found["rare"]
    assert max(rare.values[place] for place in np.argsort(-rare.weights)[:5]) < (rare.signal.trained or 0)
    far = found["hidden"]
    assert np.argmax(far.weights) == np.argmax(far.values)


def same_rate(one: TokenShare, other: TokenShare) -> float:
    return hypothesis_tests.z_test(other.value - one.value, np.hypot(one.error, other.error)).p_value


class TestStatistics:
    @pytest.mark.parametrize("shift", [0.0, 0.1, 0.4])
    def test_against_scipy(self, shift: float) -> None:
        random = np.random.default_rng(0)
        a, b = random.normal(size=500), random.normal(shift, size=700)
        known = Distribution.of(a)
        one, other = distribution_tests.kolmogorov_smirnov(known, b), stats.ks_2samp(a, b)
        assert other.statistic - 1 / POINTS <= one.statistic <= other.statistic + 1e-9
        assert one.p_value >= 0.9 * other.pvalue

    def test_chi_square_against_scipy(self) -> None:
        a, b = [40, 30, 30, 200], [60, 30, 40, 90]
        one, other = hypothesis_tests.chi_square(a, b), stats.chi2_contingency([a, b], correction=False)
        assert (one.statistic, one.p_value) == pytest.approx((other.statistic, other.pvalue))

    def test_rare_labels_are_counted_as_one(self) -> None:
        assert hypothesis_tests.chi_square([400, 1, 1], [400, 1, 1]).p_value == 1.0
        assert hypothesis_tests.chi_square([100], [70]).p_value == 1.0
        one = hypothesis_tests.chi_square([500, 2, 1, 1], [400, 60, 3, 2])
        assert one.p_value < 1e-6

    def test_kolmogorov_against_scipy(self) -> None:
        for value in (0.1, 0.3, 0.8, 1.5, 3.0):
            root = np.sqrt(500 * 700 / 1200)
            gap = value / (root + 0.12 + 0.11 / root)
            found = hypothesis_tests.kolmogorov_smirnov_p_value(gap, 500, 700)
            assert found == pytest.approx(stats.kstwobign.sf(value), abs=1e-12)

    def test_what_never_varied(self) -> None:
        still, live = Distribution.of([0.0] * 200), np.zeros(200)
        assert distribution_tests.kolmogorov_smirnov(still, live).p_value == 1.0
        assert hypothesis_tests.population_stability_index(*distribution_tests.count_in_bins(still, live)[:2]) == 0.0
        assert distribution_tests.kolmogorov_smirnov(still, live + 0.1).p_value < 1e-9
        assert hypothesis_tests.population_stability_index(*distribution_tests.count_in_bins(still, live + 0.1)[:2]) > 1

    def test_thirds_are_equal_to_thirds(self) -> None:
        values = np.array([1 / 3, 2 / 3, 0.1234567, 0.9] * 100)
        known = Distribution.of(values)
        assert distribution_tests.kolmogorov_smirnov(known, values).statistic < 1e-4
        before, now, _ = distribution_tests.count_in_bins(known, values)
        assert now.tolist() == pytest.approx(before.tolist(), abs=0.1)

    def test_rates(self) -> None:
        # tokens of one text go together: ten texts, each all rare or not at all, tell no more than ten coins do
        random = np.random.default_rng(0)
        wrong = 0
        for _ in range(400):
            sides = []
            for _ in range(2):
                totals = random.integers(5, 40, 150)
                sides.append(TokenShare.of(totals * (random.random(150) < 0.3), totals))
            wrong += same_rate(*sides) < 0.05
        assert 8 <= wrong <= 36
        none = TokenShare.of([0, 0], [5, 5])
        assert same_rate(none, none) == 1.0
        assert same_rate(none, TokenShare.of([5, 5], [5, 5])) == 0.0
        assert hypothesis_tests.cohens_h(0.0, 1.0) == pytest.approx(np.pi)


class TestProfile:
    def test_written_and_read(self) -> None:
        world = World(0)
        known = profile(world)
        assert InputProfile.from_bytes(known.to_bytes()) == known
        assert known.known == {1, 3, 7}
        assert len(known.to_bytes()) < 6000

    def test_frequent_tokens(self) -> None:
        assert encode_ids([9, 2, 5]) == (2, 3, 4)

    def test_each_state_is_measured_from_the_centre_of_the_others(self) -> None:
        states = World(2).states(7)
        known = HiddenProfile.of(states, SIZE)
        apart = []
        for index in range(7):
            others = np.delete(states, index, axis=0)
            off = (states[index] - others.mean(axis=0)) / others.std(axis=0, ddof=1)
            apart.append(float(np.sqrt((off**2).mean())))
        assert known.distances.points == pytest.approx(sorted(apart), rel=1e-4)

    def test_new_states_seem_no_farther(self) -> None:
        world = World(3)
        for n in (100, 400):
            known = HiddenProfile.of(world.states(n), SIZE)
            live = known.distances_of(world.states(4000))
            assert live.mean() == pytest.approx(known.distances.mean, abs=4 * known.distances.deviation / n**0.5)

    def test_coordinates(self) -> None:
        assert list(choose_coordinates(5)) == [0, 1, 2, 3, 4]
        many = list(choose_coordinates(5000))
        assert len(set(many)) == 192
        assert max(many) < 5000

    @pytest.mark.parametrize(
        "change",
        [
            {"schema_version": 2},
            {"examples": 0},
            {"lengths": {"n": 3, "mean": 1, "deviation": 1, "points": [2, 1], "upto": [0.5, 1]}},
            {"lengths": {"n": 3, "mean": 1, "deviation": 1, "points": [1], "upto": [0.5, 1]}},
            {"lengths": {"n": 3, "mean": 1, "deviation": 1, "points": [1], "upto": [2]}},
            {"hidden": {"size": 16, "mean": "AAAA", "deviation": "!", "distances": {}}},
            {"extra": 1},
        ],
    )
    def test_a_damaged_one_is_refused_in_one_line(self, change: dict[str, Any]) -> None:
        values = unseal(json.loads(profile(World(0)).to_bytes())) | change
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            InputProfile.from_bytes(json.dumps(values).encode())

    def test_a_centre_of_another_size_is_refused(self) -> None:
        values = unseal(json.loads(profile(World(0)).to_bytes()))
        values["hidden"]["size"] = 8
        with pytest.raises(ValueError, match="its centre is not of the coordinates"):
            InputProfile.from_bytes(json.dumps(values).encode())
