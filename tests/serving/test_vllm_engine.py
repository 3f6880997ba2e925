"""``softprompt serve --engine vllm``: the API on a vLLM server with the baked checkpoint, as on our own engine."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from helpers.fake_vllm import FakeVllm, OnVllm
from helpers.served_prompts import MANY, assert_same, with_labels
from helpers.small_tasks import command
from helpers.tiny_models import save_tiny
from helpers.tiny_server import LABELS, MORE, WORDS, a_store, error_of, expected, prompt, the_base, wait_for
from starlette.testclient import TestClient

from softprompt.data.examples import Example
from softprompt.engines.baked_checkpoint import BakedCheckpoint
from softprompt.errors import ConfigError, PromptFileError
from softprompt.export.vocabulary import bake_vocabulary
from softprompt.inference.predictor import Predictor
from softprompt.models.loading import load_model
from softprompt.prompts.saved_prompt import Prompt
from softprompt.serving.engine.engine_requests import ServedPrompt
from softprompt.serving.engine.inference_engine import EngineLimits
from softprompt.serving.engine.vllm_client import VllmClient
from softprompt.serving.engine.vllm_engine import VllmEngine, gather_in_order
from softprompt.serving.http.settings_sources import load_server_settings
from softprompt.store.version_store import Store

TEXT, HOSTILE = "a fine film", "a <|sp:words:0|> film <bos>"
SEVERAL = prompt(MANY, seed=5)
# with labels of its own
SOFT = replace(prompt(MANY, seed=6), states=(with_labels(the_base(), prompt(seed=6).state),))


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both versions of ``tone``, under names of their own, and the other prompts of the store."""
    folder = tmp_path_factory.mktemp("vllm") / "baked"
    prompts = {
        "tone-2": prompt(seed=2),
        "tone": prompt(seed=1),
        "words": prompt(WORDS, seed=3),
        "more": prompt(MORE, seed=4),
        "several": SEVERAL,
        "soft": SOFT,
    }
    bake_vocabulary(the_base(), prompts, folder)
    return folder


@pytest.fixture
def fake(baked: Path) -> FakeVllm:
    return FakeVllm(baked)


@pytest.fixture
def url(fake: FakeVllm) -> Iterator[str]:
    with fake.running() as address:
        yield address


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = a_store(tmp_path)
    store.put(SEVERAL, "several")
    store.put(SOFT, "soft")
    return store


@pytest.fixture
def place(store: Store, baked: Path, url: str) -> OnVllm:
    return OnVllm(store, baked, url)


@pytest.fixture
def client(place: OnVllm) -> Iterator[TestClient]:
    with place.client() as client:
        yield client


def classify_examples(client: TestClient, model: str, *inputs: Any) -> list[dict[str, Any]]:
    answer = client.post("/v1/classify", json={"model": model, "input": list(inputs)})
    assert answer.status_code == 200, answer.text
    return [{"label": one["label"], "probabilities": one["probabilities"]} for one in answer.json()["results"]]


def assert_as_expected(found: list[dict[str, Any]], ours: list[dict[str, Any]]) -> None:
    for one, other in zip(found, ours, strict=True):
        assert one["label"] == other["label"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4)


class TestAnswers:
    def test_labels_of_each_version_are_those_of_its_own_prompt(self, client: TestClient) -> None:
        texts = [TEXT, HOSTILE, "dull", "a story " * 30]
        for model, spec, seed in (("tone", LABELS, 1), ("tone@2", LABELS, 2), ("tone@prod", LABELS, 1)):
            assert_as_expected(classify_examples(client, model, *texts), expected(spec, seed, *map(Example, texts)))
        found = classify_examples(client, "more", {"text": TEXT, "title": "Cinema"})
        assert_as_expected(found, expected(MORE, 4, Example(TEXT, columns={"title": "Cinema"})))

    def test_labels_of_several_tokens(self, client: TestClient, fake: FakeVllm) -> None:
        texts = [TEXT, "the cat", "what?"]
        predictor = Predictor.of_prompt(the_base(), SEVERAL)
        ours = [one.to_dict() for one in predictor.predict([Example(text) for text in texts])]
        assert_as_expected(classify_examples(client, "several", *texts), ours)
        decisions = predictor.encoder.verbalizer.decisions  # type: ignore[union-attr]
        assert len(decisions) > 1
        assert [len(body["prompt"]) for body in fake.bodies[-len(decisions) :]] == [len(texts)] * len(decisions)

    def test_labels_that_were_learned_with_the_prompt(self, client: TestClient, fake: FakeVllm, baked: Path) -> None:
        texts = [TEXT, HOSTILE, "what?"]
        ours = Predictor.of_prompt(the_base(), SOFT).predict([Example(text) for text in texts])
        assert_as_expected(classify_examples(client, "soft", *texts), [one.to_dict() for one in ours])
        usage = json.loads((baked / "softprompt.json").read_text())
        assert fake.bodies[-1]["logprob_token_ids"] == usage["tasks"]["soft"]["label_ids"]

    def test_more_choices_than_are_told_at_once(
        self, client: TestClient, fake: FakeVllm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("softprompt.serving.engine.vllm_engine.MOST_CHOICES", 1)
        assert_as_expected(classify_examples(client, "tone", TEXT), expected(LABELS, 1, Example(TEXT)))
        assert [len(body["logprob_token_ids"]) for body in fake.bodies[-2:]] == [1, 1]

    def test_places_of_labels_are_asked_a_few_at_a_time(self) -> None:
        made, going, most = 0, 0, 0

        async def work(number: int) -> int:
            nonlocal going, most
            going += 1
            most = max(most, going, made - number)
            await asyncio.sleep(0.001 * (number % 3))
            going -= 1
            return number * number

        def works() -> Iterator[Coroutine[Any, Any, int]]:
            nonlocal made
            for number in range(100):
                made += 1
                yield work(number)

        assert asyncio.run(gather_in_order(works())) == [number * number for number in range(100)]
        assert 1 < most <= 16

    def test_completions(self, client: TestClient) -> None:
        texts = [TEXT, HOSTILE, "dull"]
        answer = client.post("/v1/completions", json={"model": "words", "prompt": texts}).json()
        ours = [one["completion"] for one in expected(WORDS, 3, *map(Example, texts))]
        assert [one["text"] for one in answer["choices"]] == ours
        assert answer["model"] == "words@1"
        assert answer["usage"]["completion_tokens"] > 0

    def test_a_stop_string_and_the_limit_end_a_completion(self, client: TestClient) -> None:
        (whole,) = [one["completion"] for one in expected(WORDS, 3, Example(TEXT))]
        stop = whole[len(whole) // 2 :][:2]
        body = {"model": "words", "prompt": TEXT, "stop": stop}
        (choice,) = client.post("/v1/completions", json=body).json()["choices"]
        assert (choice["text"], choice["finish_reason"]) == (whole[: whole.find(stop)].strip(), "stop")
        answer = client.post("/v1/completions", json={"model": "words", "prompt": TEXT, "max_tokens": 1}).json()
        assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 1)

    def test_sampling_is_passed_on_and_the_checkpoint_has_no_say(self, client: TestClient, fake: FakeVllm) -> None:
        body = {"model": "words", "prompt": TEXT, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "seed": 11}
        assert client.post("/v1/completions", json=body).status_code == 200
        sent = fake.bodies[-1]
        assert {name: sent[name] for name in ("temperature", "top_p", "top_k", "seed")} == {
            **{name: body[name] for name in ("temperature", "top_p", "top_k", "seed")}
        }
        assert (sent["repetition_penalty"], sent["min_p"]) == (1.0, 0.0)
        # of six prompts, and the labels of one
        assert len(sent["logit_bias"]) == 6 * 4 + 4

    def test_a_users_text_never_becomes_a_virtual_token(self, client: TestClient, fake: FakeVllm, baked: Path) -> None:
        classify_examples(client, "tone", HOSTILE)
        usage = json.loads((baked / "softprompt.json").read_text())
        (ids,) = fake.bodies[-1]["prompt"]
        virtual = [one for one in ids if one in usage["never_generate"]]
        assert virtual == usage["tasks"]["tone"]["ids"]
        assert ids.count(usage["bos_ids"][0]) == 1

    def test_the_base_model_by_its_name(self, client: TestClient, fake: FakeVllm) -> None:
        answer = client.post("/v1/completions", json={"model": "tiny", "prompt": TEXT})
        assert answer.status_code == 200
        assert not set(fake.bodies[-1]["prompt"]) & set(map(int, fake.bodies[-1]["logit_bias"]))

    def test_the_openai_client(self, place: OnVllm) -> None:
        (ours,) = [one["completion"] for one in expected(WORDS, 3, Example(TEXT))]
        with place.running() as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
            stream = client.completions.create(model="words", prompt=TEXT, stream=True)
            assert "".join(part.choices[0].text for part in stream) == ours
            chat: Any = {"model": "words@1", "messages": [{"role": "user", "content": TEXT}]}
            assert client.chat.completions.create(**chat).choices[0].message.content == ours
            deltas = [
                part.choices[0].delta.content or "" for part in client.chat.completions.create(**chat, stream=True)
            ]
            assert "".join(deltas) == ours
            assert len(deltas) > 2
            assert {"tone@prod", "words", "tiny"} <= {one.id for one in client.models.list().data}

    def test_many_at_once(self, place: OnVllm) -> None:
        async def ask() -> None:
            engine, checkpoint = place.make_engine(), prompt(seed=1)
            served = ServedPrompt("tone@1", LABELS, checkpoint.states)
            texts = [[Example(f"{word} film")] for word in ("good", "bad", "dull", "fine", "a", "the", "what", "cat")]
            found = await asyncio.gather(*(engine.classify(served, text) for text in texts))
            predictor = Predictor.of_prompt(the_base(), checkpoint)
            for one, text in zip(found, texts, strict=True):
                assert_same(one, list(predictor.predict(text)))
            await engine.close()

        asyncio.run(ask())


def test_what_the_metrics_have_of_it(client: TestClient) -> None:
    client.post("/v1/classify", json={"model": "tone", "input": "x"})
    answer = client.post("/v1/completions", json={"model": "words", "prompt": "x"}).json()
    text = client.get("/metrics").text
    assert 'device="vllm"' in text
    for route, task in (("classify", "tone"), ("completions", "words")):
        labels = f'{{route="/v1/{route}",stream="false",task="{task}"}}'
        assert f"softprompt_time_to_first_token_seconds_count{labels} 1.0" in text
    between = answer["usage"]["completion_tokens"] - 1
    assert f'softprompt_inter_token_latency_seconds_count{{task="words"}} {between:.1f}' in text


class TestVersions:
    def test_one_that_was_not_baked_is_unavailable_and_others_are_not_affected(
        self, store: Store, place: OnVllm, client: TestClient
    ) -> None:
        store.put(prompt(seed=9), "tone")
        store.promote("tone@3", "prod")
        changes = client.post("/admin/reload").json()
        assert changes["added"] == ["tone@3"]
        for model in ("tone@3", "tone"):
            error = error_of(client.post("/v1/classify", json={"model": model, "input": TEXT}), 503)
            assert "'tone@3' cannot be run by the engine" in error["message"]
        classify_examples(client, "tone@1", TEXT)
        store.promote("tone@2", "prod")
        client.post("/admin/reload")
        assert_as_expected(classify_examples(client, "tone", TEXT), expected(LABELS, 2, Example(TEXT)))

    @pytest.mark.parametrize("change", ["template", "numbers"])
    def test_a_prompt_is_known_by_all_that_its_answers_depend_on(self, baked: Path, change: str) -> None:
        checkpoint, known = BakedCheckpoint(baked), prompt(seed=1)
        checkpoint.check(replace(known, method="other", metrics={"x": 1}))
        other = (
            replace(known, spec=replace(known.spec, template="{{ text }}!"))
            if change == "template"
            else replace(known, states=(replace(known.states[0], tensors=(known.state.tensor + 1e-6,)),))
        )
        with pytest.raises(PromptFileError, match="it is none of the prompts in the checkpoint"):
            checkpoint.check(other)

    def test_a_prompt_of_another_base_model(self, baked: Path, tmp_path: Path, url: str) -> None:
        store = Store(tmp_path / "others")
        other: Prompt = replace(prompt(seed=1), base_fingerprint={"weights": "0" * 64})
        store.put(other, "tone")
        with OnVllm(store, baked, url).client() as client:
            error = error_of(client.post("/v1/classify", json={"model": "tone", "input": TEXT}), 503)
            assert "another base model" in error["message"]


class TestFaults:
    GOOD = ("/v1/classify", {"model": "tone", "input": TEXT})
    TEXTS = ("/v1/completions", {"model": "words", "prompt": TEXT})

    @pytest.mark.parametrize("request_", [GOOD, TEXTS], ids=["labels", "texts"])
    @pytest.mark.parametrize(
        ("refusal", "status", "code", "words"),
        [
            ((429, {"Retry-After": "7"}), 429, "queue_full", "try again after 7 s"),
            ((503, {}), 503, "engine_unavailable", "cannot be asked now (it answers 503)"),
            ((404, {}), 503, "engine_unavailable", "it answers 404"),
            ((400, {}), 422, "unusable_text", "the engine refuses this request: so it is"),
            ((500, {}), 500, "internal_error", "a failure of the server"),
        ],
    )
    def test_its_errors_are_ours(
        self, client: TestClient, fake: FakeVllm, request_: Any, refusal: Any, status: int, code: str, words: str
    ) -> None:
        path, body = request_
        fake.refusal = refusal
        for more in ({}, {"stream": True}) if path == "/v1/completions" else ({},):
            answer = client.post(path, json={**body, **more})
            error = error_of(answer, status)
            assert error["code"] == code
            assert words in error["message"]
            if status == 429:
                assert answer.headers["retry-after"] == "7"
        fake.refusal = None
        assert client.post(path, json=body).status_code == 200

    def test_it_goes_away_and_comes_back(self, store: Store, baked: Path) -> None:
        fake = FakeVllm(baked)
        with fake.running() as url:
            place, port = OnVllm(store, baked, url), int(url.rpartition(":")[2])
        with place.client() as client:
            assert client.get("/readyz").json() == {"status": "waiting for the engine"}
            assert client.get("/healthz").status_code == 200
            for path, body in (self.GOOD, self.TEXTS):
                answer = client.post(path, json=body)
                assert error_of(answer, 503)["code"] == "engine_unavailable"
                assert answer.headers["retry-after"] == "1"
            with fake.running(port):
                assert client.get("/readyz").json() == {"status": "ok"}
                assert client.post(self.GOOD[0], json=self.GOOD[1]).status_code == 200

    def test_a_stream_that_breaks_ends_with_an_error(self, client: TestClient, fake: FakeVllm) -> None:
        fake.breaks_after = 2
        events = client.post("/v1/completions", json={**self.TEXTS[1], "stream": True}).text
        assert '"code": "internal_error"' in events
        assert "[DONE]" not in events

    def test_a_deadline(self, client: TestClient, fake: FakeVllm) -> None:
        fake.hold.set()
        asked = len(fake.bodies)
        for path, body in (self.GOOD, self.TEXTS):
            error_of(client.post(path, json=body, headers={"X-Request-Timeout": "2"}), 504)
        wait_for(lambda: fake.left == len(fake.bodies) - asked)

    def test_a_client_that_leaves_ends_the_engines_work(self, place: OnVllm, fake: FakeVllm) -> None:
        fake.hold.set()
        with place.running() as address, httpx.Client(base_url=address, timeout=60) as client:
            asked, content = len(fake.bodies), json.dumps(self.GOOD[1])
            with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as leaving:
                head = f"POST {self.GOOD[0]} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                leaving.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n{content}".encode())
                wait_for(lambda: len(fake.bodies) > asked)
            body = {**self.TEXTS[1], "stream": True}
            with client.stream("POST", "/v1/completions", json=body) as response:
                next(response.iter_lines())
            wait_for(lambda: fake.left == 2)

    def test_a_full_queue(self, store: Store, baked: Path, url: str, fake: FakeVllm) -> None:
        place = OnVllm(store, baked, url, EngineLimits(waiting=2))
        with place.running() as address, httpx.Client(base_url=address, timeout=60) as client:
            error = error_of(client.post(self.GOOD[0], json={"model": "tone", "input": [TEXT] * 3}), 422)
            assert "expected at most 2" in error["message"]
            fake.hold.set()
            asked = len(fake.bodies)
            two = {"model": "tone", "input": [TEXT] * 2}
            held = threading.Thread(target=lambda: httpx.post(address + self.GOOD[0], json=two, timeout=60))
            held.start()
            wait_for(lambda: len(fake.bodies) > asked)
            assert error_of(client.post(self.TEXTS[0], json=self.TEXTS[1]), 429)["code"] == "queue_full"
            fake.hold.clear()
            held.join()
            assert client.post(self.TEXTS[0], json=self.TEXTS[1]).status_code == 200


class TestStart:
    def engine(self, baked: Path, url: str, key: str | None = None) -> VllmEngine:
        return VllmEngine(BakedCheckpoint(baked), VllmClient(url, key), EngineLimits())

    def test_nothing_there(self, baked: Path) -> None:
        with pytest.raises(ConfigError, match=r"no answer from 'http://127\.0\.0\.1:9' .*expected a vLLM server there"):
            self.engine(baked, "http://127.0.0.1:9/v1")

    def test_its_key(self, baked: Path, fake: FakeVllm, url: str) -> None:
        fake.key = "secret"
        with pytest.raises(ConfigError, match="wants another API key: give it in SOFTPROMPT_ENGINE_KEY"):
            self.engine(baked, url)
        assert self.engine(baked, f"{url}/v1/", "secret").model == "baked"

    def test_a_vllm_that_tells_no_chosen_tokens(self, baked: Path, fake: FakeVllm, url: str) -> None:
        fake.tells = False
        with pytest.raises(ConfigError, match=r"\(logprob_token_ids\): expected a newer vLLM"):
            self.engine(baked, url)

    def test_another_checkpoint_of_the_same_tokens(self, baked: Path, tmp_path: Path, url: str) -> None:
        usage = json.loads((baked / "softprompt.json").read_text())
        others = {name: prompt(seed=20 + seed) for seed, name in enumerate(usage["tasks"])}
        bake_vocabulary(the_base(), others, tmp_path / "other")
        with pytest.raises(ConfigError, match=r"whose answers for 'tone-2' are not those of '.*other'"):
            self.engine(tmp_path / "other", url)

    def test_no_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(PromptFileError, match="is no export of softprompt"):
            BakedCheckpoint(save_tiny(tmp_path / "plain", "llama"))
        (tmp_path / "plain" / "softprompt.json").write_text('{"base": {"name": "x", "fingerprint": {}}}')
        with pytest.raises(PromptFileError, match="lacks or misuses 'embedding_size'"):
            BakedCheckpoint(tmp_path / "plain")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"engine_kind": "vllm"}, "give its address with --engine-url"),
            ({"engine_url": "http://x"}, "give --engine vllm too"),
            ({"engine_prompts": "folder"}, "--engine-prompts is for a vLLM server"),
            ({"engine_kind": "vllm", "engine_url": "x:80"}, "expected http://HOST:PORT or https://, got 'x:80'"),
            ({"engine_kind": "vllm", "engine_url": "http://x", "dtype": "float32"}, "--dtype is for a model"),
            (
                {"engine_kind": "vllm", "engine_url": "http://x", "compile": "never"},
                "--compile is for a model that runs",
            ),
            ({"engine_kind": "sglang"}, "setting 'engine_kind'"),
        ],
    )
    def test_settings(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=re.escape(message)):
            load_server_settings(None, {"model": "m", "store": "s", **settings})

    def test_mistakes_are_one_line(self, baked: Path, tmp_path: Path) -> None:
        options = ("--engine", "vllm", "--engine-url", "http://127.0.0.1:9", "--port", "0")
        ended = command("serve", "--model", baked, "--store", a_store(tmp_path).url, *options)
        assert ended.code == 2
        assert ended.error.startswith("no answer from 'http://127.0.0.1:9'")

    def test_the_command(self, tmp_path: Path) -> None:
        base = load_model(save_tiny(tmp_path / "tiny-llama", "llama"), dtype="float32")
        store = Store(tmp_path / "store")
        for name, seed in (("first", 1), ("second", 2)):
            store.put(prompt(LABELS, seed, base), name)
        exported = command(
            *("export", f"{store.url}#first@latest", f"{store.url}#second@1", "--format", "vocab"),
            *("--out", tmp_path / "baked", "--dtype", "float32", "--device", "cpu"),
        )
        assert exported.code == 0, exported.error
        with FakeVllm(tmp_path / "baked").running() as url:
            options = ("--model", tmp_path / "baked", "--store", store.url, "--port", "0", "--engine", "vllm")
            with subprocess.Popen(
                [sys.executable, "-m", "softprompt", "serve", *map(str, options)],
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "SOFTPROMPT_ENGINE_URL": url, "SOFTPROMPT_DRAIN_DELAY": "0"},
            ) as process:
                assert process.stderr is not None
                said = ""
                while not (found := re.search(r"listening on (http://\S+),", said)):
                    line = process.stderr.readline()
                    assert line, said
                    said += line
                assert f"vLLM at {url} runs 'baked' with first, second" in said
                with httpx.Client(base_url=found[1], timeout=60) as client:
                    wait_for(lambda: _answers(client))
                    body = {"model": "second", "input": TEXT}
                    (result,) = client.post("/v1/classify", json=body).json()["results"]
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=60)
            assert process.returncode == 0
        (ours,) = expected(LABELS, 2, Example(TEXT))
        assert result["probabilities"] == pytest.approx(ours["probabilities"], abs=1e-4)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False
