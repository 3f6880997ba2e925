"""What an operator sees: times and counts of requests, errors, keys, the build; and that none of it grows with what
clients make up."""

import asyncio
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
from helpers.served_prompts import collected
from helpers.tiny_server import BASE_NAME, LABELS, WORDS, Clock, Place, RealPlace, a_store, prompt, the_base
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from softprompt.data.examples import Example
from softprompt.inference.generation import GenerationConfig
from softprompt.serving.engine.engine_requests import ServedPrompt
from softprompt.serving.engine.inference_engine import InferenceEngine
from softprompt.serving.engine.request_timing import RequestTiming
from softprompt.serving.http.api_keys import add_key
from softprompt.utils.version import VERSION

TEXT = "a fine film"


def values(client: TestClient, name: str, **labels: str) -> dict[tuple[tuple[str, str], ...], float]:
    """Samples of this name with these labels, by all of their labels."""
    text = client.get("/metrics").text
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    }


def value(client: TestClient, name: str, **labels: str) -> float:
    return sum(values(client, name, **labels).values())


class TestTiming:
    def test_marks(self) -> None:
        clock = Clock()
        timing = RequestTiming(clock)
        assert (timing.queue_seconds, timing.first_token_seconds, timing.gaps) == (None, None, [])
        for now, mark in ((1, timing.mark_scheduled), (2, timing.mark_scheduled), (3, timing.mark_tokens)):
            clock.now = now
            mark()
        clock.now = 4
        timing.mark_tokens()
        clock.now = 10
        timing.mark_tokens(3)  # at once
        assert (timing.queue_seconds, timing.first_token_seconds) == (1, 3)
        assert timing.gaps == [1, 2, 2, 2]

    def test_several_first_tokens_at_once(self) -> None:
        timing = RequestTiming(Clock())
        timing.mark_tokens(3)
        assert (timing.first_token_seconds, timing.gaps) == (0, [0, 0])

    @pytest.mark.parametrize("kind", ["labels", "words"])
    def test_the_engine_notes_them(self, kind: str) -> None:
        ticks = count()
        timing = RequestTiming(lambda: float(next(ticks)))

        async def ask() -> int:
            async with InferenceEngine(the_base()) as engine:
                if kind == "labels":
                    served = ServedPrompt("tone@1", LABELS, prompt(LABELS).states)
                    return len(await engine.classify(served, [Example(TEXT)] * 3, timing=timing)) - 2
                served = ServedPrompt("words@1", WORDS, prompt(WORDS).states)
                made = engine.generate(served, Example(TEXT), GenerationConfig(8), timing=timing)
                return sum(piece.tokens for piece in await collected(made))

        tokens = asyncio.run(ask())
        # a tick for each: asked, taken, and each token
        assert (timing.arrived, timing.queue_seconds, timing.first_token_seconds) == (0, 1, 2)
        assert timing.gaps == [1] * (tokens - 1)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    place = RealPlace.of_store(a_store(tmp_path_factory.mktemp("metrics")))
    with place.client() as client:
        for stream in (True, False):
            body = {"model": "words", "prompt": [TEXT, "dull"], "stream": stream, "max_tokens": 4}
            assert client.post("/v1/completions", json=body).status_code == 200
        client.post("/v1/classify", json={"model": "tone", "input": [TEXT, "dull"]})
        chat = {"model": "tone", "messages": [{"role": "user", "content": TEXT}]}
        client.post("/v1/chat/completions", json=chat)
        yield client
        client.portal.call(place.engine.close)  # type: ignore[union-attr]


class TestRequests:
    def test_time_to_first_token(self, client: TestClient) -> None:
        """One for each completion, and one for the labels of a request."""
        found = values(client, "softprompt_time_to_first_token_seconds_count")
        assert {
            (labels["route"], labels["task"], labels["stream"]): number
            for pairs, number in found.items()
            if (labels := dict(pairs))
        } == {
            ("/v1/completions", "words", "true"): 2,
            ("/v1/completions", "words", "false"): 2,
            ("/v1/classify", "tone", "false"): 1,
            ("/v1/chat/completions", "tone", "false"): 1,
        }

    def test_queue_and_tokens(self, client: TestClient) -> None:
        assert value(client, "softprompt_request_queue_time_seconds_count", task="words") == 4
        made = value(client, "softprompt_tokens_total", task="words", kind="completion")
        assert value(client, "softprompt_request_generation_tokens_sum", task="words") == made
        assert value(client, "softprompt_request_generation_tokens_count", task="words") == 2
        assert value(client, "softprompt_inter_token_latency_seconds_count", task="words") == made - 4
        read = value(client, "softprompt_tokens_total", task="tone", kind="prompt")
        assert value(client, "softprompt_request_prompt_tokens_sum", task="tone") == read > 0
        assert value(client, "softprompt_request_generation_tokens_count", task="tone") == 0

    def test_a_first_token_is_no_later_than_the_answer(self, client: TestClient) -> None:
        for route in ("/v1/classify", "/v1/chat/completions"):
            first = value(client, "softprompt_time_to_first_token_seconds_sum", route=route)
            assert 0 < first <= value(client, "softprompt_request_seconds_sum", route=route)

    def test_build(self, client: TestClient) -> None:
        ((pairs, one),) = values(client, "softprompt_build_info").items()
        labels = dict(pairs)
        assert one == 1
        assert set(labels) == {"version", "revision", "python", "torch", "device", "dtype", "model"}
        assert (labels["version"], labels["device"], labels["dtype"]) == (VERSION, "cpu", "float32")
        assert labels["model"] == BASE_NAME
        assert re.match(r"\d+\.\d+", labels["torch"])

    def test_waiting_and_running(self, client: TestClient) -> None:
        assert (value(client, "softprompt_engine_waiting"), value(client, "softprompt_engine_running")) == (0, 0)


class TestErrors:
    def test_errors_by_code(self, tmp_path: Path) -> None:
        place = Place.of_store(a_store(tmp_path))
        with place.client() as client:
            client.post("/v1/classify", json={"model": "nobody", "input": "x"})
            client.post("/v1/classify", json={"model": "tone", "input": "x", "made": "up"})
            client.get("/made/up")
            place.engine.failure = RuntimeError("made up")
            client.post("/v1/classify", json={"model": "tone", "input": "x"})
            found = values(client, "softprompt_request_errors_total")
        assert {tuple(sorted(dict(pairs).values())): number for pairs, number in found.items()} == {
            ("/v1/classify", "model_not_found"): 1,
            ("/v1/classify", "invalid_value"): 1,
            ("not_found", "other"): 1,
            ("/v1/classify", "internal_error"): 1,
        }

    def test_nothing_that_clients_make_up_is_a_label(self, tmp_path: Path) -> None:
        with Place.of_store(a_store(tmp_path)).client() as client:

            def ask(made: str) -> None:
                headers = {"X-Request-Id": made, "Authorization": f"Bearer {made}", "X-Forwarded-For": made}
                for body in ({"model": made, "input": made}, {"model": f"tone@{made}", "input": made}, {made: made}):
                    client.post("/v1/classify", json=body, headers=headers)
                client.post(f"/v1/{made}", json={}, headers=headers)
                client.get(f"/v1/models/{made}", headers=headers)

            ask("first")
            client.get("/metrics")
            before = len(client.get("/metrics").text.splitlines())
            for number in range(20):
                ask(f"made{number}")
            text = client.get("/metrics").text
        assert len(text.splitlines()) == before
        assert "made" not in text
        assert "first" not in text.replace("first_token", "").replace("first token", "")


class TestKeys:
    def test_keys_are_counted_and_never_named(self, tmp_path: Path) -> None:
        clock, keys = Clock(), tmp_path / "keys.json"
        token = add_key(keys, "operator", admin=True)
        for name, hours in (("soon", 1), ("later", 2)):
            add_key(keys, name, expires=clock.start + timedelta(hours=hours))
        with Place.of_store(a_store(tmp_path), keys=str(keys), clock=clock).client(token) as client:
            assert value(client, "softprompt_api_keys", state="valid") == 3
            ends = "softprompt_api_keys_next_expiry_timestamp_seconds"
            assert datetime.fromtimestamp(value(client, ends), UTC) == clock.start + timedelta(hours=1)
            clock.now = 3600
            assert value(client, "softprompt_api_keys", state="valid") == 2
            assert value(client, "softprompt_api_keys", state="expired") == 1
            text = client.get("/metrics").text
        assert not any(name in text for name in ("operator", "soon", "later", token))
