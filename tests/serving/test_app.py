"""The HTTP server: what each route answers, compared with the prompt asked directly."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_server import BASE_NAME, LABELS, MORE, WORDS, Place, a_store, error_of, expected, prompt, the_base
from starlette.testclient import TestClient

from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictor import Predictor
from softprompt.store.version_store import Store

TEXT = "a fine film"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.of_store(a_store(tmp_path_factory.mktemp("app")))


@pytest.fixture(scope="module")
def client(place: Place) -> Iterator[TestClient]:
    with place.client() as client:
        yield client


def events(response: Any) -> list[dict[str, Any]]:
    """The events of a stream, which ends as OpenAI's do."""
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    *parts, last, rest = response.text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    return [json.loads(part.removeprefix("data: ")) for part in parts]


class TestModels:
    def test_all_names_are_listed(self, client: TestClient) -> None:
        listed = client.get("/v1/models").json()
        ids = [one["id"] for one in listed["data"]]
        tone = ["tone", "tone@prod", "tone@latest", "tone@1", "tone@2"]
        assert listed["object"] == "list"
        assert ids[0] == BASE_NAME
        assert ids == sorted(set(ids), key=ids.index)
        assert [id for id in ids if id.startswith("tone")] == tone

    @pytest.mark.parametrize(
        ("name", "version"),
        [("tone", 1), ("tone@prod", 1), ("tone@latest", 2), ("tone@2", 2), ("tone@1", 1)],
    )
    def test_names_lead_to_versions(self, client: TestClient, name: str, version: int) -> None:
        facts = client.get(f"/v1/models/{name}").json()
        assert (facts["id"], facts["object"]) == (name, "model")
        assert facts["softprompt"]["version"] == f"tone@{version}"

    def test_facts_of_a_prompt(self, client: TestClient) -> None:
        facts = client.get("/v1/models/more@1").json()["softprompt"]
        assert facts == {
            "version": "more@1",
            "loaded": True,
            "kind": "classification",
            "labels": ["no", "yes"],
            "template": MORE.template,
            "columns": ["text", "title"],
            "virtual_tokens": 4,
        }

    def test_how_well_a_prompt_was_found_to_do(self, tmp_path: Path) -> None:
        found = {"metric": "accuracy", "value": 0.9, "low": 0.8, "high": 0.95, "n": 100, "others": {}}
        expected_of = {
            "both": ({"validation": {**found, "n": 50}, "test": found}, {"split": "test", "n": 100}),
            "one": ({"validation": {**found, "n": 50}}, {"split": "validation", "n": 50}),
            "none": ({}, None),
            "odd": ({"test": {**found, "value": "<b>", "n": -1}}, None),
            "list": ({"test": [1]}, None),
        }
        store = Store(tmp_path / "store")
        for name, (metrics, _) in expected_of.items():
            store.put(replace(prompt(), metrics=metrics), name)
        with Place.of_store(store, examples={"one": "a film"}).client() as client:
            for name, (_, wanted) in expected_of.items():
                facts = client.get(f"/v1/models/{name}").json()["softprompt"]
                assert facts.get("example") == ("a film" if name == "one" else None)
                rest = {"metric": "accuracy", "value": 0.9, "low": 0.8, "high": 0.95}
                assert facts.get("measured") == (None if wanted is None else {**rest, **wanted})

    @pytest.mark.parametrize("said", ["a film", "", " ", 3, None, ["a"], "x" * 2001])
    def test_the_example_that_a_prompt_brings(self, tmp_path: Path, said: object) -> None:
        store = Store(tmp_path / "store")
        store.put(replace(prompt(), training={"example": said}), "tone")
        good = said if said == "a film" else None
        for settings, wanted in (({}, good), ({"examples": {"tone": "mine"}}, "mine")):
            with Place.of_store(store, **settings).client() as client:
                assert client.get("/v1/models/tone").json()["softprompt"].get("example") == wanted

    def test_the_base_model(self, client: TestClient) -> None:
        facts = client.get(f"/v1/models/{BASE_NAME}").json()
        assert facts["id"] == BASE_NAME
        assert facts["softprompt"] is None

    @pytest.mark.parametrize("name", ["tone@3", "tone@no", "tone@", "none", "TONE", "tone@01", "tone@1@1", "tone @1"])
    def test_unknown_names(self, client: TestClient, name: str) -> None:
        error = error_of(client.get(f"/v1/models/{name}"), 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")


class TestCompletions:
    def ask(self, client: TestClient, **body: Any) -> dict[str, Any]:
        response = client.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def test_generation(self, client: TestClient) -> None:
        answer = self.ask(client, model="words", prompt=TEXT)
        (direct,) = expected(WORDS, 3, Example(TEXT))
        assert (answer["object"], answer["model"]) == ("text_completion", "words@1")
        (choice,) = answer["choices"]
        assert choice == {"index": 0, "text": direct["completion"], "finish_reason": "stop", "logprobs": None}
        usage = answer["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["completion_tokens"] > 0

    def test_several_texts(self, client: TestClient) -> None:
        texts = ["one film", "two films", "three"]
        choices = self.ask(client, model="words", prompt=texts)["choices"]
        direct = expected(WORDS, 3, *map(Example, texts))
        assert [(one["index"], one["text"]) for one in choices] == [(one["index"], one["completion"]) for one in direct]

    def test_a_prompt_for_classification_says_the_words_of_its_label(self, client: TestClient) -> None:
        texts = ["great", "dull", "a", "the cat", "what", "film"]
        choices = self.ask(client, model="tone@2", prompt=texts)["choices"]
        words = dict(zip(LABELS.labels, LABELS.verbalizers, strict=True))
        assert [one["text"] for one in choices] == [
            words[one["label"]] for one in expected(LABELS, 2, *map(Example, texts))
        ]
        assert {one["finish_reason"] for one in choices} == {"stop"}

    def test_the_base_model_is_given_the_bare_text(self, client: TestClient) -> None:
        (choice,) = self.ask(client, model=BASE_NAME, prompt="{{ text }} film")["choices"]
        bare = Predictor(the_base(), TaskSpec.of(template="{{ text }}"), None, GenerationConfig(max_new_tokens=8))
        (direct,) = bare.predict([Example("{{ text }} film")])
        assert choice["text"] == direct.completion

    def test_max_tokens_and_stop(self, client: TestClient) -> None:
        whole = self.ask(client, model="words", prompt=TEXT, max_tokens=16)["choices"][0]["text"]
        assert len(whole) > 4
        short = self.ask(client, model="words", prompt=TEXT, max_tokens=2)["choices"][0]["text"]
        assert short != whole
        assert whole.startswith(short)
        at = whole[3]
        stopped = self.ask(client, model="words", prompt=TEXT, max_tokens=16, stop=[at, "never"])["choices"][0]["text"]
        assert at not in stopped
        assert self.ask(client, model="words", prompt=TEXT, max_tokens=16, stop=at)["choices"][0]["text"] == stopped

    def test_sampling_by_seed(self, client: TestClient) -> None:
        hot = {"model": "words", "prompt": TEXT, "temperature": 1.5, "max_tokens": 16}
        first = self.ask(client, **hot, seed=1)["choices"][0]["text"]
        assert self.ask(client, **hot, seed=1)["choices"][0]["text"] == first
        others = {self.ask(client, **hot, seed=seed)["choices"][0]["text"] for seed in range(2, 6)}
        assert others - {first}
        unseeded = {self.ask(client, **hot)["choices"][0]["text"] for _ in range(4)}
        assert len(unseeded) > 1
        several = {**hot, "prompt": [TEXT] * 4, "seed": 1}
        texts = [choice["text"] for choice in self.ask(client, **several)["choices"]]
        assert texts[0] == first
        assert len(set(texts)) > 1
        assert [choice["text"] for choice in self.ask(client, **several)["choices"]] == texts
        greedy = self.ask(client, model="words", prompt=TEXT, max_tokens=16)["choices"][0]["text"]
        assert self.ask(client, **hot, top_k=1)["choices"][0]["text"] == greedy
        assert self.ask(client, **hot, top_p=1e-6)["choices"][0]["text"] == greedy

    def test_columns_of_the_template(self, client: TestClient) -> None:
        (choice,) = self.ask(client, model="more", prompt=TEXT, columns={"title": "T", "year": 1999})["choices"]
        (direct,) = expected(MORE, 4, Example(TEXT, columns={"title": "T"}))
        assert choice["text"] == direct["label"]
        error = error_of(client.post("/v1/completions", json={"model": "more", "prompt": TEXT}), 422)
        assert error["code"] == "unusable_text"
        assert "title" in error["message"]

    def test_a_stream_gives_the_same(self, client: TestClient) -> None:
        body = {
            "model": "words",
            "prompt": [TEXT, "another"],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        parts = events(client.post("/v1/completions", json=body))
        whole = self.ask(client, model="words", prompt=[TEXT, "another"])
        grown = {0: "", 1: ""}
        for part in parts[:-1]:
            (choice,) = part["choices"]
            grown[choice["index"]] += choice["text"]
            assert part["usage"] is None
            assert part["object"] == "text_completion"
        assert list(grown.values()) == [one["text"] for one in whole["choices"]]
        assert (parts[-1]["choices"], parts[-1]["usage"]) == ([], whole["usage"])
        assert len({part["id"] for part in parts}) == 1
        assert sum(part["choices"][0]["finish_reason"] == "stop" for part in parts[:-1]) == 2

    def test_a_stream_without_usage(self, client: TestClient) -> None:
        parts = events(client.post("/v1/completions", json={"model": "tone", "prompt": TEXT, "stream": True}))
        assert [part["choices"][0]["finish_reason"] for part in parts] == ["stop"]
        assert "usage" not in parts[0]


class TestChat:
    def test_the_message_is_the_text(self, client: TestClient) -> None:
        parts = [{"type": "text", "text": "a fine"}, {"type": "text", "text": "film"}]
        for content, text in ((TEXT, TEXT), (parts, "a fine\nfilm")):
            body = {"model": "words", "messages": [{"role": "user", "content": content}], "max_completion_tokens": 8}
            answer = client.post("/v1/chat/completions", json=body).json()
            (direct,) = expected(WORDS, 3, Example(text))
            assert answer["object"] == "chat.completion"
            message = {"role": "assistant", "content": direct["completion"], "refusal": None}
            assert answer["choices"] == [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}]

    def test_a_stream(self, client: TestClient) -> None:
        body = {"model": "words", "messages": [{"role": "user", "content": TEXT}], "stream": True}
        parts = events(client.post("/v1/chat/completions", json=body))
        (direct,) = expected(WORDS, 3, Example(TEXT))
        deltas = [part["choices"][0]["delta"] for part in parts]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in deltas) == direct["completion"]
        assert {part["object"] for part in parts} == {"chat.completion.chunk"}
        assert [part["choices"][0]["finish_reason"] for part in parts][-1] == "stop"

    @pytest.mark.parametrize(
        "messages",
        [
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}],
            [{"role": "user", "content": "Hello"}, {"role": "user", "content": TEXT}],
            [{"role": "assistant", "content": TEXT}],
            [],
        ],
    )
    def test_more_than_one_message_of_the_user_is_refused(self, client: TestClient, messages: list[Any]) -> None:
        error = error_of(client.post("/v1/chat/completions", json={"model": "words", "messages": messages}), 422)
        assert str(error["param"]).startswith("messages")

    def test_the_last_of_several_where_that_is_set(self, tmp_path: Path) -> None:
        prompt(WORDS, 3).save(tmp_path / "words")
        turns = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        ]
        with Place.of_folders(tmp_path / "words", chat="last").client() as client:
            body = {"model": "words", "messages": [*turns, {"role": "user", "content": TEXT}]}
            answer = client.post("/v1/chat/completions", json=body).json()
            assert answer["choices"][0]["message"]["content"] == expected(WORDS, 3, Example(TEXT))[0]["completion"]
            error_of(client.post("/v1/chat/completions", json={"model": "words", "messages": turns}), 422)


class TestClassify:
    def test_one_text(self, client: TestClient) -> None:
        answer = client.post("/v1/classify", json={"model": "tone@latest", "input": TEXT}).json()
        (direct,) = expected(LABELS, 2, Example(TEXT))
        assert (answer["object"], answer["model"]) == ("classification", "tone@2")
        (result,) = answer["results"]
        assert (result["index"], result["label"]) == (0, direct["label"])
        assert result["probabilities"] == pytest.approx(direct["probabilities"], abs=1e-5)
        assert answer["usage"]["completion_tokens"] == 0
        assert answer["usage"]["prompt_tokens"] > 4

    def test_rows_and_texts(self, client: TestClient) -> None:
        rows = [{"text": "x", "title": "T"}, {"text": TEXT, "title": 3, "more": None}]
        answer = client.post("/v1/classify", json={"model": "more", "input": rows}).json()
        direct = expected(MORE, 4, Example("x", columns={"title": "T"}), Example(TEXT, columns={"title": "3"}))
        assert [one["label"] for one in answer["results"]] == [one["label"] for one in direct]
        assert [one["index"] for one in answer["results"]] == [0, 1]
        single = client.post("/v1/classify", json={"model": "more", "input": rows[0]}).json()
        assert single["results"][0]["label"] == direct[0]["label"]

    def test_a_prompt_without_labels(self, client: TestClient) -> None:
        error = error_of(client.post("/v1/classify", json={"model": "words", "input": TEXT}), 422)
        assert (error["code"], error["param"]) == ("no_labels", "model")

    def test_a_label_as_a_completion_is_counted(self, client: TestClient) -> None:
        answer = client.post("/v1/completions", json={"model": "tone", "prompt": TEXT}).json()
        assert answer["usage"]["prompt_tokens"] > 4

    def test_special_tokens_in_a_text_are_text(self, client: TestClient) -> None:
        texts = ["<bos>", "<eos> film", "<|sp:tone:0|>", "\ue000film\ue001"]
        answer = client.post("/v1/classify", json={"model": "tone", "input": texts}).json()
        direct = expected(LABELS, 1, *map(Example, texts))
        for found, one in zip(answer["results"], direct, strict=True):
            assert found["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)


class TestFields:
    @pytest.mark.parametrize(
        "harmless",
        [
            {"user": "u"},
            {"metadata": {"a": "b"}},
            {"n": 1, "best_of": 1.0, "echo": False, "suffix": "", "logprobs": None},
            {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}},
            {"store": False, "service_tier": "auto", "stream": None, "stop": None, "seed": None},
        ],
    )
    def test_harmless_ones_are_taken(self, client: TestClient, harmless: dict[str, Any]) -> None:
        answers = [
            client.post("/v1/completions", json={"model": "words", "prompt": TEXT, **more}).json()["choices"]
            for more in ({}, harmless)
        ]
        assert answers[0] == answers[1]

    @pytest.mark.parametrize(
        "changing",
        [
            {"n": 17},
            {"n": 0},
            {"best_of": 3},
            {"echo": "yes"},
            {"logprobs": 21},
            {"logprobs": True},
            {"response_format": {"type": "xml"}},
            {"suffix": "x"},
            {"frequency_penalty": 0.5},
            {"logit_bias": {"5": -100}},
            {"repetition_penalty": 1.1},
            {"max_tokens": 0},
            {"max_tokens": "8"},
            {"max_tokens": True},
            {"max_tokens": 33},
            {"temperature": -1},
            {"temperature": 2.5},
            {"top_p": 0},
            {"seed": 1.5},
            {"seed": 2**63},
            {"stop": [""]},
            {"stop": ["x"] * 17},
            {"stream": "yes"},
            {"columns": {"text": "again"}},
            {"prompt": ""},
            {"prompt": " \n\x1f\u2003"},
            {"prompt": []},
            {"prompt": [1, "2"]},
            {"prompt": [1, -2]},
            {"prompt": [[1], []]},
            {"prompt": None},
            {"prompt": ["x"] * 129},
            {"model": ""},
            {"model": None},
        ],
        ids=str,
    )
    def test_what_would_change_the_answer_is_refused(self, client: TestClient, changing: dict[str, Any]) -> None:
        error = error_of(client.post("/v1/completions", json={"model": "words", "prompt": TEXT, **changing}), 422)
        assert error["type"] == "invalid_request_error"
        name = next(iter(changing))
        assert name in f"{error['param']} {error['message']}" or error["code"] in ("too_many_texts", "unusable_text")

    @pytest.mark.parametrize(
        "changing",
        [
            {"tools": [{"type": "function"}]},
            {"response_format": {"type": "json_schema"}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            {"logprobs": 2},
            {"top_logprobs": 21, "logprobs": True},
            {"n": 17},
            {"reasoning_effort": "high"},
            {"modalities": ["audio"]},
            {"tool_choice": "required"},
        ],
        ids=str,
    )
    def test_what_would_change_a_chat_is_refused(self, client: TestClient, changing: dict[str, Any]) -> None:
        body = {"model": "words", "messages": [{"role": "user", "content": TEXT}]}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        error = error_of(client.post("/v1/chat/completions", json={**body, **changing}), 422)
        assert str(error["param"]).startswith(next(iter(changing)))


class TestPages:
    def test_health(self, client: TestClient) -> None:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json() == client.get("/health").json() == {"status": "ok"}

    def test_docs_need_nothing_of_others(self, client: TestClient) -> None:
        page = client.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        assert "/v1/classify" in page.text
        for outside in ("<script", "http://", "https://", "//cdn", "@import"):
            assert outside not in page.text

    def test_openapi_has_the_limits(self, client: TestClient) -> None:
        page = client.get("/openapi.json").json()
        assert set(page["paths"]) == {
            "/v1/completions",
            "/v1/chat/completions",
            "/v1/classify",
            "/v1/models",
            "/v1/models/{model}",
            "/metrics",
            "/admin/reload",
            "/healthz",
            "/readyz",
        }
        body = page["components"]["schemas"]["CompletionRequest"]["properties"]
        assert body["max_tokens"]["anyOf"][0]["maximum"] == 32
        assert body["prompt"]["anyOf"][1]["maxItems"] == 128

    def test_other_paths_and_methods(self, client: TestClient) -> None:
        assert error_of(client.get("/v2/models"), 404)["code"] == "not_found"
        wrong = client.get("/v1/completions")
        assert error_of(wrong, 405)["code"] == "method_not_allowed"
        assert wrong.headers["allow"] == "POST"
