"""Each rule of the recommendation, on the case made for it; and the limits between them."""

import math
import re
from typing import Any

import pytest

from softprompt.experiments.comparison.recommendation import RULES, Evidence, choose_cheapest, recommend
from softprompt.experiments.comparison.study_records import Cost, Row
from softprompt.metrics.scores import Speed

BASE = 500_000_000


def row(
    method: str,
    family: str,
    mean: float | None,
    gap: tuple[float, float, float] | None = None,
    *,
    per_second: float = 100.0,
    p95: float = 12.0,
    task_bytes: int = 100_000,
    base_bytes: int = BASE,
    stored: int = 1,
    seconds: float = 60.0,
    reference_ms: float | None = None,
    half: float = 0.01,
    against_current: dict[str, float | int] | None = None,
) -> Row:
    """A method that scores ``mean``; ``gap``: to the best, with its interval."""
    return Row(
        method=method,
        family=family,
        seeds=(0, 1, 2) if mean is not None else (),
        failed=0 if mean is not None else 3,
        error=None if mean is not None else "out of memory",
        mean=mean,
        deviation=0.001,
        low=None if mean is None else mean - half,
        high=None if mean is None else mean + half,
        against_best=gap and {"difference": gap[0], "low": gap[1], "high": gap[2], "p_value": 0.01, "n": 1000},
        against_current=against_current,
        cost=Cost(
            trained_parameters=1,
            stored_bytes=stored,
            base_shared=bool(base_bytes) or not task_bytes > BASE / 2,
            base_bytes=base_bytes,
            task_bytes=task_bytes,
            training_seconds=seconds,
        ),
        speed=Speed(
            p50_ms=10,
            p95_ms=p95,
            requests=50,
            batch_size=32,
            examples_per_second=per_second,
            added_tokens=0,
            reference_ms=reference_ms,
        ),
    )


def evidence(*rows: Row, **facts: Any) -> Evidence:
    return Evidence(rows, **{"metric": "accuracy", "examples": 1000, "guessing": 0.5, **facts})


PROMPT = row("prompt-tuning", "soft prompt", 0.95)
LORA = row("lora", "adapter", 0.95, (0.0, -0.008, 0.008), task_bytes=6_000_000)
FULL = row("full", "full", 0.951, (-0.001, -0.008, 0.008), base_bytes=0, task_bytes=BASE)
WORSE = (-0.08, -0.1, -0.06)  # than the best, and that is certain
ZERO_SHOT = row("zero-shot", "written", 0.87, WORSE, task_bytes=0)
TFIDF = row("tfidf", "classical", 0.87, WORSE, base_bytes=0, task_bytes=400_000, per_second=5000)
EVEN = (-0.002, -0.01, 0.006)  # not clearly worse, and never much worse

CASES: dict[str, tuple[Evidence, str | None, str]] = {
    "nothing finished": (evidence(row("lora", "adapter", None)), None, "No method gave a result"),
    "too few examples": (evidence(PROMPT, ZERO_SHOT, examples=30), None, "the test split has 30 examples"),
    "no better than guessing": (evidence(PROMPT, ZERO_SHOT, guessing=0.945), None, "Deploy none of them"),
    "not enough data": (
        evidence(PROMPT, row("zero-shot", "written", 0.92, (-0.03, -0.07, 0.01))),
        None,
        "Not enough data to tell whether 'zero-shot'",
    ),
    "keep what is in use": (
        evidence(PROMPT, row("few-shot:8", "written", 0.948, EVEN), LORA, current="lora"),
        "lora",
        "Keep 'lora'",
    ),
    "keep the written prompt": (
        evidence(PROMPT, row("few-shot:8", "written", 0.948, EVEN), LORA),
        "few-shot:8",
        "Keep the written prompt ('few-shot:8')",
    ),
    "no language model needed": (
        evidence(PROMPT, row("tfidf", "classical", 0.948, EVEN, base_bytes=0, per_second=5000), ZERO_SHOT),
        "tfidf",
        "'tfidf' is enough",
    ),
    "changed weights are clearly better": (
        evidence(row("lora", "adapter", 0.95), row("prompt-tuning", "soft prompt", 0.9, (-0.05, -0.07, -0.03)), FULL),
        "lora",
        "Use 'lora': it is clearly better than the best soft prompt ('prompt-tuning')",
    ),
    "cheapest of the best": (
        evidence(PROMPT, LORA, FULL, ZERO_SHOT, TFIDF),
        "prompt-tuning",
        "Use 'prompt-tuning': the least costly of those that these data do not tell apart from the best here, 'full'.",
    ),
}


@pytest.mark.parametrize("rule", CASES)
def test_rule_fires_on_its_case(rule: str) -> None:
    given, deploy, sentence = CASES[rule]
    found = recommend(given)
    assert (found.rule, found.deploy) == (rule, deploy)
    assert sentence in found.sentence
    assert found.reasons


def test_there_is_a_case_for_every_rule() -> None:
    assert len(CASES) == len(RULES)


def test_the_only_good_one_is_named_as_such() -> None:
    found = recommend(evidence(PROMPT, ZERO_SHOT, TFIDF))
    assert found.sentence == "Use 'prompt-tuning': clearly better than everything else that was tried."


def test_no_sentence_says_more_than_the_intervals() -> None:
    clearly = (-0.006, -0.009, -0.003)  # worse beyond doubt, by less than a point
    behind = row("prompt-tuning", "soft prompt", 0.95, clearly)
    best = row("full", "full", 0.956, base_bytes=0, task_bytes=BASE)
    found = recommend(evidence(behind, best)).sentence
    assert (
        found == "Use 'prompt-tuning': the least costly, and behind 'full', the best here, by no more than 1.0 points."
    )
    kept = recommend(evidence(behind, best, current="prompt-tuning")).sentence
    assert kept == "Keep 'prompt-tuning': nothing that was tried is better by more than 1.0 points."
    ahead = row("prompt-tuning", "soft prompt", 0.956)
    rival = row("full", "full", 0.95, (-0.006, -0.015, 0.003), base_bytes=0, task_bytes=BASE)
    leading = recommend(evidence(ahead, rival)).sentence
    assert leading.startswith(
        "Use 'prompt-tuning': the best here, and the least costly of those that these data do not"
    )
    assert leading.endswith("tell apart from it ('full').")


def test_full_fine_tuning_is_recommended_where_it_alone_is_good() -> None:
    worse = (-0.05, -0.07, -0.03)
    rows = row("full", "full", 0.95, base_bytes=0, task_bytes=BASE), row("lora", "adapter", 0.9, worse)
    found = recommend(evidence(*rows, row("prompt-tuning", "soft prompt", 0.9, worse)))
    assert (found.rule, found.deploy) == ("changed weights are clearly better", "full")
    assert any("500 MB for one task, 500 GB for 1,000" in reason for reason in found.reasons)


class TestReasons:
    def test_hold_the_numbers_that_decided(self) -> None:
        reasons = recommend(evidence(PROMPT, LORA, price_per_hour=0.36)).reasons
        assert "'prompt-tuning': accuracy 0.950 [0.940, 0.960], n=1,000, seeds: 3" in reasons
        assert any(text.startswith("memory: 500 MB for one task, 600 MB for 1,000; 'lora' needs") for text in reasons)
        assert any("1.00 for a million requests at 0.36 an hour" in text for text in reasons)

    def test_tell_the_difference_to_the_best_and_to_what_is_in_use(self) -> None:
        against = {"difference": 0.078, "low": 0.05, "high": 0.1, "p_value": 0.001, "n": 1000}
        best = row("full", "full", 0.951, base_bytes=0, task_bytes=BASE)
        prompt = row("prompt-tuning", "soft prompt", 0.95, (-0.001, -0.008, 0.006), against_current=against)
        reasons = recommend(evidence(best, prompt, ZERO_SHOT, current="zero-shot")).reasons
        assert "'prompt-tuning' minus 'full': -0.1 points [-0.8, +0.6], p=0.010" in reasons
        assert "'prompt-tuning' minus 'zero-shot': +7.8 points [+5.0, +10.0], p=0.001" in reasons

    def test_point_out_a_latency_that_others_do_not_have(self) -> None:
        slow = row("prefix-tuning", "soft prompt", 0.95, p95=50.0, task_bytes=1)
        reasons = recommend(evidence(slow, LORA)).reasons
        assert any("if latency matters, look at 'lora' too" in reason for reason in reasons)

    def test_tell_how_many_examples_would_do(self) -> None:
        given = CASES["not enough data"][0]
        # half of the interval is 0.04 wide, allowed are 0.03: (4/3)^2 of a thousand examples
        assert any("about 1,800 test examples" in reason for reason in recommend(given).reasons)

    def test_candidates_are_those_level_with_the_best(self) -> None:
        assert recommend(evidence(PROMPT, LORA, ZERO_SHOT)).candidates == ("prompt-tuning", "lora")


class TestLimits:
    @pytest.mark.parametrize(("high", "low", "level"), [(0.001, -0.02, True), (-0.001, -0.02, False)])
    def test_clearly_worse_is_not_level(self, high: float, low: float, level: bool) -> None:
        given = evidence(PROMPT, row("lora", "adapter", 0.94, (-0.01, low, high)))
        assert (len(given.level) == 2) is level

    def test_clearly_but_hardly_worse_is_level(self) -> None:
        given = evidence(PROMPT, row("zero-shot", "written", 0.945, (-0.005, -0.009, -0.001)))
        assert recommend(given).rule == "keep the written prompt"

    def test_margins_are_of_the_metrics_scale(self) -> None:
        hardly = row("zero-shot", "written", 44.5, (-0.5, -0.9, -0.1))
        given = evidence(row("prompt-tuning", "soft prompt", 45), hardly, metric="bleu", guessing=None)
        assert recommend(given).deploy == "zero-shot"

    def test_written_prompt_that_is_much_slower_is_not_kept(self) -> None:
        nearest = row("few-shot-nearest:8", "written", 0.948, EVEN, per_second=10)
        assert recommend(evidence(PROMPT, nearest)).deploy == "prompt-tuning"

    def test_what_is_in_use_is_not_kept_when_it_is_clearly_worse(self) -> None:
        assert recommend(evidence(PROMPT, ZERO_SHOT, current="zero-shot")).deploy == "prompt-tuning"

    def test_half_as_much_memory_does_not_outweigh_half_the_speed(self) -> None:
        quick = row("lora", "adapter", 0.95, task_bytes=6_000_000)
        slow = row("prompt-tuning", "soft prompt", 0.95, per_second=50)
        assert choose_cheapest([quick, slow]) is quick
        assert (
            choose_cheapest([quick, row("prompt-tuning", "soft prompt", 0.95, per_second=90)]).method == "prompt-tuning"
        )

    def test_changed_weights_that_are_only_faster_are_not_called_better(self) -> None:
        given = evidence(row("lora", "adapter", 0.95), row("prompt-tuning", "soft prompt", 0.948, EVEN, per_second=50))
        found = recommend(given)
        assert (found.deploy, found.rule) == ("lora", "cheapest of the best")

    def test_smaller_files_decide_where_memory_is_the_same(self) -> None:
        large = row("prefix-tuning", "soft prompt", 0.95, stored=3_700_000, seconds=10.0)
        small = row("prompt-tuning", "soft prompt", 0.95, stored=260_000, seconds=60.0)
        assert choose_cheapest([large, small]) is small

    def test_what_slowed_the_reference_is_not_held_against_a_method(self) -> None:
        disturbed = row("prompt-tuning", "soft prompt", 0.95, per_second=50, reference_ms=200)
        quiet = row("lora", "adapter", 0.95, task_bytes=6_000_000, reference_ms=100)
        assert choose_cheapest([disturbed, quiet]) is disturbed
        alone = row("prompt-tuning", "soft prompt", 0.95, per_second=50)  # nothing known of the machine
        assert choose_cheapest([alone, quiet]) is quiet

    def test_failed_methods_are_left_out(self) -> None:
        assert recommend(evidence(PROMPT, ZERO_SHOT, row("full", "full", None))).deploy == "prompt-tuning"


@pytest.mark.parametrize("gap", [(-0.1, -0.2, 0.0), (-0.02, -0.045, 0.005), (-0.03, -0.09, 0.03), (0.0, -0.06, 0.06)])
def test_more_examples_than_there_are_would_settle_it(gap: tuple[float, float, float]) -> None:
    """Intervals that are that much narrower by the root of n rule out a loss that matters, or show it."""
    rows = (row("a", "soft prompt", 0.8), row("w", "written", 0.7, gap))
    found = recommend(Evidence(rows, "accuracy", 60))
    assert found.rule == "not enough data"
    (told,) = (
        int(n.replace(",", "")) for n in re.findall(r"about ([\d,]+) test examples would settle it", found.reasons[1])
    )
    difference, low, high = gap
    shrunk = math.sqrt(60 / told)
    assert told > 60
    assert difference - (difference - low) * shrunk >= -0.03 - 1e-9 or difference + (high - difference) * shrunk <= 1e-9
    fewer = math.sqrt(60 / (0.8 * told))
    assert difference - (difference - low) * fewer < -0.03
    assert difference + (high - difference) * fewer > 0 or told < 75
