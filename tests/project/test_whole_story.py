"""Every verb that judges answers runs to its end, through the command line, on every kind of task there is."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.planted_candidates import few_requests  # noqa: F401 (a fixture)
from helpers.small_tasks import Ended, command
from helpers.tiny_models import save_tiny

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_requests")]

CPU = ("--device", "cpu", "--dtype", "float32")
FAST = ("--length", "4", "--steps", "12", "--batch-size", "8", "--eval-every", "6")
SAID = {"good": ("great", "fine", "warm"), "bad": ("dull", "poor", "cold")}


def film(generator: random.Random) -> tuple[str, str]:
    label = generator.choice(sorted(SAID))
    return label, f"{generator.choice(SAID[label])} film {generator.randrange(50)}"


def review(generator: random.Random) -> dict[str, Any]:
    label, text = film(generator)
    return {"text": text, "label": label}


def pair(generator: random.Random) -> dict[str, Any]:
    """Whether two films are said to be alike."""
    (one, text), (other, second) = film(generator), film(generator)
    return {"text": text, "second": second, "label": "alike" if one == other else "unlike"}


def short(generator: random.Random) -> dict[str, Any]:
    label, text = film(generator)
    return {"text": text, "target": label}


def long(generator: random.Random) -> dict[str, Any]:
    """Answers longer than the 128 tokens that were the room of every answer once."""
    label, text = film(generator)
    return {"text": text, "target": " ".join(f"the film is {label}, says number {n}." for n in range(12))}


KINDS: dict[str, tuple[Any, tuple[str, ...], str, str]] = {
    "classification": (review, ("--template", "{{ text }}:"), "accuracy", "zero-shot,few-shot:2,tfidf,prompt-tuning"),
    "pairs": (
        pair,
        ("--template", "{{ text }} / {{ second }}:", "--metric", "macro_f1"),
        "macro_f1",
        "zero-shot,linear-probe,prompt-tuning",
    ),
    "short": (short, (), "exact_match", "zero-shot,few-shot:2,prompt-tuning"),
    "long": (long, (), "chrf", "zero-shot,prompt-tuning,lora"),
}


class Story:
    """One kind of task: its data, and what the verbs left."""

    def __init__(self, folder: Path, kind: str) -> None:
        row, self.task, self.metric, self.methods = KINDS[kind]
        self.kind, self.model = kind, save_tiny(folder / "tiny-llama", "llama")
        settings = json.loads((self.model / "config.json").read_text())
        (self.model / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 640}))
        self.data, self.prompt, self.store = folder / "data", folder / "prompt", folder / "store"
        self.data.mkdir()
        generator = random.Random(kind)
        for split, count in (("train", 48), ("validation", 12), ("test", 60)):
            rows = [json.dumps(row(generator)) for _ in range(count)]
            (self.data / f"{split}.jsonl").write_text("\n".join(rows) + "\n")

    def rows(self, split: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.data / f"{split}.jsonl").read_text().splitlines()]

    @property
    def labels(self) -> set[str]:
        return {row["label"] for row in self.rows("test") if "label" in row}


@pytest.fixture(scope="module", params=list(KINDS))
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Story:
    one = Story(tmp_path_factory.mktemp(request.param), request.param)
    places = ("--model", one.model, "--data", one.data, "--out", one.prompt)
    found = ran(command("train", *places, *one.task, *FAST, *CPU, "--json"))
    assert found["metrics"]["test"]["metric"] == found["metrics"]["validation"]["metric"] == one.metric
    assert found["metrics"]["test"]["n"] == 60
    assert json.loads((one.prompt / "prompt.json").read_text())["task"].get("metric", "accuracy") == one.metric
    longest = max(len(row.get("target", "")) for row in one.rows("train"))
    assert (json.loads((one.prompt / "prompt.json").read_text())["task"].get("max_new_tokens", 128) > 128) == (
        longest > 128
    )
    return one


def ran(done: Ended) -> Any:
    """The JSON that a command ended with; JSON has no word for what is not a number."""
    assert done.code == 0, done.err

    def refused(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(done.out, parse_constant=refused)


def test_eval(story: Story) -> None:
    found = ran(command("eval", story.prompt, "--data", story.data, *CPU, "--json"))
    assert (found["metric"], found["n"]) == (story.metric, 60)
    if story.labels:
        assert "cut" not in found
        return
    predicted = "\n".join(json.dumps({"text": row["text"]}) for row in story.rows("test")).encode()
    answers = ran(command("predict", story.prompt, *CPU, "--json", stdin=predicted))["predictions"]
    assert found["cut"] == sum(one.get("cut", False) for one in answers)
    right = [one["completion"] == row["target"] for one, row in zip(answers, story.rows("test"), strict=True)]
    exact = found if found["metric"] == "exact_match" else found["others"]["exact_match"]
    assert exact["value"] == pytest.approx(sum(right) / 60)


def test_compare(story: Story, tmp_path: Path) -> None:
    arguments = ("--methods", story.methods, "--seeds", "2", "--steps", "6", "--batch-size", "8", "--out", tmp_path)
    more = () if story.labels else ("--current", "zero-shot", "--price-per-hour", "1")
    found = ran(
        command("compare", "--model", story.model, "--data", story.data, *arguments, *story.task, *more, *CPU, "--json")
    )
    assert found["metric"] == story.metric
    assert [row["method"] for row in found["rows"]] == story.methods.split(",")
    assert all(row["failed"] == 0 and row["error"] is None for row in found["rows"])
    assert all(0 <= row["low"] <= row["mean"] <= row["high"] for row in found["rows"])
    for name in ("report.html", "report.md", "report.json"):
        assert (tmp_path / name).stat().st_size > 1000


def test_distill(story: Story, tmp_path: Path) -> None:
    arguments = ("--teacher", story.prompt, "--data", story.data, "--length", "2", "--steps", "4", "--no-measure")
    found = ran(command("distill", "--model", story.model, *arguments, "--out", tmp_path / "short", *CPU, "--json"))
    test = found["held_out"]["test"]
    assert test["teacher"]["metric"] == test["student"]["metric"] == story.metric
    assert test["n"] == 60
    learned = json.loads((story.prompt / "prompt.json").read_text())["metrics"]["test"]
    assert test["teacher"]["value"] == pytest.approx(learned["value"])


def test_inspect(story: Story, tmp_path: Path) -> None:
    done = command("inspect", story.prompt, "--data", story.data, "--html", tmp_path / "page.html", *CPU, "--json")
    assert ran(done)["answers"]["metric"]["n"] > 0


def test_serve(story: Story) -> None:
    pushed = command("push", story.prompt, f"{story.store}#told")
    assert pushed.code == 0, pushed.err
    rows = story.rows("test")[:3]
    learned_task = json.loads((story.prompt / "prompt.json").read_text())["task"]
    asked = "\n".join(json.dumps({key: row[key] for key in ("text", "second") if key in row}) for row in rows)
    expected = ran(command("predict", story.prompt, *CPU, "--json", stdin=asked.encode()))["predictions"]
    with serving(story) as address:
        for row, told in zip(rows, expected, strict=True):
            if story.labels:
                text: Any = (
                    row["text"] if story.kind == "classification" else {key: row[key] for key in ("text", "second")}
                )
                answer = httpx.post(f"{address}/v1/classify", json={"model": "told@1", "input": text}, timeout=60)
                assert answer.json()["results"][0]["label"] == told["label"], answer.text
                continue
            room = 128 if story.kind == "short" else learned_task["max_new_tokens"]
            body = {"model": "told@1", "prompt": row["text"], "max_tokens": room}
            answer = httpx.post(f"{address}/v1/completions", json=body, timeout=60)
            assert answer.json()["choices"][0]["text"].strip() == told["completion"], answer.text


@contextmanager
def serving(story: Story) -> Iterator[str]:
    """The address of a server of the story's store; ended by SIGTERM, with exit code 0."""
    arguments = ("--model", story.model, "--store", story.store, "--port", 0, *CPU)
    with subprocess.Popen(
        [sys.executable, "-m", "softprompt", "serve", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SOFTPROMPT_REFRESH": "0"},
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"listening on (http://\S+),", line):
                break
        else:
            raise AssertionError("".join(said))
        try:
            yield found[1]
        finally:
            process.send_signal(signal.SIGTERM)
            _, rest = process.communicate(timeout=60)
    assert process.returncode == 0, rest
