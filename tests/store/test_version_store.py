"""Store: versions that never change, aliases that move and come back, what differs, where a prompt came from."""

import json
import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.saved_prompts import a_prompt

from softprompt.config import TrainConfig
from softprompt.errors import OutputError, PromptFileError, SoftpromptError, StoreError
from softprompt.models.distributed import SINGLE_PROCESS
from softprompt.prompts.saved_prompt import Prompt
from softprompt.store import artifacts, metadata
from softprompt.store.prompt_loading import load_prompt, pin_reference, read_manifest
from softprompt.store.version_store import Store
from softprompt.training.fit import fit
from softprompt.utils.seals import seal, unseal


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def same(a: Prompt, b: Prompt) -> bool:
    facts = [replace(one, states=(), extra_files={}) for one in (a, b)]
    return facts[0] == facts[1] and torch.equal(a.state.tensor, b.state.tensor)


class TestVersions:
    def test_round_trip(self, store: Store) -> None:
        version = store.put(a_prompt(1), "sentiment", by="me")
        assert (str(version), version.by, version.parent) == ("sentiment@1", "me", None)
        assert str(store.put(a_prompt(2), "sentiment")) == "sentiment@2"
        for which, seed in (("sentiment@1", 1), ("sentiment@2", 2), ("sentiment@latest", 2)):
            assert same(store.get(which), a_prompt(seed))
            assert same(load_prompt(f"{store.url}#{which}"), a_prompt(seed))
            assert read_manifest(f"{store.url}#{which}")["seed"] == seed
        assert store.manifest("sentiment@1")["seed"] == 1

    def test_a_folder_keeps_all_its_files(self, store: Store, tmp_path: Path) -> None:
        folder = a_prompt().save(tmp_path / "p")
        (folder / "README.md").write_text("hello")
        (folder / ".hidden").write_text("not this")
        version = store.put(folder, "p")
        assert sorted(version.files) == ["README.md", "history.jsonl", "prompt.json", "prompt.safetensors"]
        out = store.pull("p@1", tmp_path / "out")
        for name in version.files:
            assert (out / name).read_bytes() == (folder / name).read_bytes()
        assert sorted(path.name for path in out.iterdir()) == sorted(version.files)

    def test_a_version_in_a_folder_is_a_saved_prompt(self, store: Store) -> None:
        store.put(a_prompt(), "p")
        assert same(load_prompt(Path(store.url) / "p" / "1"), a_prompt())

    def test_from_store_to_store(self, store: Store, tmp_path: Path) -> None:
        store.put(a_prompt(), "p")
        other = Store(tmp_path / "other")
        assert other.put(f"{store.url}#p@1", "q").files == store.version("p@1").files

    def test_who(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOGNAME", "ada")
        assert store.put(a_prompt(), "p").by.startswith("ada@")

        def nobody() -> str:
            raise OSError("no such user")

        monkeypatch.setattr(metadata.getpass, "getuser", nobody)
        assert store.put(a_prompt(), "p").by.startswith(f"{os.getuid()}@")

    def test_list(self, store: Store) -> None:
        for name in ("b", "a", "b"):
            store.put(a_prompt(), name)
        store.promote("b@2", "prod")
        (Path(store.url) / "notes.txt").write_text("a file that is nothing of ours")
        (Path(store.url) / "Empty").mkdir()
        (Path(store.url) / "empty").mkdir()
        listed = [(one.name, one.numbers, one.aliases) for one in store.list()]
        assert listed == [("a", (1,), {}), ("b", (1, 2), {"prod": 2})]
        assert [str(one) for one in store.versions("b")] == ["b@1", "b@2"]
        assert store.aliases("b") == {"prod": 2}

    def test_on_s3(self, bucket: str, tmp_path: Path) -> None:
        store = Store(bucket)
        store.put(a_prompt(1), "p")
        store.put(a_prompt(2, parent=f"{bucket}#p@1"), "p")
        store.promote("p@1", "prod")
        store.promote("p@2", "prod")
        assert same(load_prompt(f"{bucket}#p@prod"), a_prompt(2, parent=f"{bucket}#p@1"))
        store.rollback("p@prod")
        assert same(load_prompt(f"{bucket}#p@prod"), a_prompt(1))
        assert [(one.name, one.numbers, one.aliases) for one in store.list()] == [("p", (1, 2), {"prod": 1})]
        assert store.lineage("p@2") == ("p@2", "p@1")
        assert same(load_prompt(store.pull("p@latest", tmp_path / "out")), a_prompt(2, parent=f"{bucket}#p@1"))

    def test_default_store(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        store.put(a_prompt(), "p")
        monkeypatch.setenv("SOFTPROMPT_STORE", store.url)
        assert same(load_prompt("p@1"), a_prompt())
        assert Store().url == store.url

    def test_a_folder_of_that_spelling(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("SOFTPROMPT_STORE", raising=False)
        a_prompt().save(tmp_path / "p@1")
        assert same(load_prompt("./p@1"), a_prompt())
        assert same(load_prompt(Path("p@1")), a_prompt())
        with pytest.raises(StoreError, match="SOFTPROMPT_STORE"):
            load_prompt("p@1")


class TestAbsent:
    def test_no_store(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match=r"'.*none' is no store, it holds no softprompt-store.json"):
            Store(tmp_path / "none").list()
        (tmp_path / "folder").mkdir()
        with pytest.raises(StoreError, match="is no store"):
            load_prompt(f"{tmp_path}/folder#a@1")
        assert list((tmp_path / "folder").iterdir()) == []

    @pytest.mark.parametrize(
        ("which", "words"),
        [
            ("q@1", r"holds no q@1|holds no 'q'"),
            ("q@latest", "holds no 'q': softprompt list"),
            ("p@3", "holds no p@3, its versions are 1, 2"),
            ("p@prod", "'p' in the store .* has no alias 'prod', its aliases are latest, test"),
            ("p", r"expected \[STORE#\]NAME@VERSION"),
            ("../p@1", "expected the name of a prompt"),
            ("other#p@1", "expected NAME@VERSION or NAME@ALIAS in the store"),
        ],
    )
    def test_what(self, store: Store, which: str, words: str) -> None:
        store.put(a_prompt(), "p")
        store.put(a_prompt(), "p")
        store.promote("p@1", "test")
        with pytest.raises(StoreError, match=words):
            store.get(which)

    @pytest.mark.parametrize("name", ["../p", "a/b", "", "P", "p@1"])
    def test_nothing_is_written_under_a_wrong_name(self, store: Store, name: str) -> None:
        with pytest.raises(StoreError, match="expected the name of a prompt"):
            store.put(a_prompt(), name)
        assert not Path(store.url).exists()

    def test_the_last_number(self, store: Store) -> None:
        store.put(a_prompt(), "p")
        (Path(store.url) / "p" / "999999999").mkdir()
        with pytest.raises(StoreError, match="has no more numbers for 'p': use another name"):
            store.put(a_prompt(), "p")
        assert str(store.version("p@latest")) == "p@1"

    def test_pulling_over_a_folder(self, store: Store, tmp_path: Path) -> None:
        store.put(a_prompt(), "p")
        with pytest.raises(OutputError, match="exists already"):
            store.pull("p@1", tmp_path)

    @pytest.mark.parametrize(
        ("what", "words"),
        [
            ("nothing", "is no saved prompt, it is no folder"),
            ("empty", "is no saved prompt, it holds no prompt.json"),
            ("folder within", "cannot be kept in a store: expected a regular file; move it out"),
            ("odd name", "a version cannot hold a file of the name 'a b'"),
            ("our name", "a version cannot hold a file of the name 'version.json'"),
            ("many", "a version holds at most 64 files, got 103"),
            ("damaged", "is damaged: its SHA-256"),
        ],
    )
    def test_what_cannot_be_put(self, store: Store, tmp_path: Path, what: str, words: str) -> None:
        folder = tmp_path / "p"
        if what == "empty":
            folder.mkdir()
        elif what != "nothing":
            a_prompt().save(folder)
        if what == "folder within":
            (folder / "inner").mkdir()
        for name in {"odd name": ["a b"], "our name": ["version.json"], "many": [f"{n}" for n in range(100)]}.get(
            what, ()
        ):
            (folder / name).write_text("x")
        if what == "damaged":
            (folder / "prompt.safetensors").write_bytes(b"x")
        with pytest.raises(SoftpromptError, match=words):
            store.put(folder, "p")
        assert not (Path(store.url) / "p").exists()


class TestAliases:
    def test_promote_and_rollback(self, store: Store) -> None:
        for seed in range(3):
            store.put(a_prompt(seed), "p")
        for number in (1, 2, 3):
            move = store.promote(f"p@{number}", "prod", by="me")
            assert (move.action, move.to, move.by, move.forced, move.gate) == ("promote", number, "me", False, None)
        assert store.rollback("p@prod").to == 2
        # from where it was brought back to, not to where it was brought back from
        assert store.rollback("p@prod").to == 1
        assert store.aliases("p") == {"prod": 1}
        with pytest.raises(StoreError, match=r"p@prod cannot be rolled back, it has been at p@1 only"):
            store.rollback("p@prod")
        store.promote("p@3", "prod")
        assert store.rollback("p@prod").to == 1
        moves = [(move.action, move.before, move.to) for move in store.history("p@prod")]
        assert moves == [
            ("promote", None, 1),
            ("promote", 1, 2),
            ("promote", 2, 3),
            ("rollback", 3, 2),
            ("rollback", 2, 1),
            ("promote", 1, 3),
            ("rollback", 3, 1),
        ]

    def test_aliases_are_apart(self, store: Store) -> None:
        store.put(a_prompt(), "p")
        store.put(a_prompt(), "p")
        store.promote("p@1", "prod")
        store.promote("p@latest", "test")
        store.promote("p@prod", "canary")
        assert store.aliases("p") == {"canary": 1, "prod": 1, "test": 2}

    def test_where_it_is_already(self, store: Store) -> None:
        store.put(a_prompt(), "p")
        first = store.promote("p@1", "prod")
        assert store.promote("p@1", "prod") == first
        assert len(store.history("p@prod")) == 1

    def test_never_promoted(self, store: Store) -> None:
        store.put(a_prompt(), "p")
        with pytest.raises(StoreError, match="it was never promoted: promote another version"):
            store.rollback("p@prod")

    @pytest.mark.parametrize("alias", ["latest", "1", "../x", "a/b", ""])
    def test_wrong_alias(self, store: Store, alias: str) -> None:
        store.put(a_prompt(), "p")
        with pytest.raises(StoreError, match="expected an alias"):
            store.promote("p@1", alias)

    def test_moved_meanwhile(self, store: Store) -> None:
        for seed in range(3):
            store.put(a_prompt(seed), "p")
        store.promote("p@1", "prod")

        def slow(new: Prompt, in_place: Prompt) -> Any:
            assert (new.seed, in_place.seed) == (1, 0)
            Store(store.url).promote("p@3", "prod", by="ada")

        with pytest.raises(StoreError, match=r"p@prod was moved to p@3 meanwhile, by ada: nothing was changed"):
            store.promote("p@2", "prod", gate=slow_but_open(slow))
        assert store.aliases("p") == {"prod": 3}

    def test_a_damaged_version_is_not_promoted(self, store: Store) -> None:
        store.put(a_prompt(), "p")
        (Path(store.url) / "p" / "1" / "history.jsonl").write_text("x")
        with pytest.raises(StoreError, match=r"'p@1' in .* is damaged: the size or SHA-256 of history.jsonl is not"):
            store.promote("p@1", "prod")
        assert store.aliases("p") == {}

    def test_an_answer_that_was_lost(self, store: Store) -> None:
        store.put(a_prompt(), "p")
        files = artifacts.ArtifactStore(store.url)
        move = metadata.AliasChange.new("promote", name="p", alias="prod", before=None, to=1)
        assert files.append([], move) == move
        assert files.append([], move) == move
        assert len(files.alias_changes("p", "prod")) == 1


def slow_but_open(slow: Any) -> Any:
    """A gate that lets everything pass, after something else happened."""

    class Passed:
        passed = True

        def figures(self) -> dict[str, Any]:
            return {}

    def gate(new: Prompt, in_place: Prompt) -> Any:
        slow(new, in_place)
        return Passed()

    return gate


class TestLineage:
    def test_within_the_store(self, store: Store) -> None:
        store.put(a_prompt(1, parent="prompts/first"), "a")
        store.put(a_prompt(2, parent=f"{store.url}#a@1"), "b")
        assert store.put(a_prompt(3, parent=f"{store.url}#b@1"), "b").parent == "b@1"
        assert store.lineage("b@2") == ("b@2", "b@1", "a@1", "prompts/first")

    def test_stays_true_where_the_store_is_moved(self, store: Store, tmp_path: Path) -> None:
        store.put(a_prompt(1), "a")
        store.put(a_prompt(2, parent=f"{store.url}#a@1"), "a")
        Path(store.url).rename(tmp_path / "moved")
        assert Store(tmp_path / "moved").lineage("a@2") == ("a@2", "a@1")

    def test_ends_in_another_store(self, store: Store) -> None:
        store.put(a_prompt(1, parent="s3://elsewhere#a@1"), "a")
        store.put(a_prompt(1, parent="nosuch://elsewhere#a@1"), "a")
        assert store.lineage("a@1") == ("a@1", "s3://elsewhere#a@1")
        assert store.lineage("a@2") == ("a@2", "nosuch://elsewhere#a@1")

    def test_a_circle_ends(self, store: Store) -> None:
        store.put(a_prompt(parent=f"{store.url}#a@1"), "a")
        assert store.lineage("a@1") == ("a@1",)

    def test_pinned(self, store: Store) -> None:
        store.put(a_prompt(), "a")
        store.promote("a@1", "prod")
        assert pin_reference(f"{store.url}#a@prod") == f"{store.url}#a@1"
        assert pin_reference("prompts/a") == "prompts/a"


class TestDiff:
    def test_settings_metrics_and_vectors(self, store: Store) -> None:
        store.put(a_prompt(1, accuracy=0.5, learning_rate=0.1), "p")
        store.put(a_prompt(2, accuracy=0.75, patience=3), "p")
        found = store.diff("p@1", "p@2")
        assert found.settings == {
            "seed": (1, 2),
            "training.learning_rate": (0.1, None),
            "training.patience": (None, 3),
        }
        before, after = found.metrics["validation accuracy"]
        assert (before["value"], after["value"]) == (0.5, 0.75)
        assert found.average_tokens is not None
        assert -1 <= found.average_tokens < 1
        assert found.to_dict()["similarity"]["nearest_tokens"] == found.nearest_tokens

    def test_the_same(self, store: Store) -> None:
        store.put(a_prompt(), "p")
        found = store.diff("p@1", "p@latest")
        assert found.settings == {}
        assert found.average_tokens == pytest.approx(1)

    def test_other_models(self, store: Store) -> None:
        store.put(a_prompt(), "p")
        store.put(replace(a_prompt(), base_name="other", base_fingerprint={"weights": "f" * 64}), "p")
        found = store.diff("p@1", "p@2")
        assert found.settings["base.name"] == ("tiny", "other")
        assert found.average_tokens is None
        assert found.to_dict()["similarity"] == {"reason": found.reason}
        assert "it was learned on 'other', expected 'tiny'" in str(found.reason)


class TestDamage:
    @pytest.mark.parametrize(
        ("file", "content", "words"),
        [
            ("p/1/prompt.json", None, "is damaged: prompt.json is missing"),
            ("p/1/prompt.json", b"{}", "the size or SHA-256 of prompt.json is not the one in version.json"),
            ("p/1/prompt.json", b"x" * 10_000, "cannot read .*expected at most [0-9,]+ bytes, got 10,000"),
            ("p/1/version.json", None, "holds no p@1"),
            ("p/1/version.json", b"{", "'p/1/version.json' in the store .* is damaged: "),
            ("p/1/version.json", b"[1]", "has schema version None, expected 1"),
            ("p/1/version.json", b'{"schema_version": 2}', "has schema version 2, expected 1"),
            ("p/1/version.json", b'{"schema_version": 1, "evil": 1}', "is damaged: name: Field required"),
            ("softprompt-store.json", None, "is no store"),
            ("softprompt-store.json", b'{"schema_version": 7}', "has schema version 7"),
            ("p/aliases/prod/1.json", b"", "'p/aliases/prod/1.json' in the store .* is damaged"),
            ("p/aliases/prod/1.json", None, "the history of p@prod in the store .* is damaged: a move is missing"),
        ],
    )
    def test_is_told_in_one_line(self, store: Store, file: str, content: bytes | None, words: str) -> None:
        store.put(a_prompt(), "p")
        store.put(a_prompt(), "p")
        store.promote("p@1", "prod")
        store.promote("p@2", "prod")
        store.promote("p@1", "prod")
        path = Path(store.url) / file
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        with pytest.raises(StoreError, match=words) as caught:
            Store(store.url).history("p@prod") if "aliases" in file else Store(store.url).get("p@1")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("change", [{"name": "q"}, {"number": 2}, {"files": {}}, {"files": {"../x": {}}}])
    def test_a_record_that_says_something_else(self, store: Store, change: dict[str, Any]) -> None:
        store.put(a_prompt(), "p")
        path = Path(store.url) / "p" / "1" / "version.json"
        path.write_text(json.dumps(seal({**unseal(json.loads(path.read_text())), **change})))
        with pytest.raises((StoreError, PromptFileError), match=r"damaged|is no saved prompt"):
            store.get("p@1")


def test_training_starts_from_a_version_not_from_an_alias(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(a_prompt(), "p")
    store.promote("p@1", "prod")
    seen = []

    def stop(base: object, task: object, configs: dict[str, TrainConfig], *_: object) -> None:
        seen.extend(config.init for config in configs.values())
        raise StopIteration

    fitting = import_module("softprompt.training.fit")
    monkeypatch.setattr(fitting, "report_data_notes", lambda *_: None)
    model = SimpleNamespace(
        processes=SINGLE_PROCESS,
        name="m",
        precision="float32",
        architecture="decoder-only",
        tokenizer=SimpleNamespace(chat_template=None),
    )
    monkeypatch.setattr(fitting, "load_checked", lambda base, check: model)
    monkeypatch.setattr(fitting, "train_together", stop)
    from helpers.small_tasks import reviews_task

    configs = {
        "a": TrainConfig.build(init=f"prompt:{store.url}#p@prod"),
        "b": TrainConfig.build(init="text:prompt:x@1"),
    }
    with pytest.raises(StopIteration):
        fit("a model", reviews_task(), config=configs)
    assert seen == [f"prompt:{store.url}#p@1", "text:prompt:x@1"]
