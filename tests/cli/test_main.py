"""The command line: exit codes, one line for a mistake, JSON alone on standard output, answers that stream."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from helpers.small_tasks import TEMPLATE, Ended, answers, command, reviews, write_data
from helpers.tiny_models import save_tiny

from softprompt.data.task import Task
from softprompt.inference.evaluation import evaluate
from softprompt.models.loading import load_model
from softprompt.store.prompt_loading import load_prompt

FAST = ["--length", "4", "--steps", "12", "--batch-size", "8", "--eval-every", "6", "--init", "labels"]
CPU = ["--device", "cpu", "--dtype", "float32"]


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, data, and a prompt for each kind of task."""
    folder = tmp_path_factory.mktemp("cli")
    for family in ("llama", "gpt2"):
        save_tiny(folder / family, family)
    write_data(folder / "reviews", reviews())
    write_data(folder / "answers", answers())
    assert train(folder, folder / "prompt").code == 0
    arguments = ["--length", "4", "--steps", "3", "--batch-size", "8", "--template", TEMPLATE, "--no-test", *CPU]
    places = ["--model", folder / "llama", "--data", folder / "answers", "--out", folder / "writer"]
    assert command("train", *places, *arguments).code == 0
    return folder


def train(place: Path, out: Path, *more: object, model: str = "llama", data: object = None) -> Ended:
    places = ["--model", place / model, "--data", data or place / "reviews", "--out", out]
    template = [] if "--template" in more else ["--template", TEMPLATE]
    return command("train", *places, *template, *FAST, *CPU, *more)


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))
    return path


ROWS = ['{"text": "fine", "label": "good"}', '{"text": "dull", "label": "bad"}']


class TestMistakesInTraining:
    """Each ends with exit code 2 and one line; nothing is left; what can be known before the model is loaded, is."""

    def refused(self, done: Ended, folder: Path, words: str, *, before_loading: bool = True) -> None:
        assert done.code == 2
        assert words in done.error
        assert ("loading" not in done.err) == before_loading
        assert not any(path.name.startswith((".p", "p")) for path in folder.iterdir())

    def test_missing_file(self, place: Path, tmp_path: Path) -> None:
        done = train(place, tmp_path / "p", data=tmp_path / "none.jsonl")
        self.refused(done, tmp_path, f"expected a file or folder at '{tmp_path}/none.jsonl', found none")

    def test_empty_file(self, place: Path, tmp_path: Path) -> None:
        done = train(place, tmp_path / "p", data=write(tmp_path / "data.jsonl"))
        self.refused(done, tmp_path, f"expected examples in '{tmp_path}/data.jsonl', got an empty file")

    def test_wrong_column(self, place: Path, tmp_path: Path) -> None:
        data = write(tmp_path / "data.csv", "sentence,label", "fine,good")
        self.refused(train(place, tmp_path / "p", data=data), tmp_path, "expected a column 'text', got 'sentence'")
        done = train(place, tmp_path / "p", "--label-column", "stars", data=data)
        self.refused(done, tmp_path, "name it with --text-column, --label-column or --target-column")

    def test_unknown_label_in_validation(self, place: Path, tmp_path: Path) -> None:
        write(tmp_path / "d" / "train.jsonl", *ROWS)
        write(tmp_path / "d" / "validation.jsonl", ROWS[0], '{"text": "so", "label": "so-so"}')
        done = train(place, tmp_path / "p", data=tmp_path / "d")
        self.refused(done, tmp_path, "the validation split has label 'so-so' (1 rows), which is not among the labels")

    @pytest.mark.parametrize("more", [[], ["--labels", "good,bad"]])
    def test_one_class_only(self, place: Path, tmp_path: Path, more: list[str]) -> None:
        data = write(tmp_path / "data.jsonl", *(json.dumps({"text": f"t{i}", "label": "good"}) for i in range(20)))
        self.refused(train(place, tmp_path / "p", *more, data=data), tmp_path, "got only 'good'")

    def test_bad_json_line(self, place: Path, tmp_path: Path) -> None:
        data = write(tmp_path / "data.jsonl", *ROWS, '{"text": "oops"')
        self.refused(train(place, tmp_path / "p", data=data), tmp_path, "data.jsonl' line 3: expected JSON")

    @pytest.mark.parametrize(
        ("template", "words"),
        [
            ("Judge this:", "the template must contain {{ text }}"),
            ("{{ text", "the template does not parse"),
            ("{{ text }} {{ title }}", "the template uses a name that the data lacks: 'title'"),
            ("{{ text.__class__.__mro__ }}", "the template uses a name that the data lacks: '__class__' of text"),
        ],
    )
    def test_template(self, place: Path, tmp_path: Path, template: str, words: str) -> None:
        self.refused(train(place, tmp_path / "p", "--template", template), tmp_path, words)

    def test_prompt_longer_than_the_context(self, place: Path, tmp_path: Path) -> None:
        done = train(place, tmp_path / "p", "--length", "400")
        self.refused(done, tmp_path, "this model's context of 160: use a shorter prompt", before_loading=False)

    @pytest.mark.parametrize("name", ["./no/such/model", "/no/such/model", "no-such-model"])
    def test_unknown_model(self, place: Path, tmp_path: Path, name: str) -> None:
        more = ["--template", TEMPLATE, *FAST, *CPU]
        done = command("train", "--model", name, "--data", place / "reviews", "--out", tmp_path / "p", *more)
        self.refused(done, tmp_path, f"'{name}'", before_loading=False)

    def test_folder_without_a_model(self, place: Path, tmp_path: Path) -> None:
        done = train(place, tmp_path / "p", model="reviews")
        self.refused(done, tmp_path, "reviews' is data: give it with --data", before_loading=False)
        (place / "nothing").mkdir()
        done = train(place, tmp_path / "p", model="nothing")
        self.refused(done, tmp_path, "is no model folder: expected config.json in it", before_loading=False)

    def test_start_from_a_prompt_of_another_base(self, place: Path, tmp_path: Path) -> None:
        done = train(place, tmp_path / "p", "--init", f"prompt:{place}/prompt", model="gpt2")
        words = f"was learned on '{place}/llama', but the base model given is '{place}/gpt2'"
        self.refused(done, tmp_path, words, before_loading=False)

    def test_steps_and_epochs(self, place: Path, tmp_path: Path) -> None:
        done = train(place, tmp_path / "p", "--epochs", "2")
        assert (done.code, done.error) == (2, "steps (12) and epochs (2) exclude each other: give one of them")

    def test_epochs_and_the_short_name_of_the_rate(self, place: Path, tmp_path: Path) -> None:
        given = [
            "--model",
            place / "llama",
            "--data",
            place / "reviews",
            "--out",
            tmp_path / "p",
            "--template",
            TEMPLATE,
        ]
        done = command("train", *given, *CPU, "--epochs", "2", "--lr", "0.05", "--batch-size", "20", "--length", "2")
        assert done.code == 0
        training = json.loads((tmp_path / "p" / "prompt.json").read_text())["training"]
        assert (training["steps"], training["learning_rate"]) == (6, 0.05)

    def test_nan_loss(self, place: Path, tmp_path: Path) -> None:
        done = train(place, tmp_path / "p", "--learning-rate", "1e30", model="gpt2")
        assert done.code == 2
        assert done.error.startswith("the training loss is not a number at step 2 (rate 1e+30): start again with --res")
        assert list(tmp_path.iterdir()) == []

    def test_existing_output(self, place: Path, tmp_path: Path) -> None:
        write(tmp_path / "p" / "mine", "x")
        done = train(place, tmp_path / "p")
        assert (done.code, done.error) == (
            2,
            f"'{tmp_path}/p' exists already: give another --out, or remove it first",
        )
        assert "loading" not in done.err
        assert [path.name for path in (tmp_path / "p").iterdir()] == ["mine"]

    def test_output_below_a_file(self, place: Path, tmp_path: Path) -> None:
        done = train(place, write(tmp_path / "file", "x") / "p")
        self.refused(done, tmp_path, "is a file: give another --out")

    def test_disk_full(self, place: Path, tmp_path: Path) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            done = train(place, tmp_path / "p")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        self.refused(done, tmp_path, f"no space left to write '{tmp_path}/p.run': free some", before_loading=False)

    def test_disk_really_full(self, place: Path, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(disk)]
        if sys.platform != "linux" or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("may not mount a file system here")
        try:
            done = train(place, disk / "p")
            self.refused(done, disk, f"no space left to write '{disk}/p.run': free some", before_loading=False)
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (["--steps", "0"], "setting 'steps' (optimiser steps): input should be greater than or equal to 1, got 0"),
            (["--steps", "many"], "Invalid value for '--steps': 'many' is not a valid integer."),
            (["--learning-rate", "nan"], "setting 'learning_rate' ("),
            (["--micro-batch-size", "9"], "micro_batch_size (9) must be at most batch_size (8)"),
            (["--recipe", "best"], "unknown recipe 'best': expected one of default, lester"),
            (["--config", "/none.toml"], "configuration file '/none.toml' does not exist"),
            (["--method", "magic"], "unknown method 'magic': expected one of"),
            (["--init", "magic"], "unknown init 'magic': expected text, examples, text:WORDS, labels"),
            (["--init", "prompt:/none"], "'/none' is no saved prompt, it does not exist"),
            (["--verbalizer", "good"], "--verbalizer 'good': expected LABEL=WORDS"),
            (["--verbalizer", "god=fine"], "verbalizer for unknown label 'god': labels are bad, good"),
            (["--labels", "good,neutral"], "the train split has label 'bad'"),
            (["--lenght", "4"], "No such option '--lenght'"),
            (["--example", " "], "expected an example of 1 to 2,000 characters, got 0"),
            (["--example", "x" * 2001], "expected an example of 1 to 2,000 characters, got 2,001"),
        ],
    )
    def test_settings(self, place: Path, tmp_path: Path, more: list[str], words: str) -> None:
        self.refused(train(place, tmp_path / "p", *more), tmp_path, words)

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (["--dtype", "float12"], "unknown dtype 'float12': expected one of float32"),
            (["--device", "abacus"], "device 'abacus' cannot be used here"),
            (["--verbalizer", "good=bad"], "labels 'bad' and 'good' are the same tokens"),
        ],
    )
    def test_what_only_the_model_can_tell(self, place: Path, tmp_path: Path, more: list[str], words: str) -> None:
        self.refused(train(place, tmp_path / "p", *more), tmp_path, words, before_loading=False)


class TestOtherMistakes:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["lern"], "No such command 'lern'"),
            (["--fast"], "No such option '--fast'"),
            (["train"], "Missing option '--model'"),
            (["show"], "Missing argument 'PROMPT'"),
            (["show", "/none"], "'/none' is no saved prompt, it does not exist: give the folder that train wrote"),
            (["predict", "/none", "a"], "'/none' is no saved prompt"),
            (["predict", "/none", "a", " "], "text 2 is blank"),
            (["predict", "/none", "a", "--temperature", "-1"], "temperature must be 0 (greedy) or more, got -1.0"),
            (["predict", "/none", "a", "--temperature", "nan"], "temperature must be 0 (greedy) or more, got nan"),
            (["predict", "/none", "a", "--stop", ""], "a stop string must not be empty"),
            (["eval", "--data", "/none"], "expected a saved prompt, or --model for the written prompt; got neither"),
            (["eval", "/none", "--data", "d", "--shots", "2"], "--shots are for the written prompt"),
            (["eval", "/none", "--data", "d", "--labels", "a,b"], "--labels, --verbalizer, --instruction and --shots"),
            (["eval", "/none", "--data", "d", "--verbalizer", "a=b"], "for the written prompt: leave them or PROMPT"),
            (["eval", "--model", "m", "--data", "/none"], "expected a file or folder at '/none'"),
            (["demo", "--out", "/dev/null/x"], "'/dev/null' is a file"),
            (["demo", "--steps", "0"], "Invalid value for '--steps'"),
        ],
    )
    def test_is_one_line(self, arguments: list[str], words: str) -> None:
        done = command(*arguments)
        assert done.code == 2
        assert words in done.error
        assert len(done.err.splitlines()) == 1

    def test_prompt_on_another_base(self, place: Path) -> None:
        for verb, more in (("predict", ["fine"]), ("eval", ["--data", place / "reviews"])):
            done = command(verb, place / "prompt", *more, "--model", place / "gpt2", *CPU)
            assert done.code == 2
            assert f"was learned on '{place}/llama', but the base model given is '{place}/gpt2'" in done.error

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (["--split", "dev"], "expected a split named train, validation, test or all, got 'dev'"),
            (["--data", "answers"], "the prompt was learned for classification, these rows are for generation"),
            (["--max-new-tokens", "0"], "max_new_tokens must be at least 1, got 0"),
        ],
    )
    def test_in_evaluation_before_loading(self, place: Path, more: list[str], words: str) -> None:
        more = [str(place / "answers") if word == "answers" else word for word in more]
        done = command("eval", place / "prompt", "--data", place / "reviews", *more)
        assert done.code == 2
        assert words in done.error
        assert "loading" not in done.err

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (
                ["--labels", "good,neutral"],
                "which is not among the labels good, neutral: correct the rows, or name all",
            ),
            (["--verbalizer", "god=fine"], "verbalizer for unknown label 'god': labels are bad, good"),
            (["--verbalizer", "good"], "--verbalizer 'good': expected LABEL=WORDS, as in 1=good"),
        ],
    )
    def test_in_evaluation_of_the_written_prompt(self, place: Path, more: list[str], words: str) -> None:
        done = command("eval", "--model", place / "llama", "--data", place / "reviews", *more)
        assert done.code == 2
        assert words in done.error
        assert "loading" not in done.err

    def test_more_shots_than_examples(self, place: Path) -> None:
        done = command("eval", "--model", place / "llama", "--data", place / "reviews", "--shots", "900", *CPU)
        assert done.code == 2
        assert "900 examples wanted for the written prompt, but the training split has 60" in done.error
        assert "loading" not in done.err

    def test_failure_of_ours_is_one_line_and_exit_code_1(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(folder: str) -> None:
            raise RuntimeError("two\nlines")

        monkeypatch.setattr("softprompt.cli.store_command.load_prompt", broken)
        monkeypatch.delenv("SOFTPROMPT_TRACEBACK", raising=False)
        done = command("show", place / "prompt")
        assert done.code == 1
        assert done.error.startswith("a failure of softprompt itself: RuntimeError: two lines (SOFTPROMPT_TRACEBACK=1")
        monkeypatch.setenv("SOFTPROMPT_TRACEBACK", "1")
        with pytest.raises(RuntimeError, match="two"):
            command("show", place / "prompt")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
    def test_no_space_for_the_output(self, place: Path) -> None:
        process = [sys.executable, "-m", "softprompt", "show", str(place / "prompt")]
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(process, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 2
        assert done.stderr == "error: no space left to write the output: free some space\n"

    @pytest.mark.parametrize(("verb", "hint"), [("train", "; --resume goes on from the last checkpoint"), ("show", "")])
    def test_interrupt(
        self, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, hint: str
    ) -> None:
        def interrupted(*arguments: Any, **options: Any) -> None:
            raise KeyboardInterrupt

        room, name = ("cli.store_command", "load_prompt") if verb == "show" else ("cli.learn_command", "fit")
        monkeypatch.setattr(import_module(f"softprompt.{room}"), name, interrupted)
        done = command("show", place / "prompt") if verb == "show" else train(place, tmp_path / "p")
        assert done.code == 130
        assert done.error == f"interrupted{hint}"


class TestJson:
    """One object on standard output, and nothing else."""

    def only(self, done: Ended) -> dict[str, Any]:
        assert done.code == 0, done.err
        assert len(done.out.splitlines()) == 1
        found: dict[str, Any] = json.loads(done.out)
        return found

    def test_train(self, place: Path, tmp_path: Path) -> None:
        result = self.only(train(place, tmp_path / "p", "--json", "--track", f"tensorboard:{tmp_path / 'tb'}"))
        assert result["prompt"] == str(tmp_path / "p")
        assert (result["method"], result["length"], result["training"]["steps_made"]) == ("prompt-tuning", 4, 12)
        assert set(result["metrics"]) == {"validation", "test"}
        assert load_prompt(tmp_path / "p").metrics == result["metrics"]
        assert list((tmp_path / "tb").iterdir())

    def test_eval(self, place: Path) -> None:
        result = self.only(command("eval", place / "prompt", "--data", place / "reviews", "--baseline", "--json", *CPU))
        expected = load_prompt(place / "prompt").metrics["test"]
        assert {key: result[key] for key in expected} == expected
        assert (result["metric"], result["n"], result["split"]) == ("accuracy", 24, "test")
        assert 0 <= result["low"] <= result["value"] <= result["high"] <= 1

    def test_eval_of_the_written_prompt(self, place: Path) -> None:
        more = ["--template", TEMPLATE, "--instruction", "Judge.", "--shots", "2", "--split", "all", "--limit", "30"]
        result = self.only(command("eval", "--model", place / "llama", "--data", place / "reviews", "--json", *more))
        assert (result["prompt"], result["metric"], result["n"]) == (None, "accuracy", 30)

    def test_eval_of_the_written_prompt_in_other_words(self, place: Path) -> None:
        """It comes to what the library gives for this task, and the words matter."""
        arguments = ["eval", "--model", place / "llama", "--data", place / "reviews", "--template", TEMPLATE, "--json"]
        words = ["--labels", "good, bad", "--verbalizer", "good=a story", "--verbalizer", "bad=the mat"]
        result = self.only(command(*arguments, *words, *CPU))
        task = Task.of(
            place / "reviews",
            template=TEMPLATE,
            labels=["good", "bad"],
            verbalizers={"good": "a story", "bad": "the mat"},
        )
        expected = evaluate(load_model(place / "llama", dtype="float32"), task.test, None, spec=task.spec).to_dict()
        assert {key: result[key] for key in expected} == expected
        plain = self.only(command(*arguments, *CPU))
        assert {key: plain[key] for key in expected} != expected

    def test_eval_of_generation(self, place: Path) -> None:
        more = ["--data", place / "answers", "--json", "--max-new-tokens", "4", *CPU]
        result = self.only(command("eval", place / "writer", *more))
        assert (result["metric"], set(result["others"])) == ("exact_match", {"token_f1", "chrf", "bleu", "rouge_l"})

    def test_predict(self, place: Path) -> None:
        (one, two) = self.only(command("predict", place / "prompt", "a fine film", "dull", "--json"))["predictions"]
        assert (one["index"], two["index"]) == (0, 1)
        for answer in (one, two):
            assert set(answer["probabilities"]) == {"good", "bad"}
            assert sum(answer["probabilities"].values()) == pytest.approx(1)
            assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)

    def test_predict_from_standard_input(self, place: Path) -> None:
        done = command("predict", place / "prompt", "--json", stdin=b'{"text": "a fine film"}\n{"text": "dull"}\n')
        same = command("predict", place / "prompt", "a fine film", "dull", "--json")
        assert self.only(done) == self.only(same)

    def test_show(self, place: Path) -> None:
        result = self.only(command("show", place / "prompt", "--json"))
        assert result == load_prompt(place / "prompt").manifest()


class TestLines:
    """The same for eyes."""

    def test_train_says_what_it_gave(self, place: Path, tmp_path: Path) -> None:
        done = train(place, tmp_path / "p", "--no-test", "--verbalizer", "good=fine")
        assert done.code == 0
        assert f"saved in {tmp_path}/p" in done.out
        assert "validation  accuracy" in done.out
        assert "test " not in done.out
        for part in ("loading", "learning 128 parameters; 36,000 stay frozen", "step 12/12  training loss "):
            assert part in done.err
        assert load_prompt(tmp_path / "p").spec.verbalizers == ("bad", "fine")

    def test_show(self, place: Path) -> None:
        done = command("show", place / "prompt")
        for part in ("classification, template '{{ text }}:'", "bad ('bad'), good ('good')", "4 virtual tokens of 32"):
            assert part in done.out
        assert done.err == ""

    def test_predict_gives_label_and_probability(self, place: Path) -> None:
        done = command("predict", place / "prompt", "a fine film", "dull")
        rows = [line.split("\t") for line in done.out.splitlines()]
        assert len(rows) == 2
        assert all(label in ("good", "bad") and 0.5 <= float(share) <= 1 for label, share in rows)

    def test_completions(self, place: Path) -> None:
        greedy, same, short, sampled, again, other = (
            command("predict", place / "writer", "fine film", "--max-new-tokens", n, *more).out
            for n, more in (
                (12, []),
                (12, ["--seed", "3"]),
                (2, []),
                (12, ["--temperature", "3", "--seed", "3"]),
                (12, ["--temperature", "3", "--seed", "3"]),
                (12, ["--temperature", "3", "--seed", "4"]),
            )
        )
        assert greedy == same
        assert greedy.startswith(short.rstrip("\n"))
        assert len(short) < len(greedy)
        assert sampled == again
        assert len({greedy, sampled, other}) == 3
        nearly = command("predict", place / "writer", "fine film", "--max-new-tokens", 12, "--temperature", "1e-320")
        assert nearly.out == greedy
        stop = greedy.strip()[2:4]
        stopped = command("predict", place / "writer", "fine film", "--max-new-tokens", "12", "--stop", stop).out
        assert stopped.strip() == greedy[: greedy.index(stop)].strip()
