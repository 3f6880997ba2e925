"""Distillation: students behave like their teacher, labels are not looked at, the teacher is asked once."""

import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small_tasks import TEMPLATE, Recorder, answers, reviews, write_data
from helpers.tiny_models import random_prompt, tiny_base
from pydantic import Field

import softprompt.training.loop as training
from softprompt.config import DistillConfig, TrainConfig
from softprompt.data.examples import Example
from softprompt.data.splits import Splits
from softprompt.data.task import Task
from softprompt.errors import ConfigError, DataError, TrainingError
from softprompt.inference.evaluation import evaluate
from softprompt.inference.predictor import Predictor
from softprompt.prompts.methods.method_registry import METHODS
from softprompt.prompts.prefix import compute_keys_and_values
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.prompts.written_prompt import choose_shots, written_prompt
from softprompt.store.input_profile import read_profile
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.distillation.distill import distill, make_length_configs
from softprompt.training.distillation.student_initialization import make_candidates
from softprompt.training.distillation.teacher import Teacher

asking = sys.modules["softprompt.training.distillation.teacher_cache"]
TEXT = "great fine good\ndull poor bad\nSay whether the film is good or bad."
FAST: dict[str, Any] = {"length": 6, "steps": 12, "batch_size": 8, "eval_every": 4, "learning_rate": 0.3}
LABELS = ("bad", "good")


def bare(splits: Splits) -> Splits:
    """The same texts without labels and outputs."""
    parts = ([Example(one.text, columns=one.columns) for one in part] for part in splits_of(splits))
    return Splits(*map(tuple, parts), splits.source, splits.notes)


def splits_of(splits: Splits) -> tuple[tuple[Example, ...], ...]:
    return splits.train, splits.validation, splits.test


def inputs(*, labelled: bool = True) -> Task:
    return Task.of_inputs(reviews() if labelled else bare(reviews()), labels=LABELS, template=TEMPLATE)


def words(*, labelled: bool = True) -> Task:
    return Task.of_inputs(answers() if labelled else bare(answers()), template=TEMPLATE)


def losses(prompt: Prompt) -> list[float]:
    """The divergence on validation at each evaluation, the start being the first."""
    return [json.loads(line)["validation_loss"] for line in prompt.extra_files["history.jsonl"].splitlines()]


class TestTheSameWords:
    """As many virtual tokens as the text has, beginning as these: there is nothing left to learn."""

    @pytest.mark.parametrize("family", ["llama", "gemma3", "mamba", "t5"])
    @pytest.mark.parametrize("task", [inputs(), words()], ids=["classification", "generation"])
    def test_are_the_teacher(self, family: str, task: Task) -> None:
        base = tiny_base(family)
        teacher = Teacher.written(base, task.spec, TEXT)
        seen = Recorder()
        settings = {**FAST, "length": teacher.tokens, "learning_rate": 1e-12, "patience": 0}
        done = distill(
            base,
            task,
            TEXT,
            callback=seen,
            measure=False,
            alarm_after=2,
            max_new_tokens=5,
            evaluate_test=False,
            **settings,
        )
        assert max(map(abs, losses(done.prompt))) < 1e-5
        assert torch.allclose(done.prompt.state.tensor, teacher.start.tensor, atol=1e-6)
        near = done.report.held_out["validation"]
        assert near.agreement.value == 1
        assert near.kl.value == pytest.approx(0, abs=1e-5)
        assert near.kept is None or near.kept.value == 1
        assert not any("not learning" in note for note in seen.notes)
        assert done.report.tokens.times_fewer == 1

    def test_stay_the_best_where_learning_only_leads_away(self) -> None:
        base = tiny_base("llama")
        teacher = Teacher.written(base, inputs().spec, TEXT)
        done = distill(base, inputs(), TEXT, measure=False, **{**FAST, "length": teacher.tokens, "learning_rate": 5.0})
        assert losses(done.prompt)[-1] > 1e-4
        assert done.prompt.training["best_step"] == 0
        assert torch.equal(done.prompt.state.tensor, teacher.start.tensor)


class TestStart:
    def test_is_the_nearest_part_of_the_text_or_all_of_it_repeated(self, tmp_path: Path) -> None:
        base, task = tiny_base("llama"), inputs()
        teacher = Teacher.written(base, task.spec, TEXT)
        rows = teacher.start.tensor
        tried = make_candidates(base, task, teacher.start, 4)
        assert torch.equal(tried["end"].tensor, rows[-4:])
        assert torch.equal(tried["beginning"].tensor, rows[:4])
        assert torch.equal(tried["spread"].tensor[[0, -1]], rows[[0, -1]])
        fast = {name: value for name, value in FAST.items() if name != "length"}
        settings = {**fast, "learning_rate": 1e-12, "steps": 1, "measure": False, "evaluate_test": False}

        def reached(name: str) -> float:
            first = distill(base, task, TEXT, **settings, length=4).prompt
            place = Prompt(**{**vars(first), "states": (tried[name],), "extra_files": {}}).save(tmp_path / name)
            return losses(distill(base, task, TEXT, **settings, length=4, init=f"prompt:{place}").prompt)[0]

        done = distill(base, task, TEXT, **settings, length=4)
        by_name = {name: reached(name) for name in tried}
        assert done.prompt.training["init"] == "teacher"
        assert done.prompt.training["distillation"]["start"] == min(by_name, key=by_name.__getitem__)
        assert losses(done.prompt)[0] == pytest.approx(min(by_name.values()))

        done = distill(base, task, TEXT, **settings, length=len(rows) + 3)
        assert torch.allclose(done.prompt.state.tensor, torch.cat([rows[-3:], rows]), atol=1e-6)
        assert done.prompt.training["distillation"]["start"] == "whole"

    def test_another_one_is_left_alone(self) -> None:
        done = distill(tiny_base("llama"), inputs(), TEXT, measure=False, init="labels", **FAST)
        assert done.prompt.training["init"] == "labels"

    def test_of_keys_and_values(self) -> None:
        base = tiny_base("llama")
        teacher = Teacher((compute_keys_and_values(base, random_prompt(base, 6).detach()),))
        settings = {**FAST, "learning_rate": 1e-12, "steps": 1, "measure": False}
        done = distill(base, inputs(), teacher, method="prefix-tuning", init="teacher", **settings)
        assert losses(done.prompt)[0] == pytest.approx(0, abs=1e-5)
        assert distill(base, inputs(), teacher, **settings).prompt.training["init"] == "text"
        with pytest.raises(ConfigError, match="keys and values of 6 virtual tokens, which cannot begin a prompt of 5"):
            distill(base, inputs(), teacher, method="prefix-tuning", init="teacher", **{**settings, "length": 5})

    def test_needs_a_teacher(self) -> None:
        from softprompt.training.fit import fit

        with pytest.raises(ConfigError, match="unknown init 'teacher': expected text"):
            fit(tiny_base("llama"), inputs(), init="teacher", **FAST)

    @pytest.mark.parametrize("init", ["examples", "text", "random"])
    def test_does_not_depend_on_the_start_of_train(self, init: str) -> None:
        class Other(TrainConfig):
            init: str = Field("")

        Other.model_fields["init"].default = init
        Other.model_rebuild(force=True)
        config = Other.build(**FAST)
        assert config.init == init
        done = distill(tiny_base("llama"), inputs(), TEXT, config=config, measure=False)
        assert done.prompt.training["init"] == "teacher"

    def test_of_solved_examples_would_need_labels(self) -> None:
        with pytest.raises(ConfigError, match="init 'examples' needs labels, of which distill uses none"):
            distill(tiny_base("llama"), inputs(), TEXT, init="examples", **FAST)


class TestLearning:
    @pytest.mark.parametrize("method", sorted(METHODS))
    def test_every_method_comes_nearer(self, method: str) -> None:
        settings = {**FAST, "steps": 40, "eval_every": 20, "init": "random"}
        done = distill(tiny_base("gemma3"), inputs(), TEXT, method=method, measure=False, **settings)
        start, *_, last = losses(done.prompt)
        assert last < 0.6 * start
        assert done.prompt.method == method

    @pytest.mark.parametrize(
        "settings", [{}, {"distillation_temperature": 2.0}, {"samples": 2, "greedy": False}], ids=str
    )
    def test_completions_come_nearer(self, settings: dict[str, Any]) -> None:
        seen = Recorder()
        how = {**FAST, "steps": 60, "eval_every": 30, "init": "random", "max_new_tokens": 5, **settings}
        done = distill(tiny_base("gemma3"), words(), TEXT, callback=seen, measure=False, **how)
        start, *_, last = losses(done.prompt)
        assert last < 0.7 * start
        assert sum(seen.losses[-10:]) < sum(seen.losses[:10])
        assert {metric for _, metric, *_ in seen.evaluations} == {"token agreement"}

    def test_the_lowest_divergence_is_the_best_step(self) -> None:
        done = distill(
            tiny_base("llama"), inputs(), TEXT, measure=False, **{**FAST, "patience": 0, "learning_rate": 1.0}
        )
        found = losses(done.prompt)
        assert done.prompt.training["best_step"] == 4 * found.index(min(found))

    def test_a_saved_prompt_or_an_ensemble_teaches_too(self) -> None:
        base, task = tiny_base("llama"), inputs()
        first = distill(base, task, TEXT, measure=False, **FAST).prompt
        states = tuple(PromptState.of_embeddings(random_prompt(base, 9, seed).detach()) for seed in range(2))
        for teacher, tokens in ((first, 6), (Prompt(**{**vars(first), "states": states}), 18)):
            done = distill(base, bare(reviews()), teacher, measure=False, **{**FAST, "length": 3})
            assert done.prompt.spec == task.spec
            assert done.report.tokens.teacher == tokens
            assert done.report.tokens.student == 3
            assert done.report.held_out["test"].teacher is None

    def test_an_alarm_where_nothing_is_learned_and_none_where_there_is_nothing_to(self) -> None:
        seen = Recorder()
        settings = {**FAST, "learning_rate": 1e-12, "alarm_after": 3, "patience": 0, "init": "random", "measure": False}
        done = distill(tiny_base("llama"), inputs(), TEXT, callback=seen, **settings)
        (note,) = [note for note in seen.notes if note.startswith("not learning")]
        assert "that of the teacher's label frequencies is" in note
        assert "is the teacher good at them" in note
        assert done.prompt.training["alarmed"]


class TestProfile:
    def test_is_of_the_students_answers_to_validation(self, tmp_path: Path) -> None:
        task = inputs(labelled=False)
        done = distill(tiny_base("llama"), task, TEXT, out=tmp_path / "p", measure=False, **FAST)
        profile = read_profile(str(tmp_path / "p"))
        assert profile is not None
        answered = Predictor(tiny_base("llama"), task.spec, done.prompt.state).predict(task.validation)
        assert profile.examples == len(task.validation)
        assert {k: n for k, n in profile.labels.items() if n} == Counter(one.label for one in answered)
        assert profile.confidence is not None
        assert profile.hidden is not None


class TestLabels:
    @pytest.mark.parametrize(
        ("task", "other"),
        [(inputs(), inputs(labelled=False)), (words(), words(labelled=False))],
        ids=["classification", "generation"],
    )
    def test_are_not_used(self, task: Task, other: Task, tmp_path: Path) -> None:
        settings = {**FAST, "max_new_tokens": 4, "measure": False}
        for name, one in (("with", task), ("without", other)):
            distill(tiny_base("llama"), one, TEXT, out=tmp_path / name, **settings)
        for name in ("prompt.safetensors", "history.jsonl", "profile.json"):
            assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
        reports = [json.loads((tmp_path / name / "distillation.json").read_text()) for name in ("with", "without")]
        for split in ("validation", "test"):
            with_labels, without = (report["held_out"][split] for report in reports)
            assert with_labels["student"] is not None
            assert without["student"] is None
            assert with_labels["agreement"] == without["agreement"]
            assert with_labels["kl"] == without["kl"]

    @pytest.mark.parametrize("folder", [False, True])
    def test_do_not_decide_which_input_goes_where(self, folder: bool, tmp_path: Path) -> None:
        rows = [{"text": one.text, "label": one.label} for one in reviews(train=50).train]
        found = []
        for name, labelled in (("with", True), ("without", False), ("some", True)):
            some = [
                {"text": row["text"]} | ({"label": row["label"]} if labelled and (name == "with" or index % 2) else {})
                for index, row in enumerate(rows)
            ]
            place = tmp_path / name
            place.mkdir()
            (place / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
            task = Task.of_inputs(place if folder else place / "train.jsonl", labels=LABELS)
            found.append([[one.text for one in part] for part in splits_of(task.splits)])
        assert found[0] == found[1] == found[2]
        assert found[0][0]
        assert found[0][1]

    def test_figures_are_over_the_inputs_that_have_one(self) -> None:
        splits = reviews()
        half = tuple(one if index % 2 else Example(one.text) for index, one in enumerate(splits.test))
        task = Task.of_inputs(Splits(splits.train, splits.validation, half, "", ()), labels=LABELS, template=TEMPLATE)
        base = tiny_base("llama")
        done = distill(base, task, TEXT, measure=False, **FAST)
        near = done.report.held_out["test"]
        assert near.n == len(half)
        for one, state in ((near.teacher, written_prompt(base, task.spec, TEXT)), (near.student, done.prompt.state)):
            assert one is not None
            expected = evaluate(base, half[1::2], state, spec=task.spec).metric
            assert one.model_dump() == expected.model_dump()
        assert near.kept is not None
        assert near.student is not None
        assert near.teacher is not None
        assert near.kept.value == pytest.approx(near.student.value / near.teacher.value)
        assert near.kept.low <= near.kept.value <= near.kept.high

    def test_rows_of_the_other_kind(self) -> None:
        with pytest.raises(DataError, match="labels were given, but its rows are for generation"):
            Task.of_inputs(answers(), labels=LABELS)
        with pytest.raises(
            DataError, match="the teacher was learned for classification, these rows are for generation"
        ):
            Task.of_inputs(answers(), spec=inputs().spec)
        with pytest.raises(DataError, match="which is not among the labels x, y: correct the rows"):
            Task.of_inputs(reviews(), labels=("x", "y"))


class TestOneTeacher:
    def test_is_asked_once_for_all_students_and_after_an_interruption(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base, task, asked, calls = tiny_base("llama"), inputs(), [], []
        whole, accumulate = asking.ask_teacher, training._accumulate_gradients

        def counted(*arguments: Any) -> Any:
            asked.append(sum(map(len, arguments[4].values())))
            return whole(*arguments)

        def interrupted(*arguments: Any) -> list[float]:
            calls.append(1)
            if len(calls) == 8:
                raise KeyboardInterrupt
            return accumulate(*arguments)

        monkeypatch.setattr(asking, "ask_teacher", counted)
        monkeypatch.setattr(training, "_accumulate_gradients", interrupted)
        teacher = Teacher.written(base, task.spec, TEXT)
        configs = make_length_configs(TrainConfig.build(**FAST, checkpoint_every=2), [3, 6])
        settings: dict[str, Any] = {"out": tmp_path / "p", "measure": False}
        with pytest.raises(KeyboardInterrupt):
            distill(base, task, teacher, config=configs, **settings)
        assert sorted(path.name for path in (tmp_path / "p.run").iterdir()) == [
            "checkpoint.safetensors",
            "clock.json",
            "teacher.safetensors",
        ]
        done = distill(base, task, teacher, config=configs, resume=True, **settings)
        assert asked == [60 + 24 + 24]
        assert [path.name for path in tmp_path.iterdir()] == ["p"]
        assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["3", "6"]

        unbroken = distill(base, task, teacher, config=configs, out=tmp_path / "q", measure=False)
        assert asked == [108, 108]
        for name, one in unbroken.items():
            for file in ("prompt.safetensors", "prompt.json", "history.jsonl", "profile.json"):
                assert (tmp_path / "p" / name / file).read_bytes() == (tmp_path / "q" / name / file).read_bytes()
            assert done[name].report.held_out == one.report.held_out
            assert load_prompt(tmp_path / "p" / name).length == int(name)

    def test_its_damaged_answers_are_one_line_and_restart_asks_anew(self, tmp_path: Path) -> None:
        class Stop(Recorder):
            def on_step_end(self, step: int, *rest: Any) -> None:
                raise KeyboardInterrupt

        base, out = tiny_base("llama"), tmp_path / "p"
        settings = {**FAST, "out": out, "measure": False}
        with pytest.raises(KeyboardInterrupt):
            distill(base, inputs(), TEXT, callback=Stop(), **settings)
        kept = tmp_path / "p.run" / "teacher.safetensors"
        seen = Recorder()
        with pytest.raises(KeyboardInterrupt):
            distill(base, inputs(), TEXT + " Really?", callback=Stop(), **settings)
        kept.write_bytes(kept.read_bytes()[:-4])
        with pytest.raises(TrainingError, match=r"are damaged: .*; ask it again with --restart"):
            distill(base, inputs(), TEXT, **settings)
        distill(base, inputs(), TEXT, restart=True, callback=seen, **settings)
        assert any("answers 60 train inputs" in note for note in seen.notes)
        assert load_prompt(out).length == 6

    def test_another_teacher_is_another_run(self, tmp_path: Path) -> None:
        class Stop(Recorder):
            def on_step_end(self, step: int, *rest: Any) -> None:
                if step == 6:
                    raise KeyboardInterrupt

        base, settings = tiny_base("llama"), {**FAST, "out": tmp_path / "p", "checkpoint_every": 2, "measure": False}
        with pytest.raises(KeyboardInterrupt):
            distill(base, inputs(), TEXT, callback=Stop(), **settings)
        with pytest.raises(TrainingError, match=r"is another one \(teacher was '.*', is '.*'\): give the same"):
            distill(base, inputs(), TEXT + "!", resume=True, **settings)
        with pytest.raises(TrainingError, match=r"is another one \(distillation_temperature was 1\.0, is 2\.0\)"):
            distill(base, inputs(), TEXT, resume=True, distillation_temperature=2.0, **settings)

    def test_does_not_answer_what_no_step_sees(self) -> None:
        seen = Recorder()
        settings = {**FAST, "steps": 2, "validation_limit": 10, "measure": False, "evaluate_test": False}
        distill(tiny_base("llama"), inputs(), TEXT, callback=seen, **settings)
        assert "16 of 60 train inputs are used, drawn by seed 0 (2 steps see no more)" in seen.notes
        assert "10 of 24 validation inputs are used, drawn by seed 0 (validation_limit)" in seen.notes
        assert [note.split("answers ")[1] for note in seen.notes if "answers" in note] == [
            "16 train inputs",
            "10 validation inputs",
        ]


def test_lengths_that_learn_together_end_where_each_would_end_alone() -> None:
    base, task = tiny_base("gemma3"), inputs()
    config = TrainConfig.build(**FAST)
    teacher = Teacher.written(base, task.spec, TEXT)
    together = distill(base, task, teacher, config=make_length_configs(config, [2, 5]), measure=False)
    for name, one in together.items():
        alone = distill(base, task, TEXT, measure=False, **{**FAST, "length": int(name)})
        torch.testing.assert_close(one.prompt.state.tensor, alone.prompt.state.tensor, rtol=1e-3, atol=1e-3)
        assert losses(one.prompt) == pytest.approx(losses(alone.prompt), rel=1e-2, abs=1e-4)
    with pytest.raises(ConfigError, match="lengths 4, 4: expected each once"):
        make_length_configs(config, [4, 4])


def test_solved_examples_teach_generation_to_end_by_itself() -> None:
    base, task = tiny_base("llama"), words()
    teacher = Teacher.written(base, task.spec, "", choose_shots(task.train, 3, 0))
    how = DistillConfig(max_new_tokens=6)
    done = distill(base, task, teacher, config=TrainConfig.build(**FAST), measure=False, **how.model_dump())
    assert done.report.metric == "exact_match"
    near = done.report.held_out["test"]
    assert near.token_agreement is not None
    assert math.isfinite(near.kl.value)
    assert set(done.prompt.metrics["test"]["others"]) == {
        "token_f1",
        "chrf",
        "bleu",
        "rouge_l",
        "agreement",
        "kl",
        "token_agreement",
    }


def test_a_folder_of_files_is_read_as_it_is(tmp_path: Path) -> None:
    place = write_data(tmp_path / "data", reviews())
    done = distill(tiny_base("llama"), place, TEXT, measure=False, **FAST)
    assert done.prompt.spec.labels == LABELS
    assert done.prompt.data["examples"] == {"train": 60, "validation": 24, "test": 24}
