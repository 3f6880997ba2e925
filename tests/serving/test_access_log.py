"""A line of the log for each request: who asked, from where, for what, how long it took; and not what they wrote."""

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.tiny_server import Place, a_store

from softprompt.errors import ConfigError
from softprompt.serving.http.api_keys import add_key
from softprompt.serving.http.server_settings import ServerSettings
from softprompt.serving.logging_config import JsonFormatter

BODY = {"model": "tone", "input": "a fine film"}


class Lines(logging.Handler):
    """Lines as they are written."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def lines() -> Iterator[list[str]]:
    handler, log = Lines(), logging.getLogger("softprompt.serving")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler.lines
    log.removeHandler(handler)
    log.setLevel(level)


def clients(tmp_path: Path, lines: list[str], *headers: dict[str, str], **settings: Any) -> list[str]:
    """What the log says of where requests with these headers came from."""
    place = Place.of_store(a_store(tmp_path), **settings)
    with place.running() as address:
        for one in headers:
            assert httpx.post(f"{address}/v1/classify", json=BODY, headers=one, timeout=60).status_code == 200
    return [json.loads(line).get("client", "") for line in lines]


def forwarded(chain: str) -> dict[str, str]:
    return {"X-Forwarded-For": chain}


def test_a_line_has_what_an_operator_needs(tmp_path: Path, lines: list[str]) -> None:
    token = add_key(tmp_path / "keys.json", "ci")
    headers = {"Authorization": f"Bearer {token}", "X-Request-Id": "mine-1"}
    place = Place.of_store(a_store(tmp_path), keys=str(tmp_path / "keys.json"))
    with place.running() as address:
        body = {"model": "words", "prompt": "a fine film", "stream": True}
        assert httpx.post(f"{address}/v1/completions", json=body, headers=headers, timeout=60).status_code == 200
    (line,) = lines
    found = json.loads(line)
    assert found["first_token_milliseconds"] <= found["milliseconds"]
    assert {name: found[name] for name in ("event", "request_id", "route", "status", "client", "key", "model")} == {
        "event": "request",
        "request_id": "mine-1",
        "route": "/v1/completions",
        "status": 200,
        "client": "127.0.0.1",
        "key": "ci",
        "model": "words@1",
    }
    assert found["prompt_tokens"] > 0
    assert found["completion_tokens"] > 0
    assert "fine film" not in line
    assert token not in line


def test_nobody_is_believed_by_default(tmp_path: Path, lines: list[str]) -> None:
    headers = [forwarded("203.0.113.7"), {"Forwarded": "for=203.0.113.7", "X-Real-IP": "203.0.113.7"}]
    assert clients(tmp_path, lines, *headers) == ["127.0.0.1"] * 2


@pytest.mark.parametrize("trusted", ["127.0.0.1", "127.0.0.0/8"])
def test_a_trusted_proxy_is(tmp_path: Path, lines: list[str], trusted: str) -> None:
    """What it adds is at the end; what its client wrote stands before that."""
    chains = {
        "203.0.113.7": "203.0.113.7",
        "10.9.9.9, 203.0.113.7": "203.0.113.7",
        "203.0.113.7, 127.0.0.1": "203.0.113.7",
        "2001:db8::1": "2001:db8::1",
        "[2001:db8::1]:443": "2001:db8::1",
        "": "127.0.0.1",
        # not what an address is: neither it nor the proxy's own
        'x", "status": 500': "",
        "<script>": "",
        "203.0.113.7, unknown": "",
        'fe80::1%" forged': "fe80::1",
        "a" * 4000: "",
    }
    found = clients(tmp_path, lines, *map(forwarded, chains), forwarded_allow_ips=(trusted,))
    assert dict(zip(chains, found, strict=True)) == chains
    assert all(json.loads(line)["status"] == 200 for line in lines)
    assert "script" not in "".join(lines)


def test_another_proxy_is_not(tmp_path: Path, lines: list[str]) -> None:
    assert clients(tmp_path, lines, forwarded("203.0.113.7"), forwarded_allow_ips=("10.0.0.0/8",)) == ["127.0.0.1"]


def test_lines_cannot_be_written_by_a_header(tmp_path: Path, lines: list[str]) -> None:
    place = Place.of_store(a_store(tmp_path), forwarded_allow_ips=("127.0.0.1",))
    with place.running() as address, socket.create_connection(("127.0.0.1", httpx.URL(address).port)) as made:
        head = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        made.sendall(
            head
            + b'X-Forwarded-For: 1.2.3.4\xe2\x80\xa8{"event": "forged"}\x85\r\nX-Request-Id: a\xe2\x80\xa8b\r\n\r\n'
        )
        while made.recv(4096):
            pass
    (line,) = lines
    assert len(line.splitlines()) == 1
    assert "forged" not in line


@pytest.mark.parametrize("wrong", ["*", "proxy.example", "10.0.0.1/8", "", "127.0.0.1:80", "127.0.0.1 "])
def test_a_proxy_is_an_address_or_a_network(wrong: str) -> None:
    settings = ServerSettings.build(model="x", prompts=("x",), forwarded_allow_ips=(wrong,))
    with pytest.raises(ConfigError, match=r"forwarded_allow_ips: expected an address as 127\.0\.0\.1, or a network"):
        settings.check()
