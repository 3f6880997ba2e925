"""What is sent to break the server: it hurts nobody else's request, and is answered in OpenAI's format of errors."""

import json
import logging
import math
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.tiny_server import Place, a_store, error_of, prompt, wait_for
from starlette.testclient import TestClient

from softprompt.errors import DataError
from softprompt.serving.engine.engine_requests import DeadlineExceededError, EngineBusyError
from softprompt.serving.logging_config import JsonFormatter

TEXT = "a fine film"
GOOD = {"model": "tone", "input": TEXT}
CHAT = {"model": "words", "messages": [{"role": "user", "content": TEXT}]}
JSON = {"Content-Type": "application/json"}
SECRET = "my name is Kaspar Hauser"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.of_store(a_store(tmp_path), body_limit=10_000, text_limit=200)


@pytest.fixture
def client(place: Place) -> Iterator[TestClient]:
    with place.client() as client:
        yield client
        assert client.post("/v1/classify", json=GOOD).status_code == 200


class TestBodies:
    def send(self, client: TestClient, content: bytes, kind: str = "application/json") -> Any:
        return client.post("/v1/classify", content=content, headers={"Content-Type": kind})

    @pytest.mark.parametrize(
        ("content", "code"),
        [
            (b"{", "invalid_json"),
            (b"nonsense", "invalid_json"),
            (b'{"model": "tone", "input": "\xff"}', "invalid_utf8"),
            (b'{"model": "tone", "input": "\\ud800"}', "invalid_json"),
            (b'{"model": "tone", "input": "x", "input": "y"}', "invalid_json"),
            (b'{"model": "tone", "input": NaN}', "invalid_json"),
            (b'{"model": "tone", "input": -Infinity}', "invalid_json"),
            (b'{"model": "tone", "input": 1e400}', "invalid_json"),
            (b'{"model": "tone", "input": ' + b"9" * 5000 + b"}", "invalid_json"),
            (b"[" * 4_500 + b"]" * 4_500, "invalid_json|too_deep"),
            (b'{"a":' * 1_500 + b"1" + b"}" * 1_500, "invalid_json|too_deep"),
            (json.dumps({"model": "tone", "input": TEXT, "x": json.loads("[" * 33 + "]" * 33)}).encode(), "too_deep"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_what_is_no_json(self, client: TestClient, content: bytes, code: str) -> None:
        assert error_of(self.send(client, content), 400)["code"] in code.split("|")

    @pytest.mark.parametrize("content", [b"", b"null", b"3", b'"text"', b"[]", b"{}"])
    def test_other_json(self, client: TestClient, content: bytes) -> None:
        assert error_of(self.send(client, content), 422)["code"] == "invalid_value"

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"])
    def test_a_type_that_a_web_page_may_send_unasked(self, client: TestClient, kind: str) -> None:
        assert error_of(self.send(client, json.dumps(GOOD).encode(), kind), 415)["code"] == "not_json"

    @pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/x+json", "APPLICATION/JSON"])
    def test_types_of_json(self, client: TestClient, kind: str) -> None:
        assert self.send(client, json.dumps(GOOD).encode(), kind).status_code == 200

    def test_a_long_text(self, client: TestClient) -> None:
        error = error_of(client.post("/v1/classify", json={"model": "tone", "input": ["x", "y" * 201]}), 422)
        assert error["code"] == "text_too_long"
        assert error["message"] == "text 1: expected at most 200 characters, got 201"
        row = {"text": "x", "column": "y" * 200}
        assert (
            error_of(client.post("/v1/classify", json={"model": "tone", "input": row}), 422)["code"] == "text_too_long"
        )


class TestSizes:
    @pytest.mark.parametrize("body", [{"input": [""] * 30_000}, {"columns": dict.fromkeys(map(str, range(30_000)))}])
    def test_many_values_are_refused_before_each_is_found_wrong(self, tmp_path: Path, body: dict[str, Any]) -> None:
        place = Place.of_store(a_store(tmp_path))
        with place.client() as client:
            error = error_of(client.post("/v1/classify", json={"model": "tone", **body}), 400)
        assert error["code"] == "too_many_values"
        assert error["message"] == "the body's JSON has more than 20,971 values"

    def test_more_texts_than_may_wait(self, tmp_path: Path) -> None:
        place = Place.of_store(a_store(tmp_path), engine={"waiting": 2})
        with place.client() as client:
            for path, field in (("classify", "input"), ("completions", "prompt")):
                answer = client.post(f"/v1/{path}", json={"model": "tone", field: ["a", "b", "c"]})
                assert error_of(answer, 422)["message"] == "a request has at most 2 texts"

    def test_a_long_stop_string(self, client: TestClient) -> None:
        body = {"model": "tone", "prompt": TEXT, "stop": "x" * 257}
        assert error_of(client.post("/v1/completions", json=body), 422)["code"] == "invalid_value"

    def test_names_of_fields_are_told_on_one_line_and_short(self, client: TestClient) -> None:
        error = error_of(client.post("/v1/classify", json={**GOOD, "a\nb" + "c" * 500: 1}), 422)
        assert "\n" not in error["message"]
        assert len(error["message"]) < 200

    def test_a_large_body_is_refused_by_its_announcement(self, client: TestClient) -> None:
        response = client.post("/v1/classify", content=b"x" * 10_001, headers=JSON)
        assert error_of(response, 413)["code"] == "body_too_large"

    def test_a_large_body_is_refused_while_it_comes_in(self, place: Place) -> None:
        def endless() -> Iterator[bytes]:
            for _ in range(10_000):
                yield b"x" * 1_000

        with place.running() as address, httpx.Client(base_url=address) as client:
            response = client.post("/v1/classify", content=endless(), headers=JSON)
            assert error_of(response, 413)["code"] == "body_too_large"
            assert client.post("/v1/classify", json=GOOD).status_code == 200
            ten_megabytes = client.post("/v1/classify", content=b"x" * 10_000_000, headers=JSON)
            assert error_of(ten_megabytes, 413)["code"] == "body_too_large"
            assert client.post("/v1/classify", json=GOOD).status_code == 200

    def test_a_body_that_never_comes(self, tmp_path: Path) -> None:
        place = Place.of_store(a_store(tmp_path), timeout=0.2)
        with (
            place.running() as address,
            socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as raw,
        ):
            head = "POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            raw.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            raw.settimeout(60)
            assert raw.recv(1000).startswith(b"HTTP/1.1 408")


class TestEngine:
    def test_a_full_queue(self, place: Place, client: TestClient) -> None:
        place.engine.failure = EngineBusyError(2.2)
        for path, body in (
            ("/v1/classify", GOOD),
            ("/v1/completions", {"model": "words", "prompt": TEXT, "stream": True}),
            ("/v1/completions", {"model": "tone", "prompt": TEXT}),
        ):
            response = client.post(path, json=body)
            assert error_of(response, 429)["code"] == "queue_full"
            assert response.headers["retry-after"] == "3"
        place.engine.failure = None

    @pytest.mark.parametrize(
        ("failure", "status", "code"),
        [
            (DeadlineExceededError(), 504, "timeout"),
            (DataError("a label that the task lacks"), 422, "unusable_text"),
            (RuntimeError(f"the tensor of {SECRET}"), 500, "internal_error"),
        ],
    )
    def test_what_it_raises(self, place: Place, client: TestClient, failure: Exception, status: int, code: str) -> None:
        place.engine.failure = failure
        for path, body in (
            ("/v1/classify", GOOD),
            ("/v1/completions", {"model": "words", "prompt": [TEXT, TEXT]}),
            (
                "/v1/chat/completions",
                {"model": "words", "messages": [{"role": "user", "content": TEXT}], "stream": True},
            ),
        ):
            response = client.post(path, json=body)
            assert error_of(response, status)["code"] == code
            assert SECRET not in response.text
        place.engine.failure = None

    @pytest.mark.parametrize("number", [math.nan, math.inf])
    def test_numbers_that_are_none(self, place: Place, client: TestClient, number: float) -> None:
        place.engine.numbers = number
        assert error_of(client.post("/v1/classify", json=GOOD), 500)["code"] == "not_finite"
        place.engine.numbers = None

    def test_a_deadline_of_the_server(self, tmp_path: Path) -> None:
        place = Place.of_store(a_store(tmp_path), timeout=0.2)
        place.engine.hold.set()
        with place.client() as client:
            for path, body in (("/v1/classify", GOOD), ("/v1/completions", {"model": "words", "prompt": TEXT})):
                assert error_of(client.post(path, json=body), 504)["code"] == "timeout"
        assert place.engine.cancelled == 2

    def test_a_deadline_of_the_client(self, place: Place) -> None:
        place.engine.hold.set()
        with place.client() as client:
            response = client.post("/v1/classify", json=GOOD, headers={"X-Request-Timeout": "1"})
            assert error_of(response, 504)["code"] == "timeout"
            for wrong in ("0", "-1", "nan", "soon", "1e9"):
                headers = {"X-Request-Timeout": wrong}
                assert error_of(client.post("/v1/classify", json=GOOD, headers=headers), 422)["param"]


class TestLeaving:
    def test_a_client_that_leaves_ends_its_work(self, place: Place) -> None:
        place.engine.hold.set()
        bodies = (
            ("/v1/classify", GOOD),
            ("/v1/completions", {"model": "words", "prompt": [TEXT, TEXT]}),
            ("/v1/completions", {"model": "words", "prompt": TEXT, "stream": True}),
        )
        with place.running() as address:
            for path, body in bodies:
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(f"{address}{path}", json=body, timeout=0.5)
            wait_for(lambda: place.engine.cancelled == 4)

    def test_a_client_that_leaves_a_stream(self, place: Place) -> None:
        with self.measure_partial_stop(place, held=True):
            assert place.engine.cancelled == 0
        assert place.engine.cancelled == 1

    def test_an_error_within_a_stream(self, place: Place) -> None:
        with self.measure_partial_stop(place) as (client, lines):
            place.engine.failure = DeadlineExceededError()
            place.engine.hold_pieces.clear()
            last = [line for line in lines if line][-1]
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
            place.engine.failure = None
            assert client.post("/v1/classify", json=GOOD).status_code == 200

    def test_a_stop_finishes_what_runs(self, place: Place) -> None:
        with self.measure_partial_stop(place) as (client, lines):
            place.server.stop()
            wait_for(lambda: not reaches(client.base_url))
            place.engine.hold_pieces.clear()
            assert [line for line in lines if line][-1] == "data: [DONE]"

    def test_a_stop_does_not_wait_for_ever(self, tmp_path: Path) -> None:
        place = Place.of_store(a_store(tmp_path), shutdown_timeout=1)
        place.engine.hold.set()
        answers: list[httpx.Response] = []
        with place.running() as address:
            asking = threading.Thread(
                target=lambda: answers.append(httpx.post(f"{address}/v1/classify", json=GOOD, timeout=60))
            )
            asking.start()
            wait_for(lambda: place.engine.asked)
            place.server.stop()
            asking.join(60)
        assert error_of(answers[0], 503)["code"] == "stopping"

    @contextmanager
    def measure_partial_stop(self, place: Place, held: bool = False) -> Iterator[tuple[httpx.Client, Iterator[str]]]:
        """A stream of which one event was read, and that goes on when the engine's pieces are let go.

        ``held``: they are not, before the engine was told that the client has left.
        """
        place.engine.hold_pieces.set()
        body = {"model": "words", "prompt": TEXT, "stream": True, "max_tokens": 32}
        with place.running() as address, httpx.Client(base_url=address, timeout=60) as client:
            with client.stream("POST", "/v1/completions", json=body) as response:
                lines = response.iter_lines()
                assert next(lines).startswith("data: ")
                yield client, lines
            if held:
                wait_for(lambda: place.engine.cancelled)
            place.engine.hold_pieces.clear()


def reaches(address: httpx.URL) -> bool:
    """Whether somebody listens there."""
    try:
        httpx.get(address)
    except httpx.ConnectError:
        return False
    return True


class TestNames:
    @pytest.mark.parametrize(
        "name",
        [
            "../x",
            "../../etc/passwd",
            "a@../../b",
            "tone@../1",
            "tone/../words",
            "/etc/passwd",
            "tone\\1",
            "tone\x00",
            "tone\n",
            "\u202etone",
            "\uff54\uff4f\uff4e\uff45",
            "to\u0301ne",
            "🙂",
            "a" * 5_000,
            "store#tone@1",
            "tone@aliases",
            "%2e%2e/x",
            "__proto__",
            ".",
            "..",
        ],
        ids=lambda name: repr(name)[:20],
    )
    def test_no_name_reaches_the_disk(self, place: Place, client: TestClient, name: str) -> None:
        def touched(*arguments: Any) -> Any:
            raise AssertionError(f"the source was asked for {arguments}")

        place.registry._source.load = touched  # type: ignore[method-assign]
        place.registry._kept.clear()
        error = error_of(client.post("/v1/classify", json={"model": name, "input": TEXT}), 404)
        assert error["code"] == "model_not_found"
        assert len(error["message"]) < 200
        del place.registry._source.load

    @pytest.mark.parametrize(
        "path", ["..%2fx", "%2e%2e/%2e%2e/etc/passwd", "tone%00", "%ff%fe", "tone@1/../2", "a%0d%0ab"]
    )
    def test_no_path_does(self, client: TestClient, path: str) -> None:
        assert error_of(client.get(f"/v1/models/{path}"), 404)["code"] in ("model_not_found", "not_found")


class TestHosts:
    def test_another_name_is_refused(self, client: TestClient) -> None:
        response = client.get("/v1/models", headers={"Host": "evil.example:80"})
        assert error_of(response, 400)["code"] == "unknown_host"
        for own in ("localhost:1", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
            assert client.get("/v1/models", headers={"Host": own}).status_code == 200

    def test_pages_of_other_origins_are_not_let_in(self, place: Place, client: TestClient, tmp_path: Path) -> None:
        asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
        assert "access-control-allow-origin" not in client.options("/v1/classify", headers=asked).headers
        assert "access-control-allow-origin" not in client.get("/v1/models", headers=asked).headers
        (tmp_path / "other").mkdir()
        with Place.of_store(a_store(tmp_path / "other"), cors_origins=("https://a.example",)).client() as open_to:
            allowed = open_to.options("/v1/classify", headers=asked)
            assert allowed.headers["access-control-allow-origin"] == "https://a.example"
            other = open_to.options("/v1/classify", headers={**asked, "Origin": "https://b.example"})
            assert "access-control-allow-origin" not in other.headers


class TestLogs:
    def lines(self, caplog: pytest.LogCaptureFixture, text: bool = False) -> list[dict[str, Any]]:
        return [
            json.loads(JsonFormatter(text=text).format(record))
            for record in caplog.records
            if "softprompt" in record.name
        ]

    def talk(self, place: Place) -> None:
        with place.client() as client:
            client.post("/v1/classify", json={"model": "tone", "input": SECRET}, headers={"X-Request-Id": "abc-1"})
            client.post("/v1/completions", json={"model": "words", "prompt": SECRET, "stream": True})
            client.post("/v1/completions", json={"model": SECRET, "prompt": SECRET, SECRET: SECRET})
            client.post(f"/v1/{SECRET}?text={SECRET}", content=SECRET.encode(), headers={"X-Request-Id": f"{SECRET}\t"})
            client.post("/v1/classify", json={"model": SECRET, "input": SECRET})
            client.post("/v1/completions", json={"model": "more", "prompt": SECRET, "columns": {"titel": SECRET}})
            place.engine.failure = RuntimeError(SECRET)
            client.post("/v1/classify", json={"model": "tone", "input": SECRET})

    def test_a_prompt_that_stays_broken_is_told_of_once(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        store = a_store(tmp_path)
        for name in ("foreign", "other"):
            store.put(replace(prompt(), base_fingerprint={"of": name}), name)
        caplog.set_level(logging.INFO, "softprompt.serving")
        place = Place.of_store(store)
        for _ in range(3):
            place.registry.refresh()
        told = [line["model"] for line in self.lines(caplog) if line["event"] == "prompt not loaded"]
        assert told == ["foreign@1", "other@1"]

    def test_no_text_of_users(self, place: Place, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "softprompt.serving")
        self.talk(place)
        lines = self.lines(caplog)
        assert SECRET not in json.dumps(lines)
        assert "Kaspar" not in json.dumps(lines)
        (first,) = [line for line in lines if line.get("request_id") == "abc-1"]
        assert (first["event"], first["route"], first["status"]) == ("request", "/v1/classify", 200)
        assert (first["model"], first["method"]) == ("tone@1", "POST")
        assert first["prompt_tokens"] > 4
        statuses = [line["status"] for line in lines if line["event"] == "request"]
        assert statuses == [200, 200, 422, 404, 404, 422, 500]
        (failure,) = [line for line in lines if line["event"] == "failure"]
        assert failure["error"] == "RuntimeError"
        assert any("tiny_server.py" in frame for frame in failure["where"])

    def test_texts_where_they_are_asked_for(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "softprompt.serving")
        self.talk(Place.of_store(a_store(tmp_path), log_text=True))
        lines = self.lines(caplog, text=True)
        assert lines[0]["texts"] == [SECRET]
        assert lines[0]["answers"][0] in ("bad", "good")
        assert [line["message"] for line in lines if line["event"] == "failure"] == [SECRET]

    def test_request_ids(self, client: TestClient) -> None:
        assert client.get("/healthz", headers={"X-Request-Id": "a.b-c_1"}).headers["x-request-id"] == "a.b-c_1"
        made = {
            client.get("/healthz", headers={"X-Request-Id": wrong}).headers["x-request-id"]
            for wrong in ("a b", "x" * 65)
        }
        assert all(len(one) == 32 for one in made)
        assert len(made) == 2
