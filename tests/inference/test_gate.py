"""The gate before promotion: significantly worse is refused, with figures and examples; chance and gains pass."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.saved_prompts import a_prompt

from softprompt.config import GateConfig
from softprompt.data.examples import Example
from softprompt.errors import ConfigError, DataError, GateError
from softprompt.inference.evaluation import Evaluation
from softprompt.inference.gate import Gate, judge_answers
from softprompt.inference.predictions import Prediction
from softprompt.metrics.scores import Score
from softprompt.prompts.saved_prompt import Prompt
from softprompt.store.verdict import Verdict
from softprompt.store.version_store import Store


def answers(right: Sequence[bool]) -> Evaluation:
    """An evaluation of the examples of ``examples``, right or wrong where it says so."""
    predictions = tuple(Prediction(index, "good" if one else "bad") for index, one in enumerate(right))
    value = sum(right) / len(right)
    return Evaluation(
        Score(metric="accuracy", value=value, low=value, high=value, n=len(right)),
        (),
        predictions,
        ("good",) * len(right),
        0,
    )


def examples(count: int) -> list[Example]:
    return [Example(f"text {index}", "good") for index in range(count)]


def judged(before: Sequence[bool], now: Sequence[bool], **settings: float) -> Verdict:
    return judge_answers(examples(len(now)), answers(before), answers(now), GateConfig.build(**settings))


class TestVerdict:
    def test_clearly_worse_is_refused_with_figures_and_examples(self) -> None:
        verdict = judged([True] * 100, [False] * 20 + [True] * 80)
        assert not verdict.passed
        assert (verdict.metric, verdict.before, verdict.now) == ("accuracy", 1.0, 0.8)
        assert verdict.difference.difference == pytest.approx(-0.2)
        assert verdict.difference.low < -0.2 < verdict.difference.high < 0
        assert verdict.p_value < 0.001
        assert (verdict.gained, len(verdict.lost)) == (0, 20)
        assert [one.index for one in verdict.lost] == list(range(20))
        first = verdict.lost[0]
        assert (first.text, first.expected, first.before, first.now) == ("text 0", "good", "good", "bad")
        assert str(verdict).startswith("accuracy 0.800 against 1.000, difference -0.200 [")
        assert str(verdict).endswith("n=100: 20 lost, 0 gained")

    def test_better_passes(self) -> None:
        verdict = judged([False] * 20 + [True] * 80, [True] * 100)
        assert verdict.passed
        assert (verdict.gained, verdict.lost) == (20, ())

    def test_the_same_passes(self) -> None:
        assert judged([True] * 10, [True] * 10).passed

    def test_what_chance_explains_passes(self) -> None:
        # one lost of ten
        assert judged([True] * 10, [False] + [True] * 9).passed

    def test_it_is_paired(self) -> None:
        """80 and then 73 of 100 right: of the same ones that is significantly fewer, of others it is not."""
        before = [True] * 80 + [False] * 20
        assert not judged(before, [True] * 73 + [False] * 27).passed
        assert judged(before, [False] * 22 + [True] * 73 + [False] * 5).passed

    def test_significance(self) -> None:
        before, now = [True] * 100, [False] * 6 + [True] * 94
        verdict = judged(before, now)
        assert not verdict.passed
        assert judged(before, now, significance=verdict.p_value / 2).passed

    def test_tolerance(self) -> None:
        before, now = [True] * 100, [False] * 20 + [True] * 80
        assert not judged(before, now, tolerance=0.05).passed
        assert judged(before, now, tolerance=0.15).passed
        assert judged(before, now, tolerance=0.5).passed

    def test_figures_hold_no_text(self) -> None:
        verdict = judged([True] * 100, [False] * 20 + [True] * 80)
        assert "text" not in str(verdict.figures())
        assert verdict.figures()["lost"] == 20
        assert verdict.figures()["significance"] == 0.05
        assert len(verdict.to_dict(examples=3)["examples"]) == 3
        assert verdict.to_dict()["examples"][0]["text"] == "text 0"

    def test_false_alarms_are_as_rare_as_it_says(self) -> None:
        generator = random.Random(0)
        refused = 0
        for _ in range(200):
            draws = [[generator.random() < 0.8 for _ in range(60)] for _ in range(2)]
            refused += not judged(*draws, resamples=400).passed
        # worse by chance at p < 0.05, two-sided: 2.5%
        assert refused <= 12

    def test_generation_goes_by_its_metric(self) -> None:
        rows = [Example("ask", references=("the cat sat", "a cat sat")) for _ in range(30)]

        def said(text: str) -> Evaluation:
            predictions = tuple(Prediction(index, completion=text) for index in range(30))
            return Evaluation(
                Score(metric="chrf", value=0, low=0, high=0, n=30),
                (),
                predictions,
                tuple(one.references for one in rows),
                0,
            )

        verdict = judge_answers(rows, said("the cat sat"), said("dogs run"), GateConfig())
        assert (verdict.metric, verdict.before, verdict.passed) == ("chrf", 100.0, False)
        assert verdict.lost[0].expected == "the cat sat | a cat sat"
        assert verdict.lost[0].now == "dogs run"
        assert str(verdict).startswith("chrf ")


class TestConfig:
    def test_from_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "gate.toml").write_text("significance = 0.01\ntolerance = 0.02\n")
        assert GateConfig.load(tmp_path / "gate.toml", tolerance=0.5) == GateConfig(significance=0.01, tolerance=0.5)

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"significance": 0}, r"setting 'significance' \(largest two-sided p-value that counts as worse\)"),
            ({"tolerance": -1}, "setting 'tolerance'"),
            ({"tolerence": 1}, "unknown setting 'tolerence': did you mean 'tolerance'"),
        ],
    )
    def test_mistakes(self, settings: dict[str, float], words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            GateConfig.build(**settings)


class TestInTheStore:
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        store = Store(tmp_path / "store")
        for seed in range(3):
            store.put(a_prompt(seed), "p")
        store.promote("p@1", "prod")
        return store

    def gate(self, right_of: dict[int, float]) -> Gate:
        """One to which the prompt of each seed is right on this share of 100 examples, without a model."""

        class Played(Gate):
            def __call__(self, new: Prompt, in_place: Prompt) -> Verdict:
                shares = [int(100 * right_of[prompt.seed]) for prompt in (in_place, new)]
                return judged(*([True] * share + [False] * (100 - share) for share in shares))

        return Played(None, [])  # type: ignore[arg-type]

    def test_worse_is_refused_and_nothing_moves(self, store: Store) -> None:
        with pytest.raises(GateError) as caught:
            store.promote("p@2", "prod", gate=self.gate({0: 0.9, 1: 0.6}))
        message = str(caught.value)
        assert message.startswith(
            "p@2 was not promoted to 'prod', it is significantly worse than p@1: accuracy 0.600 against 0.900, "
            "difference -0.300 ["
        )
        assert message.endswith("30 lost, 0 gained; --force promotes it nevertheless")
        assert len(caught.value.verdict.lost) == 30
        assert store.aliases("p") == {"prod": 1}
        assert len(store.history("p@prod")) == 1

    def test_force_is_recorded(self, store: Store) -> None:
        store.promote("p@2", "prod", gate=self.gate({0: 0.9, 1: 0.6}), force=True, by="me")
        move = store.history("p@prod")[-1]
        assert (move.to, move.forced, move.by) == (2, True, "me")
        assert move.gate is not None
        assert (move.gate["passed"], move.gate["lost"], move.gate["n"]) == (False, 30, 100)

    def test_force_that_was_not_needed_is_not(self, store: Store) -> None:
        move = store.promote("p@2", "prod", gate=self.gate({0: 0.6, 1: 0.9}), force=True)
        assert not move.forced
        assert move.gate is not None
        assert move.gate["passed"]

    def test_nothing_in_place(self, store: Store) -> None:
        move = store.promote("p@2", "new", gate=self.gate({}))
        assert (move.before, move.to, move.gate) == (None, 2, None)

    def test_no_examples(self, store: Store) -> None:
        from helpers.tiny_models import tiny_base

        base = tiny_base("llama")
        with pytest.raises(DataError, match="no examples to evaluate on"):
            Gate(base, [])(*(prompt_for(base, seed) for seed in (0, 1)))


def prompt_for(base: object, seed: int) -> Prompt:
    from dataclasses import replace

    from helpers.tiny_models import random_prompt

    from softprompt.prompts.state import PromptState

    state = PromptState.of_embeddings(random_prompt(base, 3, seed).detach())  # type: ignore[arg-type]
    return replace(
        a_prompt(seed),
        states=(state,),
        base_name=base.name,  # type: ignore[attr-defined]
        base_fingerprint=base.fingerprint,  # type: ignore[attr-defined]
    )


def test_with_a_real_model(tmp_path: Path) -> None:
    """The verdict's scores are those of ``evaluate`` on the same examples."""
    from helpers.tiny_models import tiny_base

    from softprompt.inference.evaluation import evaluate

    base = tiny_base("llama")
    rows = [Example(f"film {index}", "good" if index % 2 else "bad") for index in range(20)]
    new, old = (prompt_for(base, seed) for seed in (1, 2))
    verdict = Gate(lambda prompt: base, rows)(new, old)
    assert verdict.now == pytest.approx(evaluate(base, rows, new).metric.value)
    assert verdict.before == pytest.approx(evaluate(base, rows, old).metric.value)
