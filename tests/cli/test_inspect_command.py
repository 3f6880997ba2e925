"""``softprompt inspect`` and ``softprompt prune`` from the command line: what they print, write and refuse."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.small_tasks import FAST, answers, command, noise, reviews, reviews_task, write_data
from helpers.tiny_models import save_tiny, tiny_base

from softprompt.analysis.inspection.inspect_prompt import read_history
from softprompt.config import TrainConfig, make_population
from softprompt.data.task import Task
from softprompt.models.loading import load_model
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.fit import fit

CPU = ("--device", "cpu", "--dtype", "float32")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, data with a column of its own, and prompts: sound, another seed, keys and values, an ensemble."""
    folder = tmp_path_factory.mktemp("inspect")
    save_tiny(folder / "llama", "llama")
    splits = reviews(train=40, validation=24, test=48)
    write_data(folder / "reviews", splits)
    rows = [json.loads(line) for line in (folder / "reviews" / "test.jsonl").read_text().splitlines()]
    with (folder / "reviews" / "test.jsonl").open("w") as stream:
        for index, row in enumerate(rows):
            # unlike those of train, which are made of the same few words
            text = f"{hashlib.sha256(row['text'].encode()).hexdigest()[:24]} {row['text']}"
            stream.write(json.dumps({**row, "text": text, "source": "web" if index % 2 else "paper"}) + "\n")
    base = load_model(folder / "llama", device="cpu", dtype="float32")
    task = Task.classification(folder / "reviews", template="{{ text }}:")
    fit(base, task, out=folder / "prompts" / "p", **FAST)
    fit(base, task, out=folder / "prompts" / "other", **FAST, seed=1)
    fit(base, task, out=folder / "keys", **FAST, method="prefix-tuning")
    fit(base, task, config=make_population(TrainConfig.build(**FAST), seeds=2), ensemble=True, out=folder / "both")
    says = Task.generation(answers(), template="{{ text }}:")
    fit(base, says, out=folder / "says", evaluate_test=False, **{**FAST, "init": "text"})
    write_data(folder / "outputs", answers())
    return folder


def inspected(place: Path, prompt: str = "prompts/p", *options: object) -> dict[str, Any]:
    done = command("inspect", place / prompt, "--data", place / "reviews", "--json", *CPU, *options)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_json_is_one_object_with_every_part(place: Path) -> None:
    found = inspected(place, "prompts/p", "--among", place / "prompts")
    assert found["same_data"] is True
    assert found["answers"]["split"] == "test"
    assert found["answers"]["comparison"]["reference"].startswith("written prompt 'Classify the text")
    assert {one["by"] for one in found["answers"]["slices"]} == {"label", "source"}
    assert len(found["tokens"]) == 4
    assert all(len(one["attention"]) == 2 for one in found["tokens"])
    assert all(one["moved"] > 0 for one in found["tokens"])
    assert [one["step"] for one in found["history"]] == [6, 12]
    assert len(found["neighbors"]["names"]) == 2
    (start,) = found["neighbors"]["starts"]
    assert start["options"][:2] == ["--init", f"prompt:{place / 'prompts' / 'other'}"]
    assert start["loss"]["n"] == found["neighbors"]["own_loss"]["n"] == 48
    assert {one["split"] for one in found["reproduction"]} == {"validation", "test"}
    assert all(one["saved"]["value"] == one["now"]["value"] for one in found["reproduction"])
    for name in ("attention", "continuation", "duplicates", "fit", "memorization", "label_errors", "vocabulary"):
        assert found[name] is not None, name


def test_another_metric_is_asked_for(place: Path, tmp_path: Path) -> None:
    found = inspected(place, "prompts/p", "--metric", "macro_f1")
    assert found["answers"]["metric"]["metric"] == found["answers"]["comparison"]["before"]["metric"] == "macro_f1"
    assert all(one["saved"]["metric"] == one["now"]["metric"] == "macro_f1" for one in found["reproduction"])
    assert all(one["saved"]["value"] == one["now"]["value"] for one in found["reproduction"])
    given = ("--data", place / "reviews", "--metric", "macro_f1", "--out", tmp_path / "q", "--json", *CPU)
    done = command("prune", place / "prompts/p", *given)
    assert done.code == 0, done.err
    assert json.loads(done.out)["metric"] == load_prompt(tmp_path / "q").metrics["validation"]["metric"] == "macro_f1"


def test_lines_for_people(place: Path) -> None:
    done = command("inspect", place / "prompts/p", "--data", place / "reviews", *CPU)
    assert done.code == 0
    for part in ("What it changed", "What it has learned", "Where the model looks", "What it says alone", "Privacy"):
        assert f"== {part}\n" in done.out
    assert "== The training data\n" in done.out
    assert "Ordinary words: nearest other word at cosine" in done.out
    assert "answers to 48 examples (test)" in done.err


def test_against_another_prompt_and_a_given_instruction(place: Path) -> None:
    other = inspected(place, "prompts/p", "--against", place / "prompts" / "other")
    assert other["answers"]["comparison"]["reference"] == str(place / "prompts" / "other")
    same = inspected(place, "prompts/p", "--against", place / "prompts" / "p")["answers"]["comparison"]
    assert (same["fixed"], same["broken"], same["difference"]["value"]) == (0, 0, 0.0)
    told = inspected(place, "prompts/p", "--instruction", "Say good or bad.")["answers"]["comparison"]
    assert told["reference"] == "written prompt 'Say good or bad.'"


@pytest.mark.parametrize(
    ("prompt", "notes"),
    [
        ("keys", ["neighbours and norms: keys and values do not lie", "what it says: keys and values have no last"]),
        ("both", ["attention: told for a single prompt", "memorisation: told for a single prompt"]),
    ],
)
def test_other_kinds_say_what_they_cannot(place: Path, prompt: str, notes: list[str]) -> None:
    found = inspected(place, prompt)
    for note in notes:
        assert any(one.startswith(note) for one in found["notes"]), found["notes"]
    assert all(one["ablation"] is not None and one["moved"] is not None for one in found["tokens"])
    assert len(found["tokens"]) == 4 * found["members"]


def test_generation(place: Path) -> None:
    done = command("inspect", place / "says", "--data", place / "outputs", "--json", *CPU)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["answers"]["metric"]["metric"] == "negative_loss"
    assert found["answers"]["confusion"] == []
    assert found["prior_loss"] is None
    assert found["continuation"] is not None


def test_other_data_and_fewer_examples(place: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "d", reviews(train=0, validation=12, test=0, seed=9))
    done = command("inspect", place / "prompts/p", "--data", tmp_path / "d", "--limit", 5, "--json", *CPU)
    found = json.loads(done.out)
    assert found["answers"]["split"] == "validation"
    assert found["answers"]["metric"]["n"] == 5
    assert found["label_errors"] is None
    assert found["memorization"] is None
    assert any("no train split" in note for note in found["notes"])
    assert any("not those that it was learned on" in note for note in found["notes"])


def test_html_is_one_file_that_replaces_an_older_one(place: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    for _ in range(2):
        inspected(place, "prompts/p", "--html", page)
    text = page.read_text()
    assert text.lstrip().startswith("<!doctype html>")
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert [one.name for one in page.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--against", "p", "--instruction", "x"], "exclude each other"),
        (["--served-template", "no text"], "must contain {{ text }}"),
        (["--split", "dev"], "expected a split named"),
        (["--html", "."], "is a folder: give --html the name of a file"),
        (["--against", "no/such"], "is no saved prompt"),
    ],
)
def test_mistakes_are_told_before_the_model_is_loaded(place: Path, options: list[str], words: str) -> None:
    done = command("inspect", place / "prompts/p", "--data", place / "reviews", *options)
    assert done.code == 2
    assert words in done.error
    assert "loading" not in done.err


def test_a_reference_for_another_task_is_refused(place: Path) -> None:
    done = command("inspect", place / "prompts/p", "--data", place / "reviews", "--against", place / "says", *CPU)
    assert done.code == 2
    assert "expected a prompt for classification with the labels bad, good, got one for generation" in done.error


def test_prune_saves_a_shorter_prompt(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "q"
    options = ("--data", place / "reviews", "--tolerance", 0.2, "--out", out, *CPU)
    done = command("prune", place / "prompts/p", *options, "--json")
    assert done.code == 0, done.err
    result, prompt = json.loads(done.out), load_prompt(out)
    assert prompt.length == result["length"] == len(result["kept"])
    assert prompt.parent == result["parent"] == str(place / "prompts/p")
    assert prompt.metrics["validation"]["value"] == pytest.approx(result["after"])
    assert prompt.metrics["test"]["value"] == pytest.approx(result["test_after"])
    assert command("prune", place / "prompts/p", *options).error.startswith(f"'{out}' exists already")
    assert inspected(place, "prompts/p", "--against", out)["answers"]["comparison"]["difference"]["n"] == 48


def test_prune_refuses_an_ensemble_before_the_model_is_loaded(place: Path, tmp_path: Path) -> None:
    done = command("prune", place / "both", "--data", place / "reviews", "--out", tmp_path / "q")
    assert done.code == 2
    assert "got an ensemble of 2" in done.error
    assert "loading" not in done.err
    assert not (tmp_path / "q").exists()


def test_history_is_read_with_care() -> None:
    prompt = fit(tiny_base("llama"), reviews_task(), **{**FAST, "steps": 2, "eval_every": 1})
    lines = ['{"step": 1, "train_loss": 0.5}', "no json", "[1]", '{"step": NaN, "x": "y"}', '{"step": 2}', "\udcff"]
    found = read_history("\n".join(lines).encode(errors="surrogateescape"), prompt)
    assert found == [{"step": 1.0, "train_loss": 0.5}, {}, {"step": 2.0}]
    chosen = replace(prompt, training={**prompt.training, "chosen": "b"})
    assert read_history(b'{"name": "a", "step": 1}\n{"name": "b", "step": 2}', chosen) == [{"step": 2.0}]


def test_a_store_without_others_is_a_mistake(place: Path, tmp_path: Path) -> None:
    done = command("inspect", place / "prompts/p", "--data", place / "reviews", "--among", tmp_path, *CPU)
    assert done.code == 2
    assert "expected saved prompts to compare with" in done.error
    assert "loading" not in done.err


def test_noise_is_no_reason_to_fail(place: Path, tmp_path: Path) -> None:
    """The same text everywhere: no slices by length, one group of duplicates, nothing to memorise."""
    write_data(tmp_path / "d", noise())
    done = command("inspect", place / "prompts/p", "--data", tmp_path / "d", "--json", *CPU)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["duplicates"]["groups"] == 1
    (note,) = (note for note in found["notes"] if note.startswith("memorisation: expected at least 10"))
    assert note.endswith("near duplicates of training rows are left out")
