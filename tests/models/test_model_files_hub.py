"""Base models by hub name, in processes of their own: from a hub that is slow, that is gone, or that never was."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import pytest
from helpers.tiny_models import save_tiny

NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


class Hub(BaseHTTPRequestHandler):
    """One model, ``somebody/llama``, as Hugging Face's hub serves it."""

    folder: ClassVar[Path]

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        time.sleep(0.2)
        path = urlsplit(self.path).path
        files = [{"type": "file", "oid": "0", "path": file.name, "size": 1} for file in self.folder.iterdir()]
        content = None
        if path == "/api/models/somebody/llama/tree/main":
            content = json.dumps(files).encode()
        elif path.startswith("/somebody/llama/resolve/") and (self.folder / Path(path).name).is_file():
            content = (self.folder / Path(path).name).read_bytes()
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound" if "/somebody/llama/" in path else "RepoNotFound")
        self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if with_body:
            self.wfile.write(content or b"")

    def log_message(self, *arguments: object) -> None:
        """Nothing: the tests read standard error."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """The address of a slow hub."""
    Hub.folder = save_tiny(tmp_path / "served", "llama")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def loading(name: str, endpoint: str, cache: Path) -> "subprocess.CompletedProcess[str]":
    """Load ``name``; whether it loaded, or why not, is on standard output."""
    script = (
        "import sys\n"
        "from softprompt.models.loading import load_model\n"
        "from softprompt.errors import BaseModelError\n"
        "try:\n"
        "    print('loaded', load_model(sys.argv[1]).vocabulary_size)\n"
        "except BaseModelError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    environment["NO_PROXY"] = "127.0.0.1"
    root = Path(__file__).parents[2]
    process = [sys.executable, "-c", script, name]
    return subprocess.run(process, cwd=root, env=environment, capture_output=True, text=True, timeout=300)


def test_unknown_name_without_network_is_refused_after_one_try(tmp_path: Path) -> None:
    done = loading("nobody/no-such-model", NOWHERE, tmp_path)
    (message,) = done.stdout.splitlines()
    assert message.startswith(
        "cannot load the base model 'nobody/no-such-model': it is no folder here, it is not in the hub's cache, and "
        f"{NOWHERE} cannot be reached ("
    )
    assert message.endswith("): correct the name, or connect to the network")
    # each further try would be told there
    assert done.stderr == ""


@pytest.mark.slow
def test_unknown_name_on_a_slow_hub(hub: str, tmp_path: Path) -> None:
    done = loading("nobody/no-such-model", hub, tmp_path)
    assert done.stdout.startswith("cannot load the base model 'nobody/no-such-model': ")
    assert "cannot be reached" not in done.stdout


@pytest.mark.slow
def test_known_name_on_a_slow_hub_and_then_without_network(hub: str, tmp_path: Path) -> None:
    assert loading("somebody/llama", hub, tmp_path).stdout == "loaded 320\n"
    done = loading("somebody/llama", NOWHERE, tmp_path)
    assert (done.stdout, done.stderr) == ("loaded 320\n", "")
