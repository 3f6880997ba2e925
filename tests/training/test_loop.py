"""The training loop: it learns, stops, keeps the best, accumulates exactly, and says when something is wrong."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import train
from helpers.small_tasks import FAST, TEMPLATE, Recorder, answers, noise, reviews, reviews_task
from helpers.tiny_models import tiny_base

import softprompt.training.loop as training
import softprompt.training.training_objective as objective
from softprompt.config import TrainConfig
from softprompt.data.examples import Example
from softprompt.data.task import Task
from softprompt.errors import ConfigError, DataError, OutputError, TemplateError, TrainingError
from softprompt.inference.predictor import Predictor
from softprompt.metrics.registry import accuracy
from softprompt.models.frozen_lm import FrozenLM
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.data_loader import BatchSampler
from softprompt.training.fit import fit
from softprompt.training.initialization import initialize
from softprompt.training.learner import PromptLearner
from softprompt.training.loop import TrainingResult
from softprompt.training.optimization import rate_factor


@pytest.fixture(scope="module")
def base() -> FrozenLM:
    return tiny_base("llama")


def run(base: FrozenLM, task: Task, **settings: Any) -> tuple[TrainingResult, Recorder]:
    seen = Recorder()
    return train(base, task, TrainConfig.build(**{**FAST, **settings}), seen), seen


class TestLearning:
    def test_classification(self, base: FrozenLM) -> None:
        task = reviews_task(test=60)
        result, seen = run(base, task, steps=60, eval_every=20)
        assert sum(seen.losses[-10:]) < 0.3 * sum(seen.losses[:10])
        assert result.value >= 0.95
        predictions = Predictor(base, task.spec, result.state).predict(task.test)
        labels = [str(example.label) for example in task.test]
        assert accuracy(labels, [str(one.label) for one in predictions]).low > 0.8
        assert not result.alarmed

    def test_generation(self, base: FrozenLM) -> None:
        task = Task.generation(answers(), template=TEMPLATE)
        settings = {"length": 16, "init": "text", "steps": 80, "batch_size": 8, "eval_every": 40, "learning_rate": 1.0}
        seen = Recorder()
        prompt = fit(base, task, callback=seen, **settings)
        history = [json.loads(line) for line in prompt.extra_files["history.jsonl"].splitlines()]
        assert history[-1]["validation_loss"] < 0.5 * seen.losses[0]
        assert history[-1]["value"] == -history[-1]["validation_loss"]
        assert prompt.metrics["test"]["metric"] == "exact_match"
        assert prompt.metrics["test"]["value"] > 0.6

    def test_result_and_callback_agree(self, base: FrozenLM) -> None:
        result, seen = run(base, reviews_task(), steps=20, eval_every=8)
        assert [record["step"] for record in result.history] == [step for step, *_ in seen.evaluations] == [8, 16, 20]
        assert [record["value"] for record in result.history] == [value for _, _, value, _, _ in seen.evaluations]
        assert {metric for _, metric, *_ in seen.evaluations} == {"accuracy"}
        assert (seen.first_step, len(seen.losses), result.steps, seen.ended) == (0, 20, 20, 1)
        assert (seen.learned, seen.frozen) == (result.learned, base.parameter_count) == (4 * 32, base.parameter_count)
        config = TrainConfig.build(**{**FAST, "steps": 20})
        assert seen.rates == [config.learning_rate * rate_factor(step, config) for step in range(20)]
        last = result.history[-1]
        assert last["train_loss"] == pytest.approx(sum(seen.losses) / 20)
        assert [record["train_loss_steps"] for record in result.history] == [8, 16, 20]

    def test_texts_that_are_cut_are_counted_and_told(self, base: FrozenLM) -> None:
        splits = reviews()
        long = Example("the film is fine and " * 20, "good")
        task = Task.classification(replace(splits, train=(*splits.train, long)), template=TEMPLATE, max_length=40)
        result, seen = run(base, task, steps=1)
        assert result.truncated == 1
        assert "1 texts were cut to 40 tokens (--max-length)" in seen.notes

    def test_max_length_of_fit_reaches_the_prompt(self, base: FrozenLM) -> None:
        task = reviews_task()
        assert fit(base, task, **FAST).spec.max_length == task.spec.max_length == 512
        prompt = fit(base, task, max_length=9, **FAST)
        assert prompt.spec.max_length == prompt.training["max_length"] == 9
        assert prompt.training["truncated_texts"] > 0
        short = Task.classification(reviews(), template=TEMPLATE, max_length=10)
        assert fit(base, short, **FAST).training["max_length"] == 10

    def test_an_example_is_saved_with_the_prompt_only_where_it_is_given(self, base: FrozenLM, tmp_path: Path) -> None:
        fit(base, reviews_task(), out=tmp_path / "p", example="a quiet film", **FAST)
        said = json.loads((tmp_path / "p" / "prompt.json").read_text())["training"]
        assert said["example"] == "a quiet film"
        assert load_prompt(tmp_path / "p").example == "a quiet film"
        without = fit(base, reviews_task(), **FAST)
        assert "example" not in without.training
        assert without.example is None
        task = reviews_task()
        other = replace(task, spec=replace(task.spec, template="{{ title }}:"))
        with pytest.raises(ConfigError, match="expected a template that uses it"):
            fit(base, other, example="a quiet film", **FAST)

    def test_training_order_depends_on_the_seed_only(self, base: FrozenLM) -> None:
        one, same, other = (run(base, reviews_task(), seed=seed)[1].losses for seed in (1, 1, 2))
        assert one == same
        assert one != other

    def test_every_epoch_takes_all_examples_in_an_order_of_its_own(self) -> None:
        order = BatchSampler([7] * 20, TrainConfig(batch_size=5))
        steps = [order.batch(step) for step in range(8)]
        for epoch in (steps[:4], steps[4:]):
            assert sorted(index for batch in epoch for index in batch) == list(range(20))
        assert steps[:4] != steps[4:]
        assert BatchSampler([7] * 20, TrainConfig(batch_size=5)).batch(6) == steps[6]


class TestAccumulation:
    @pytest.mark.parametrize(
        "settings", [{"micro_batch_size": 3}, {"micro_batch_size": 1}, {"token_budget": 40}], ids=str
    )
    @pytest.mark.parametrize("kind", ["classification", "generation"])
    def test_pieces_equal_the_whole(self, base: FrozenLM, settings: dict[str, int], kind: str) -> None:
        task = reviews_task() if kind == "classification" else Task.generation(answers(), template=TEMPLATE)
        init = "text:a good film"
        whole, seen = run(base, task, init=init)
        pieces, seen_pieces = run(base, task, init=init, **settings)
        assert seen_pieces.losses == pytest.approx(seen.losses, rel=1e-4)
        torch.testing.assert_close(pieces.state.tensor, whole.state.tensor, atol=2e-3, rtol=1e-3)

    def test_budget_really_cuts(self, base: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes: list[int] = []
        whole = training.collate

        def counted(items: Any, *rest: Any) -> Any:
            batch = whole(items, *rest)
            sizes.append(batch.input_ids.numel())
            return batch

        monkeypatch.setattr(training, "collate", counted)
        run(base, reviews_task(), steps=2, token_budget=40)
        assert max(sizes) <= 40
        assert len(sizes) > 2


class Scripted:
    """Stands in for the validation: scores that are known beforehand."""

    metric = "accuracy"
    tokens = 0

    def __init__(self, scores: list[tuple[float, float]], error: float) -> None:
        self.scores, self._error = list(scores), error
        self.states: list[torch.Tensor] = []

    def __call__(self, *arguments: Any) -> "Scripted":
        return self

    def score(self, state: Any) -> tuple[float, float]:
        self.states.append(state.tensor.clone())
        return self.scores[len(self.states) - 1]

    def standard_error(self, value: float) -> float:
        return self._error


class TestChoiceOfTheBest:
    def scripted(
        self,
        base: FrozenLM,
        monkeypatch: pytest.MonkeyPatch,
        scores: list[tuple[float, float]],
        error: float = 0.01,
        **settings: Any,
    ) -> tuple[TrainingResult, Recorder, Scripted]:
        validation = Scripted(scores, error)
        monkeypatch.setattr(objective, "Validation", validation)
        result, seen = run(base, reviews_task(), **{"eval_every": 2, "steps": 2 * len(scores), **settings})
        return result, seen, validation

    def test_best_is_kept_rather_than_last(self, base: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
        scores = [(0.5, 1.0), (0.9, 1.0), (0.8, 0.5), (0.7, 0.4)]
        result, seen, validation = self.scripted(base, monkeypatch, scores)
        assert (result.best_step, result.value, result.loss, result.steps) == (4, 0.9, 1.0, 8)
        assert torch.equal(result.state.tensor, validation.states[1])
        assert not torch.equal(result.state.tensor, validation.states[3])
        assert [best for *_, best in seen.evaluations] == [True, True, False, False]

    def test_lower_loss_decides_between_equals(self, base: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
        result, _, _ = self.scripted(base, monkeypatch, [(0.9, 1.0), (0.9, 0.5), (0.9, 0.5), (0.9, 0.7)])
        assert (result.best_step, result.loss) == (4, 0.5)

    @pytest.mark.parametrize(
        ("scores", "best"),
        [
            ([(0.90, 0.50), (0.89, 0.40)], 4),
            ([(0.90, 0.50), (0.87, 0.10)], 2),
            ([(0.90, 0.40), (0.91, 0.50)], 2),
            ([(0.90, 0.40), (0.93, 0.50)], 4),
            # each is within the error of the one before, not of the highest
            ([(0.900, 0.50), (0.885, 0.45), (0.870, 0.40)], 4),
        ],
    )
    def test_loss_decides_among_what_is_within_the_error(
        self, base: FrozenLM, monkeypatch: pytest.MonkeyPatch, scores: list[tuple[float, float]], best: int
    ) -> None:
        result, _, _ = self.scripted(base, monkeypatch, scores, error=0.02)
        assert (result.best_step, (result.value, result.loss)) == (best, scores[best // 2 - 1])

    def test_patience_counts_evaluations_since_the_best(self, base: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
        scores = [(0.5, 1.0), (0.4, 1.0), (0.6, 1.0), (0.6, 1.0), (0.5, 0.1), (0.9, 0.1)]
        result, seen, _ = self.scripted(base, monkeypatch, scores, patience=2)
        assert (result.steps, result.best_step, len(result.history)) == (10, 6, 5)
        assert seen.notes == ["stopped at step 10: no better since step 6"]
        assert seen.ended == 1

    def test_no_patience_never_stops(self, base: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
        result, seen, _ = self.scripted(base, monkeypatch, [(0.5, 1.0), *[(0.4, 1.0)] * 6], patience=0)
        assert result.steps == 14
        assert seen.notes == []

    @pytest.mark.parametrize(
        ("scores", "said"),
        [
            ([(0.4, 2.0), (0.6, 1.5)], True),
            ([(0.4, 2.0), (0.6, 1.9)], False),  # hardly less loss
            ([(0.60, 2.0), (0.61, 1.5)], False),  # within the error
            ([(0.4, 3.0), (0.6, 1.0), (0.6, 1.2)], False),  # no better than before
            ([(0.6, 1.0)], False),
        ],
    )
    def test_a_run_that_ends_while_it_learns_says_so(
        self, base: FrozenLM, monkeypatch: pytest.MonkeyPatch, scores: list[tuple[float, float]], said: bool
    ) -> None:
        _, seen, _ = self.scripted(base, monkeypatch, scores, error=0.02)
        steps = 2 * len(scores)
        told = (
            f"still learning when its steps ended: validation loss 2.000 at step {steps - 2}, 1.500 at {steps}: more "
            f"steps may gain more (--steps {2 * steps})"
        )
        assert seen.notes == ([told] if said else [])

    def test_validation_is_limited_to_the_same_sample(self, base: FrozenLM) -> None:
        task = reviews_task(validation=50)
        losses = [run(base, task, validation_limit=limit, steps=1)[0].loss for limit in (10, 10, 50)]
        assert losses[0] == losses[1] != losses[2]


class TestVariants:
    def test_averaging(self, base: FrozenLM) -> None:
        plain, _ = run(base, reviews_task(), patience=0)
        averaged, seen = run(base, reviews_task(), averaging=0.9, patience=0)
        same, same_seen = run(base, reviews_task(), averaging=1e-9, patience=0)
        assert seen.losses == same_seen.losses  # what is averaged does not feed back into learning
        start = initialize("labels", base, reviews_task().spec, 4, 0).tensor
        assert (averaged.state.tensor - start).norm() < 0.9 * (plain.state.tensor - start).norm()
        torch.testing.assert_close(same.state.tensor, plain.state.tensor)

    def test_lester_recipe(self, base: FrozenLM) -> None:
        config = TrainConfig.build("lester", **{**FAST, "batch_size": 16, "steps": 30, "init": "vocab"})
        seen = Recorder()
        result = train(base, reviews_task(), config, seen)
        assert set(seen.rates) == {0.3}
        assert sum(seen.losses[-5:]) < 0.8 * sum(seen.losses[:5])
        assert result.value > 0.7

    def test_fewer_examples_than_a_batch(self, base: FrozenLM) -> None:
        result, _ = run(base, reviews_task(train=5), batch_size=16, steps=4)
        assert result.steps == 4


class TestAlarm:
    def test_fires_where_there_is_nothing_to_learn(self, base: FrozenLM) -> None:
        task = Task.classification(noise(), template=TEMPLATE)
        result, seen = run(base, task, steps=60, alarm_after=50, eval_every=60)
        assert result.alarmed
        (alarm,) = [note for note in seen.notes if "not learning" in note]
        assert alarm.startswith("not learning: after ")
        assert "the label prior is 0.6" in alarm
        for advice in ("Look at a few rows first", "--learning-rate 0.1 or 0.9", "--init", "--steps"):
            assert advice in alarm

    def test_is_silent_where_there_is(self, base: FrozenLM) -> None:
        result, seen = run(base, reviews_task(), steps=60, alarm_after=50, eval_every=60)
        assert not result.alarmed
        assert seen.notes == []

    def test_does_not_come_early(self, base: FrozenLM) -> None:
        task = Task.classification(noise(), template=TEMPLATE)
        assert not run(base, task, steps=20, alarm_after=21)[0].alarmed

    def test_generation_is_measured_against_its_start(self, base: FrozenLM) -> None:
        task = Task.generation(answers(), template=TEMPLATE)
        stuck, seen = run(base, task, init="vocab", learning_rate=1e-9, steps=30, alarm_after=20)
        assert stuck.alarmed
        assert "the loss at the start is" in "".join(seen.notes)
        assert not run(base, task, init="vocab", learning_rate=1.0, steps=60, alarm_after=55)[0].alarmed


class TestNotANumber:
    ADVICE = r"start again with --restart and a lower rate \(--learning-rate 0\.03\), or with --dtype float32"

    def break_at(self, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        """The loss of this step, counted from 1, is not a number."""
        whole, calls = training._accumulate_gradients, []

        def broken(*arguments: Any) -> list[float]:
            calls.append(1)
            losses = whole(*arguments)
            return [math.nan] if len(calls) == step else losses

        monkeypatch.setattr(training, "_accumulate_gradients", broken)

    def test_keeps_the_last_good_checkpoint(
        self, base: FrozenLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.break_at(monkeypatch, 8)
        seen = Recorder()
        with pytest.raises(TrainingError) as caught:
            fit(base, reviews_task(), out=tmp_path / "p", checkpoint_every=3, callback=seen, **FAST)
        message = str(caught.value)
        assert message.startswith("the training loss is not a number at step 8 (rate ")
        assert f"the last good checkpoint (step 6) is kept in '{tmp_path / 'p.run'}'" in message
        assert [path.name for path in tmp_path.iterdir()] == ["p.run"]
        assert len(seen.losses) == 7
        assert seen.ended == 1
        monkeypatch.undo()
        fit(base, reviews_task(), out=tmp_path / "p", checkpoint_every=3, resume=True, **FAST)
        fit(base, reviews_task(), out=tmp_path / "unbroken", checkpoint_every=3, **FAST)
        assert torch.equal(load_prompt(tmp_path / "p").state.tensor, load_prompt(tmp_path / "unbroken").state.tensor)

    def test_says_what_to_do(self, base: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
        self.break_at(monkeypatch, 1)
        with pytest.raises(TrainingError, match=r"not a number at step 1 \(rate [0-9.]+\): " + self.ADVICE):
            run(base, reviews_task())

    def test_rate_beyond_all_measure(self, tmp_path: Path) -> None:
        base, seen = tiny_base("gpt2"), Recorder()
        settings = {**FAST, "learning_rate": 1e30, "checkpoint_every": 1}
        with pytest.raises(TrainingError, match=r"the training loss is not a number at step 2 \(rate 1e\+30\): start"):
            fit(base, reviews_task(), out=tmp_path / "p", callback=seen, **settings)
        # the prompt of step 1 is made of numbers, but not of good ones: no checkpoint of it is kept
        assert len(seen.losses) == 1
        assert list(tmp_path.iterdir()) == []

    def test_in_the_last_step_is_not_saved(self, tmp_path: Path) -> None:
        settings = {**FAST, "steps": 1, "learning_rate": 1e30}
        with pytest.raises(TrainingError, match="the validation loss is not a number at step 1"):
            fit(tiny_base("gpt2"), reviews_task(), out=tmp_path / "p", **settings)
        assert list(tmp_path.iterdir()) == []


class TestMistakesBeforeTheFirstStep:
    def test_no_training_or_validation_examples(self, base: FrozenLM) -> None:
        for split in ("train", "validation"):
            task = Task.classification(replace(reviews(), **{split: ()}), labels=["good", "bad"])
            with pytest.raises(
                DataError,
                match="made here: expected a train split" if split == "train" else "made here: expected validation ex",
            ):
                fit(base, task, **FAST)

    def test_one_class_only_though_two_are_named(self, base: FrozenLM) -> None:
        splits = reviews()
        only = tuple(example for example in splits.train if example.label == "good")
        task = Task.classification(replace(splits, train=only), labels=["good", "bad"])
        with pytest.raises(DataError, match="training examples of at least two labels, got only 'good': add examples"):
            fit(base, task, **FAST)

    @pytest.mark.parametrize("length", [152, 200, 4000])
    def test_prompt_longer_than_the_context(self, base: FrozenLM, tmp_path: Path, length: int) -> None:
        with pytest.raises(
            TemplateError, match=rf"a prompt of {length} virtual tokens .* context of 160: use a shorter"
        ):
            fit(base, reviews_task(), out=tmp_path / "p", **{**FAST, "length": length})
        assert list(tmp_path.iterdir()) == []

    def test_answers_longer_than_the_context(self, base: FrozenLM) -> None:
        splits = answers()
        endless = Example("dull film", references=("bad " * 200,))
        task = Task.generation(replace(splits, train=(*splits.train, endless)), template=TEMPLATE)
        with pytest.raises(DataError, match=r"an output of \d+ tokens leaves 0 tokens .* context of 160: shorten"):
            run(base, task, init="vocab")

    def test_no_room_to_evaluate_is_found_before_training(self, base: FrozenLM) -> None:
        task, seen = Task.generation(answers(), template=TEMPLATE), Recorder()
        with pytest.raises(TemplateError, match="an answer of 128 leave"):
            fit(base, task, callback=seen, **{**FAST, "length": 30, "init": "text"})
        assert seen.losses == []


class TestCheckpoint:
    def test_no_space_leaves_nothing_behind(
        self, base: FrozenLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import errno
        import os

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"no space left to write '.*p\.run'"):
            fit(base, reviews_task(), out=tmp_path / "p", checkpoint_every=2, **FAST)
        assert list(tmp_path.iterdir()) == []

    def test_no_space_at_the_end_keeps_the_run(
        self, base: FrozenLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import errno
        import tempfile

        def full(*arguments: Any, **options: Any) -> str:
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(tempfile, "mkdtemp", full)
        with pytest.raises(OutputError, match=r"no space left to write '.*p'.*kept in '.*p\.run', --resume saves it"):
            fit(base, reviews_task(), out=tmp_path / "p", **FAST)
        assert [path.name for path in tmp_path.iterdir()] == ["p.run"]
        monkeypatch.undo()
        seen = Recorder()
        fit(base, reviews_task(), out=tmp_path / "p", resume=True, callback=seen, **FAST)
        assert seen.losses == []
        assert [path.name for path in tmp_path.iterdir()] == ["p"]

    @pytest.mark.parametrize("content", [b"", b"hello", b"\x08\0\0\0\0\0\0\0{}      "])
    def test_damage_is_said(self, base: FrozenLM, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "p.run").mkdir()
        (tmp_path / "p.run" / "checkpoint.safetensors").write_bytes(content)
        with pytest.raises(TrainingError, match=r"the checkpoint '.*' is damaged: .*; start again with --restart"):
            fit(base, reviews_task(), out=tmp_path / "p", resume=True, **FAST)
        fit(base, reviews_task(), out=tmp_path / "p", restart=True, **FAST)
        assert [path.name for path in tmp_path.iterdir()] == ["p"]

    def test_restart_keeps_the_old_run_until_there_is_something_better(self, base: FrozenLM, tmp_path: Path) -> None:
        learner = PromptLearner(base, reviews_task(), TrainConfig.build(**FAST))
        old = Checkpoint(tmp_path / "p.run", {"a": 1})
        learner.progress.step = 3
        old.save([learner])
        new = Checkpoint(tmp_path / "p.run", {"a": 2}, restart=True)
        assert new.load() is None
        assert old.load() is not None
        learner.progress.step = 1
        new.save([learner])
        assert new.load().step == 1  # type: ignore[union-attr]
        with pytest.raises(TrainingError, match=r"is another one \(a was 2, is 1\): give the same settings, or start"):
            old.load()
