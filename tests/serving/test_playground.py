"""The page at ``/`` as files: what is sent, what is not in it, and that it comes with the package."""

import gzip
import re
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from urllib.parse import urljoin
from zipfile import ZipFile

import pytest
from helpers.colors import contrast, palette_of
from helpers.tiny_server import BASE_NAME, Place, a_store, error_of
from starlette.testclient import TestClient

from softprompt.serving.http.api_keys import add_key
from softprompt.serving.http.routes.playground import TYPES

MOST_BYTES = 48_000  # of the page with all its files
SCRIPTS = [name for name in TYPES if name.endswith(".js")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.of_store(a_store(tmp_path_factory.mktemp("page")))


@pytest.fixture(scope="module")
def client(place: Place) -> Iterator[TestClient]:
    with place.client() as client:
        yield client


def parts_of(html: str) -> dict[str, str]:
    """Paths of the page's files, by name, as the page and its scripts ask for them."""
    paths = {urljoin("/", path) for path in re.findall(r'(?:src|href)="(page/[^"]+)"', html)}
    folder = next(iter(paths)).rpartition("/")[0]
    imported = {f"{folder}/{name}" for script in SCRIPTS for name in re.findall(r'from "\./([^"]+)"', asset(script))}
    return {path.rpartition("/")[2]: path for path in paths | imported}


def asset(name: str) -> str:
    return (files("softprompt.serving.http") / "static" / name).read_text(encoding="utf-8")


class TestRoutes:
    def test_all_files_are_there_and_small(self, client: TestClient) -> None:
        first = client.get("/")
        parts = parts_of(first.text)
        assert {"index.html", *parts} == set(TYPES)
        answers = {"index.html": first, **{name: client.get(path) for name, path in parts.items()}}
        for name, answer in answers.items():
            assert answer.status_code == 200
            assert answer.headers["content-type"] == f"{TYPES[name]}; charset=utf-8"
        assert sum(len(answer.content) for answer in answers.values()) <= MOST_BYTES

    def test_files_are_kept_and_the_page_is_asked_for_again(self, client: TestClient) -> None:
        first = client.get("/")
        assert first.headers["cache-control"] == "no-cache"
        for path in parts_of(first.text).values():
            assert client.get(path).headers["cache-control"] == "public, max-age=31536000, immutable"
        for path in ("/", *parts_of(first.text).values()):
            tag = client.get(path).headers["etag"]
            for tags in (tag, f'"other", {tag}'):
                same = client.get(path, headers={"If-None-Match": tags})
                assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
            assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200

    def test_they_are_packed_for_who_can_unpack(self, client: TestClient) -> None:
        path = parts_of(client.get("/").text)["page.js"]
        plain = client.get(path, headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        with client.stream("GET", path, headers={"Accept-Encoding": "gzip"}) as packed:
            raw = b"".join(packed.iter_raw())
        assert packed.headers["content-encoding"] == "gzip"
        assert packed.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
        assert gzip.decompress(raw) == plain.content
        assert len(raw) < len(plain.content) / 2

    def test_head(self, client: TestClient) -> None:
        answer = client.head("/")
        assert answer.status_code == 200
        assert answer.headers["etag"] == client.get("/").headers["etag"]

    def test_nothing_else_is_there(self, client: TestClient) -> None:
        folder = parts_of(client.get("/").text)["page.js"].rpartition("/")[0]
        others = ("page.py", "index.html", "..%2fpage.py", "%2e%2e/page.py", "page.js/", "PAGE.JS", "")
        for path in (*(f"{folder}/{name}" for name in others), "/page/0123456789abcdef/page.js", "/page/page.js"):
            assert error_of(client.get(path), 404)["code"] == "not_found"
        assert error_of(client.post("/"), 405)["code"] == "method_not_allowed"

    def test_it_is_not_part_of_the_api(self, client: TestClient) -> None:
        assert not [path for path in client.get("/openapi.json").json()["paths"] if path == "/" or "page" in path]


class TestSafety:
    def test_nothing_runs_that_is_not_a_file_of_this_server(self, client: TestClient) -> None:
        first = client.get("/")
        for path in ("/", *parts_of(first.text).values()):
            headers = client.get(path).headers
            policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
            assert "unsafe" not in headers["content-security-policy"]
            assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
            assert policy["frame-ancestors"] == "'none'"
            assert {policy[f"{kind}-src"] for kind in ("script", "style", "connect", "img")} == {"'self'"}
            assert policy["require-trusted-types-for"] == "'script'"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"

    def test_the_page_has_nothing_inline(self) -> None:
        html = asset("index.html")
        assert not re.search(r"\son\w+=|\sstyle=|<style|javascript:", html)
        assert re.findall(r"<script\b[^>]*>(.*?)</script>", html) == [""]

    @pytest.mark.parametrize("name", list(TYPES))
    def test_nothing_is_loaded_from_elsewhere(self, name: str) -> None:
        content = asset(name).replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|\burl\(|@import|//\w+\.", content)

    @pytest.mark.parametrize("name", SCRIPTS)
    def test_text_stays_text(self, name: str) -> None:
        makes_html = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|Function\(|srcdoc"
        assert not re.search(makes_html, asset(name))
        assert not re.search("localStorage|sessionStorage|cookie|indexedDB", asset(name))

    def test_it_tells_nothing_of_what_is_served(self, tmp_path: Path) -> None:
        key = add_key(tmp_path / "keys.json", "all")
        place = Place.of_store(a_store(tmp_path), keys=str(tmp_path / "keys.json"))
        with place.client() as stranger, place.client(key) as user:
            page = stranger.get("/")
            assert page.status_code == 200
            assert page.content == user.get("/").content
            assert 'data-keys="yes"' in page.text
            assert not [secret for secret in ("tone", BASE_NAME, key, key.removeprefix("sp-")) if secret in page.text]
            assert stranger.get(parts_of(page.text)["page.js"]).status_code == 200
            error_of(stranger.get("/v1/models"), 401)

    def test_a_server_without_keys_says_so(self, client: TestClient) -> None:
        assert 'data-keys="no"' in client.get("/").text

    def test_another_host_is_refused(self, client: TestClient) -> None:
        assert error_of(client.get("/", headers={"Host": "evil.example"}), 400)["code"] == "unknown_host"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_from_their_ground(scheme: str) -> None:
    palette = palette_of(asset("page.css"), scheme)
    for ground in ("paper", "wash"):
        for text in ("ink", "soft", "accent", "worse"):
            assert contrast(palette[text], palette[ground]) >= 4.5
        for mark in ("learned", "written", "bare"):
            assert contrast(palette[mark], palette[ground]) >= 3
    assert contrast(palette["rule"], palette["paper"]) >= 3
    assert contrast(palette["on-accent"], palette["accent"]) >= 4.5


def test_the_files_come_with_the_package(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert settings == {"packages": ["softprompt"]}  # with all that is in the folder
    builder = pytest.importorskip("hatchling.builders.wheel", reason="no hatchling to build a wheel with")
    (built,) = builder.WheelBuilder(str(root)).build(directory=str(tmp_path))
    assert {f"softprompt/serving/http/static/{name}" for name in TYPES} <= set(ZipFile(built).namelist())
