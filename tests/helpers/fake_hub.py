"""Hugging Face's hub, in memory."""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


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
