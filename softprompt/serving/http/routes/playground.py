"""The page at ``/``: files of this package, read once. There is nothing in them of this server's prompts or users.

What the page shows it asks the API for, with the API key that its user gives.
"""

import gzip
import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

FIRST = "index.html"
TYPES = {
    FIRST: "text/html",
    "page.css": "text/css",
    "api.js": "text/javascript",
    "card.js": "text/javascript",
    "chat.js": "text/javascript",
    "page.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
DIGEST = b"DIGEST"  # stands in the page for the digest of all files: their addresses change when they do
KEYS = b"KEYS"  # stands there for whether an API key is needed

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
}
FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class StaticFile:
    """A file as it is sent."""

    content: bytes
    packed: bytes
    headers: dict[str, str]

    @classmethod
    def of(cls, name: str, content: bytes, cache: str) -> "StaticFile":
        # weak, for it is of the content whether packed or not
        tag = f'W/"{_hash_content(content)}"'
        headers = {"Content-Type": f"{TYPES[name]}; charset=utf-8", "Cache-Control": cache, "ETag": tag}
        return cls(content, gzip.compress(content, mtime=0), {**HEADERS, **headers})

    def response(self, request: Request) -> Response:
        tags = [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
        if self.headers["ETag"] in tags:
            return Response(status_code=304, headers=self.headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(self.packed, headers={**self.headers, "Content-Encoding": "gzip"})
        return Response(self.content, headers=self.headers)


def create_playground_router(*, needs_key: bool) -> APIRouter:
    """The routes of the page; they need no API key, though what it asks may: ``needs_key``."""
    folder = files("softprompt.serving.http") / "static"
    contents = {name: (folder / name).read_bytes() for name in TYPES}
    digest = _hash_content(b"".join(contents.values()))
    filled = contents.pop(FIRST).replace(DIGEST, digest.encode()).replace(KEYS, b"yes" if needs_key else b"no")
    first = StaticFile.of(FIRST, filled, "no-cache")
    others = {name: StaticFile.of(name, content, FOR_EVER) for name, content in contents.items()}
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def show(request: Request) -> Response:
        return first.response(request)

    @router.get("/page/{version}/{name}")
    async def part(request: Request, version: str, name: str) -> Response:
        if version != digest or name not in others:
            raise HTTPException(404)
        return others[name].response(request)

    return router


def _hash_content(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
