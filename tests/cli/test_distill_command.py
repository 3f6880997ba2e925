"""``softprompt distill`` at a shell: what it prints and saves, mistakes in one line, a run that was killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small_tasks import TEMPLATE, Ended, answers, command, reviews, write_data
from helpers.tiny_models import save_tiny, tiny_base
from helpers.told import told_lines

from softprompt.data.task import TaskSpec
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictor import Predictor
from softprompt.metrics.scores import Speed
from softprompt.report.pages.distillation_page import make_distillation_document
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.distillation.distillation_records import DistillationReport
from softprompt.training.distillation.fidelity import UncachedTeacher, break_even
from softprompt.training.distillation.teacher import Teacher

TEXT = "great fine good\ndull poor bad\nSay whether the film is good or bad.\n"
CPU = ["--device", "cpu", "--dtype", "float32"]
TEACHER = ["--system", "{place}/prompt.txt"]
FAST = ["--steps", "8", "--batch-size", "8", "--eval-every", "4", "--template", TEMPLATE, *CPU]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a long prompt and data."""
    folder = tmp_path_factory.mktemp("distill")
    save_tiny(folder / "model", "llama")
    write_data(folder / "reviews", reviews())
    write_data(folder / "answers", answers())
    rows = [{"text": one.text} for one in reviews(train=100).train]
    (folder / "inputs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prompt.txt").write_text(TEXT)
    (folder / "empty.txt").write_text(" \n")
    return folder


def distill(place: Path, out: Path, *more: object, inputs: str = "inputs.jsonl") -> Ended:
    return command("distill", "--model", place / "model", "--data", place / inputs, "--out", out, *FAST, *more)


def text(place: Path) -> list[object]:
    return ["--system", place / "prompt.txt", "--labels", "bad,good"]


class TestTheCommand:
    def test_unlabelled_inputs_in_one_file(self, place: Path, tmp_path: Path) -> None:
        out = tmp_path / "p"
        done = distill(place, out, *text(place), "--length", "6")
        assert done.code == 0, done.err
        assert re.search(r"One file was given: split into \d+ train, \d+ validation, \d+ test examples", done.err)
        for words in ("agreement with the teacher", "KL (nats)", "times fewer", "teacher, read with every request"):
            assert words in done.out
        assert "accuracy" not in done.out
        assert sorted(path.name for path in out.iterdir()) == [
            "distillation.html",
            "distillation.json",
            "distillation.md",
            "history.jsonl",
            "profile.json",
            "prompt.json",
            "prompt.safetensors",
            "rows.json",
            "run.json",
        ]
        page = (out / "distillation.html").read_text()
        assert all(words in page for words in ("A student of 6 virtual tokens", "teacher, read with every request"))
        prompt = load_prompt(out)
        assert (prompt.length, prompt.training["init"]) == (6, "teacher")
        assert prompt.metrics["test"]["metric"] == "agreement"
        kept = prompt.training["distillation"]
        assert kept["tokens"]["teacher"] == len(tiny_base("llama").tokenizer(TEXT.strip() + "\n\n").input_ids) - 1
        assert "training_seconds" not in kept
        assert command("show", out).code == 0
        assert command("eval", out, "--data", place / "reviews", *CPU).code == 0

    def test_json_is_one_object_with_everything(self, place: Path, tmp_path: Path) -> None:
        done = distill(place, tmp_path / "p", "--shots", "4", "--length", "4", "--json", inputs="reviews")
        assert done.code == 0, done.err
        (line,) = done.out.splitlines()
        found = json.loads(line)
        test = found["held_out"]["test"]
        assert test["n"] == 24
        for name in ("agreement", "kl", "teacher", "student", "kept"):
            assert test[name]["low"] <= test[name]["value"] <= test[name]["high"]
        assert found["metrics"]["test"]["value"] == test["student"]["value"]
        tokens = found["tokens"]
        assert tokens["before"] == pytest.approx(tokens["teacher"] + tokens["text"])
        assert tokens["times_fewer"] == pytest.approx(tokens["before"] / (4 + tokens["text"]))
        for name in ("student_speed", "teacher_speed", "read_speed"):
            assert found[name]["p50_ms"] > 0
            assert found[name]["examples_per_second"] > 0
        assert DistillationReport.model_validate_json((tmp_path / "p" / "distillation.json").read_text()).length == 4

    def test_what_it_learned_can_be_inspected(self, place: Path, tmp_path: Path) -> None:
        """Its data are known again, though it used a part of them; what it has not is said."""
        done = distill(place, tmp_path / "p", "--shots", "4", "--length", "4", "--no-test", inputs="reviews")
        assert done.code == 0, done.err
        seen = command("inspect", tmp_path / "p", "--data", place / "reviews", "--json", *CPU)
        assert seen.code == 0, seen.err
        found = json.loads(seen.out)
        assert found["same_data"]
        assert found["training"]["teacher"] == "4 solved examples"
        assert "movement: it began at a text of its teacher, which is not saved with it" in found["notes"]
        assert all(one["moved"] is None and one["ablation"] is not None for one in found["tokens"])

    def test_lengths_are_a_table_with_a_row_each(self, place: Path, tmp_path: Path) -> None:
        out = tmp_path / "p"
        done = distill(place, out, "--shots", "4", "--lengths", "2,4,8", inputs="reviews")
        assert done.code == 0, done.err
        lines = done.out.splitlines()
        top = next(index for index, line in enumerate(lines) if line.startswith("Length"))
        assert [line.split()[0] for line in lines[top + 2 : top + 5]] == ["2", "4", "8"]
        assert "tokens a request of the teacher" in done.out
        assert [load_prompt(out / name).length for name in ("2", "4", "8")] == [2, 4, 8]
        assert [path.name for path in tmp_path.iterdir()] == ["p"]
        again = distill(place, tmp_path / "q", "--shots", "4", "--lengths", "2,4", "--json", inputs="reviews")
        assert [one["length"] for one in json.loads(again.out)["prompts"].values()] == [2, 4]

    def test_a_saved_prompt_teaches_another_length(self, place: Path, tmp_path: Path) -> None:
        first = distill(place, tmp_path / "long", *text(place), "--length", "12", "--no-measure", "--no-test")
        assert first.code == 0, first.err
        arguments = ["distill", "--model", place / "model", "--teacher", tmp_path / "long", "--length", "3"]
        settings = ["--data", place / "reviews", "--steps", "4", "--out", tmp_path / "short", *CPU, "--json"]
        done = command(*arguments, *settings)
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert (found["tokens"]["teacher"], found["tokens"]["student"]) == (12, 3)
        assert found["read_speed"] is None
        assert load_prompt(tmp_path / "short").spec == load_prompt(tmp_path / "long").spec

    def test_generation(self, place: Path, tmp_path: Path) -> None:
        how = [
            "--max-new-tokens",
            "5",
            "--samples",
            "1",
            "--distillation-temperature",
            "2",
            "--teacher-top-k",
            "8",
            "--stop",
            "\\n",
        ]
        done = distill(place, tmp_path / "p", "--system", place / "prompt.txt", *how, "--length", "6", inputs="answers")
        assert done.code == 0, done.err
        assert "token agreement" in done.out
        assert "exact_match of the teacher" in done.out
        kept = load_prompt(tmp_path / "p").training["distillation"]
        assert [kept[name] for name in ("samples", "distillation_temperature", "teacher_top_k", "stop")] == [
            1,
            2.0,
            8,
            ["\n"],
        ]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            [],
            "expected a teacher: a system prompt (--system), solved examples (--shots N), a saved prompt (--teacher)",
        ),
        (["--system", "nothing.txt"], "--system 'nothing.txt': there is no such file"),
        (["--system", "{place}/empty.txt"], "is empty: expected the text that stands in front"),
        (["--system", "{place}"], "there is no such file; give one, or the words of the system prompt"),
        (["--system", ""], "--system: expected a system prompt, got an empty one: is a shell variable not set?"),
        (
            ["--teacher", "{place}/nothing"],
            "--teacher brings its own task, --system, --keep-system, --shots,",
        ),
        (
            ["--shots", "4", "--labels", "bad,good"],
            "4 examples wanted for the written prompt, but the training split has",
        ),
        ([*TEACHER, "--labels", "good"], "classification needs at least two labels"),
        ([*TEACHER, "--init", "examples"], "init 'examples' needs labels"),
        ([*TEACHER, "--init", "labels"], "init 'labels' needs a classification task"),
        (
            [*TEACHER, "--length", "4", "--lengths", "4,8"],
            "--length and --lengths exclude",
        ),
        ([*TEACHER, "--lengths", "4,x"], "--lengths '4,x': expected numbers with commas"),
        ([*TEACHER, "--lengths", "4,4"], "lengths 4, 4: expected each once"),
        ([*TEACHER, "--lengths", "0,4"], "setting 'length' (virtual tokens)"),
        (
            [*TEACHER, "--distillation-temperature", "0"],
            "setting 'distillation_temperature'",
        ),
        ([*TEACHER, "--no-greedy"], "expected completions to learn, greedy or samples"),
        ([*TEACHER, "--stop", ""], "a stop string must not be empty"),
        ([*TEACHER, "--method", "none"], "unknown method 'none'"),
        (["--teacher-text", "a.txt"], "No such option '--teacher-text': here it is --system"),
        (
            [*TEACHER, "--resume", "--restart"],
            "--resume and --restart exclude each other",
        ),
        ([*TEACHER, "--text-column", "x"], "expected a column 'x'"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_mistakes_end_in_one_line_before_anything_is_loaded(
    place: Path, tmp_path: Path, more: list[str], words: str
) -> None:
    done = distill(place, tmp_path / "p", *(one.format(place=place) for one in more))
    assert done.code == 2
    assert words in done.error
    assert "loading" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_text_too_long_for_the_model_is_one_line(place: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("the film is good " * 100)
    done = distill(place, tmp_path / "p", "--system", tmp_path / "long.txt", "--labels", "bad,good")
    assert done.code == 2
    assert "tokens for the text in this model's context of 160: use a shorter prompt" in done.error


class TestReadAnew:
    @pytest.mark.parametrize("family", ["llama", "gemma3", "t5"])
    @pytest.mark.parametrize("kind", ["classification", "generation"])
    def test_answers_as_behind_a_cached_prefix(self, kind: str, family: str) -> None:
        base, examples = tiny_base(family), reviews().test[:6]
        labels = ("bad", "good") if kind == "classification" else ()
        spec = TaskSpec(kind, TEMPLATE, labels, labels)  # type: ignore[arg-type]
        teacher, generation = Teacher.written(base, spec, TEXT), GenerationConfig(max_new_tokens=4)
        cached = Predictor(base, spec, teacher.states, generation)
        read = UncachedTeacher(base, spec, teacher.ids, generation)
        if kind == "classification":
            found, expected = (one.label_log_probabilities(examples) for one in (read, cached))
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        answers = [
            {one.index: (one.label, one.completion) for one in some.iterate_predictions(examples)}
            for some in (read, cached)
        ]
        assert answers[0] == answers[1]


def speed(ms: float, per_second: float) -> Speed:
    return Speed(p50_ms=ms, p95_ms=2 * ms, requests=9, batch_size=32, examples_per_second=per_second, added_tokens=4)


class TestBreakEven:
    def test_is_what_was_spent_over_what_a_request_saves(self) -> None:
        found = break_even(60.0, speed(50, 20), speed(20, 100))
        assert (found.single, found.batched) == (2000, 1500)

    def test_never_comes_without_savings_or_with_less_than_can_be_told(self) -> None:
        for before in (speed(20, 100), speed(19, 110), speed(20.5, 97)):
            found = break_even(60.0, before, speed(20, 100))
            assert (found.single, found.batched) == (None, None)

    def test_is_shown(self) -> None:
        near = {
            "n": 3,
            **{name: {"metric": name, "value": 0.5, "low": 0.4, "high": 0.6, "n": 3} for name in ("agreement", "kl")},
        }
        facts: dict[str, Any] = {
            "teacher": "text",
            "method": "prompt-tuning",
            "length": 4,
            "metric": "agreement",
            "held_out": {"test": near},
            "tokens": {"teacher": 90, "student": 4, "text": 6, "before": 96, "after": 10, "times_fewer": 9.6},
            "teacher_seconds": 20,
            "training_seconds": 40,
            "student_speed": speed(20, 100),
            "teacher_speed": speed(20, 97),
            "read_speed": speed(50, 20),
            "against_cached": break_even(60, speed(20, 97), speed(20, 100)),
            "against_read": break_even(60, speed(50, 20), speed(20, 100)),
        }
        lines = told_lines(make_distillation_document({"": DistillationReport.model_validate(facts)}, Path("p")))
        (read,) = [line for line in lines if line.startswith("teacher, read with every request")]
        assert read.split()[-4:] == ["2,000", "requests", "1,500", "requests"]
        (cached,) = [line for line in lines if line.startswith("teacher, its prefix cached")]
        assert cached.split()[-2:] == ["never", "never"]
        assert any("96.0 before, 10.0 after, 9.6 times fewer" in line for line in lines)


class TestKilled:
    def started(self, place: Path, out: Path, *more: str) -> "subprocess.Popen[str]":
        settings = ["--steps", "60", "--batch-size", "8", "--eval-every", "10", "--template", TEMPLATE, *CPU]
        arguments = [
            *("distill", "--model", place / "model", "--data", place / "inputs.jsonl", "--out", out, "--no-measure"),
            *(*text(place), *settings, "--length", "6", "--patience", "0", *more),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "softprompt", *map(str, arguments)],
            cwd=Path(__file__).parents[2],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def test_goes_on_to_the_same_bytes_without_asking_the_teacher_again(self, place: Path, tmp_path: Path) -> None:
        unbroken, out = tmp_path / "unbroken", tmp_path / "p"
        process = self.started(place, unbroken)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        process = self.started(place, out)
        deadline = time.monotonic() + 100
        while not (tmp_path / "p.run" / "checkpoint.safetensors").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        assert process.wait(timeout=60) == -signal.SIGKILL
        process.communicate()
        process = self.started(place, out, "--resume")
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "resumed at step" in err
        assert "the teacher's answers are there already" in err
        assert "train inputs" not in err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "unbroken"]
        for name in ("prompt.safetensors", "prompt.json", "history.jsonl"):
            assert (out / name).read_bytes() == (unbroken / name).read_bytes(), name
