"""Log-probabilities, choices, echoed texts and schemas on a vLLM server: as on our own engine, in its own fields."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.fake_vllm import FakeVllm, OnVllm
from helpers.tiny_server import WORDS, RealPlace, a_store, error_of, prompt, the_base
from starlette.testclient import TestClient

from softprompt.data.encoding.token_bytes import token_bytes
from softprompt.export.vocabulary import bake_vocabulary
from softprompt.inference.grammar import Grammar, Mark
from softprompt.serving.engine.vllm_fields import read_prompt_tokens, read_scored_tokens, write_structured_outputs

TEXT = "a fine film"
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
ATOL = 0.05  # vLLM counts virtual tokens among those that may follow, 12 of 332 here


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fields") / "baked"
    prompts = {"tone": prompt(seed=1), "tone-2": prompt(seed=2), "words": prompt(WORDS, seed=3)}
    bake_vocabulary(the_base(), prompts, folder)
    return folder


@pytest.fixture(scope="module")
def fake(baked: Path) -> FakeVllm:
    return FakeVllm(baked)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, baked: Path, fake: FakeVllm) -> Iterator[TestClient]:
    store = a_store(tmp_path_factory.mktemp("store"))
    with fake.running() as url, OnVllm(store, baked, url).client() as client:
        yield client


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with RealPlace.of_store(a_store(tmp_path_factory.mktemp("ours"))).client() as client:
        yield client


def choices(client: TestClient, **body: Any) -> list[dict[str, Any]]:
    answer = client.post("/v1/completions", json={"model": "words", "max_tokens": 6, **body})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["choices"]
    return found


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one["text"], one["finish_reason"]) == (other["text"], other["finish_reason"])
        told, known = one["logprobs"], other["logprobs"]
        assert (told["tokens"], told["text_offset"]) == (known["tokens"], known["text_offset"])
        assert told["token_logprobs"][0] == pytest.approx(known["token_logprobs"][0], abs=ATOL)
        assert told["token_logprobs"][1:] == pytest.approx(known["token_logprobs"][1:], abs=ATOL)
        for top, likeliest in zip(told["top_logprobs"], known["top_logprobs"], strict=True):
            assert top == (None if likeliest is None else pytest.approx(likeliest, abs=ATOL))


class TestLogprobs:
    def test_of_completions(self, client: TestClient, ours: TestClient) -> None:
        assert_same(choices(client, prompt=TEXT, logprobs=2), choices(ours, prompt=TEXT, logprobs=2))

    def test_of_chats(self, client: TestClient, ours: TestClient) -> None:
        body = {"model": "words", "messages": [{"role": "user", "content": TEXT}], "max_tokens": 4}
        body |= {"logprobs": True, "top_logprobs": 2}
        found, expected = (one.post("/v1/chat/completions", json=body).json()["choices"] for one in (client, ours))
        told, known = (one[0]["logprobs"]["content"] for one in (found, expected))
        assert [one["bytes"] for one in told] == [one["bytes"] for one in known]
        assert [one["logprob"] for one in told] == pytest.approx([one["logprob"] for one in known], abs=ATOL)
        assert [len(one["top_logprobs"]) for one in told] == [2] * len(known)


class TestEcho:
    @pytest.mark.parametrize("most", [0, 4])
    def test_of_strings_and_ids(self, client: TestClient, ours: TestClient, most: int) -> None:
        ids = list(the_base().tokenizer(TEXT, add_special_tokens=False).input_ids)
        bos = list(the_base().bos_ids)
        for given in (TEXT, ids, [ids, ids[:2]], [*bos, *ids]):
            body: dict[str, Any] = {"prompt": given, "echo": True, "logprobs": 1, "max_tokens": most}
            assert_same(choices(client, **body), choices(ours, **body))

    def test_virtual_tokens_are_refused(self, client: TestClient, baked: Path, fake: FakeVllm) -> None:
        size = len(the_base().tokenizer)
        body = {"model": "words", "prompt": [5, size + 1], "max_tokens": 2}
        assert "is a virtual token" in error_of(client.post("/v1/completions", json=body), 422)["message"]


class TestSchemas:
    def test_they_are_passed_on(self, client: TestClient, fake: FakeVllm) -> None:
        asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
        choices(client, prompt=TEXT, response_format=asked)
        assert fake.bodies[-1]["structured_outputs"] == {"json": SCHEMA}
        choices(client, prompt=TEXT, response_format={"type": "json_object"})
        assert fake.bodies[-1]["structured_outputs"] == {"json": {"type": "object"}}
        choices(client, prompt=TEXT)
        assert "structured_outputs" not in fake.bodies[-1]

    def test_one_that_vllm_refuses(self, client: TestClient) -> None:
        asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
        body = {"model": "words", "prompt": TEXT, "response_format": asked}
        error = error_of(client.post("/v1/completions", json=body), 400)
        assert error["code"] == "invalid_schema"
        assert "Invalid type: nothing" in error["message"]

    def test_other_grammars(self) -> None:
        tokenizer = the_base().tokenizer
        assert write_structured_outputs(Grammar.of_regex("a+"), tokenizer) == {"regex": "a+"}
        lark = write_structured_outputs(Grammar.of_sequence(Mark("<eos>"), "x"), tokenizer)["grammar"]
        assert lark == f'start: one\none: sequence0\nsequence0: <[{tokenizer.eos_token_id}]> "x"\n'

    def test_several_choices(self, client: TestClient, fake: FakeVllm) -> None:
        found = choices(client, prompt=TEXT, n=3, temperature=1.0, seed=5)
        assert [one["index"] for one in found] == [0, 1, 2]
        assert len({body["seed"] for body in fake.bodies[-3:]}) == 3


class TestForms:
    @pytest.mark.parametrize("logprobs", [{"tokens": ["x"]}, {"tokens": ["x"], "token_logprobs": [1]}, 5])
    def test_what_is_not_vllm_s(self, logprobs: Any) -> None:
        with pytest.raises(RuntimeError, match="none of vLLM's"):
            read_scored_tokens({"logprobs": logprobs}, 1)
        with pytest.raises(RuntimeError, match="none of vLLM's"):
            read_prompt_tokens({"prompt_logprobs": logprobs}, [1, 2], 1)

    def test_the_likeliest_only(self) -> None:
        told = {
            "tokens": ["token_id:7"],
            "token_logprobs": [-3.0],
            "top_logprobs": [{"token_id:7": -3.0, "token_id:2": -1}],
        }
        (one,) = read_scored_tokens({"logprobs": told}, 1)
        assert (one.token, one.logprob, one.top) == (7, -3.0, ((2, -1.0),))
        assert token_bytes(the_base().tokenizer).spell(7)
