"""Behind nginx, as docs/how-to/serve.md has it; skipped where there is no nginx (apt-get install nginx-light)."""

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from helpers.tiny_server import LABELS, Place, a_store, error_of, expected, wait_for

from softprompt.config import read_settings_file
from softprompt.data.examples import Example
from softprompt.serving.http.api_keys import add_key

NGINX = shutil.which("nginx")
pytestmark = pytest.mark.skipif(NGINX is None, reason="no nginx: apt-get install nginx-light")

DOCS = (Path(__file__).parents[2] / "docs" / "how-to" / "serve.md").read_text(encoding="utf-8")
NAME = "api.example.com"
TEXT = "a fine film"


class Behind(NamedTuple):
    """A server behind nginx, a client of nginx, and one of the server itself."""

    place: Place
    client: httpx.Client
    direct: httpx.Client


def block(language: str, having: str) -> str:
    """The one block of the page in this language that has this."""
    (found,) = [one for one in re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL) if having in one]
    return str(found)


@contextmanager
def nginx(folder: Path, server: str) -> Iterator[str]:
    """The address of nginx before the server at this address, by the lines of the page."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    lines = block("nginx", "proxy_pass").replace("http://127.0.0.1:8000", server)
    lines = re.sub(r"listen 443 ssl;", f"listen 127.0.0.1:{port};", lines)
    lines = re.sub(r"\n *ssl_certificate.*", "", lines)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = f"daemon off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\n"
    (folder / "nginx.conf").write_text(f"{main}http {{\naccess_log off;\n{temporary}{lines}}}\n")
    command = [str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    tested = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert tested.returncode == 0, tested.stderr
    with subprocess.Popen(command) as process:
        try:
            wait_for(lambda: reaches(port))
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def reaches(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    folder = tmp_path_factory.mktemp("proxy")
    (folder / "serve.toml").write_text(block("toml", "root_path"))
    settings = {**read_settings_file(folder / "serve.toml"), "keys": str(folder / "keys.json")}
    key = {"Authorization": f"Bearer {add_key(folder / 'keys.json', 'boss', admin=True)}"}
    place = Place.of_store(a_store(folder), **settings)
    with (
        place.running() as server,
        nginx(folder, server) as address,
        httpx.Client(base_url=f"{address}/prompts", headers={"Host": NAME, **key}, timeout=60) as client,
        httpx.Client(base_url=server, headers=key, timeout=60) as direct,
    ):
        yield Behind(place, client, direct)


def test_answers(behind: Behind) -> None:
    answer = behind.client.post("/v1/classify", json={"model": "tone", "input": TEXT}).json()
    (direct,) = expected(LABELS, 1, Example(TEXT))
    assert answer["results"][0]["probabilities"] == pytest.approx(direct["probabilities"], abs=1e-5)
    without = httpx.post(behind.client.base_url.join("v1/classify"), json={}, headers={"Host": NAME})
    assert error_of(without, 401)["code"] == "invalid_api_key"
    assert behind.client.get("/").status_code == behind.client.head("/docs").status_code == 200
    assert behind.client.get("/openapi.json").json()["servers"] == [{"url": "/prompts"}]


def test_a_stream_comes_as_it_grows(behind: Behind) -> None:
    behind.place.engine.hold_pieces.set()
    body = {"model": "words", "prompt": TEXT, "stream": True}
    try:
        with behind.client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            # before the others are made
            assert next(lines).startswith("data: ")
            behind.place.engine.hold_pieces.clear()
            assert [line for line in lines if line][-1] == "data: [DONE]"
    finally:
        behind.place.engine.hold_pieces.clear()


@pytest.mark.parametrize("path", ["/metrics", "//metrics", "/%6detrics", "/./metrics", "/v1/../metrics"])
def test_what_is_not_for_others(behind: Behind, path: str) -> None:
    port = behind.client.base_url.port
    key = behind.client.headers["Authorization"]
    for method, what in (("GET", path), ("POST", path.replace("metrics", "admin/reload").replace("%6d", "%61d"))):
        what = what.replace("%61detrics", "%61dmin/reload")
        with socket.create_connection(("127.0.0.1", port)) as made:
            head = f"{method} /prompts{what} HTTP/1.1\r\nHost: {NAME}\r\nAuthorization: {key}\r\n\r\n"
            made.sendall(head.encode())
            assert made.recv(4096).split()[1] == b"403", what


def test_too_large_a_body_never_reaches_it(behind: Behind) -> None:
    assert behind.client.post("/v1/classify", content=b"x" * (2**20 + 1)).status_code == 413


def test_the_log_has_the_clients_address_as_nginx_tells_it(behind: Behind, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "softprompt.serving")
    for client, told in ((behind.client, "203.0.113.7"), (behind.direct, "203.0.113.9")):
        client.get("/healthz", headers={"X-Forwarded-For": told})

    def ours() -> list[Any]:
        # uvicorn's own are there too, where a test before has asked for them
        return [record for record in caplog.records if record.name == "softprompt.serving"]

    wait_for(lambda: len(ours()) == 2)
    found = [record.fields["client"] for record in ours()]
    # nginx writes it anew; who asks the server from the proxy's own address is believed
    assert found == ["127.0.0.1", "203.0.113.9"]


def test_probes_ask_the_server_itself_by_address(behind: Behind) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        assert behind.direct.get(path).status_code == 200
    error_of(behind.direct.get("/v1/models"), 400)
