"""``softprompt serve --engine vllm --engine-prompts``: prompts come and go while vLLM runs the model itself."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.fake_vllm import FakeVllm, OnVllm
from helpers.served_prompts import MANY, with_labels
from helpers.tiny_models import save_tiny
from helpers.tiny_server import LABELS, WORDS, a_store, error_of, expected, prompt, the_base
from starlette.testclient import TestClient

from softprompt.data.examples import Example
from softprompt.engines.prefix_folder import PrefixFolder, fill_folder
from softprompt.errors import ConfigError
from softprompt.inference.predictor import Predictor
from softprompt.prompts.prefix import compute_keys_and_values
from softprompt.prompts.saved_prompt import Prompt
from softprompt.serving.engine.inference_engine import EngineLimits
from softprompt.serving.engine.vllm_client import VllmClient
from softprompt.serving.engine.vllm_engine import VllmEngine
from softprompt.store.version_store import Store

TEXT, HOSTILE = "a fine film", "a <bos> film <bos>"


def as_keys_and_values(given: Prompt) -> Prompt:
    """A prompt that no virtual tokens give."""
    state = compute_keys_and_values(the_base(), given.state.tensor)
    return replace(given, states=(replace(state, tensors=tuple(1.1 * one for one in state.tensors)),))


KEYS = as_keys_and_values(prompt(seed=8))
SEVERAL = as_keys_and_values(prompt(MANY, seed=9))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("vllm") / "model", "llama")


@pytest.fixture
def folder(tmp_path: Path) -> PrefixFolder:
    return fill_folder(tmp_path / "prompts", lambda check: the_base(), lambda base: None)


@pytest.fixture
def fake(model: Path, folder: PrefixFolder) -> FakeVllm:
    return FakeVllm(model, prompts=folder.folder)


@pytest.fixture
def url(fake: FakeVllm) -> Iterator[str]:
    with fake.running() as address:
        yield address


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = a_store(tmp_path)
    store.put(KEYS, "keys")
    store.put(SEVERAL, "several")
    return store


@pytest.fixture
def client(store: Store, folder: PrefixFolder, url: str) -> Iterator[TestClient]:
    with OnVllm(store, folder, url).client() as client:
        yield client


def classify(client: TestClient, model: str, *texts: str) -> list[dict[str, float]]:
    answer = client.post("/v1/classify", json={"model": model, "input": list(texts)})
    assert answer.status_code == 200, answer.text
    return [one["probabilities"] for one in answer.json()["results"]]


def assert_close(found: list[dict[str, float]], ours: list[dict[str, float]]) -> None:
    assert found == [pytest.approx(one, abs=1e-4) for one in ours]


def test_labels_of_both_kinds_of_prompts(client: TestClient, fake: FakeVllm) -> None:
    texts = [TEXT, HOSTILE, "dull", "a story " * 30]
    for model, seed in (("tone", 1), ("tone@2", 2)):
        ours = [one["probabilities"] for one in expected(LABELS, seed, *map(Example, texts))]
        assert_close(classify(client, model, *texts), ours)
    for model, given in (("keys", KEYS), ("several", SEVERAL)):
        ours = [dict(one.probabilities or {}) for one in Predictor.of_prompt(the_base(), given).predict(texts)]
        assert_close(classify(client, model, *texts), ours)
    salts = {body["cache_salt"] for body in fake.bodies if "cache_salt" in body}
    assert len(salts) == 6  # of six versions
    # what a user writes never becomes a special token, and what holds a prompt's place is no matter
    assert all(ids.count(the_base().bos_ids[0]) == 1 + 4 for ids in fake.bodies[-1]["prompt"])


def test_completions_as_they_come(client: TestClient) -> None:
    (ours,) = [one["completion"] for one in expected(WORDS, 3, Example(TEXT))]
    body = {"model": "words", "prompt": TEXT}
    assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == ours
    assert "data: [DONE]" in client.post("/v1/completions", json={**body, "stream": True}).text
    bare = client.post("/v1/completions", json={**body, "model": "tiny"})
    assert bare.status_code == 200


def test_a_version_is_promoted_while_all_of_it_runs(store: Store, client: TestClient) -> None:
    before = classify(client, "tone", TEXT)
    store.put(prompt(seed=11), "tone")
    store.promote("tone@3", "prod")
    assert classify(client, "tone", TEXT) == before
    assert client.post("/admin/reload").json()["added"] == ["tone@3"]
    ours = [one["probabilities"] for one in expected(LABELS, 11, Example(TEXT))]
    assert_close(classify(client, "tone", TEXT), ours)
    assert_close(classify(client, "tone@1", TEXT), before)


@pytest.mark.parametrize("kind", ["ensemble", "labels"])
def test_what_vllm_cannot_hold_is_unavailable_and_others_are_not_affected(
    store: Store, client: TestClient, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = prompt(MANY, seed=12)
    states = (one.state, prompt(seed=13).state) if kind == "ensemble" else (with_labels(the_base(), one.state),)
    store.put(replace(one, states=states), "other")
    client.post("/admin/reload")
    error_of(client.post("/v1/classify", json={"model": "other", "input": TEXT}), 503)
    reasons = str([record.__dict__.get("fields") for record in caplog.records])
    assert ("is an ensemble" if kind == "ensemble" else "a soft verbalizer") in reasons
    classify(client, "tone", TEXT)


def test_log_probabilities_of_the_text_itself(client: TestClient) -> None:
    body: dict[str, Any] = {"model": "words", "prompt": TEXT, "echo": True, "logprobs": 1, "max_tokens": 1}
    error = error_of(client.post("/v1/completions", json=body), 422)
    assert "not to be had behind keys and values in vLLM" in error["message"]
    assert client.post("/v1/completions", json={**body, "logprobs": None}).json()["choices"][0]["text"].startswith(TEXT)
    assert client.post("/v1/completions", json={**body, "model": "tiny"}).status_code == 200


class TestStart:
    def engine(self, folder: PrefixFolder, url: str) -> VllmEngine:
        return VllmEngine(folder, VllmClient(url), EngineLimits())

    def test_vllm_runs_another_model(self, folder: PrefixFolder, tmp_path: Path) -> None:
        other = FakeVllm(save_tiny(tmp_path / "other", "mistral"), prompts=folder.folder)
        message = r"answers for 'the base model' are not those of .*with the connector"
        with other.running() as url, pytest.raises(ConfigError, match=message):
            self.engine(folder, url)

    def test_vllm_has_no_connector(self, folder: PrefixFolder, model: Path) -> None:
        fake = FakeVllm(model)
        fake.ignores_prompts = True
        with fake.running() as url, pytest.raises(ConfigError, match=r"answers for 'the prompt' are not those of"):
            self.engine(folder, url).check_prompt(KEYS)

    def test_vllm_reads_another_folder(self, folder: PrefixFolder, model: Path, tmp_path: Path) -> None:
        other = FakeVllm(model, prompts=tmp_path)
        with other.running() as url, pytest.raises(ConfigError, match="there is no prompt"):
            self.engine(folder, url).check_prompt(KEYS)
