"""What users get wrong at a shell: one line that says what to do, exit code 2, nothing half-written."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.small_tasks import TEMPLATE, Ended, answers, command, reviews, write_data
from helpers.tiny_models import save_tiny

from softprompt.errors import OutputError
from softprompt.store.prompt_loading import load_prompt

FAST = ["--length", "4", "--steps", "4", "--batch-size", "8", "--eval-every", "2", "--init", "labels"]
CPU = ["--device", "cpu", "--dtype", "float32"]


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    save_tiny(folder / "llama", "llama")
    write_data(folder / "reviews", reviews())
    write_data(folder / "answers", answers())
    assert train(folder, folder / "prompt").code == 0
    assert train(folder, folder / "both", "--seeds", "2", "--ensemble").code == 0
    return folder


def train(place: Path, out: object, *more: object, data: object = None) -> Ended:
    places = ["--model", place / "llama", "--data", data or place / "reviews", "--out", out]
    return command("train", *places, "--template", TEMPLATE, *FAST, *CPU, *more)


def refused(done: Ended, words: str, *, before_loading: bool = True) -> None:
    assert done.code == 2
    assert words in done.error
    assert ("loading" not in done.err) == before_loading


def rows(path: Path, *pairs: tuple[str, str]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs))
    return path


class TestEmptyValues:
    """As ``--data "$DATA"`` gives them where the variable is not set: not the current folder, not a default."""

    @pytest.mark.parametrize("option", ["--data", "--model", "--out", "--labels", "--grid", "--track", "--config"])
    def test_of_train(self, place: Path, tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        refused(train(place, "p", option, ""), f"Invalid value for '{option}': expected a value, got an empty one")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "arguments",
        [
            ["show", ""],
            ["predict", " ", "text"],
            ["eval", "", "--data", "d"],
            ["similar", "p", "--among", ""],
            ["demo", "--out", ""],
            ["doctor", "--model", ""],
        ],
    )
    def test_of_other_verbs(self, arguments: list[str]) -> None:
        refused(command(*arguments), "expected a value, got an empty one: is a shell variable not set?")

    @pytest.mark.parametrize("option", ["a=", "=data", "a= "])
    def test_of_pairs(self, tmp_path: Path, option: str) -> None:
        done = command("multitask", "--model", "m", "--out", tmp_path / "p", "--task", option, "--task", "b=d")
        refused(done, f"--task '{option}': expected NAME=DATA, as in reviews=data/reviews")

    @pytest.mark.parametrize("labels", [",", "good,bad,", "good,,bad"])
    def test_among_labels(self, place: Path, tmp_path: Path, labels: str) -> None:
        refused(train(place, tmp_path / "p", "--labels", labels), f"--labels '{labels}': expected names with commas")


class TestHomeFolder:
    def test_is_found_behind_every_option(self, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Shells leave the ``~`` of ``--out=~/p`` and ``prompt:~/p`` alone."""
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        (tmp_path / "home").mkdir()
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        assert train(place, "~/p", "--no-test").code == 0
        load_prompt(tmp_path / "home" / "p")
        assert command("show", "~/p").code == 0
        assert command("similar", "~/p", "--among", "~").code == 2
        assert train(place, "~/q", "--no-test", "--init", "prompt:~/p").code == 0
        assert list((tmp_path / "work").iterdir()) == []

    @pytest.mark.parametrize("option", ["--data", "--model"])
    def test_of_nobody(self, place: Path, tmp_path: Path, option: str) -> None:
        done = train(place, tmp_path / "p", option, "~nobody-of-this-name/x")
        refused(done, "'~nobody-of-this-name/x'", before_loading=option == "--data")


class TestGrid:
    @pytest.mark.parametrize(
        ("grid", "words"),
        [
            ("lr=0.1;lr=0.2", "grid 'lr=0.2': expected each setting once, and each of its values once"),
            ("lr=0.1;learning_rate=0.2", "grid 'learning_rate=0.2': expected each setting once"),
            ("lr=0.1,0.1", "grid 'lr=0.1,0.1': expected each setting once, and each of its values once"),
            ("length=4,4.0", "grid 'length=4,4.0': expected each setting once, and each of its values once"),
            ("length=[1", "grid 'length=[1': expected plain values with commas between them"),
            (";", "grid ';': expected NAME=VALUE,VALUE"),
        ],
    )
    def test_is_one_line(self, place: Path, tmp_path: Path, grid: str, words: str) -> None:
        refused(train(place, tmp_path / "p", "--grid", grid), words)


class TestData:
    @pytest.mark.parametrize(("one", "other"), [("bad", "bad "), ("Bad", "bad"), ("not  bad", "not bad")])
    def test_labels_that_differ_by_a_slip(self, place: Path, tmp_path: Path, one: str, other: str) -> None:
        data = rows(tmp_path / "d.jsonl", *((f"{label} {i}", label) for i in range(20) for label in (one, other)))
        words = f"labels {one!r} and {other!r} differ only in capitals or blanks: correct the rows, or name all labels"
        refused(train(place, tmp_path / "p", data=data), " ".join(words.split()))

    def test_labels_that_differ_by_capitals_on_purpose(self, place: Path, tmp_path: Path) -> None:
        data = rows(tmp_path / "d.jsonl", *((f"{label} {i}", label) for i in range(20) for label in ("Bad", "bad")))
        assert train(place, tmp_path / "p", "--labels", "Bad,bad", data=data).code == 0

    def test_too_few_rows_to_set_some_aside(self, place: Path, tmp_path: Path) -> None:
        data = rows(tmp_path / "d.jsonl", ("fine", "good"), ("dull", "bad"))
        refused(train(place, tmp_path / "p", data=data), "add rows, or a validation file")

    def test_a_line_of_json_names_the_column_alone(self, place: Path, tmp_path: Path) -> None:
        (tmp_path / "d.jsonl").write_text('{"text": "fine", "label": "good"}\n{"text": "fine", "label":\n')
        done = train(place, tmp_path / "p", data=tmp_path / "d.jsonl")
        refused(done, "d.jsonl' line 2: expected JSON, got text that does not parse (Expecting value at column 26)")

    def test_a_hub_without_a_name(self, place: Path, tmp_path: Path) -> None:
        refused(train(place, tmp_path / "p", data="hf:"), "expected the name of a data set behind 'hf:', got 'hf:'")

    def test_labels_unknown_to_a_prompt_cannot_be_named(self, place: Path, tmp_path: Path) -> None:
        data = rows(tmp_path / "d.jsonl", *((f"text {i}", str(i % 2)) for i in range(20)))
        done = command("eval", place / "prompt", "--data", data)
        refused(done, "which is not among the labels bad, good: correct the rows")
        assert done.error.endswith("correct the rows")

    def test_a_filter_that_is_none(self, place: Path, tmp_path: Path) -> None:
        done = train(place, tmp_path / "p", "--template", "{{ text|nosuch }}")
        refused(done, "the template uses the filter 'nosuch', which is not part of its language: ")


class TestPrediction:
    def test_labels_as_the_start_of_generation(self, place: Path, tmp_path: Path) -> None:
        done = train(place, tmp_path / "p", "--init", "labels", data=place / "answers")
        refused(done, "init 'labels' needs a classification task: use text, vocab or random")

    def test_a_row_without_text(self, place: Path) -> None:
        done = command("predict", place / "prompt", "--json", *CPU, stdin=b'{"text": "a"}\n{"txt": "b"}\n')
        refused(done, "line 2: expected a column 'text', got 'txt': rename it", before_loading=False)

    def test_of_texts_that_were_cut_says_so(self, place: Path) -> None:
        done = command("predict", place / "prompt", "word " * 500, "fine", *CPU)
        assert done.code == 0
        assert "1 texts were cut to 155 tokens (the model's context holds no more)" in done.err
        assert "texts were cut" not in command("predict", place / "prompt", "fine", *CPU).err

    def test_more_new_tokens_than_the_context_holds(self, place: Path) -> None:
        arguments = ["--model", place / "llama", "--data", place / "answers", "--max-new-tokens", "900", *CPU]
        refused(command("eval", *arguments), "use a shorter prompt, or fewer new tokens", before_loading=False)


class TestWords:
    def test_a_new_line_can_be_written(self, place: Path, tmp_path: Path) -> None:
        assert train(place, tmp_path / "p", "--no-test", "--template", r"{{ text }}\nLabel:\t").code == 0
        assert load_prompt(tmp_path / "p").spec.template == "{{ text }}\nLabel:\t"

    def test_prompts_of_other_lengths_tell_their_own_limits(self, place: Path, tmp_path: Path) -> None:
        data = rows(tmp_path / "d.jsonl", *((f"{i} " + "word " * 90, ("good", "bad")[i % 2]) for i in range(20)))
        done = train(place, tmp_path / "p", "--no-test", "--grid", "length=4,30", data=data)
        for limit in (155, 129):
            assert f" texts were cut to {limit} tokens (the model's context holds no more)" in done.err
        done = train(place, tmp_path / "q", "--no-test", "--max-length", "40", data=data)
        assert " texts were cut to 40 tokens (--max-length)" in done.err


class TestMultitask:
    def tasks(self, place: Path, out: Path, *more: object) -> Ended:
        places = ["--model", place / "llama", "--out", out]
        named = ["--task", f"a={place}/reviews", "--task", f"b={place}/answers"]
        return command("multitask", *places, *named, "--length", "4", "--steps", "4", "--init", "random", *CPU, *more)

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (["--distillation", "nan"], "distillation must be 0 or more, got nan"),
            (["--distillation", "inf"], "distillation must be 0 or more, got inf"),
            (["--resume", "--restart"], "--resume and --restart exclude each other: give one of them"),
            (["--teacher", "c=p"], "a teacher for 'c': expected one of the tasks a, b"),
        ],
    )
    def test_is_one_line_before_loading(self, place: Path, tmp_path: Path, more: list[str], words: str) -> None:
        refused(self.tasks(place, tmp_path / "m", *more), words)

    def test_an_ensemble_as_teacher(self, place: Path, tmp_path: Path) -> None:
        both = tmp_path / "both"
        assert train(place, both, "--seeds", "2", "--ensemble", "--no-test").code == 0
        refused(
            self.tasks(place, tmp_path / "m", "--teacher", f"a={both}"),
            "expected a single prompt, got an ensemble of 2",
        )

    def test_resumed_with_another_teacher_of_the_same_data(
        self, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OutputError("no space")

        assert train(place, tmp_path / "other", "--seed", "1").code == 0
        out, before = tmp_path / "m", f"a={place}/prompt"
        with monkeypatch.context() as patch:
            patch.setattr("softprompt.training.checkpoint.Checkpoint.publish", full)
            assert self.tasks(place, out, "--teacher", before).code == 2
        done = self.tasks(place, out, "--resume", "--teacher", f"a={tmp_path}/other")
        refused(done, "m.run' is another one (a was '", before_loading=False)
        assert self.tasks(place, out, "--resume", "--teacher", before).code == 0


class TestStreams:
    @pytest.mark.parametrize("closed", ["<&-", "2>&-"])
    def test_closed_by_the_shell(self, place: Path, tmp_path: Path, closed: str) -> None:
        arguments = ["--model", place / "llama", "--data", place / "reviews", "--out", tmp_path / "p", *FAST, *CPU]
        line = f'exec "{sys.executable}" -m softprompt train "$@" --json {closed}'
        done = subprocess.run(["sh", "-c", line, "sh", *map(str, arguments)], capture_output=True, env=offline_env())
        assert done.returncode == 0
        assert json.loads(done.stdout)["prompt"] == str(tmp_path / "p")

    def test_prediction_without_standard_input(self, place: Path) -> None:
        line = f'exec "{sys.executable}" -m softprompt predict "{place}/prompt" <&-'
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, env=offline_env())
        assert done.returncode == 2
        assert done.stderr == "error: expected texts as arguments, or JSONL on standard input; got neither\n"


def offline_env() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1"}
