"""Prompts that learn in the same forward passes: each ends where it would have ended alone."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import train
from helpers.small_tasks import FAST, TEMPLATE, Recorder, answers, reviews, reviews_task
from helpers.tiny_models import tiny_base

import softprompt.training.loop as training
from softprompt.config import TrainConfig
from softprompt.data.task import Task
from softprompt.errors import ConfigError, SoftpromptError, TrainingError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.training.checkpoint import CHECKPOINT_FILE, Checkpoint
from softprompt.training.fit import fit
from softprompt.training.loop import TrainingResult, train_together
from softprompt.training.run_checks import SHARED, check_settings

COMMON: dict[str, Any] = {**FAST, "steps": 6, "eval_every": 2, "checkpoint_every": 2}
MEMBERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "another seed": {"seed": 1},
    "another rate": {"learning_rate": 0.05},
    "longer": {"length": 9},
    "another start": {"init": "vocab"},
    "averaged": {"averaging": 0.5},
    "adafactor": {"optimizer": "adafactor", "schedule": "constant", "learning_rate": 0.1},
    "p-tuning": {"method": "p-tuning", "method_options": {"width": 32}},
    "residual": {"method": "residual"},
    "prefix-tuning": {"method": "prefix-tuning", "length": 6},
    "prefix-tuning with an MLP": {"method": "prefix-tuning", "method_options": {"reparameterization": "mlp"}},
    # what it adds is lost in rounding: nothing gets better, so it stops at the second evaluation
    "stuck": {"learning_rate": 1e-12, "patience": 1},
    "wild": {"learning_rate": 1e30},
    "wild too": {"learning_rate": 1e30, "length": 6},
}


def task_of(kind: str) -> Task:
    if kind == "generation":
        return Task.generation(answers(validation=4), template=TEMPLATE)
    return reviews_task(validation=10)


def config_of(name: str, **more: Any) -> TrainConfig:
    return TrainConfig.build(**{**COMMON, **MEMBERS[name], **more})


@cache
def alone(family: str, name: str, kind: str = "classification", **more: Any) -> TrainingResult:
    return train(tiny_base(family), task_of(kind), config_of(name, **more), Recorder())


def together(
    family: str, names: Sequence[str], kind: str = "classification", seen: Recorder | None = None, **more: Any
) -> dict[str, TrainingResult]:
    configs = {name: config_of(name, **more) for name in names}
    results = train_together(tiny_base(family), task_of(kind), configs, seen or Recorder())
    return dict(zip(names, results, strict=True))


def assert_same(found: TrainingResult, expected: TrainingResult) -> None:
    assert found.state.kind == expected.state.kind
    for one, other in zip(found.state.tensors, expected.state.tensors, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    whole = ("metric", "best_step", "steps", "learned", "truncated", "alarmed", "failed")
    assert {name: getattr(found, name) for name in whole} == {name: getattr(expected, name) for name in whole}
    assert (found.value, found.loss) == pytest.approx((expected.value, expected.loss), abs=1e-4)
    assert [record["step"] for record in found.history] == [record["step"] for record in expected.history]
    for record, right in zip(found.history, expected.history, strict=True):
        assert record == pytest.approx(right, abs=1e-4)


class TestEachIsAsAlone:
    @pytest.mark.parametrize(
        ("family", "kind", "names"),
        [
            ("gemma3", "classification", [name for name in MEMBERS if not name.startswith("wild")]),
            ("mamba", "classification", ["plain", "longer", "another seed"]),
            ("llama", "generation", ["plain", "longer", "another seed", "prefix-tuning"]),
            ("bart", "classification", ["plain", "longer", "another seed", "prefix-tuning"]),
            ("bart", "generation", ["plain", "longer", "another seed", "prefix-tuning"]),
        ],
        ids=["gemma3", "no cache", "generation", "encoder", "encoder, generation"],
    )
    def test_whatever_they_differ_in(self, family: str, kind: str, names: list[str]) -> None:
        init = {"init": "text:a good film"} if kind == "generation" else {}
        found = together(family, names, kind, **init)
        for name, result in found.items():
            assert_same(result, alone(family, name, kind, **init))
        # they do differ
        losses = [result.loss for result in found.values()]
        assert len({round(loss, 3) for loss in losses}) > 0.8 * len(losses)

    @pytest.mark.parametrize("settings", [{"token_budget": 40}, {"micro_batch_size": 3}], ids=str)
    def test_in_passes_of_any_size(self, settings: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
        sizes: list[torch.Size] = []
        whole = training.collate

        def counted(items: Any, *rest: Any) -> Any:
            batch = whole(items, *rest)
            sizes.append(batch.input_ids.shape)
            return batch

        expected = {name: alone("gpt2", name) for name in ("plain", "longer", "prefix-tuning")}
        monkeypatch.setattr(training, "collate", counted)
        for name, result in together("gpt2", list(expected), **settings).items():
            assert_same(result, expected[name])
        if "token_budget" in settings:
            assert max(map(torch.Size.numel, sizes)) <= 40
        else:
            assert max(rows for rows, _ in sizes) == 3

    def test_a_prompt_that_leaves_less_room_cuts_only_its_own_texts(self) -> None:
        # of 160 positions, 140 are the prompt's; the order of the examples depends on how long they are after the cut
        task = Task.classification(reviews(), template="what is the film about? {{ text }}:")
        configs = {"short": config_of("plain", steps=3), "long": config_of("plain", steps=3, length=140, init="vocab")}
        seen = Recorder()
        short, long = train_together(tiny_base("gpt2"), task, configs, seen)
        assert short.truncated == 0
        assert long.truncated > 0
        assert any(note.startswith(f"{long.truncated} texts were cut to ") for note in seen.notes)
        for result, config in zip((short, long), configs.values(), strict=True):
            assert_same(result, train(tiny_base("gpt2"), task, config, Recorder()))

    def test_texts_that_are_cut_are_counted_once(self) -> None:
        task = Task.classification(reviews(validation=6), template=TEMPLATE, max_length=10)
        configs = {name: config_of(name, steps=1, max_length=10) for name in ("plain", "longer")}
        results = train_together(tiny_base("gpt2"), task, configs, Recorder())
        expected = train(tiny_base("gpt2"), task, configs["plain"], Recorder()).truncated
        assert expected > 0
        assert [result.truncated for result in results] == [expected, expected]

    def test_one_that_stops_early_leaves_the_others_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        at_once: list[int] = []
        whole = training._accumulate_gradients

        def counted(base: FrozenLM, learners: Any, *rest: Any) -> list[float]:
            at_once.append(len(learners))
            return whole(base, learners, *rest)

        expected = {name: alone("gemma3", name) for name in ("plain", "stuck", "prefix-tuning")}
        monkeypatch.setattr(training, "_accumulate_gradients", counted)
        seen = Recorder()
        found = together("gemma3", list(expected), seen=seen)
        for name, result in found.items():
            assert_same(result, expected[name])
        assert {name: result.steps for name, result in found.items()} == {"plain": 6, "stuck": 4, "prefix-tuning": 6}
        assert at_once == [3] * 4 + [2] * 2
        assert seen.notes == ["stuck: stopped at step 4: no better since step 2"]


class TestCallback:
    def test_is_told_who(self) -> None:
        seen = Recorder()
        found = together("gemma3", ["plain", "prefix-tuning"], seen=seen)
        assert seen.learned == sum(result.learned for result in found.values()) == 4 * 32 + 6 * 3 * 2 * 2 * 8
        for name, result in found.items():
            told = [(step, value, loss) for step, metric, value, loss, _ in seen.evaluations if metric.endswith(name)]
            assert told == [(one["step"], one["value"], one["validation_loss"]) for one in result.history]
        assert {metric for _, metric, *_ in seen.evaluations} == {"accuracy of plain", "accuracy of prefix-tuning"}
        assert (seen.first_step, len(seen.losses), seen.ended) == (0, 6, 1)
        # each member's history holds its own losses' mean, the callback sees the mean of both
        means = [result.history[-1]["train_loss"] for result in found.values()]
        assert sum(seen.losses) / 6 == pytest.approx(sum(means) / 2)


class TestNotANumber:
    @pytest.mark.parametrize("eval_every", [2, 1], ids=["while training", "while evaluating"])
    def test_ends_only_the_one_whose_loss_it_is(self, eval_every: int) -> None:
        seen = Recorder()
        names = ["plain", "wild", "prefix-tuning"]
        found = together("gpt2", names, seen=seen, eval_every=eval_every)
        wild = found.pop("wild")
        for name, result in found.items():
            assert_same(result, alone("gpt2", name, eval_every=eval_every))
        assert (wild.failed, wild.steps, wild.history) == (True, 1, ())
        assert all(torch.isfinite(tensor).all() for tensor in wild.state.tensors)
        what = "training loss is not a number at step 2" if eval_every == 2 else "validation loss is not a number at"
        (note,) = seen.notes
        assert note.startswith(f"wild: the {what}")
        assert note.endswith(" (rate 1e+30): it ends here")

    ADVICE = "start again with --restart and a lower rate (--learning-rate {}), or with --dtype float32"

    def test_of_all_is_an_error(self, tmp_path: Path) -> None:
        configs, seen = {name: config_of(name) for name in ("wild", "wild too")}, Recorder()
        with pytest.raises(TrainingError) as caught:
            train_together(tiny_base("gpt2"), task_of("classification"), configs, seen, Checkpoint(tmp_path / "r", {}))
        message = str(caught.value)
        assert message.startswith("the training loss is not a number at step 2 (rate 1e+30): ")
        assert message.endswith(self.ADVICE.format("1e+29"))
        assert [note.split(":")[0] for note in seen.notes] == ["wild"]
        assert (seen.ended, list(tmp_path.iterdir())) == (1, [])

    def test_of_all_names_the_checkpoint_that_is_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole, calls = training._accumulate_gradients, []

        def broken(*arguments: Any) -> list[float]:
            calls.append(1)
            losses = whole(*arguments)
            return [float("inf")] * len(losses) if len(calls) == 5 else losses

        monkeypatch.setattr(training, "_accumulate_gradients", broken)
        configs, checkpoint = {name: config_of(name) for name in ("plain", "longer")}, Checkpoint(tmp_path / "r", {})
        with pytest.raises(TrainingError) as caught:
            train_together(tiny_base("gpt2"), task_of("classification"), configs, Recorder(), checkpoint)
        kept = f"; the last good checkpoint (step 2) is kept in '{tmp_path / 'r'}': {self.ADVICE.format('0.03')}"
        assert str(caught.value).startswith("the training loss is not a number at step 5 (rate ")
        assert str(caught.value).endswith(f"){kept}")
        assert [one["progress"]["failed"] for one in checkpoint.load().learners] == [False, False]  # type: ignore[union-attr]

    def test_of_all_but_one_that_had_stopped_early_is_none(self) -> None:
        # the other one has nothing to learn any more, but it has a prompt to give
        found = together("gpt2", ["wild", "stuck"])
        assert (found["wild"].failed, found["stuck"].failed) == (True, False)
        assert_same(found["stuck"], alone("gpt2", "stuck"))


class Stop(Recorder):
    """Ends the run from outside, behind a step."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def on_step_end(self, step: int, *rest: Any) -> None:
        super().on_step_end(step, *rest)
        if step == self.after:
            raise KeyboardInterrupt


TOGETHER = ("plain", "longer", "averaged", "adafactor", "p-tuning", "prefix-tuning", "stuck", "wild")
Unbroken = tuple[list[TrainingResult], Recorder, bytes]


def kept_in(folder: Path, callback: Recorder) -> list[TrainingResult]:
    configs = {name: config_of(name) for name in TOGETHER}
    checkpoint = Checkpoint(folder, {"run": "this one"})
    return train_together(tiny_base("gpt2"), task_of("classification"), configs, callback, checkpoint)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    folder, seen = tmp_path_factory.mktemp("unbroken") / "run", Recorder()
    results = kept_in(folder, seen)
    return results, seen, (folder / CHECKPOINT_FILE).read_bytes()


class TestResume:
    # before and behind the steps in which one fails (2) and one stops (4), and several times
    @pytest.mark.parametrize("stops", [(1,), (3,), (5,), (2, 4, 6)], ids=str)
    def test_goes_on_to_the_same_bytes(self, stops: tuple[int, ...], unbroken: Unbroken, tmp_path: Path) -> None:
        expected, whole, last = unbroken
        losses: list[float] = []
        for stop in stops:
            seen = Stop(stop)
            with pytest.raises(KeyboardInterrupt):
                kept_in(tmp_path / "run", seen)
            losses[seen.first_step :] = seen.losses
        rest = Recorder()
        results = kept_in(tmp_path / "run", rest)
        assert rest.first_step == (stops[-1] - 1) // 2 * 2
        losses[rest.first_step :] = rest.losses
        assert losses == whole.losses
        for name, one, other in zip(TOGETHER, results, expected, strict=True):
            assert all(map(torch.equal, one.state.tensors, other.state.tensors)), name
            assert (one.history, one.steps, one.failed) == (other.history, other.steps, other.failed), name
            assert (one.value, one.loss, one.best_step) == (other.value, other.loss, other.best_step), name
        # parameters, averages, optimisers and progress of all
        assert (tmp_path / "run" / CHECKPOINT_FILE).read_bytes() == last

    def test_nothing_is_left_to_do_for_one_that_ended(self, unbroken: Unbroken, tmp_path: Path) -> None:
        expected, _, last = unbroken
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / CHECKPOINT_FILE).write_bytes(last)
        seen = Recorder()
        results = kept_in(tmp_path / "run", seen)
        assert (seen.first_step, seen.losses, seen.evaluations) == (6, [], [])
        for one, other in zip(results, expected, strict=True):
            assert all(map(torch.equal, one.state.tensors, other.state.tensors))


class TestMistakes:
    @pytest.mark.parametrize("name", SHARED)
    def test_what_must_be_the_same(self, name: str) -> None:
        seen, one = Recorder(), config_of("plain")
        value = getattr(one, name)
        another = "never" if isinstance(value, str) else not value if isinstance(value, bool) else (value or 1) + 1
        other = config_of("plain", **{name: another})
        with pytest.raises(ConfigError) as caught:
            fit(tiny_base("gpt2"), task_of("classification"), config={"a": one, "b": one, "c": other}, callback=seen)
        assert str(caught.value) == (
            f"prompts that learn together share '{name}', got {value!r} and {another!r}: train them one by one"
        )
        assert seen.first_step == -1

    def test_everything_else_may_differ(self) -> None:
        free = {name: config_of(name) for name in MEMBERS} | {"other": config_of("plain", clip=0.1, alarm_after=3)}
        check_settings(free)

    def test_of_one_member_ends_all_before_the_first_step(self) -> None:
        seen = Recorder()
        configs = {"good": config_of("plain"), "bad": config_of("plain", method="magic")}
        with pytest.raises(SoftpromptError, match="unknown method 'magic'"):
            fit(tiny_base("gpt2"), task_of("classification"), config=configs, callback=seen)
        assert seen.first_step == -1


def test_nothing_to_learn_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="expected the settings of at least one prompt, got none"):
        check_settings({})
