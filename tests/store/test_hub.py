"""Push to and pull from the Hugging Face Hub: its real client, against a server here that answers as the Hub does."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub.constants
import pytest
from helpers.saved_prompts import a_prompt
from helpers.small_tasks import command

from softprompt.errors import PromptFileError, StoreError
from softprompt.store import hub
from softprompt.store.prompt_loading import load_prompt
from softprompt.store.version_store import Store, read_saved_files


class FakeHub(ThreadingHTTPServer):
    """Repositories in memory, each a list of commits; a commit is all files by name."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.visibility: dict[str, str] = {}
        self.claimed_sizes: dict[str, int] = {}

    def at(self, repository: str, revision: str) -> dict[str, bytes] | None:
        commits = self.commits.get(repository, [])
        number = len(commits) - 1 if revision == "main" else int(revision) if revision.isdigit() else -1
        return commits[number] if 0 <= number < len(commits) else None


class Answer(BaseHTTPRequestHandler):
    server: FakeHub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.visibility.setdefault(name, asked.get("visibility", "public"))
            if self.server.commits.setdefault(name, []):
                return self.give(409, {"url": f"{self.address}/{name}"})
            return self.give(200, {"url": f"{self.address}/{name}"})
        if path == "/api/validate-yaml":
            return self.give(200, {"errors": [], "warnings": []})
        found = re.fullmatch("/api/models/(.+/.+)/(preupload|commit)/main", path)
        assert found is not None, path
        repository = found[1]
        if found[2] == "preupload":
            names = [one["path"] for one in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return self.give(200, {"files": modes})
        commits = self.server.commits[repository]
        files = dict(commits[-1]) if commits else {".gitattributes": b"*.safetensors filter=lfs"}
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
        commits.append(files)
        number = f"{len(commits) - 1:040d}"
        return self.give(200, {"commitUrl": f"{self.address}/{repository}/commit/{number}", "commitOid": number})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path.startswith("/api/models/"):
            repository, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            files = self.server.at(repository, revision or "main")
            if files is None:
                code = "RevisionNotFound" if repository in self.server.commits else "RepoNotFound"
                return self.give(404, {"error": "not found"}, {"X-Error-Code": code})
            number = self.server.commits[repository].index(files)
            sizes = {name: self.server.claimed_sizes.get(name, len(content)) for name, content in files.items()}
            siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
            return self.give(200, {"id": repository, "sha": f"{number:040d}", "siblings": siblings})
        repository, _, rest = path[1:].partition("/resolve/")
        revision, _, name = rest.partition("/")
        files = self.server.at(repository, revision)
        if files is None or name not in files:
            return self.give(
                404, {"error": "not found"}, {"X-Error-Code": "EntryNotFound" if files else "RepoNotFound"}
            )
        return self.give(
            200,
            files[name],
            {"ETag": f'"{hashlib.sha256(files[name]).hexdigest()}"', "X-Repo-Commit": revision},
        )

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def give(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Nothing: the tests read standard error."""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        address = f"http://127.0.0.1:{server.server_port}"
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield server
        server.shutdown()
        thread.join()


def test_round_trip(fake: FakeHub, tmp_path: Path) -> None:
    files = a_prompt().files()
    commit = hub.push(files, "hf:ada/reviews")
    assert fake.visibility == {"ada/reviews": "private"}
    assert str(commit) == f"hf:ada/reviews@{0:040d}"
    found, back = hub.pull("hf:ada/reviews")
    assert found == commit
    assert {name: back[name] for name in files} == files
    assert set(back) - set(files) == {"README.md"}
    # a local folder of the Hub's layout is a saved prompt, and can be pushed again with its card
    for name, content in back.items():
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / "p" / name).write_bytes(content)
    assert load_prompt(tmp_path / "p").seed == 0
    hub.push(read_saved_files(tmp_path / "p"), "hf:ada/copy", public=True)
    assert fake.visibility["ada/copy"] == "public"
    assert fake.at("ada/copy", "main") == fake.at("ada/reviews", "main")


def test_every_push_is_one_commit_and_stays(fake: FakeHub) -> None:
    for seed in (1, 2):
        hub.push(a_prompt(seed).files(), "hf:ada/reviews")
    assert len(fake.commits["ada/reviews"]) == 2
    for revision, seed in (("0" * 40, 1), ("main", 2)):
        files = hub.pull(f"hf:ada/reviews@{revision}")[1]
        assert json.loads(files["prompt.json"])["seed"] == seed


def test_a_card_is_written_once(fake: FakeHub) -> None:
    hub.push(a_prompt().files(), "hf:ada/reviews")
    make_card = fake.commits["ada/reviews"][0]["README.md"].decode()
    assert make_card.startswith("---\n")
    assert "library_name: softprompt" in make_card
    assert "$ softprompt pull hf:ada/reviews --out prompt" in make_card
    # "tiny" is no name on the Hub
    assert "base_model" not in make_card
    fake.commits["ada/reviews"][0]["README.md"] = b"my own words"
    hub.push(a_prompt(1).files(), "hf:ada/reviews")
    assert fake.commits["ada/reviews"][1]["README.md"] == b"my own words"


def test_the_card_names_a_base_model_of_the_hub() -> None:
    prompt = replace(a_prompt(), base_name="google/gemma-3-270m")
    assert "base_model: google/gemma-3-270m" in hub.make_card(prompt, "ada/reviews")


def test_only_what_a_saved_prompt_has_is_pulled(fake: FakeHub) -> None:
    hub.push(a_prompt().files(), "hf:ada/reviews")
    fake.commits["ada/reviews"][0] |= {"code/evil.py": b"1", "../evil": b"1", ".hidden": b"1", "a b": b"1"}
    names = set(hub.pull("hf:ada/reviews")[1])
    assert names == {"README.md", "history.jsonl", "prompt.json", "prompt.safetensors"}


def test_too_much_is_not_pulled(fake: FakeHub) -> None:
    hub.push(a_prompt().files(), "hf:ada/reviews")
    fake.claimed_sizes["prompt.safetensors"] = 2**40
    with pytest.raises(StoreError, match=r"holds 4 files of 1,099,[0-9,]+ bytes, a saved prompt has at most 64 of"):
        hub.pull("hf:ada/reviews")


def test_a_damaged_prompt_is_neither_pushed_nor_pulled(fake: FakeHub) -> None:
    damaged = {**a_prompt().files(), "prompt.safetensors": b"x"}
    with pytest.raises(PromptFileError, match="its SHA-256 is not the one in"):
        hub.push(damaged, "hf:ada/reviews")
    assert fake.commits == {}
    hub.push(a_prompt().files(), "hf:ada/reviews")
    fake.commits["ada/reviews"][0]["prompt.safetensors"] = b"x"
    with pytest.raises(PromptFileError, match=r"'hf:ada/reviews/prompt.safetensors' is damaged"):
        hub.pull("hf:ada/reviews")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("hf:ada/none", "'hf:ada/none' on the Hugging Face Hub: .*; correct the name, log in"),
        ("hf:ada/reviews@nowhere", "on the Hugging Face Hub: "),
        ("hf:reviews", "expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION, got 'hf:reviews'"),
        ("hf:../../etc/passwd", "expected hf:OWNER/NAME"),
        ("hf:ada/..", "on the Hugging Face Hub: "),
    ],
)
def test_what_is_not_there(fake: FakeHub, place: str, words: str) -> None:
    hub.push(a_prompt().files(), "hf:ada/reviews")
    with pytest.raises(StoreError, match=words) as caught:
        hub.pull(place)
    assert "\n" not in str(caught.value)


def test_a_revision_is_not_pushed_to(fake: FakeHub) -> None:
    with pytest.raises(StoreError, match="to push to, got 'hf:ada/x@main': leave '@main' out"):
        hub.push(a_prompt().files(), "hf:ada/x@main")


def test_on_the_command_line(fake: FakeHub, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.put(a_prompt(), "p")
    pushed = command("push", f"{store.url}#p@1", "hf:ada/reviews", "--json")
    assert (pushed.code, json.loads(pushed.out)["repository"]) == (0, "ada/reviews"), pushed.err
    pulled = command("pull", "hf:ada/reviews", "--out", tmp_path / "out")
    assert pulled.out == f"hf:ada/reviews@{0:040d} written to {tmp_path / 'out'}\n"
    assert load_prompt(tmp_path / "out").seed == 0
    refused = command("push", tmp_path / "out", f"{store.url}#p", "--public")
    assert refused.code == 2
    assert refused.error == "--public is for hf:OWNER/NAME: leave it out"
