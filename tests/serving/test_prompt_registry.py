"""A store that changes while requests run: promotions, rollbacks, new and removed versions, damage."""

import asyncio
import shutil
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.saved_prompts import a_prompt
from helpers.tiny_models import tiny_base
from helpers.tiny_server import BASE_NAME, LABELS, WORDS, Place, a_store, error_of, expected, prompt, the_base, wait_for
from starlette.testclient import TestClient

from softprompt.data.examples import Example
from softprompt.errors import ConfigError, PromptFileError, StoreError
from softprompt.serving.engine.prompt_registry import ModelNotFoundError, ModelUnavailableError, PromptRegistry
from softprompt.store.artifacts import ArtifactStore
from softprompt.store.prompt_sources import FolderSource, StoreSource
from softprompt.store.version_store import Store

TEXT = "a fine film"


def answered_by(client: TestClient, model: str) -> str:
    response = client.post("/v1/classify", json={"model": model, "input": TEXT})
    assert response.status_code == 200, response.text
    return str(response.json()["model"])


def reload(client: TestClient) -> dict[str, Any]:
    response = client.post("/admin/reload")
    assert response.status_code == 200, response.text
    changes: dict[str, Any] = response.json()
    return changes


class TestReload:
    def test_promotion_rollback_and_new_versions(self, tmp_path: Path) -> None:
        store = a_store(tmp_path)
        with Place.of_store(store).client() as client:
            assert answered_by(client, "tone") == "tone@1"
            store.promote("tone@2", "prod")
            assert answered_by(client, "tone") == "tone@1"
            assert reload(client) == {"added": [], "removed": [], "moved": ["tone@prod"], "troubles": []}
            assert answered_by(client, "tone") == answered_by(client, "tone@prod") == "tone@2"
            store.rollback("tone@prod")
            store.put(prompt(seed=9), "tone")
            store.put(prompt(seed=10), "other")
            assert reload(client)["added"] == ["other@1", "tone@3"]
            assert answered_by(client, "tone") == "tone@1"
            assert answered_by(client, "tone@latest") == "tone@3"
            assert answered_by(client, "other") == "other@1"
            assert reload(client) == {"added": [], "removed": [], "moved": [], "troubles": []}

    def test_another_precision_is_told(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        store = a_store(tmp_path)
        store.put(replace(prompt(seed=9), base_dtype="bfloat16"), "tone")
        store.put(replace(prompt(seed=9), base_dtype="float32"), "tone")
        with Place.of_store(store).client() as client:
            told = [client.get(f"/v1/models/tone@{number}").json()["softprompt"] for number in (1, 3, 4)]
        assert [facts.get("learned_in") for facts in told] == [None, "bfloat16", None]
        reasons = [
            vars(one)["fields"]["reason"] for one in caplog.records if one.getMessage() == "prompt of another precision"
        ]
        assert len(reasons) == 1
        assert "learned in bfloat16, the base model is loaded in float32" in reasons[0]

    def test_it_looks_by_itself(self, tmp_path: Path) -> None:
        store = a_store(tmp_path)
        with Place.of_store(store, refresh=0.05).client() as client:
            store.promote("tone@2", "prod")
            wait_for(lambda: answered_by(client, "tone") == "tone@2")

    def test_no_request_is_dropped(self, tmp_path: Path) -> None:
        store, ended = a_store(tmp_path), threading.Event()
        direct = {f"tone@{seed}": expected(LABELS, seed, Example(TEXT))[0] for seed in (1, 2)}
        statuses: Counter[int] = Counter()
        wrong: list[Any] = []

        def ask(address: str) -> None:
            with httpx.Client(base_url=address, timeout=60) as client:
                while not ended.is_set():
                    response = client.post("/v1/classify", json={"model": "tone", "input": TEXT})
                    statuses[response.status_code] += 1
                    answer = response.json()
                    found = answer["results"][0]["probabilities"]
                    if found != pytest.approx(direct[answer["model"]]["probabilities"], abs=1e-5):
                        wrong.append(answer)

        place = Place.of_store(store, refresh=0.02)
        with place.running() as address:
            threads = [threading.Thread(target=ask, args=(address,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            for _ in range(4):
                for change in (lambda: store.promote("tone@2", "prod"), lambda: store.rollback("tone@prod")):
                    before = len(place.engine.asked)
                    change()
                    wait_for(lambda before=before: len(place.engine.asked) > before + 10)
            ended.set()
            for thread in threads:
                thread.join(60)
        assert wrong == []
        assert set(statuses) == {200}
        assert {key.partition(":")[0] for key in place.engine.asked} == {"tone@1", "tone@2"}

    def test_what_runs_keeps_its_version(self, tmp_path: Path) -> None:
        store = a_store(tmp_path)
        place = Place.of_store(store)
        place.engine.hold.set()
        answers: list[str] = []
        with place.running() as address:
            body = {"model": "tone", "input": TEXT}
            asking = threading.Thread(
                target=lambda: answers.append(
                    httpx.post(f"{address}/v1/classify", json=body, timeout=60).json()["model"]
                )
            )
            asking.start()
            wait_for(lambda: place.engine.asked)
            store.promote("tone@2", "prod")
            shutil.rmtree(tmp_path / "store" / "tone" / "1")
            httpx.post(f"{address}/admin/reload")
            error_of(httpx.post(f"{address}/v1/classify", json={**body, "model": "tone@1"}), 404)
            place.engine.hold.clear()
            asking.join(60)
            assert httpx.post(f"{address}/v1/classify", json=body).json()["model"] == "tone@2"
        assert answers == ["tone@1"]

    def test_a_store_that_is_gone_leaves_all_as_it_was(self, tmp_path: Path) -> None:
        with Place.of_store(a_store(tmp_path), refresh=0.05).client() as client:
            (tmp_path / "store").rename(tmp_path / "away")
            error = error_of(client.post("/admin/reload"), 503)
            assert error["code"] == "not_reloaded"
            wait_for(lambda: 'softprompt_refreshes_total{result="failed"}' in client.get("/metrics").text)
            assert answered_by(client, "tone") == "tone@1"
            (tmp_path / "away").rename(tmp_path / "store")
            reload(client)
            assert answered_by(client, "tone@2") == "tone@2"


class TestDamage:
    def break_file(self, folder: Path, how: str) -> None:
        file = folder / "tone" / "1" / "prompt.safetensors"
        if how == "bytes":
            file.write_bytes(file.read_bytes()[:-4] + b"oops")
        elif how == "file":
            file.unlink()
        elif how == "manifest":
            (folder / "tone" / "1" / "prompt.json").write_bytes(b"{")
        else:
            (folder / "tone" / "1" / "version.json").write_bytes(b"[]")

    @pytest.mark.parametrize("how", ["bytes", "file", "manifest", "record"])
    def test_a_damaged_version_hurts_its_own_requests(self, tmp_path: Path, how: str) -> None:
        store = a_store(tmp_path)
        kept = shutil.copytree(tmp_path / "store" / "tone" / "1", tmp_path / "kept")
        self.break_file(tmp_path / "store", how)
        with Place.of_store(store).client() as client:
            for model in ("tone", "tone@prod", "tone@1"):
                error = error_of(client.post("/v1/classify", json={"model": model, "input": TEXT}), 503)
                assert (error["type"], error["code"]) == ("server_error", "model_unavailable")
                assert str(tmp_path) not in error["message"]
            assert answered_by(client, "tone@2") == "tone@2"
            assert client.post("/v1/completions", json={"model": "words", "prompt": TEXT}).status_code == 200
            assert reload(client)["removed"] == []
            listed = {one["id"]: one["softprompt"] for one in client.get("/v1/models").json()["data"]}
            assert "damaged" in listed["tone@1"]["error"]
            # what is mended is found at the next look
            shutil.rmtree(tmp_path / "store" / "tone" / "1")
            shutil.copytree(kept, tmp_path / "store" / "tone" / "1")
            reload(client)
            assert answered_by(client, "tone") == "tone@1"

    @pytest.mark.parametrize("how", ["bytes", "file", "manifest", "record"])
    def test_a_loaded_version_goes_on(self, tmp_path: Path, how: str) -> None:
        store = a_store(tmp_path)
        with Place.of_store(store).client() as client:
            self.break_file(tmp_path / "store", how)
            assert answered_by(client, "tone") == "tone@1"
            reload(client)
            assert answered_by(client, "tone") == "tone@1"

    def test_a_removed_version(self, tmp_path: Path) -> None:
        store = a_store(tmp_path)
        store.put(prompt(seed=5), "tone")
        with Place.of_store(store).client() as client:
            shutil.rmtree(tmp_path / "store" / "tone" / "2")
            error = error_of(client.post("/v1/classify", json={"model": "tone@2", "input": TEXT}), 404)
            assert error["message"] == "there is no model 'tone@2' any more, it was removed"
            assert reload(client)["removed"] == ["tone@2"]
            error_of(client.post("/v1/classify", json={"model": "tone@2", "input": TEXT}), 404)
            assert answered_by(client, "tone@latest") == "tone@3"

    def test_an_alias_of_a_removed_version(self, tmp_path: Path) -> None:
        store = a_store(tmp_path)
        with Place.of_store(store).client() as client:
            shutil.rmtree(tmp_path / "store" / "tone" / "1")
            assert answered_by(client, "tone") == "tone@1"
            reload(client)
            error_of(client.post("/v1/classify", json={"model": "tone", "input": TEXT}), 404)
            assert answered_by(client, "tone@2") == "tone@2"

    def test_a_number_given_anew_is_another_prompt(self, tmp_path: Path) -> None:
        store = a_store(tmp_path)
        place = Place.of_store(store)
        with place.client() as client:
            answered_by(client, "tone@2")
            shutil.rmtree(tmp_path / "store" / "tone" / "2")
            reload(client)
            store.put(prompt(seed=77), "tone")
            reload(client)
            answer = client.post("/v1/classify", json={"model": "tone@2", "input": TEXT}).json()
            direct = expected(LABELS, 77, Example(TEXT))[0]
            assert answer["results"][0]["probabilities"] == pytest.approx(direct["probabilities"], abs=1e-5)
        assert len(set(place.engine.asked)) == 2

    def test_one_damaged_name_leaves_the_others(self, tmp_path: Path) -> None:
        store = a_store(tmp_path)
        with Place.of_store(store).client() as client:
            (tmp_path / "store" / "tone" / "aliases" / "prod" / "1.json").write_bytes(b"{")
            (tmp_path / "store" / "link").symlink_to("/etc")
            store.put(prompt(seed=8), "new")
            changes = reload(client)
            assert changes["added"] == ["new@1"]
            (trouble,) = changes["troubles"]
            assert "tone/aliases/prod/1.json" in trouble
            # its aliases stay where they were
            assert answered_by(client, "tone") == "tone@1"
            error_of(client.post("/v1/classify", json={"model": "link", "input": TEXT}), 404)

    def test_a_prompt_of_another_base_model(self, tmp_path: Path) -> None:
        store = a_store(tmp_path)
        store.put(a_prompt(), "foreign")
        store.put(prompt(base=tiny_base("qwen3")), "other")
        with Place.of_store(store).client() as client:
            for model in ("foreign", "other"):
                error = error_of(client.post("/v1/classify", json={"model": model, "input": TEXT}), 503)
                assert "another base model" in error["message"]
            assert answered_by(client, "tone") == "tone@1"


class TestRegistry:
    def test_memory_is_bounded(self, tmp_path: Path) -> None:
        store = Store(tmp_path / "store")
        for seed in range(5):
            store.put(prompt(seed=seed), f"p{seed}")
        registry = PromptRegistry(the_base(), StoreSource(str(store.url)), base_name=BASE_NAME, max_loaded=2)
        registry.refresh()
        assert registry.loaded_count == 2
        for seed in (4, 3, 4, 0, 4):
            asyncio.run(registry.load(registry.resolve(f"p{seed}")))
        assert registry.loaded_count == 2
        assert registry.get_loaded("p4@1") is not None
        assert registry.get_loaded("p3@1") is None

    def test_who_wants_the_same_waits_for_one_reading(self, tmp_path: Path) -> None:
        store = a_store(tmp_path)
        source = StoreSource(str(store.url))
        registry = PromptRegistry(the_base(), source, base_name=BASE_NAME)
        registry.refresh()
        registry._kept.clear()
        read: list[str] = []
        load = source.load
        source.load = lambda name, number: read.append(name) or load(name, number)  # type: ignore[func-returns-value,method-assign]

        async def many() -> set[int]:
            found = registry.resolve("tone")
            return {id(one) for one in await asyncio.gather(*(registry.load(found) for _ in range(20)))}

        assert len(asyncio.run(many())) == 1
        assert read == ["tone"]

    def test_a_failure_is_not_tried_again_by_every_request(self, tmp_path: Path) -> None:
        store = a_store(tmp_path)
        source = StoreSource(str(store.url))
        (tmp_path / "store" / "tone" / "1" / "prompt.json").unlink()
        registry = PromptRegistry(the_base(), source, base_name=BASE_NAME)
        registry.refresh()

        def never(name: str, number: int) -> Any:
            raise AssertionError

        source.load = never  # type: ignore[method-assign]
        for _ in range(3):
            with pytest.raises(ModelUnavailableError, match="'tone@1' is damaged"):
                asyncio.run(registry.load(registry.resolve("tone")))

    def test_a_bare_name_without_the_alias_is_the_newest(self, tmp_path: Path) -> None:
        store = a_store(tmp_path)
        registry = PromptRegistry(the_base(), StoreSource(str(store.url)), base_name=BASE_NAME, default_alias="best")
        registry.refresh()
        assert registry.resolve("tone").id == "tone@2"
        store.promote("tone@1", "best")
        registry.refresh()
        assert registry.resolve("tone").id == "tone@1"
        with pytest.raises(ModelNotFoundError):
            registry.resolve("tone@other")

    def test_no_store(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="is no store"):
            PromptRegistry(the_base(), StoreSource(str(tmp_path)), base_name=BASE_NAME).refresh()

    def test_a_store_in_a_bucket(self, bucket: str) -> None:
        store = Store(bucket)
        store.put(prompt(seed=1), "tone")
        store.put(prompt(seed=2), "tone")
        store.promote("tone@1", "prod")
        with Place(StoreSource(bucket)).client() as client:
            assert answered_by(client, "tone") == "tone@1"
            store.promote("tone@2", "prod")
            assert reload(client)["moved"] == ["tone@prod"]
            assert answered_by(client, "tone") == "tone@2"


class TestFolders:
    def test_saved_prompts_without_a_store(self, tmp_path: Path) -> None:
        prompt(seed=1).save(tmp_path / "tone")
        prompt(WORDS, 3).save(tmp_path / "Odd Name")
        place = Place.of_folders(tmp_path / "tone", f"words={tmp_path / 'Odd Name'}")
        with place.client() as client:
            assert answered_by(client, "tone") == answered_by(client, "tone@latest") == "tone@1"
            shutil.rmtree(tmp_path / "tone")
            reload(client)
            assert answered_by(client, "tone") == "tone@1"
            answer = client.post("/v1/completions", json={"model": "words", "prompt": TEXT}).json()
            assert answer["choices"][0]["text"] == expected(WORDS, 3, Example(TEXT))[0]["completion"]

    def test_mistakes(self, tmp_path: Path) -> None:
        prompt().save(tmp_path / "Odd Name")
        prompt().save(tmp_path / "tone")
        with pytest.raises(ConfigError, match="give --prompt NAME="):
            FolderSource([str(tmp_path / "Odd Name")])
        with pytest.raises(ConfigError, match="two prompts would be called 'tone'"):
            FolderSource([str(tmp_path / "tone"), f"tone={tmp_path / 'Odd Name'}"])
        with pytest.raises(StoreError, match="expected the name of a prompt"):
            FolderSource([f"../tone={tmp_path / 'tone'}"])
        with pytest.raises(PromptFileError, match="does not exist"):
            FolderSource([str(tmp_path / "none")])
        with pytest.raises(PromptFileError, match="was learned on"):
            FolderSource([str(tmp_path / "tone")]).check_base(tiny_base("qwen3"))


@pytest.mark.parametrize("what", ["version", "whole name"])
def test_a_version_that_is_removed_while_it_is_read_is_gone(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = a_store(tmp_path)
    store.put(prompt(seed=3), "tone")
    read = ArtifactStore.read

    def too_late(self: ArtifactStore, *arguments: Any) -> dict[str, bytes]:
        shutil.rmtree(tmp_path / "store" / "tone" / ("2" if what == "version" else ""))
        return read(self, *arguments)

    with Place.of_store(store).client() as client:
        monkeypatch.setattr(ArtifactStore, "read", too_late)
        response = client.post("/v1/classify", json={"model": "tone@2", "input": TEXT})
        assert error_of(response, 404)["code"] == "model_not_found"
