"""Connections: those that ask nothing, or never finish asking, or never read, and how the server ends."""

import json
import logging
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from helpers.tiny_server import Place, a_store, error_of, prompt, wait_for

from softprompt.serving.logging_config import RepeatFilter
from softprompt.serving.uvicorn_server import FEWEST, OTHER_FILES, ConnectionLimits

GOOD = {"model": "tone", "input": "a fine film"}


def opened(address: str, said: bytes = b"") -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    made = socket.create_connection((host, int(port)), timeout=30)
    made.sendall(said)
    return made


def is_closed(made: socket.socket, seconds: float = 30) -> bool:
    """Whether the server closes it within so many seconds."""
    made.settimeout(seconds)
    try:
        while made.recv(65536):
            pass
        return True
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    prompt(seed=1).save((folder := tmp_path_factory.mktemp("p")) / "tone")
    with Place.of_folders(folder / "tone", header_timeout=1).running() as address:
        yield address


def drips(made: socket.socket, seconds: float = 8) -> bool:
    """Whether a byte at a time is taken for so long."""
    ends = time.monotonic() + seconds
    made.settimeout(0.1)
    while time.monotonic() < ends:
        try:
            made.sendall(b"x")
            if made.recv(1) == b"":
                return False
        except TimeoutError:
            continue
        except ConnectionError:
            return False
    return True


class TestHeaders:
    @pytest.mark.parametrize(
        "said", [b"", b"\r\n", b"GET /healthz HTTP/1.1\r\nHost: a", b"GET"], ids=["nothing", "a line", "half", "a word"]
    )
    def test_that_never_come(self, address: str, said: bytes) -> None:
        with opened(address, said) as made:
            assert is_closed(made, 5)

    def test_that_come_a_byte_at_a_time(self, address: str) -> None:
        with opened(address, b"GET /healthz HTTP/1.1\r\nX: ") as made:
            assert not drips(made)

    def test_of_a_second_request_on_the_same_connection(self, address: str) -> None:
        with opened(address, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") as made:
            while not made.recv(65536).endswith(b'{"status":"ok"}'):
                pass
            made.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
            assert is_closed(made, 5)

    def test_a_body_that_nobody_waits_for(self, address: str) -> None:
        head = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n"
        with opened(address, head) as made:
            while not made.recv(65536).endswith(b'{"status":"ok"}'):
                pass
            assert not drips(made)

    def test_requests_one_after_the_other_are_left_alone(self, address: str) -> None:
        """For longer than the limit."""
        with httpx.Client(base_url=address) as client:
            for _ in range(8):
                assert client.get("/healthz").status_code == 200
                time.sleep(0.3)
            (one,) = client._transport._pool.connections  # type: ignore[attr-defined]
            assert "Request Count: 8" in repr(one)


def test_answers_that_nobody_reads(tmp_path: Path) -> None:
    place = Place.of_store(a_store(tmp_path), timeout=3)
    with place.running() as address, opened(address) as made:
        server = place.server._server
        assert server is not None
        made.settimeout(0.5)
        with suppress(OSError):
            for _ in range(2000):
                made.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        wait_for(lambda: server.server_state.connections)
        wait_for(lambda: not server.server_state.connections, 30)


class TestNumber:
    def test_who_asks_nothing_makes_room(self, tmp_path: Path) -> None:
        with Place.of_store(a_store(tmp_path), max_connections=10).running() as address, ExitStack() as stack:
            idle = [stack.enter_context(opened(address)) for _ in range(30)]
            for _ in range(5):
                assert httpx.post(f"{address}/v1/classify", json=GOOD).status_code == 200
            assert sum(is_closed(one, 0.1) for one in idle) >= 20

    def test_where_all_ask_more_are_refused(self, tmp_path: Path) -> None:
        place = Place.of_store(a_store(tmp_path), max_connections=3)
        place.engine.hold.set()
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(httpx.post(f"{address}/v1/classify", json=GOOD, timeout=60))

        with place.running() as address:
            asking = [threading.Thread(target=ask) for _ in range(3)]
            for one in asking:
                one.start()
            wait_for(lambda: len(place.engine.asked) == 3)
            refused = httpx.get(f"{address}/healthz")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json()["error"]["code"] == "too_many_connections"
            place.engine.hold.clear()
            for one in asking:
                one.join(60)
            assert [one.status_code for one in answers] == [200] * 3
            assert httpx.get(f"{address}/healthz").status_code == 200

    def test_no_more_than_the_process_may_open(self) -> None:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert ConnectionLimits(max_connections=10**9).effective_connections == max(FEWEST, files - OTHER_FILES)
        assert ConnectionLimits(max_connections=5).effective_connections == 5

    def test_few_descriptors(self, tmp_path: Path) -> None:
        """More connections than the process may open: others are served, and the log stays short."""
        prompt(seed=1).save(tmp_path / "tone")
        code = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from helpers.tiny_server import Place
from softprompt.serving.logging_config import configure_logging
configure_logging()
with Place.of_folders({str(tmp_path / "tone")!r}, header_timeout=60).running() as address:
    print(address, flush=True)
    sys.stdin.read()
"""
        with (
            subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as process,
            ExitStack() as stack,
        ):
            assert process.stdout is not None
            address = process.stdout.readline().decode().strip()
            for _ in range(400):
                stack.enter_context(opened(address, b"GET / HTTP/1.1\r\n"))
            for _ in range(3):
                assert httpx.post(f"{address}/v1/classify", json=GOOD, timeout=30).status_code == 200
            _, err = process.communicate(b"", timeout=60)
        assert process.returncode == 0
        lines = [json.loads(line) for line in err.decode().splitlines() if line.startswith("{")]
        warned = [line["event"] for line in lines if line["level"] != "info"]
        assert "too many connections: one that asked nothing was closed" in warned
        assert len(warned) <= 3, warned


def test_what_is_said_again_and_again_is_said_once_a_minute() -> None:
    kept = RepeatFilter(60)
    said = []
    for second in (0, 1, 59, 60.5, 61, 200):
        record = logging.makeLogRecord({"msg": f"no descriptor\nof socket {second}", "levelno": 40, "name": "asyncio"})
        record.created = second
        if kept.filter(record):
            said.append((second, getattr(record, "fields", {})))
    assert said == [(0, {}), (60.5, {"repeated": 2}), (200, {"repeated": 1})]
    other = logging.makeLogRecord({"msg": "another", "levelno": 40, "name": "asyncio"})
    assert kept.filter(other)


class TestEnding:
    def test_a_balancer_sees_that_it_ends_before_it_does(self, tmp_path: Path) -> None:
        place = Place.of_store(a_store(tmp_path), draining=True, drain_delay=1.5)
        with place.running() as address:
            with httpx.Client(base_url=address) as client:
                assert client.get("/readyz").headers.get("connection") is None
                place.server.stop()
                ready = client.get("/readyz")
                assert (ready.status_code, ready.json()) == (503, {"status": "stopping"})
                # who stays connected would not see the next server
                assert ready.headers["connection"] == "close"
                assert client.post("/v1/classify", json=GOOD).status_code == 200
            time.sleep(2)
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{address}/readyz")

    def test_a_stream_that_is_cut_says_so(self, tmp_path: Path) -> None:
        place = Place.of_store(a_store(tmp_path), shutdown_timeout=1)
        place.engine.hold_pieces.set()
        body = {"model": "words", "prompt": "a fine film", "stream": True}
        with (
            place.running() as address,
            httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=60) as response,
        ):
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            place.server.stop()
            last = [line for line in lines if line][-1]
        error = json.loads(last.removeprefix("data: "))["error"]
        assert (error["code"], error["type"]) == ("stopping", "server_error")


class TestHosts:
    def test_probes_ask_by_address(self, tmp_path: Path) -> None:
        place = Place.of_store(a_store(tmp_path), allowed_hosts=("api.example.com",), no_auth=True)
        with place.client() as client:
            for host in ("10.1.2.3:8000", "[fd00::1]:8000", "api.example.com"):
                for path, status in (("/healthz", 200), ("/readyz", 200), ("/metrics", 403)):
                    assert client.get(path, headers={"Host": host}).status_code == status
            for path in ("/v1/models", "/docs", "/admin/reload"):
                error_of(client.get(path, headers={"Host": "10.1.2.3"}), 400)
            # a page of the web could give any name to this address
            error_of(client.get("/metrics", headers={"Host": "evil.example"}), 400)
            for path in ("/readyz", "/health"):
                assert client.get(path, headers={"Host": "evil.example"}).status_code == 200

    def test_metrics_that_a_key_or_nothing_keeps_have_any_name(self, tmp_path: Path) -> None:
        options = {"allowed_hosts": ("api.example.com",), "no_auth": True, "public_metrics": True}
        with Place.of_store(a_store(tmp_path), **options).client() as client:
            assert client.get("/metrics", headers={"Host": "softprompt.monitoring:8000"}).status_code == 200


class TestOrigins:
    def test_a_page_of_the_web_sets_nothing_off(self, tmp_path: Path) -> None:
        place = Place.of_store(a_store(tmp_path))
        foreign = (
            {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
            {"Origin": "http://127.0.0.1:3000", "Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
            {"Origin": "null"},
            {"Origin": "https://evil.example"},
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        )
        own = ({}, {"Origin": "http://127.0.0.1"}, {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"})
        with place.client() as client:
            for headers in foreign:
                assert error_of(client.post("/admin/reload", headers=headers), 403)["code"] == "foreign_origin"
                error_of(client.get("/v1/models/tone", headers=headers), 403)
                error_of(client.post("/v1/classify", json=GOOD, headers=headers), 403)
            for headers in own:
                assert client.post("/admin/reload", headers=headers).status_code == 200
            followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
            assert client.get("/v1/models", headers=followed).status_code == 200

    def test_openais_client_in_a_browser(self, tmp_path: Path) -> None:
        """The headers that openai-node sends, and browsers ask for beforehand."""
        sent = (
            "authorization,content-type,openai-organization,openai-project,x-stainless-arch,x-stainless-async,"
            "x-stainless-helper-method,x-stainless-lang,x-stainless-os,x-stainless-package-version,"
            "x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout"
        )
        place = Place.of_store(a_store(tmp_path), cors_origins=("https://app.example",))
        with place.client() as client:
            asked = {
                "Origin": "https://app.example",
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": sent,
            }
            allowed = client.options("/v1/completions", headers=asked)
            assert allowed.status_code == 200
            assert allowed.headers["access-control-allow-origin"] == "https://app.example"
            assert set(sent.split(",")) <= {
                one.strip().lower() for one in allowed.headers["access-control-allow-headers"].split(",")
            }
            given = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
            answer = client.post("/v1/classify", json=GOOD, headers=given)
            assert answer.headers["access-control-allow-origin"] == "https://app.example"
            other = {**asked, "Origin": "https://b.example"}
            assert client.options("/v1/completions", headers=other).status_code == 400


def test_the_head_of_whatever_can_be_got(tmp_path: Path) -> None:
    with Place.of_store(a_store(tmp_path)).client() as client:
        for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/metrics", "/v1/models", "/v1/models/tone"):
            got, head = client.get(path), client.head(path)
            assert (head.status_code, head.content) == (200, b""), path
            assert head.headers["content-type"] == got.headers["content-type"]
            assert path == "/metrics" or head.headers["content-length"] == got.headers["content-length"], path
        assert client.head("/v1/models/none").status_code == 404
        assert client.head("/v1/completions").status_code == 405


def test_every_answer_tells_a_browser_what_it_is_not(tmp_path: Path) -> None:
    with Place.of_store(a_store(tmp_path)).client() as client:
        for path in ("/", "/docs", "/openapi.json", "/healthz", "/v1/models", "/nowhere"):
            headers = client.get(path).headers
            assert "default-src 'none'" in headers["content-security-policy"], path
            assert headers["x-content-type-options"] == "nosniff"
        policy = client.get("/docs").headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "script-src" not in policy
