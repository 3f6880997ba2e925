"""The study, with candidates of known quality: same settings for all, results that land, failures that stay alone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.planted_candidates import Planted, few_requests, without_times  # noqa: F401 (a fixture)
from helpers.small_tasks import Recorder, answers, noise, reviews, reviews_task
from helpers.tiny_models import tiny_base

from softprompt.data.splits import Splits
from softprompt.data.task import Task
from softprompt.errors import ConfigError, DataError, OutputError
from softprompt.experiments.comparison.candidates import parse_methods
from softprompt.experiments.comparison.compare import check_comparison, compare
from softprompt.experiments.comparison.comparison_run import ComparisonSettings, list_rates
from softprompt.experiments.comparison.study_records import Result, Study
from softprompt.experiments.failed_runs import error_line
from softprompt.report.report_files import write_report

pytestmark = pytest.mark.usefixtures("few_requests")

TASK = reviews_task(test=60)
SETTINGS = ComparisonSettings(seeds=2, steps=4, batch_size=8)


def run(
    out: Path, *methods: Any, task: Task = TASK, settings: ComparisonSettings = SETTINGS, callback: Any = None
) -> Study:
    study = compare(tiny_base("llama"), task, methods, out, settings, callback)
    write_report(study, out, figures=True)
    return study


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_methods_are_named_as_on_the_command_line(tmp_path: Path) -> None:
    base, settings = tiny_base("llama"), ComparisonSettings(seeds=1, steps=2, batch_size=4)
    study = compare(base, TASK, "zero-shot, few-shot:2", str(tmp_path / "study"), settings)
    assert [row.method for row in study.rows] == ["zero-shot", "few-shot:2"]
    again = compare(base, TASK, ["zero-shot", "few-shot:2"], tmp_path / "study", settings)
    assert again.results == study.results
    with pytest.raises(ConfigError, match="unknown method 'none'"):
        compare(base, TASK, ["zero-shot", "none"], tmp_path / "other", settings)


class TestResults:
    def test_land_one_file_each_with_all_that_was_measured(self, tmp_path: Path) -> None:
        study = run(tmp_path, Planted("good", 0.9), Planted("bad:8", 0.4, "written", seeded=False))
        assert names(tmp_path / "results") == ["bad_8-0.json", "good-0.json", "good-1.json"]
        landed = Result.model_validate_json((tmp_path / "results" / "good-0.json").read_bytes())
        assert landed == study.results[0]
        assert (landed.method, landed.seed, landed.status, landed.family) == ("good", 0, "ok", "adapter")
        assert landed.test is not None
        assert landed.test.n == len(landed.predictions) == len(landed.confidences) == 60
        assert landed.confidences == pytest.approx([0.8] * 60)
        assert set(landed.others) == {"macro_f1", "calibration_error"}
        assert landed.cost is not None
        assert landed.cost.stored_bytes == len("seed 0")
        assert (landed.cost.trained_parameters, landed.cost.memory_for(10)) == (7, 1100)
        assert landed.forgetting is not None
        assert landed.forgetting.before == landed.forgetting.after
        assert landed.curve[0].step == 5
        assert landed.versions["softprompt"]
        assert names(tmp_path) == [
            "figures",
            "learning",
            "report.html",
            "report.json",
            "report.md",
            "results",
            "setup.json",
        ]
        assert [path for path in (tmp_path / "learning").iterdir() if path.is_dir()] == []

    def test_sum_up_to_the_study(self, tmp_path: Path) -> None:
        study = run(
            tmp_path,
            Planted("good", 0.9),
            Planted("bad", 0.4),
            settings=ComparisonSettings(seeds=2, steps=1, current="bad"),
        )
        assert Study.model_validate_json((tmp_path / "report.json").read_bytes()) == study
        good, bad = study.rows
        assert good.seeds == (0, 1)
        values = [one.test.value for one in study.results if one.test is not None]
        assert good.mean == pytest.approx(sum(values[:2]) / 2)
        assert good.low is not None
        assert bad.high is not None
        assert bad.high < good.low
        assert good.against_best is None
        assert bad.against_best is not None
        assert bad.against_best["difference"] == pytest.approx((bad.mean or 0) - (good.mean or 0))
        assert good.against_current is not None
        assert good.against_current["difference"] == pytest.approx(-bad.against_best["difference"])
        assert study.recommendation.deploy == "good"
        assert study.gold == tuple(example.label for example in TASK.test)
        assert study.labels == ("bad", "good")

    def test_one_seed_of_each_is_timed(self, tmp_path: Path) -> None:
        results = run(tmp_path, Planted("a"), Planted("b")).results
        assert [one.speed is not None for one in results] == [True, False, True, False]
        assert [one.speed is not None and (one.speed.reference_ms or 0) > 0 for one in results] == [
            True,
            False,
            True,
            False,
        ]

    def test_another_domain_is_scored_too(self, tmp_path: Path) -> None:
        shift = reviews(test=30, seed=5).test
        study = run(
            tmp_path, Planted("a", 1.0), Planted("b", 0.0), settings=ComparisonSettings(seeds=1, steps=1, shift=shift)
        )
        assert [row.shift for row in study.rows] == [1.0, 0.0]
        assert study.results[0].shift is not None
        assert study.results[0].shift.n == 30

    def test_what_needs_no_model_is_not_asked_what_it_forgot(self, tmp_path: Path) -> None:
        study = run(tmp_path, Planted("a", uses_base=False), Planted("b"))
        assert [row.forgetting is None for row in study.rows] == [True, False]

    def test_of_generation_are_scored_by_what_suits_the_references(self, tmp_path: Path) -> None:
        task = Task.generation(answers(validation=4, test=4))
        methods = parse_methods("zero-shot,few-shot:2")
        study = run(tmp_path, *methods, task=task, settings=ComparisonSettings(seeds=1, steps=1))
        assert (study.metric, study.kind, study.labels) == ("exact_match", "generation", ())
        assert study.rows[0].calibration_error is None
        assert study.results[0].confidences == ()
        assert len(study.results[0].predictions) == 4


class TestSameTerms:
    def test_splits_and_steps_are_the_same_for_all(self, tmp_path: Path) -> None:
        methods = Planted("a", learning_rate=0.1), Planted("b", learning_rate=3.0, together=True), Planted("c")
        run(tmp_path, *methods)
        assert len({given for method in methods for given in method.given}) == 1
        assert {plan for method in methods for _, plan in method.calls} == {methods[0].calls[0][1]}
        assert methods[0].calls[0][1].steps == 4
        assert methods[0].calls[0][1].batch_size == 8

    def test_seeds_learn_together_where_a_method_can(self, tmp_path: Path) -> None:
        alone, together = Planted("alone"), Planted("together", together=True)
        run(tmp_path, alone, together)
        assert [[one.seed for one in runs] for runs, _ in alone.calls] == [[0], [1]]
        assert [[one.seed for one in runs] for runs, _ in together.calls] == [[0, 1]]

    def test_no_search_by_default(self, tmp_path: Path) -> None:
        method = Planted("a", learning_rate=0.1)
        study = run(tmp_path, method, Planted("b"))
        assert [[one.learning_rate for one in runs] for runs, _ in method.calls] == [[None], [None]]
        assert study.results[0].trials == ()

    def test_each_trained_method_gets_the_same_number_of_rates(self, tmp_path: Path) -> None:
        def peak(run: Any) -> float:
            return 0.9 if run.learning_rate == 0.0316 else 0.6

        alone = Planted("alone", peak, learning_rate=0.1)
        together = Planted("together", peak, learning_rate=0.1, together=True)
        fixed = Planted("fixed")
        study = run(tmp_path, alone, together, fixed, settings=ComparisonSettings(seeds=2, steps=4, rates=3))
        tried = [[(one.seed, one.learning_rate) for one in runs] for runs, _ in alone.calls]
        assert tried == [[(0, 0.1)], [(0, 0.0316)], [(0, 0.316)], [(0, 0.0316)], [(1, 0.0316)]]
        tried = [[(one.seed, one.learning_rate) for one in runs] for runs, _ in together.calls]
        assert tried == [[(0, 0.1), (0, 0.0316), (0, 0.316)], [(0, 0.0316), (1, 0.0316)]]
        assert len(fixed.calls) == 2
        for result in study.results[:4]:
            assert [(one.learning_rate, one.chosen) for one in result.trials] == [
                (0.0316, True),
                (0.1, False),
                (0.316, False),
            ]
            assert result.cost is not None
            assert result.cost.search_seconds == 6

    def test_rates_lie_around_the_methods_own(self) -> None:
        assert list_rates(0.1, 1) == [0.1]
        assert list_rates(0.1, 5) == [0.1, 0.0316, 0.316, 0.01, 1.0]
        assert len(list_rates(2e-5, 4)) == 4

    def test_rate_that_fails_is_only_left_out(self, tmp_path: Path) -> None:
        class Fails(Planted):
            def learn(self, base: Any, task: Any, runs: Any, *rest: Any) -> Any:
                if runs[0].learning_rate == 0.316:
                    raise torch.OutOfMemoryError("no")
                return super().learn(base, task, runs, *rest)

        study = run(
            tmp_path,
            Fails("a", learning_rate=0.1),
            Planted("b"),
            settings=ComparisonSettings(seeds=1, steps=4, rates=3),
        )
        assert [one.learning_rate for one in study.results[0].trials] == [0.0316, 0.1]
        assert study.results[0].status == "ok"

    def test_budget_gives_each_method_the_steps_that_fit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 0.0

        class Slow(Planted):
            def learn(self, base: Any, task: Any, runs: Any, plan: Any, callback: Any, folder: Any) -> Any:
                class Ticking(Recorder):
                    def on_step_end(_, step: int, *rest: Any) -> None:
                        nonlocal now
                        now += self.seconds_a_step
                        callback.on_step_end(step, *rest)

                return super().learn(base, task, runs, plan, Ticking(), folder)

        monkeypatch.setattr("softprompt.experiments.comparison.time_budget.time.perf_counter", lambda: now)
        slow, quick = (
            Slow("slow", learning_rate=0.1, seconds_a_step=0.5),
            Slow("quick", learning_rate=0.1, seconds_a_step=0.125),
        )
        settings = ComparisonSettings(seeds=1, budget=60.0)
        run(tmp_path, slow, quick, settings=settings)
        assert [plan.steps for _, plan in slow.calls] == [6, 120]
        assert [plan.steps for _, plan in quick.calls] == [6, 480]
        # what was seen once holds for later seeds
        more = Slow("slow", learning_rate=0.1, seconds_a_step=9.0)
        run(tmp_path, more, quick, settings=ComparisonSettings(seeds=2, budget=60.0))
        assert [plan.steps for _, plan in more.calls] == [120]


class TestSecondRun:
    def test_learns_only_what_is_missing(self, tmp_path: Path) -> None:
        first = run(tmp_path, Planted("a"), Planted("b"))
        again = [Planted("a"), Planted("b"), Planted("c")]
        study = run(tmp_path, *again)
        assert [len(method.calls) for method in again] == [0, 0, 2]
        assert study.results[:4] == first.results
        more = Planted("a"), Planted("b")
        run(tmp_path, *more, settings=ComparisonSettings(seeds=3, steps=4, batch_size=8))
        assert [[one.seed for one in runs] for runs, _ in more[0].calls] == [[2]]

    @pytest.mark.parametrize(("together", "points"), [(True, (0, 1)), (False, (1, 3))])
    def test_interrupted_anywhere_ends_as_an_unbroken_one(
        self, tmp_path: Path, together: bool, points: tuple[int, ...]
    ) -> None:
        def methods(stops: int) -> list[Planted]:
            class Stopping(Planted):
                def learn(self, *arguments: Any) -> Any:
                    if len(self.calls) == stops:
                        raise KeyboardInterrupt
                    return super().learn(*arguments)

            return [Planted("a"), Stopping("b", learning_rate=0.1, together=together), Planted("c")]

        settings = ComparisonSettings(seeds=2, steps=4, rates=2)
        unbroken = run(tmp_path / "unbroken", *methods(99), settings=settings)
        for stops in points:
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / str(stops), *methods(stops), settings=settings)
            assert not (tmp_path / str(stops) / "report.json").exists()
            study = run(tmp_path / str(stops), *methods(99), settings=settings)
            assert without_times(study) == without_times(unbroken)

    def test_goes_on_with_the_trials_that_were_made(self, tmp_path: Path) -> None:
        class Stopping(Planted):
            def learn(self, *arguments: Any) -> Any:
                if len(self.calls) == 2:
                    raise KeyboardInterrupt
                return super().learn(*arguments)

        settings = ComparisonSettings(seeds=1, steps=4, rates=3)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, Stopping("a", learning_rate=0.1), Planted("b"), settings=settings)
        second = Planted("a", learning_rate=0.1)
        run(tmp_path, second, Planted("b"), settings=settings)
        assert [runs[0].learning_rate for runs, _ in second.calls] == [0.316, 0.1]

    @pytest.mark.parametrize(
        ("task", "settings", "words"),
        [
            (TASK, ComparisonSettings(seeds=2, steps=5, batch_size=8), "steps was 4, is 5"),
            (TASK, ComparisonSettings(seeds=2, budget=60, batch_size=8), "budget was None, is 60"),
            (TASK, ComparisonSettings(seeds=2, steps=4, rates=3, batch_size=8), "rates was 1, is 3"),
            (reviews_task(test=60, seed=3), SETTINGS, "data was '"),
            (
                Task.classification(reviews(test=60), template="{{ text }} is"),
                SETTINGS,
                "template was '{{ text }}:', is",
            ),
        ],
    )
    def test_of_another_setup_is_refused(
        self, tmp_path: Path, task: Task, settings: ComparisonSettings, words: str
    ) -> None:
        run(tmp_path, Planted("a"), Planted("b"))
        with pytest.raises(OutputError) as raised:
            run(tmp_path, Planted("a"), Planted("b"), task=task, settings=settings)
        assert words in str(raised.value)
        assert str(raised.value).endswith("to go on with it, or another --out")

    def test_on_another_base_is_refused(self, tmp_path: Path) -> None:
        run(tmp_path, Planted("a"), Planted("b"))
        with pytest.raises(OutputError, match="weights was"):
            compare(tiny_base("qwen3"), TASK, [Planted("a"), Planted("b")], tmp_path, SETTINGS)

    def test_damaged_result_is_named(self, tmp_path: Path) -> None:
        run(tmp_path, Planted("a"), Planted("b"))
        (tmp_path / "results" / "a-1.json").write_text("{")
        with pytest.raises(DataError, match=r"a-1\.json' is damaged: .*remove it, and it is measured again"):
            run(tmp_path, Planted("a"), Planted("b"))

    def test_beside_another_process_is_refused(self, tmp_path: Path) -> None:
        class Second(Planted):
            def learn(self, *arguments: Any) -> Any:
                with pytest.raises(OutputError, match="another process is comparing in"):
                    run(tmp_path, Planted("a"), Planted("b"))
                return super().learn(*arguments)

        assert run(tmp_path, Second("a"), Planted("b")).rows[0].failed == 0

    def test_folder_of_something_else_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("do not lose")
        with pytest.raises(OutputError, match="holds something else than a comparison"):
            run(tmp_path, Planted("a"), Planted("b"))
        with pytest.raises(OutputError, match="is a file"):
            run(tmp_path / "thesis.txt", Planted("a"), Planted("b"))


class TestFailures:
    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            MemoryError(),
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        ],
    )
    def test_out_of_memory_is_that_methods_result(self, tmp_path: Path, error: Exception) -> None:
        recorder = Recorder()
        study = run(tmp_path, Planted("big", raises=error), Planted("small"), callback=recorder)
        assert [one.status for one in study.results] == ["failed", "failed", "ok", "ok"]
        assert study.results[0].error is not None
        assert study.results[0].error.startswith("out of memory (")
        assert "a smaller --batch-size or --max-length needs less" in study.results[0].error
        big, small = study.rows
        assert (big.failed, big.mean, big.error) == (2, None, study.results[0].error)
        assert small.failed == 0
        assert any(note.startswith("big, seed 0: failed, the others go on: out of memory") for note in recorder.notes)
        assert any("big seed 0: out of memory" in note for note in study.notes)

    def test_is_not_tried_again_until_its_file_is_removed(self, tmp_path: Path) -> None:
        run(tmp_path, Planted("a", raises=MemoryError()), Planted("b"))
        again = Planted("a")
        assert run(tmp_path, again, Planted("b")).rows[0].failed == 2
        assert again.calls == []
        for seed in (0, 1):
            (tmp_path / "results" / f"a-{seed}.json").unlink()
        assert run(tmp_path, again, Planted("b")).rows[0].failed == 0

    def test_while_answering_is_a_result_too(self, tmp_path: Path) -> None:
        def broken(run: Any) -> float:
            if run.seed == 1:
                return float("nan")
            return 0.9

        class Breaking(Planted):
            def _fitted(self, task: Any, run: Any) -> Any:
                fitted = super()._fitted(task, run)
                if run.seed == 1:
                    fitted.answers.spec = None
                return fitted

        study = run(tmp_path, Breaking("a", together=True), Planted("b"))
        assert [one.status for one in study.results] == ["ok", "failed", "ok", "ok"]
        assert study.rows[0].seeds == (0,)

    def test_of_the_disk_ends_the_study(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="no space"):
            run(tmp_path, Planted("a", raises=OutputError("no space")), Planted("b"))

    def test_all_of_them(self, tmp_path: Path) -> None:
        study = run(tmp_path, Planted("a", raises=MemoryError()), Planted("b", raises=ValueError("no\nway")))
        assert study.recommendation.rule == "nothing finished"
        assert "b: no way" in study.recommendation.reasons

    def test_error_without_words_is_named(self) -> None:
        assert error_line(KeyError()) == "KeyError"


class TestKeep:
    def test_what_the_best_seed_needs(self, tmp_path: Path) -> None:
        def second_best(run: Any) -> float:
            return [0.5, 0.95, 0.6][run.seed]

        settings = ComparisonSettings(seeds=3, steps=1, keep=True)
        run(tmp_path, Planted("a:x", second_best), Planted("b", 0.8, seeded=False), settings=settings)
        assert (tmp_path / "artifacts" / "a_x" / "weights").read_text() == "seed 1"
        assert names(tmp_path / "artifacts") == ["a_x", "b"]

    def test_is_off_by_default(self, tmp_path: Path) -> None:
        run(tmp_path, Planted("a"), Planted("b"))
        assert not (tmp_path / "artifacts").exists()

    def test_says_what_was_measured_before(self, tmp_path: Path) -> None:
        run(tmp_path, Planted("a"), Planted("b"))
        recorder = Recorder()
        run(
            tmp_path,
            Planted("a"),
            Planted("b"),
            settings=ComparisonSettings(seeds=2, steps=4, batch_size=8, keep=True),
            callback=recorder,
        )
        assert any("nothing of 'a' was kept: it was measured before --keep" in note for note in recorder.notes)


class TestRefusals:
    @pytest.mark.parametrize(
        ("methods", "settings", "words"),
        [
            ([Planted("a")], ComparisonSettings(), "expected at least two methods to compare, got a"),
            ([Planted("a"), Planted("b")], ComparisonSettings(current="c"), "--current 'c' is not among the methods"),
            ([Planted("a:1"), Planted("a_1")], ComparisonSettings(), "two methods differ only in characters"),
        ],
    )
    def test_of_terms(self, methods: list[Planted], settings: ComparisonSettings, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            check_comparison(methods, settings)

    def test_of_data_without_what_is_needed(self, tmp_path: Path) -> None:
        task = Task.classification(noise(), template="{{ text }}")
        with pytest.raises(DataError, match="expected examples in split 'test'"):
            run(tmp_path, Planted("a"), Planted("b"), task=task)
        empty = Task.classification(Splits((), (), reviews().test, "x", ()), template="{{ text }}")
        with pytest.raises(DataError, match="expected a train split"):
            run(tmp_path, Planted("a"), Planted("b"), task=empty)


def test_setup_says_what_the_results_have_in_common(tmp_path: Path) -> None:
    run(tmp_path, Planted("a"), Planted("b"))
    setup = json.loads((tmp_path / "setup.json").read_text())
    assert (setup["steps"], setup["rates"], setup["batch_size"], setup["budget"]) == (4, 1, 8, None)
    assert setup["task"]["template"] == "{{ text }}:"
    assert "instruction" not in setup
    with pytest.raises(OutputError, match=r"instruction was None, is 'Decide\."):
        run(tmp_path, Planted("a"), Planted("b"), settings=replace(SETTINGS, instruction="Decide."))
