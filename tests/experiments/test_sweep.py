"""A sweep on a tiny model: proposals that depend on nothing but seed and history, trials that land, a winner."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.killed_runs import DYING
from helpers.small_tasks import FAST, TEMPLATE, Ended, Recorder, command, reviews, reviews_task, write_data
from helpers.tiny_models import save_tiny, tiny_base

from softprompt.config import TrainConfig
from softprompt.errors import ConfigError, OutputError, PromptFileError, TrainingError
from softprompt.experiments.comparison.candidates import parse_methods
from softprompt.experiments.comparison.compare import compare
from softprompt.experiments.comparison.study_records import CurvePoint
from softprompt.experiments.sweep import trial as trials_module
from softprompt.experiments.sweep.search import sweep
from softprompt.experiments.sweep.search_space import SearchSpace
from softprompt.experiments.sweep.sweep_folder import SweepFolder, SweepSummary, SweepTrial, best_of, read_sweep
from softprompt.experiments.sweep.trial_sampler import TrialSampler, compute_objective
from softprompt.report.report_files import write_report
from softprompt.store.prompt_loading import load_prompt

TASK = reviews_task(test=60)
SPACE = SearchSpace.parse("lr=0.003..30:log;length=2,4")
FIXED = TrainConfig.build(**{name: value for name, value in FAST.items() if name not in ("length", "learning_rate")})


def run(out: Path, **options: Any) -> tuple[SweepSummary, list[SweepTrial]]:
    given = {"space": SPACE, "fixed": FIXED, "trials": 6, **options}
    return sweep(tiny_base("llama"), TASK, given.pop("space"), out, **given)


def without_times(trial: SweepTrial) -> dict[str, Any]:
    values = trial.model_dump(exclude={"created", "seconds"})
    return {**values, "curve": [{**point, "seconds": 0} for point in values["curve"]]}


def a_trial(number: int, value: float, status: Any = "finished", **settings: Any) -> SweepTrial:
    curve = (CurvePoint(step=6, seconds=1.0, value=value, loss=1.0),)
    return SweepTrial(number=number, status=status, settings=settings, value=value, loss=1.0, curve=curve)


class TestProposals:
    def history(self, proposals: TrialSampler, count: int) -> list[SweepTrial]:
        landed: list[SweepTrial] = []
        for number in range(count):
            settings = proposals.propose(number, landed, {})
            landed.append(a_trial(number, 1 - abs(float(settings.get("learning_rate", 0)) - 0.1), **settings))
        return landed

    def test_depend_on_the_seed_and_on_what_landed_alone(self) -> None:
        landed = self.history(TrialSampler(SPACE, None, 20, 0), 14)
        again = TrialSampler(SPACE, None, 20, 0)
        assert [again.propose(k, landed[:k], {}) for k in range(14)] == [trial.settings for trial in landed]
        others = TrialSampler(SPACE, None, 20, 1)
        assert [others.propose(k, landed[:k], {}) for k in range(14)] != [trial.settings for trial in landed]

    def test_come_nearer_to_what_did_well(self) -> None:
        landed = self.history(TrialSampler(SPACE, None, 40, 0), 40)

        def far(some: list[SweepTrial]) -> float:
            return sum(abs(float(one.settings["learning_rate"]) - 0.1) for one in some) / len(some)

        assert far(landed[20:]) < far(landed[:10]) / 2

    def test_begin_with_the_usual_settings(self) -> None:
        space = SearchSpace.parse("lr=0.03..0.3:log;length=50,100")
        proposals = TrialSampler(space, space.defaults(TrainConfig()), 5, 0)
        assert proposals.propose(0, [], {}) == {"learning_rate": 0.1, "length": 100}

    def test_are_all_combinations_where_there_are_no_more(self) -> None:
        space = SearchSpace.parse("length=50,100;batch-size=8,16")
        proposals = TrialSampler(space, space.defaults(TrainConfig()), 9, 0)
        made = self.history(proposals, proposals.count([]))
        assert [tuple(trial.settings.values()) for trial in made] == [(100, 16), (50, 8), (50, 16), (100, 8)]

    def test_of_a_small_space_none_is_left_out_when_more_are_asked_for(self) -> None:
        """Eight that were proposed out of twelve, one of them twice, and then as many as there are."""
        space = SearchSpace.parse("length=10,20,50,100;batch-size=8,16,32")
        landed = self.history(TrialSampler(space, space.defaults(TrainConfig()), 8, 0), 7)
        landed.append(landed[2].model_copy(update={"number": 7}))
        more = TrialSampler(space, space.defaults(TrainConfig()), 20, 0)
        while len(landed) < more.count(landed):
            number = len(landed)
            landed.append(landed[0].model_copy(update={"number": number, "settings": more.propose(number, landed, {})}))
        tried = {tuple(trial.settings.values()) for trial in landed}
        assert tried == {tuple(settings.values()) for settings in space.combinations()}
        assert len(landed) == 12 + 8 - len({tuple(trial.settings.values()) for trial in landed[:8]})

    def test_differ_from_those_that_are_running(self) -> None:
        proposals = TrialSampler(SPACE, None, 40, 0)
        landed = self.history(proposals, 12)
        alone = proposals.propose(13, landed, {})
        assert proposals.propose(13, landed, {12: alone}) != alone

    def test_equal_metrics_are_told_apart_by_the_loss(self) -> None:
        assert compute_objective(0.9, 0.1) > compute_objective(0.9, 0.2) > compute_objective(0.898, 0.0)
        assert compute_objective(-0.5, 0.5) > compute_objective(-0.6, 0.6)


class TestSweep:
    def test_lands_every_trial_and_saves_the_best_on_validation(self, tmp_path: Path) -> None:
        callback = Recorder()
        summary, trials = run(tmp_path / "out", callback=callback)
        assert [trial.number for trial in trials] == list(range(6))
        files = sorted((tmp_path / "out" / "trials").iterdir())
        assert [SweepTrial.model_validate_json(path.read_bytes()) for path in files] == trials
        best = max((trial for trial in trials if trial.status == "finished"), key=lambda one: one.rank)
        assert summary.winner == best.number
        prompt = load_prompt(tmp_path / "out" / "prompt")
        assert prompt.training["sweep"] == {"trial": best.number, "trials": 6, "settings": best.settings}
        assert prompt.length == best.settings["length"]
        assert prompt.metrics["validation"]["value"] == pytest.approx(best.value)
        assert summary.test is not None
        assert prompt.metrics["test"]["n"] == summary.test.n == 60
        assert read_sweep(tmp_path / "out") == (summary, trials)
        assert [path.name for path in (tmp_path / "out" / "artifacts").iterdir()] == [f"{best.number:04d}"]
        assert [path.name for path in (tmp_path / "out" / "learning").iterdir()] == []

    def test_scores_test_for_the_winner_alone_and_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        scored: list[tuple[str, ...]] = []
        # not the function of the same name
        fit_module = sys.modules["softprompt.training.training_run"]
        score = fit_module.score_sample

        def counted(predictor: Any, examples: Any, *rest: Any, **more: Any) -> Any:
            scored.append(tuple(one.text for one in examples))
            return score(predictor, examples, *rest, **more)

        monkeypatch.setattr(fit_module, "score_sample", counted)
        run(tmp_path / "out", trials=3)
        run(tmp_path / "out", trials=3)
        test = tuple(one.text for one in TASK.test)
        assert scored.count(test) == 1
        summary, _ = run(tmp_path / "other", trials=2, evaluate_test=False)
        assert summary.test is None
        assert scored.count(test) == 1
        # what was left out is made up for
        summary, _ = run(tmp_path / "other", trials=2)
        assert summary.test is not None
        assert scored.count(test) == 2

    def test_goes_on_to_the_trials_of_an_unbroken_one(self, tmp_path: Path) -> None:
        _, whole = run(tmp_path / "whole", trials=14)
        for count in (3, 12, 14):
            _, parts = run(tmp_path / "parts", trials=count)
        assert list(map(without_times, parts)) == list(map(without_times, whole))
        assert {trial.status for trial in whole} == {"finished", "pruned"}

    def test_what_landed_is_not_run_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run(tmp_path, trials=3)

        def never(*arguments: Any, **options: Any) -> Any:
            raise AssertionError("run again")

        monkeypatch.setattr("softprompt.experiments.sweep.local_backend.run_trial", never)
        assert len(run(tmp_path, trials=3)[1]) == 3

    def test_equal_settings_are_run_once(self, tmp_path: Path) -> None:
        space = SearchSpace.parse("length=2,3,4,5,6,7;batch-size=8")
        folder = SweepFolder(tmp_path, {})
        callback = Recorder()
        _, trials = run(tmp_path, space=space, fixed=TrainConfig.build(steps=2, init="labels"), trials=5)
        assert folder.path == tmp_path
        repeated = [trial for trial in trials if trial.status == "repeated"]
        firsts = {json.dumps(trial.settings): trial for trial in reversed(trials) if trial.same_as is None}
        for trial in repeated:
            assert trial.same_as == firsts[json.dumps(trial.settings)].number
            assert trial.value == firsts[json.dumps(trial.settings)].value
        assert len(firsts) + len(repeated) == 5
        assert repeated
        assert callback.notes == []

    def test_a_small_space_is_tried_through(self, tmp_path: Path) -> None:
        callback = Recorder()
        summary, trials = run(tmp_path, space="length=2,4", trials=9, callback=callback)
        assert sorted(trial.settings["length"] for trial in trials) == [2, 4]
        assert summary.trials == {"finished": 2}
        assert "the space has 2 combinations: each is tried once" in callback.notes

    def test_a_trial_that_fails_is_recorded_and_the_others_go_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = trials_module.learn_prompts

        def fails_with_length_4(base: Any, task: Any, configs: Any, *more: Any) -> Any:
            if next(iter(configs.values())).length == 4:
                raise RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB")
            return real(base, task, configs, *more)

        monkeypatch.setattr(trials_module, "learn_prompts", fails_with_length_4)
        summary, trials = run(tmp_path)
        failed = [trial for trial in trials if trial.status == "failed"]
        assert {trial.settings["length"] for trial in failed} == {4}
        assert summary.trials["failed"] == len(failed) >= 1
        assert all((trial.error or "").startswith("out of memory (CUDA out of memory. Tried") for trial in failed)
        assert summary.settings["length"] == 2

    def test_a_loss_that_is_no_number_fails_its_trial(self, tmp_path: Path) -> None:
        space = SearchSpace.parse("lr=0.1,1e30;method=residual")
        fixed = FIXED.model_copy(update={"rate_unit": "raw"})
        summary, trials = run(tmp_path, space=space, fixed=TrainConfig.build(**fixed.model_dump(exclude_unset=True)))
        by_rate = {trial.settings["learning_rate"]: trial for trial in trials}
        assert by_rate[1e30].status == "failed"
        assert "not a number" in (by_rate[1e30].error or "")
        assert summary.settings["learning_rate"] == 0.1

    def test_without_a_trial_that_ends_there_is_no_winner(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*arguments: Any) -> Any:
            raise RuntimeError("no such thing")

        monkeypatch.setattr(trials_module, "learn_prompts", fails)
        with pytest.raises(TrainingError, match=r"no trial of the sweep in .* came to its end: no such thing"):
            run(tmp_path, trials=2)
        with pytest.raises(PromptFileError, match="has not ended"):
            read_sweep(tmp_path)

    def test_pruning_ends_what_promises_nothing(self, tmp_path: Path) -> None:
        _, trials = run(tmp_path / "median", trials=12)
        pruned = [trial for trial in trials if trial.status == "pruned"]
        assert pruned
        assert all(trial.steps_made < 12 and len(trial.curve) == 1 for trial in pruned)
        _, trials = run(tmp_path / "asha", trials=12, pruning="asha")
        assert any(trial.status == "pruned" for trial in trials)
        _, trials = run(tmp_path / "none", trials=12, pruning="none")
        assert {trial.status for trial in trials} == {"finished"}

    def test_a_trial_goes_on_with_the_evaluations_it_had(self, tmp_path: Path) -> None:
        """Broken off behind an evaluation, it tells the engine of that one too."""
        _, whole = run(tmp_path / "whole", trials=1, fixed=FIXED.model_copy(update={"checkpoint_every": 1}))

        class Breaks(Recorder):
            def on_step_end(self, step: int, *more: float) -> None:
                if step == 9:
                    raise KeyboardInterrupt

        fixed = FIXED.model_copy(update={"checkpoint_every": 1})
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", trials=1, fixed=fixed, callback=Breaks())
        callback = Recorder()
        _, parts = run(tmp_path / "parts", trials=1, fixed=fixed, callback=callback)
        assert callback.first_step > 6
        assert list(map(without_times, parts)) == list(map(without_times, whole))
        assert [point.step for point in parts[0].curve] == [6, 12]

    def test_other_settings_are_refused_for_the_same_folder(self, tmp_path: Path) -> None:
        run(tmp_path, trials=1)
        with pytest.raises(OutputError, match=r"another sweep \(length was '2,4', is '2,5'\)"):
            run(tmp_path, space=SearchSpace.parse("lr=0.003..30:log;length=2,5"), trials=1)

    def test_the_best_is_the_first_of_equals(self) -> None:
        trials = [a_trial(0, 0.5), a_trial(1, 0.9, "pruned"), a_trial(2, 0.7), a_trial(3, 0.7)]
        best = best_of(trials)
        assert best is not None
        assert best.number == 2
        assert best_of(trials[1:2]) is None


class TestInAComparison:
    def test_the_winning_settings_are_learned_anew(self, tmp_path: Path) -> None:
        from softprompt.experiments.comparison.comparison_run import ComparisonSettings

        summary, trials = run(tmp_path / "sweep")
        methods = parse_methods(f"zero-shot,sweep:{tmp_path / 'sweep'}")
        swept = methods[1]
        assert swept.config.length == summary.settings["length"]
        settings = ComparisonSettings(seeds=2, steps=6, batch_size=8)
        study = compare(tiny_base("llama"), TASK, methods, tmp_path / "study", settings)
        write_report(study, tmp_path / "study")
        results = [result for result in study.results if result.method == swept.name]
        assert [result.seed for result in results] == [0, 1]
        assert [trial.value for trial in results[0].trials] == [trial.value for trial in trials]
        assert [trial.chosen for trial in results[0].trials].index(True) == summary.winner
        assert results[0].cost is not None
        assert results[0].cost.search_seconds == pytest.approx(summary.seconds)
        page = (tmp_path / "study" / "report.md").read_text()
        assert f"length {summary.settings['length']} |" in page

    def test_a_sweep_on_other_data_fails(self, tmp_path: Path) -> None:
        run(tmp_path, trials=1)
        (method,) = parse_methods(f"sweep:{tmp_path}")
        with pytest.raises(ConfigError, match="was on another data"):
            method.learn(tiny_base("llama"), reviews_task(seed=1), [], None, Recorder(), tmp_path)  # type: ignore[arg-type]

    def test_what_is_no_sweep_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(PromptFileError, match="is no sweep"):
            parse_methods(f"sweep:{tmp_path}")
        with pytest.raises(ConfigError, match="expected the folder of a sweep"):
            parse_methods("sweep")
        run(tmp_path, space=SearchSpace.parse("steps=2,3"), fixed=TrainConfig.build(length=2, init="labels"), trials=2)
        with pytest.raises(ConfigError, match="searched steps, which all methods of a comparison share"):
            parse_methods(f"sweep:{tmp_path}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweeps")
    save_tiny(folder / "llama", "llama")
    write_data(folder / "data", reviews())
    (folder / "dying").mkdir()
    (folder / "dying" / "sitecustomize.py").write_text(DYING)
    return folder


def arguments(place: Path, out: Path, *more: object) -> list[str]:
    given = ["sweep", "--model", place / "llama", "--data", place / "data", "--out", out, "--template", TEMPLATE]
    fast = ["--steps", 12, "--batch-size", 8, "--eval-every", 4, "--init", "labels", "--device", "cpu"]
    return list(map(str, [*given, *fast, *more]))


SEARCHED = ("--space", "lr=0.003..30:log;length=2,4")


class TestCommand:
    def test_tells_trials_winner_and_place(self, place: Path, tmp_path: Path) -> None:
        done = command(*arguments(place, tmp_path / "out", *SEARCHED, "--trials", 5))
        assert done.code == 0, done.err
        assert "best on validation: trial" in done.out
        assert f"saved in {tmp_path / 'out'}/prompt" in done.out
        assert "trial 4 of 5: learning_rate" in done.err
        written = [(tmp_path / "out" / f"sweep.{form}").read_text() for form in ("html", "md")]
        assert all("The trials, best first" in text and "best on validation: trial" in text for text in written)
        again = command(*arguments(place, tmp_path / "out", *SEARCHED, "--trials", 5, "--json"))
        assert "of 5: learning_rate" not in again.err
        printed = json.loads(again.out)
        assert len(printed["trials"]) == 5
        assert printed["prompt"] == str(tmp_path / "out" / "prompt")
        assert command("eval", printed["prompt"], "--data", place / "data").code == 0

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--space", "lenght=1,2"], "unknown setting 'lenght': did you mean 'length'?"),
            (["--space", "method=prompt-tuning,lora"], "unknown method 'lora': expected one of"),
            (["--space", "init=labels,nowhere"], "'init' is given and in the space too"),
            (["--space", "steps=5,6"], "'steps' is given and in the space too"),
            ([*SEARCHED, "--trials", "0"], "--trials"),
            ([*SEARCHED, "--backend", "spark"], "'spark' is not one of 'optuna', 'ray'"),
            ([*SEARCHED, "--data", "nowhere.csv"], "nowhere.csv"),
        ],
    )
    def test_mistakes_are_told_before_the_model_is_loaded(
        self, place: Path, tmp_path: Path, options: list[str], words: str
    ) -> None:
        done: Ended = command(*arguments(place, tmp_path / "out", *options))
        assert done.code == 2
        assert words in done.error
        assert "loading" not in done.err
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(("engine", "module", "extra"), [("optuna", "optuna", "sweep"), ("ray", "ray", "ray")])
    def test_missing_extra(
        self, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, module: str, extra: str
    ) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        done = command(*arguments(place, tmp_path / "out", *SEARCHED, "--backend", engine))
        assert (done.code, f"pip install 'softprompt[{extra}]'" in done.error) == (2, True)
        assert "loading" not in done.err

    def test_something_else_in_the_folder(self, place: Path, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        done = command(*arguments(place, tmp_path, *SEARCHED))
        assert "holds something else than a sweep" in done.error


def process(place: Path, out: Path, *more: object, dies: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("RAY_ADDRESS", None)
    root = Path(__file__).parents[2]
    environment["PYTHONPATH"] = str(root)
    if dies is not None:
        environment |= {"DIE_ONCE_THERE": str(dies), "PYTHONPATH": f"{place / 'dying'}{os.pathsep}{root}"}
    return subprocess.run(
        [sys.executable, "-m", "softprompt", *arguments(place, out, *SEARCHED, *more)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
class TestProcesses:
    def test_killed_it_ends_with_the_trials_of_an_unbroken_run(self, place: Path, tmp_path: Path) -> None:
        out = tmp_path / "killed"
        checkpoint = out / "learning" / "0003" / "prompts.run" / "checkpoint.safetensors"
        for there in (out / "trials" / "0001.json", checkpoint, out / "prompt"):
            assert process(place, out, "--trials", 6, dies=there).returncode == -signal.SIGKILL
        assert process(place, out, "--trials", 6).returncode == 0
        assert process(place, tmp_path / "whole", "--trials", 6).returncode == 0
        (one, killed), (other, whole) = read_sweep(out), read_sweep(tmp_path / "whole")
        assert list(map(without_times, killed)) == list(map(without_times, whole))
        assert (one.winner, one.test) == (other.winner, other.test)
        tensors = [(folder / "prompt" / "prompt.safetensors").read_bytes() for folder in (out, tmp_path / "whole")]
        assert tensors[0] == tensors[1]

    def test_several_run_beside_each_other_and_one_that_dies_costs_its_trial_only(
        self, place: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        dies = out / "learning" / "0001" / "evaluations.json"
        done = process(place, out, "--trials", 5, "--workers", 2, dies=dies)
        assert done.returncode == 0, done.stderr
        summary, trials = read_sweep(out)
        assert len(trials) == 5
        assert trials[1].status == "failed"
        assert "its process died (killed by signal 9)" in (trials[1].error or "")
        assert summary.trials["failed"] == 1
        load_prompt(out / "prompt")

    def test_ray_makes_the_same_trials(self, place: Path, tmp_path: Path) -> None:
        pytest.importorskip("ray")
        out = tmp_path / "ray"
        dies = out / "learning" / "0002" / "evaluations.json"
        done = process(place, out, "--trials", 3, "--backend", "ray", "--pruning", "none", "--json", dies=dies)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["winner"] in (0, 1)
        _, trials = read_sweep(out)
        assert [trial.status for trial in trials] == ["finished", "finished", "failed"]
        assert "its process failed or died on the cluster" in (trials[2].error or "")
        # gone on with on one machine: a folder belongs to no engine
        assert process(place, out, "--trials", 4, "--pruning", "none").returncode == 0
        assert process(place, tmp_path / "here", "--trials", 2, "--pruning", "none").returncode == 0
        _, here = read_sweep(tmp_path / "here")
        assert list(map(without_times, trials[:2])) == list(map(without_times, here))
        assert len(read_sweep(out)[1]) == 4

    def test_ray_gives_up_what_promises_nothing(self, place: Path, tmp_path: Path) -> None:
        pytest.importorskip("ray")
        done = process(place, tmp_path, "--trials", 8, "--backend", "ray", "--pruning", "asha")
        assert done.returncode == 0, done.stderr
        _, trials = read_sweep(tmp_path)
        assert len(trials) == 8
        assert any(trial.status == "pruned" and trial.steps_made < 12 for trial in trials)
        assert sorted(path.name for path in (tmp_path / "learning").iterdir()) == []
