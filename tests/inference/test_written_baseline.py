"""What a prompt gains over the written one: whose words they are, on which rows, and by how much."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from helpers.small_tasks import TEMPLATE, Recorder, answers, command, reviews, write_data
from helpers.tiny_models import save_tiny, tiny_base

import softprompt as sp
from softprompt.data.task import Task
from softprompt.inference import evaluation
from softprompt.inference.evaluation import add_baseline, evaluate
from softprompt.inference.written_baseline import write_baseline
from softprompt.metrics.baseline_gain import describe_gain, format_gain
from softprompt.prompts.methods.initializers import default_instruction
from softprompt.prompts.written_prompt import written_ids, written_prompt
from softprompt.training.initialization import initialize

RUN: dict[str, Any] = {"length": 60, "steps": 3, "batch_size": 8, "eval_every": 3, "compile": "never"}
BASE = tiny_base("llama")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gain")
    save_tiny(folder / "llama", "llama")
    write_data(folder / "reviews", reviews())
    write_data(folder / "answers", answers())
    return folder


@pytest.fixture(scope="module")
def read(place: Path) -> Task:
    return Task.of(place / "reviews", template=TEMPLATE)


class TestTheWrittenPrompt:
    def test_of_words_is_these_words_once(self, read: Task) -> None:
        written = write_baseline(BASE, read.spec, {"init": "text:Judge this film."}, 60, 0, read.train)
        expected = written_prompt(BASE, read.spec, "Judge this film.")
        assert expected is not None
        assert (written.instruction, written.shots) == ("Judge this film.", 0)
        assert torch.equal(written.state.tensor, expected.tensor)

    def test_of_text_is_the_instruction_made_of_the_labels(self, read: Task) -> None:
        written = write_baseline(BASE, read.spec, {"init": "text"}, 60, 0, read.train)
        assert (written.instruction, written.shots) == ("Classify the text as bad or good.", 0)

    @pytest.mark.parametrize("init", ["examples", "labels", "vocab", "random", "prompt:somewhere", None])
    def test_of_other_starts_has_the_examples_that_the_default_start_has(self, read: Task, init: str | None) -> None:
        written = write_baseline(BASE, read.spec, {} if init is None else {"init": init}, 60, 3, read.train)
        start = initialize("examples", BASE, read.spec, 60, 3, read.train).tensor
        words = written_ids(BASE, read.spec, default_instruction(read.spec))
        solved = written.state.length - len(words)
        assert written.shots > 0
        assert 0 < solved <= 60
        assert torch.equal(written.state.tensor[-solved:], start[-solved:])

    def test_is_without_examples_where_none_are_at_hand(self, read: Task) -> None:
        assert write_baseline(BASE, read.spec, {"init": "examples"}, 60, 0, []).shots == 0

    def test_is_told_in_a_few_words(self, read: Task) -> None:
        written = write_baseline(BASE, read.spec, {"init": f"text:{'word ' * 100}"}, 60, 0, [])
        assert len(str(written)) < 90
        assert str(replace(written, instruction="Judge.", shots=1)) == "'Judge.' and 1 solved example"


class TestFit:
    def test_tells_the_gain_on_the_test_rows(self, read: Task) -> None:
        seen = Recorder()
        prompt = sp.fit(BASE, read, callback=seen, **RUN)
        assert "baseline" not in prompt.metrics["validation"]
        found = prompt.metrics["test"]["baseline"]
        written = write_baseline(BASE, read.spec, {"init": "examples"}, 60, 0, read.train)
        theirs = evaluate(BASE, read.test, written.state, spec=read.spec)
        assert (found["value"], found["n"]) == (theirs.metric.value, len(read.test))
        assert found["learned"] == prompt.metrics["test"]["value"]
        ours = evaluate(BASE, read.test, prompt)
        right = [
            np.array([label == one.label for label, one in zip(each.gold, each.predictions, strict=True)], float)
            for each in (ours, theirs)
        ]
        assert found["gain"]["difference"] == pytest.approx(float((right[0] - right[1]).mean()))
        assert found["gain"]["low"] <= found["gain"]["difference"] <= found["gain"]["high"]
        assert any("the written prompt answers" in line for line in seen.notes)

    def test_tells_nothing_when_told_not_to_and_learns_the_same(self, read: Task) -> None:
        without = sp.fit(BASE, read, baseline=False, **RUN)
        assert "baseline" not in without.metrics["test"]
        found = sp.fit(BASE, read, **RUN)
        assert without.state.digest == found.state.digest
        rest = copy.deepcopy(found.metrics)
        del rest["test"]["baseline"]
        assert rest == without.metrics

    def test_is_on_validation_where_test_is_not_scored(self, read: Task) -> None:
        prompt = sp.fit(BASE, read, evaluate_test=False, **RUN)
        assert prompt.metrics["validation"]["baseline"]["n"] == len(read.validation)

    @pytest.mark.parametrize("method", ["prefix-tuning", "p-tuning"])
    def test_of_every_method(self, read: Task, method: str) -> None:
        assert "gain" in sp.fit(BASE, read, method=method, **RUN).metrics["test"]["baseline"]

    def test_of_completions(self, place: Path) -> None:
        read = Task.of(place / "answers", template=TEMPLATE).with_room(8)
        found = sp.fit(BASE, read, **{**RUN, "length": 30}).metrics["test"]
        assert found["baseline"]["metric"] == found["metric"]
        assert found["baseline"]["instruction"] == "Read the input and write the output that belongs to it."

    def test_of_words_too_long_for_the_model_is_said(self, read: Task) -> None:
        prompt = sp.fit(BASE, read, init=f"text:{'word ' * 400}", **RUN)
        assert "baseline" not in prompt.metrics["test"]

    def test_of_many_rows_is_a_sample_for_both(self, read: Task, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(evaluation, "MOST_ROWS", {"classification": 10})
        found = sp.fit(BASE, read, **RUN).metrics["test"]["baseline"]
        assert (found["n"], found["sample"]["of"]) == (10, len(read.test))
        assert found["gain"]["n"] == 10
        assert f"on the same 10 of {len(read.test)} test rows" in describe_gain("test", {"baseline": found})


class TestWords:
    RESULT: ClassVar[dict[str, Any]] = {
        "baseline": {
            "metric": "accuracy",
            "value": 0.5,
            "learned": 0.75,
            "n": 1200,
            "instruction": "Judge.",
            "shots": 2,
            "gain": {"difference": 0.25, "low": 0.2, "high": 0.3, "p_value": 0.001, "n": 1200},
        }
    }

    def test_say_what_was_compared(self) -> None:
        assert describe_gain("test", self.RESULT) == (
            "accuracy +0.250 [+0.200, +0.300]: 0.750 learned, 0.500 written, on the same 1,200 test rows; written: "
            "'Judge.' and 2 solved examples"
        )
        assert format_gain(self.RESULT) == "+0.250 [+0.200, +0.300]"

    def test_say_where_it_may_be_chance(self) -> None:
        result = copy.deepcopy(self.RESULT)
        result["baseline"]["gain"]["low"] = -0.1
        assert ", which may be chance: " in describe_gain("test", result)

    @pytest.mark.parametrize("result", [None, {}, {"baseline": 3}, {"baseline": {"gain": 1}}, {"baseline": {}}])
    def test_of_somebody_elses_file_are_none(self, result: Any) -> None:
        assert (describe_gain("test", result), format_gain(result)) == ("", "")


class TestTheCommands:
    def test_train_show_list_and_eval_tell_it(self, place: Path, tmp_path: Path) -> None:
        places = ["--model", place / "llama", "--data", place / "reviews", "--template", TEMPLATE]
        how = ["--length", "30", "--steps", "3", "--batch-size", "8", "--device", "cpu", "--dtype", "float32"]
        done = command("train", *places, *how, "--out", tmp_path / "p")
        assert done.code == 0, done.err
        assert "gain over the written prompt: accuracy " in done.out
        assert "on the same 24 test rows; written: 'Classify the text as bad or good.'" in done.out
        assert "gain over the written prompt" in command("show", tmp_path / "p").out
        store = tmp_path / "store"
        assert command("push", tmp_path / "p", f"{store}#tone").code == 0
        assert "Gain over the written prompt" in command("list", store, "--name", "tone").out
        saved = sp.load_prompt(tmp_path / "p").metrics["test"]["baseline"]
        again = command("eval", tmp_path / "p", "--data", place / "reviews", "--baseline", "--json")
        assert json.loads(again.out)["baseline"] == saved
        told = command("eval", tmp_path / "p", "--data", place / "reviews", "--baseline").out
        assert "gain over the written prompt: accuracy " in told
        without = command("train", *places, *how, "--no-baseline", "--out", tmp_path / "q", "--json")
        assert "baseline" not in json.loads(without.out)["metrics"]["test"]

    def test_eval_of_the_written_prompt_has_none(self, place: Path) -> None:
        done = command("eval", "--model", place / "llama", "--data", place / "reviews", "--baseline")
        assert (done.code, done.error) == (
            2,
            "--baseline tells what a saved prompt gains over the written one: give PROMPT too",
        )


def test_add_baseline_takes_answers_that_are_there(read: Task) -> None:
    prompt = sp.fit(BASE, read, baseline=False, **RUN)
    learned = evaluate(BASE, read.test, prompt)
    found = add_baseline(BASE, prompt, read.train, read.test, learned)
    assert found.baseline is not None
    assert found.to_dict()["baseline"] == found.baseline.to_dict()
    assert replace(found, baseline=None) == learned
