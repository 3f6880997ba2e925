"""The store on the command line: one syntax for prompts wherever one is taken, and the store's own verbs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.saved_prompts import a_prompt
from helpers.small_tasks import WORDS, command, reviews, write_data
from helpers.tiny_models import save_tiny

from softprompt.data.task import TaskSpec
from softprompt.models.loading import load_model
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.store.version_store import Store

CPU = ["--device", "cpu", "--dtype", "float32"]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Two versions of ``p`` that need no model, ``prod`` being at the first; the default store."""
    store = Store(tmp_path / "store")
    store.put(a_prompt(0, accuracy=0.5), "p", by="ada@here")
    store.put(a_prompt(1, accuracy=0.75, parent=f"{store.url}#p@1"), "p", by="ada@here")
    store.promote("p@1", "prod", by="ada@here")
    monkeypatch.setenv("SOFTPROMPT_STORE", store.url)
    return store


def told(*arguments: object) -> str:
    done = command(*arguments)
    assert done.code == 0, done.err
    return done.out


def answered(*arguments: object) -> Any:
    return json.loads(told(*arguments, "--json"))


class TestList:
    def test_names(self, store: Store) -> None:
        store.put(a_prompt(), "q")
        lines = told("list", store.url).splitlines()
        assert [line.split() for line in lines[-2:]] == [["p", "2", "p@2", "prod", "@1"], ["q", "1", "q@1", "-"]]
        assert answered("list") == {
            "store": store.url,
            "names": {"p": {"versions": [1, 2], "aliases": {"prod": 1}}, "q": {"versions": [1], "aliases": {}}},
        }

    def test_versions(self, store: Store) -> None:
        lines = told("list", "--name", "p").splitlines()
        assert lines[-4].split()[:4] == ["Version", "Created", "By", "Parent"]
        assert "0.500 [0.400, 0.600]" in lines[-2]
        assert lines[-2].endswith("prod")
        assert lines[-1].startswith("p@2")
        found = answered("list", store.url, "--name", "p")
        assert [one["parent"] for one in found["versions"]] == [None, "p@1"]
        assert found["versions"][1]["metrics"]["validation"]["value"] == 0.75
        assert set(found["versions"][0]["files"]) == {"history.jsonl", "prompt.json", "prompt.safetensors"}

    def test_no_store(self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "is no store, it holds no softprompt-store.json" in command("list", tmp_path).error
        monkeypatch.delenv("SOFTPROMPT_STORE")
        assert command("list").error == ("expected a store or the environment variable SOFTPROMPT_STORE, got neither")


class TestShow:
    def test_a_version(self, store: Store) -> None:
        shown = [re.split("  +", line, maxsplit=1) for line in told("show", f"{store.url}#p@2").splitlines()]
        lines = dict(line for line in shown if len(line) == 2)
        assert lines["version"].startswith("p@2, made ")
        assert lines["version"].endswith(" by ada@here")
        assert (lines["lineage"], lines["aliases"]) == ("p@2 <- p@1", "-")
        assert lines["validation"].startswith("accuracy 0.750 ")

    def test_an_alias_with_its_history(self, store: Store) -> None:
        store.promote("p@2", "prod", by="bob@there")
        lines = told("show", "p@prod").splitlines()
        assert any(line.startswith("promote prod  nothing -> p@1, ") and line.endswith("by ada@here") for line in lines)
        assert any(line.startswith("promote prod  p@1 -> p@2, ") and line.endswith("by bob@there") for line in lines)
        found = answered("show", "p@prod")
        assert found["seed"] == 1
        assert found["store"]["number"] == 2
        assert found["store"]["aliases"] == ["prod"]
        assert found["store"]["lineage"] == ["p@2", "p@1"]
        assert [move["to"] for move in found["store"]["history"]] == [1, 2]

    def test_a_folder_as_before(self, tmp_path: Path) -> None:
        a_prompt().save(tmp_path / "p")
        assert "store" not in answered("show", tmp_path / "p")
        assert "lineage" not in told("show", tmp_path / "p")


class TestMoving:
    def test_push_and_pull(self, store: Store, tmp_path: Path) -> None:
        a_prompt(7).save(tmp_path / "saved")
        assert told("push", tmp_path / "saved", "p") == f"p@3 in {store.url}\n"
        assert answered("push", "p@prod", f"{tmp_path}/other#q") == {
            "prompt": "p@prod",
            "store": str(tmp_path / "other"),
            "version": "q@1",
        }
        assert answered("pull", "p@latest", "--out", tmp_path / "out")["from"] == f"{store.url}#p@3"
        assert answered("show", tmp_path / "out")["seed"] == 7
        assert "exists already" in command("pull", "p@1", "--out", tmp_path / "out").error

    def test_promote_and_rollback(self, store: Store) -> None:
        assert told("promote", "p@2", "prod").startswith("p@prod: p@1 -> p@2, ")
        assert answered("rollback", "p@prod")["to"] == 1
        assert "p@prod cannot be rolled back, it has been at p@1 only" in command("rollback", "p@prod").error

    def test_diff(self, store: Store) -> None:
        out = told("diff", "p@1", f"{store.url}#p@latest")
        assert [line.split() for line in out.splitlines() if line.startswith("seed")] == [["seed", "0", "1"]]
        assert "validation accuracy  0.500 [0.400, 0.600] n=50  0.750 [0.650, 0.850] n=50" in out
        assert "vectors: similarity of average tokens" in out
        found = answered("diff", "p@1", "p@2")
        assert found["settings"]["seed"] == [0, 1]
        assert set(found["similarity"]) == {"average_tokens", "nearest_tokens"}

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["promote", "p@2", "latest"], "'latest' is always the newest version and cannot be moved"),
            (["promote", "p@9", "prod"], "holds no p@9, its versions are 1, 2"),
            (["promote", "p", "prod"], "expected [STORE#]NAME@VERSION or [STORE#]NAME@ALIAS, got 'p'"),
            (["promote", "p@2", "prod", "--tolerance", "0.1"], "are for --data: give it too, or leave them out"),
            (["promote", "p@2", "prod", "--significance", "2"], "setting 'significance'"),
            (["rollback", "p@1"], "got the version 'p@1': versions do not move, aliases do"),
            (["push", "p@1", "../p"], "expected the name of a prompt"),
            (["push", "p@1", "other#P"], "expected the name of a prompt"),
            (["pull", "q@1", "--out", "x"], "holds no 'q': softprompt list"),
            (["show", "p@none"], "has no alias 'none', its aliases are latest, prod"),
            (["diff", "p@1", "nowhere"], "'nowhere' is no saved prompt, it does not exist"),
            (["list", "--name", "q"], "holds no 'q': softprompt list"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_mistakes(self, store: Store, arguments: list[str], words: str) -> None:
        done = command(*arguments)
        assert done.code == 2
        assert words in done.error

    def test_hostile_text_does_not_reach_the_terminal(self, store: Store) -> None:
        store.put(a_prompt(parent="\x1b[2J evil"), "p", by="\x1b]0;evil\x07")
        for arguments in (["show", "p@3"], ["list", "--name", "p"], ["diff", "p@1", "p@3"]):
            assert "\x1b" not in told(*arguments)


class TestWhereverAPromptIsTaken:
    @pytest.fixture
    def learned(self, tmp_path: Path, store: Store) -> str:
        """The folder of a tiny model; ``good`` has a prompt for it as version 1, which knows all, and 2, random."""
        folder = save_tiny(tmp_path / "model", "llama")
        base = load_model(str(folder), device="cpu", dtype="float32")
        for seed in (1, 2):
            tokens = torch.randn(3, base.embedding_size, generator=torch.Generator().manual_seed(seed))
            prompt = Prompt(
                states=(PromptState.of_embeddings(tokens * base.embedding_std),),
                spec=TaskSpec("classification", "{{ text }}:", tuple(sorted(WORDS)), tuple(sorted(WORDS)), 64),
                base_name=str(folder),
                base_fingerprint=base.fingerprint,
                method="prompt-tuning",
            )
            store.put(prompt, "good")
        store.promote("good@1", "prod")
        return str(folder)

    def test_everywhere(self, learned: str, store: Store, tmp_path: Path) -> None:
        store.pull("good@1", tmp_path / "saved")
        data = write_data(tmp_path / "data", reviews(train=8, validation=4, test=6))
        folder, reference = str(tmp_path / "saved"), f"{store.url}#good@prod"
        for arguments in (["eval", "PROMPT", "--data", data, *CPU], ["predict", "PROMPT", "a fine film", *CPU]):
            ours, theirs = (
                answered(*(place if one == "PROMPT" else one for one in arguments)) for place in (reference, folder)
            )
            assert ours | {"prompt": None} == theirs | {"prompt": None}
        told("export", reference, "--format", "npy", "--out", tmp_path / "p.npy")
        assert (tmp_path / "p.npy").exists()
        ranked = answered("similar", "good@2", "--among", store.url)["ranked"]
        assert str(Path(store.url) / "good" / "1") in [one["folder"] for one in ranked]
        train = ["train", "--model", learned, "--data", data, "--out", tmp_path / "more", "--steps", "1", *CPU]
        told(*train, "--init", "prompt:good@prod", "--length", "3", "--template", "{{ text }}:", "--no-test")
        assert answered("show", tmp_path / "more")["parent"] == f"{store.url}#good@1"
        told("push", tmp_path / "more", "good")
        assert store.lineage("good@3") == ("good@3", "good@1")

    def test_the_gate(self, learned: str, store: Store, tmp_path: Path) -> None:
        data = write_data(tmp_path / "data", reviews(train=8, validation=4, test=40))
        scores = [answered("eval", f"good@{n}", "--data", data, *CPU)["value"] for n in (1, 2)]
        better, worse = (1, 2) if scores[0] >= scores[1] else (2, 1)
        store.promote(f"good@{better}", "live")
        promote = ["promote", f"good@{worse}", "live", "--data", data, *CPU]
        # whatever two random prompts do, at this significance the smallest difference counts
        done = command(*promote, "--significance", "0.999999", "--json")
        lost = scores[0] != scores[1]
        assert done.code == (2 if lost else 0)
        found = json.loads(done.out)
        assert found["promoted"] is not lost
        if lost:
            assert found["n"] == 40
            assert found["now"] - found["before"] == pytest.approx(-abs(scores[0] - scores[1]))
            assert {"index", "text", "expected", "before", "now", "loss"} == set(found["examples"][0])
            assert "is significantly worse than" in done.err
            told_lost = command(*promote, "--significance", "0.999999").out
            assert "Example  Expected  In place" in told_lost
            forced = answered(*promote, "--significance", "0.999999", "--force")
            assert (forced["forced"], forced["gate"]["passed"]) == (True, False)
            assert "forced against the gate" in told("show", "good@live")
