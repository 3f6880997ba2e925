"""``softprompt monitor`` from the command line, on a tiny model: real profiles, served samples, exit codes."""

import json
import random
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from helpers.planted_traffic import sample, write
from helpers.small_tasks import FAST, answers, command, reviews, write_data
from helpers.tiny_models import save_tiny
from helpers.tiny_server import Place
from starlette.testclient import TestClient

from softprompt.cli.analyze_command import DRIFT
from softprompt.data.task import Task
from softprompt.models.loading import load_model
from softprompt.serving.request_log.sample_files import read_samples
from softprompt.store.input_profile import PROFILE_FILE, read_profile
from softprompt.store.version_store import Store
from softprompt.training.fit import fit

CPU = ("--device", "cpu", "--dtype", "float32")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its data, and a store: ``tone`` for labels, ``says`` for words, ``old`` without a profile."""
    folder = tmp_path_factory.mktemp("monitor")
    save_tiny(folder / "llama", "llama")
    write_data(folder / "reviews", reviews(train=60, validation=300, test=24))
    base = load_model(folder / "llama", device="cpu", dtype="float32")
    task = Task.classification(folder / "reviews", template="{{ text }}:")
    fit(base, task, out=folder / "tone", **FAST)
    says = Task.generation(answers(validation=60), template="{{ text }}:")
    fit(base, says, out=folder / "says", evaluate_test=False, **{**FAST, "init": "text"})
    store = Store(folder / "store")
    for name in ("tone", "says"):
        store.put(folder / name, name)
    (folder / "tone" / PROFILE_FILE).rename(folder / "kept.json")
    store.put(folder / "tone", "old")
    return folder


def texts(n: int, seed: int = 5) -> list[str]:
    """As in training."""
    return [one.text for one in reviews(train=n, validation=1, test=1, seed=seed).train]


def strange(n: int) -> list[str]:
    """Nothing like it."""
    generator = random.Random(0)
    return [" ".join("".join(generator.choices("XYZ?!", k=6)) for _ in range(9)) for _ in range(n)]


def sampled(place: Path, path: Path, asked: Iterable[tuple[str, list[str]]], *, text: bool = True) -> Path:
    """Samples of requests that a server answered."""
    served = Place.of_store(Store(place / "store"), sampling=(path, 1.0, text), batch_limit=1000)
    served.engine._base = load_model(place / "llama", device="cpu", dtype="float32")
    with served.client() as client:
        for model, some in asked:
            ask(client, model, some)
    return path


def ask(client: TestClient, model: str, some: list[str]) -> None:
    route, field = ("/v1/completions", "prompt") if model == "says" else ("/v1/classify", "input")
    for start in range(0, len(some), 50):
        body: dict[str, Any] = {"model": model, field: some[start : start + 50]}
        assert client.post(route, json=body | ({"max_tokens": 2} if model == "says" else {})).status_code == 200


def monitored(place: Path, path: Path, *options: object) -> dict[str, Any]:
    done = command("monitor", "--sample-file", path, "--store", place / "store", "--json", *CPU, *options)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return {one["prompt"]: one for one in found["prompts"]} | {"whole": found}


def verdicts(one: dict[str, Any]) -> dict[str, str]:
    return {signal["name"]: signal["verdict"] for signal in one["signals"]}


def test_traffic_as_in_training_does_not_drift(place: Path, tmp_path: Path) -> None:
    path = sampled(place, tmp_path / "s.db", [("tone", texts(300))])
    found = monitored(place, path, "--model", place / "llama")["tone@1"]
    assert list(verdicts(found)) == ["length", "rare", "labels", "confidence", "hidden"]
    assert found["verdict"] != "drift"
    assert found["findings"] == found["examples"] == []
    # the same tokens are counted by the server and by the profile
    known = read_profile(f"{place / 'store'}#tone@1")
    assert known is not None
    assert {one.rare for one in read_samples(path).samples} == {0}
    assert known.rare.value == 0


def test_strange_texts_are_told_with_those_that_show_it(place: Path, tmp_path: Path) -> None:
    path = sampled(place, tmp_path / "s.jsonl", [("tone", texts(100)), ("tone", strange(100))])
    page = tmp_path / "page.html"
    found = monitored(place, path, "--model", place / "llama", "--html", page)["tone@1"]
    assert found["verdict"] == "drift"
    assert {name for name, verdict in verdicts(found).items() if verdict == "drift"} >= {"length", "rare", "hidden"}
    shown = {one["text"] for one in found["examples"] if one["signal"] in ("length", "rare", "hidden")}
    assert shown <= set(strange(100))
    assert len(shown) >= 5
    assert "tone@1: live texts are not as those" in page.read_text()
    done = command("monitor", "--sample-file", path, "--store", place / "store", *CPU)
    assert "== tone@1\nDrift: 200 samples" in done.out
    assert "Problem: Rare tokens differ from validation" in done.out
    assert "idden states: not looked at without --model" in done.out


def test_without_texts(place: Path, tmp_path: Path) -> None:
    path = sampled(place, tmp_path / "s.db", [("tone", strange(120))], text=False)
    found = monitored(place, path, "--model", place / "llama")["tone@1"]
    assert verdicts(found)["rare"] == "drift"
    assert "hidden" not in verdicts(found)
    assert "hidden states: no texts were kept (softprompt serve --sample-text)" in found["notes"]
    assert {one["text"] for one in found["examples"]} == {None}


def test_generation(place: Path, tmp_path: Path) -> None:
    same = [one.text for one in answers(train=150, seed=3).train]
    found = monitored(place, sampled(place, tmp_path / "a.db", [("says", same)]), "--model", place / "llama")
    assert list(verdicts(found["says@1"])) == ["length", "rare", "hidden"]
    assert found["says@1"]["verdict"] != "drift"
    found = monitored(place, sampled(place, tmp_path / "b.db", [("says", strange(150))]), "--model", place / "llama")
    assert set(verdicts(found["says@1"]).values()) == {"drift"}


def test_too_few(place: Path, tmp_path: Path) -> None:
    path = sampled(place, tmp_path / "s.db", [("tone", strange(99))])
    done = command("monitor", "--sample-file", path, "--store", place / "store", "--fail-on-drift", *CPU)
    assert done.code == 0
    assert "== tone@1\nToo few samples to tell: 99 samples" in done.out


def test_exit_code_on_drift(place: Path, tmp_path: Path) -> None:
    path = sampled(place, tmp_path / "s.db", [("tone", strange(120))])
    options = ("--sample-file", path, "--store", place / "store", *CPU)
    assert command("monitor", *options).code == 0
    done = command("monitor", *options, "--fail-on-drift", "--json")
    assert done.code == DRIFT == 3
    assert json.loads(done.out)["prompts"][0]["verdict"] == "drift"


def test_since(place: Path, tmp_path: Path) -> None:
    rows = [sample(number=i, time=time.time() - 86_400 * 3) for i in range(5)] + [sample(number=9, time=time.time())]
    path = write(tmp_path / "s.db", rows)
    assert monitored(place, path)["whole"]["read"] == 6
    assert monitored(place, path, "--since", "2d")["whole"]["read"] == 1
    assert monitored(place, write(tmp_path / "e.db", []))["whole"]["prompts"] == []


def test_a_span_of_centuries_is_a_mistake(place: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "s.db", [sample(number=0, time=time.time())])
    done = command("monitor", "--store", place / "store", "--sample-file", path, "--since", "999999d")
    assert (done.code, done.error) == (2, "--since: expected at most 36,500d, got '999999d'")


def test_a_name_that_cannot_be_read_is_not_taken_for_gone(place: Path, tmp_path: Path) -> None:
    path = sampled(place, tmp_path / "s.db", [("tone", texts(30))])
    shutil.copytree(place / "store", tmp_path / "store")
    Store(tmp_path / "store").promote("tone@1", "prod")
    aliases = [one for one in (tmp_path / "store" / "tone").rglob("*") if one.is_file() and "prod" in str(one)]
    assert aliases
    for one in aliases:
        one.write_text("{")
    done = command("monitor", "--store", tmp_path / "store", "--sample-file", path)
    assert done.code != 0
    assert done.error.startswith("tone: sampled, and not found; in the store, ")


def test_a_prompt_without_profile(place: Path, tmp_path: Path) -> None:
    path = sampled(place, tmp_path / "s.db", [("old", strange(120)), ("tone", texts(120))])
    found = monitored(place, path)
    assert "old@1" not in found
    (note,) = found["whole"]["notes"]
    assert note == "old@1: it has no profile, having been saved without one: give --data, what it learned on"
    with_data = monitored(place, path, "--data", place / "reviews", "--model", place / "llama")["old@1"]
    assert with_data["profile"] == f"measured now, on {place / 'reviews'}"
    # the server could not count them, but the texts are here
    assert verdicts(with_data)["rare"] == "drift"
    known = json.loads((place / "kept.json").read_bytes())
    lengths = next(one for one in with_data["signals"] if one["name"] == "length")
    assert lengths["trained_n"] == known["lengths"]["n"] == 300


def test_a_folder_instead_of_a_store(place: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "s.db", [sample(number=i, prompt=name) for i in range(3) for name in ("a@1", "b@1")])
    done = command("monitor", "--sample-file", path, "--prompt", f"a={place / 'says'}", "--json")
    found = json.loads(done.out)
    assert [one["prompt"] for one in found["prompts"]] == ["a@1"]
    assert found["notes"] == ["b@1: 3 samples of a prompt that is not here"]


def test_what_is_refused(place: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "s.db", [sample()])
    some, store = ("--sample-file", path), ("--store", place / "store")
    for options, words in (
        (some, "expected a store or saved prompts, got neither"),
        ((*some, *store, "--prompt", "a"), "expected a store or saved prompts, got both"),
        ((*some, *store, "--since", "week"), "--since: expected a number with m, h or d, as in 7d, got 'week'"),
        ((*some, "--store", tmp_path), "is no store"),
        ((*some, *store, "--html", tmp_path), "is a folder: give --html the name of a file"),
        ((*some, *store, "--text-column", "a"), "are for --data: give it too"),
        ((*some, *store, "--html", "/proc/none/a.html"), "give another --html"),
        (store, "Missing option '--sample-file'"),
    ):
        done = command("monitor", *options)
        assert done.code == 2
        assert words in done.error


def test_a_damaged_profile(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tone"
    folder.mkdir()
    for one in (place / "tone").iterdir():
        (folder / one.name).write_bytes(one.read_bytes())
    (folder / PROFILE_FILE).write_text("{}")
    path = write(tmp_path / "s.db", [sample()])
    done = command("monitor", "--sample-file", path, "--prompt", folder)
    assert done.code == 2
    assert "profile.json' is damaged: it has schema version None, expected 1" in done.error


def test_a_profile_is_the_same_every_time(place: Path, tmp_path: Path) -> None:
    base = load_model(place / "llama", device="cpu", dtype="float32")
    fit(base, Task.classification(place / "reviews", template="{{ text }}:"), out=tmp_path / "again", **FAST)
    assert (tmp_path / "again" / PROFILE_FILE).read_bytes() == (place / "kept.json").read_bytes()
    assert (place / "kept.json").stat().st_size < 10_000
