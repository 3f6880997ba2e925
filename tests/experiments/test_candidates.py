"""The names that --methods takes, and what is wrong with others."""

import importlib.util
from pathlib import Path

import pytest
from helpers.small_tasks import Recorder, reviews_task
from helpers.tiny_models import tiny_base

from softprompt.errors import ConfigError, MissingExtraError
from softprompt.experiments.comparison.candidates import (
    CANDIDATE_KINDS,
    Run,
    RunSettings,
    parse_methods,
)
from softprompt.inference.predictor import Predictor
from softprompt.prompts.methods.method_registry import METHODS
from softprompt.prompts.written_prompt import choose_shots, written_prompt
from softprompt.training.callbacks.step_timer import StepTimer


def refused(names: str) -> str:
    with pytest.raises(ConfigError) as raised:
        parse_methods(names)
    return str(raised.value)


class TestNames:
    def test_every_kind_is_taken_in_the_order_given(self) -> None:
        names = [*reversed(CANDIDATE_KINDS), "few-shot:4", "prompt-tuning:length=50"]
        assert [one.name for one in parse_methods(",".join(names))] == names

    def test_every_method_of_softprompt_takes_part(self) -> None:
        assert set(METHODS) <= set(CANDIDATE_KINDS)

    def test_families(self) -> None:
        given = "zero-shot,few-shot:2,tfidf,linear-probe,prefix-tuning,lora,full"
        found = ["written", "written", "classical", "classical", "soft prompt", "adapter", "full"]
        assert [one.family for one in parse_methods(given)] == found

    def test_what_no_seed_changes_runs_once(self) -> None:
        once = {name for name in CANDIDATE_KINDS if not parse_methods(name)[0].seeded}
        assert once == {"zero-shot", "zero-shot-calibrated", "few-shot-nearest", "tfidf", "linear-probe"}

    def test_only_what_learns_by_steps_has_a_rate_to_search(self) -> None:
        searched = {name for name in CANDIDATE_KINDS if parse_methods(name)[0].learning_rate is not None}
        assert searched == {*METHODS, "lora", "full"}

    @pytest.mark.parametrize(
        ("typo", "meant"),
        [("promt-tuning", "'prompt-tuning'"), ("fewshot:8", "'few-shot'"), ("LoRA", "'lora'"), ("tf-idf", "'tfidf'")],
    )
    def test_typo_gets_suggestions(self, typo: str, meant: str) -> None:
        text = refused(f"zero-shot,{typo}")
        assert text.startswith(f"unknown method '{typo.partition(':')[0]}': did you mean ")
        assert meant in text

    def test_name_like_none_gets_all(self) -> None:
        assert refused("xyzzy").startswith("unknown method 'xyzzy': expected one of zero-shot, ")

    @pytest.mark.parametrize(
        ("names", "words"),
        [
            ("lora,lora", "--methods names 'lora' twice"),
            ("lora,,full", "expected names with commas between them"),
            ("zero-shot:3", "method 'zero-shot:3' has no options: expected 'zero-shot'"),
            ("few-shot:many", "expected a number of examples, as in few-shot:8, got 'many'"),
            ("few-shot:0", "expected a number of examples, as in few-shot:8, got '0'"),
            ("prompt-tuning:50", "expected options as NAME=VALUE, each once, got '50'"),
            ("prompt-tuning:lr=1:lr=2", "expected options as NAME=VALUE, each once, got 'lr=2'"),
            ("prompt-tuning:lenght=50", "method 'prompt-tuning:lenght=50': unknown setting 'lenght'"),
            ("prompt-tuning:length=0", "method 'prompt-tuning:length=0': setting 'length'"),
            ("prompt-tuning:steps=5", "sets steps, which all methods of a comparison share"),
            ("lora:seed=5", "sets seed, which all methods of a comparison share"),
            ("lora:rank=half", "expected a positive whole number for rank, got 'half'"),
            ("full:rank=8", "method 'full:rank=8': unknown setting 'rank'"),
        ],
    )
    def test_what_cannot_be_used_is_refused(self, names: str, words: str) -> None:
        assert words in refused(names)

    @pytest.mark.parametrize(("name", "package", "extra"), [("lora", "peft", "peft"), ("tfidf", "sklearn", "compare")])
    def test_missing_package_names_its_extra(
        self, name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
        with pytest.raises(MissingExtraError, match=rf"pip install 'softprompt\[{extra}\]'"):
            parse_methods(f"zero-shot,{name}")
        parse_methods("zero-shot,prompt-tuning,full")


class TestOptions:
    def test_reach_the_settings_of_the_method(self) -> None:
        (one,) = parse_methods("residual:length=7:lr=0.3:init=labels:bottleneck=5")
        assert (one.config.length, one.config.learning_rate, one.config.init) == (7, 0.3, "labels")
        assert one.config.method_options == {"bottleneck": 5}
        assert one.learning_rate == 0.3

    def test_of_lora(self, tmp_path: Path) -> None:
        small, large = parse_methods("lora:rank=2:alpha=4,lora:lr=0.01")
        task, plan = reviews_task(), RunSettings(1, 4)
        (fitted,) = small.learn(tiny_base("llama"), task, [Run(3)], plan, Recorder(), tmp_path)
        assert (fitted.settings["rank"], fitted.settings["alpha"]) == (2, 4)  # type: ignore[union-attr]
        assert (fitted.settings["seed"], fitted.settings["learning_rate"]) == (3, 1e-3)  # type: ignore[union-attr]
        (fitted,) = large.learn(tiny_base("llama"), task, [Run(0, 0.5)], plan, Recorder(), tmp_path)
        assert fitted.settings["learning_rate"] == 0.5  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "shots"), [("zero-shot", 0), ("few-shot:2", 2)])
def test_written_prompt_has_the_instruction_in_front(tmp_path: Path, name: str, shots: int) -> None:
    base, task, words = tiny_base("llama"), reviews_task(test=8), "Decide which."
    plans = (RunSettings(3, instruction=words), RunSettings(3))
    (own,), (bare,) = (parse_methods(name)[0].learn(base, task, [Run(1)], plan, Recorder(), tmp_path) for plan in plans)
    state = written_prompt(base, task.spec, words, choose_shots(task.train, shots, 1))
    expected = Predictor(base, task.spec, state).label_log_probabilities(task.test)
    assert own.answers.label_log_probabilities(task.test).equal(expected)
    assert own.settings["instruction"] == words
    assert own.added_tokens > bare.added_tokens


def test_plan_evaluates_a_short_run_three_times_at_least() -> None:
    assert [RunSettings(steps).eval_every for steps in (1, 6, 100, 300, 600)] == [1, 2, 34, 100, 100]


class TestTogether:
    def test_each_seed_ends_where_it_ends_alone(self, tmp_path: Path) -> None:
        base, task, plan = tiny_base("llama"), reviews_task(), RunSettings(12, 8)
        (method,) = parse_methods("prompt-tuning:length=4:init=random")
        runs = [Run(0), Run(1)]
        together = method.learn(base, task, runs, plan, Recorder(), tmp_path / "both")
        for run, one in zip(runs, together, strict=True):
            (alone,) = method.learn(base, task, [run], plan, Recorder(), tmp_path / str(run.seed))
            assert one.best_value == alone.best_value  # type: ignore[union-attr]
            assert one.best_loss == pytest.approx(alone.best_loss, abs=1e-4)  # type: ignore[union-attr]
            assert one.settings["learned_together"] == 2  # type: ignore[union-attr]

    def test_run_that_fails_beside_others_is_an_error_in_its_place(self, tmp_path: Path) -> None:
        (method,) = parse_methods("prompt-tuning:length=4")
        task, plan = reviews_task(), RunSettings(6, 8)
        good, bad = method.learn(tiny_base("gpt2"), task, [Run(0), Run(0, 1e30)], plan, Recorder(), tmp_path)
        assert not isinstance(good, Exception)
        assert "the loss is not a number" in str(bad)

    def test_unfinished_run_of_other_settings_is_begun_anew(self, tmp_path: Path) -> None:
        base, task = tiny_base("llama"), reviews_task()
        (method,) = parse_methods("prompt-tuning:length=4")
        method.learn(base, task, [Run(0)], RunSettings(4, 8), Recorder(), tmp_path)
        recorder = Recorder()
        (found,) = method.learn(base, task, [Run(0)], RunSettings(6, 8), recorder, tmp_path)
        assert any(note.startswith("begins anew") and "steps was 4, is 6" in note for note in recorder.notes)
        assert found.settings["steps_made"] == 6  # type: ignore[union-attr]


class TestStepTimer:
    def test_goes_on_where_an_earlier_process_ended(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 100.0
        monkeypatch.setattr("softprompt.training.callbacks.step_timer.time.perf_counter", lambda: now)
        first = StepTimer(Recorder(), tmp_path / "clock.json")
        first.on_train_begin(0, 60, 1, 1)
        for step in range(1, 31):
            now += 1
            first.on_step_end(step, 1.0, 0.1, 1.0)
        now = 5000.0
        second = StepTimer(Recorder(), tmp_path / "clock.json")
        second.on_train_begin(25, 60, 1, 1)
        now += 3
        second.on_evaluate(27, "accuracy", 0.5, 1.0, True)
        assert [second.at(step) for step in (0, 10, 25, 26, 27, 60)] == [0, 10, 25, 25, 28, 28]

    def test_passes_everything_on(self, tmp_path: Path) -> None:
        recorder = Recorder()
        clock = StepTimer(recorder, tmp_path / "clock.json")
        clock.on_train_begin(0, 2, 5, 6)
        clock.on_step_end(1, 0.5, 0.1, 1.0)
        clock.on_evaluate(1, "accuracy", 0.5, 1.0, True)
        clock.on_message("a word")
        clock.on_train_end()
        assert (recorder.learned, recorder.losses, recorder.notes, recorder.ended) == (5, [0.5], ["a word"], 1)
        assert recorder.evaluations == [(1, "accuracy", 0.5, 1.0, True)]
