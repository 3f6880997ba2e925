"""API keys: their file, who may ask what, and what the metrics tell to whom."""

import json
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.small_tasks import command
from helpers.tiny_server import BASE_NAME, Place, a_store, error_of

from softprompt.errors import ConfigError
from softprompt.serving.http.api_keys import ApiKeyFile, add_key, read_keys, remove_key
from softprompt.serving.http.prometheus import COUNTERS, GAUGES

BODY = {"model": "tone", "input": "a fine film"}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


class TestFile:
    def test_a_key_is_found_and_not_kept(self, keys: Path) -> None:
        tokens = [add_key(keys, "one"), add_key(keys, "two", ["tone", "spam-*"], admin=True)]
        found = [read_keys(keys).find(token) for token in tokens]
        assert [key and key.name for key in found] == ["one", "two"]
        content = keys.read_text()
        assert not any(token in content or token.removeprefix("sp-") in content for token in tokens)
        assert stat.S_IMODE(keys.stat().st_mode) == 0o600

    def test_keys_are_long_and_differ(self, keys: Path) -> None:
        tokens = {add_key(keys, f"key{number}") for number in range(5)}
        assert len(tokens) == 5
        assert all(len(token) == 3 + 43 for token in tokens)

    @pytest.mark.parametrize("wrong", ["", "sp-", "sp-" + "A" * 43, "\udcff", "x" * 100_000])
    def test_other_keys_are_not_found(self, keys: Path, wrong: str) -> None:
        token = add_key(keys, "one")
        assert read_keys(keys).find(wrong) is None
        assert read_keys(keys).find(token[:-1]) is None
        assert read_keys(keys).find(f"{token}x") is None

    def test_permissions_are_patterns_of_names(self, keys: Path) -> None:
        add_key(keys, "one", ["tone", "spam-*", "v[12]"])
        (key,) = read_keys(keys).keys
        allowed = ("tone", "spam-", "spam-de", "v1")
        assert all(key.allows(name) for name in allowed)
        assert not any(key.allows(name) for name in ("tones", "Tone", "spam", "v3", "", "tone\n", "a\nspam-x"))

    def test_a_removed_key(self, keys: Path) -> None:
        token = add_key(keys, "one")
        add_key(keys, "two")
        remove_key(keys, "one")
        assert read_keys(keys).find(token) is None
        with pytest.raises(ConfigError, match=r"no key named 'one' in .*, its keys are: two"):
            remove_key(keys, "one")

    def test_mistakes(self, keys: Path) -> None:
        add_key(keys, "one")
        with pytest.raises(ConfigError, match="there is a key named 'one'"):
            add_key(keys, "one")
        for name in ("", "a b", "../x", "a" * 65, "é"):
            with pytest.raises(ConfigError, match="expected a name of letters"):
                add_key(keys, name)
        assert [key.name for key in read_keys(keys).keys] == ["one"]
        with pytest.raises(ConfigError, match="does not exist: softprompt keys add makes one"):
            read_keys(keys.parent / "none.json")

    @pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"schema_version": 1, "keys": [{"name": "x"}]}', b"\xff"])
    def test_a_damaged_file(self, keys: Path, content: bytes) -> None:
        keys.write_bytes(content)
        with pytest.raises(ConfigError, match="cannot be read"):
            read_keys(keys)

    def test_what_is_edited_by_hand_holds(self, keys: Path) -> None:
        token = add_key(keys, "one", ["spam-*"])
        written = json.loads(keys.read_text())
        written["keys"][0]["prompts"] = ["tone"]
        # a file of an earlier build had a seal, which an edit breaks
        for seal in ({}, {"sha256": "0" * 64}):
            keys.write_text(json.dumps({**written, **seal}))
            key = read_keys(keys).find(token)
            assert key is not None
            assert key.prompts == ("tone",)

    def test_commands(self, keys: Path) -> None:
        made = command("keys", "add", "ci", "--file", keys, "--prompts", "spam-*", "--json")
        assert made.code == 0
        token = json.loads(made.out)["key"]
        plain = command("keys", "add", "boss", "--file", keys, "--admin").out.strip()
        assert read_keys(keys).find(plain) is not None
        listed = json.loads(command("keys", "list", "--file", keys, "--json").out)["keys"]
        assert [(one["name"], one["prompts"], one["admin"]) for one in listed] == [
            ("ci", ["spam-*"], False),
            ("boss", ["*"], True),
        ]
        shown = command("keys", "list", "--file", keys).out
        assert token not in shown
        assert shown.splitlines()[0].startswith("ci\tspam-*\t-\t")
        assert command("keys", "remove", "ci", "--file", keys).code == 0
        assert command("keys", "remove", "ci", "--file", keys).error.startswith("there is no key named 'ci'")


class TestAsking:
    @pytest.fixture
    def place(self, keys: Path, tmp_path: Path) -> Place:
        self.tokens = {
            "tone": add_key(keys, "tone", ["tone"]),
            "all": add_key(keys, "all"),
            "boss": add_key(keys, "boss", ["nothing"], admin=True),
        }
        return Place.of_store(a_store(tmp_path), keys=str(keys))

    @pytest.mark.parametrize("token", [None, "sp-wrong", "", " "])
    def test_without_a_key(self, place: Place, token: str | None) -> None:
        with place.client(token) as client:
            for method, path in (
                ("POST", "/v1/classify"),
                ("POST", "/v1/completions"),
                ("POST", "/v1/chat/completions"),
                ("GET", "/v1/models"),
                ("GET", "/v1/models/tone"),
                ("GET", "/metrics"),
                ("POST", "/admin/reload"),
            ):
                response = client.request(method, path, content=b"{ not even JSON")
                assert error_of(response, 401)["type"] == "authentication_error"
                assert response.headers["www-authenticate"] == "Bearer"
            assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
            assert client.get("/v1/models", headers={"Authorization": "Basic abc"}).status_code == 401

    def test_a_key_for_some_names(self, place: Place) -> None:
        with place.client(self.tokens["tone"]) as client:
            assert client.post("/v1/classify", json=BODY).status_code == 200
            assert client.post("/v1/classify", json={**BODY, "model": "tone@2"}).status_code == 200
            for other in ("words", "more@1", BASE_NAME, "nobody-knows", "../tone", "tone2@1"):
                error = error_of(client.post("/v1/classify", json={**BODY, "model": other}), 403)
                assert (error["type"], error["code"]) == ("permission_error", "model_not_allowed")
            error_of(client.get("/v1/models/words"), 403)
            names = [one["id"] for one in client.get("/v1/models").json()["data"]]
            assert {name.partition("@")[0] for name in names} == {"tone"}
            for method, path in (("GET", "/metrics"), ("POST", "/admin/reload")):
                assert error_of(client.request(method, path), 403)["code"] == "not_an_admin"

    def test_a_key_for_all_and_an_admins(self, place: Place) -> None:
        with place.client(self.tokens["all"]) as client:
            assert client.post("/v1/completions", json={"model": BASE_NAME, "prompt": "x"}).status_code == 200
        with place.client(self.tokens["boss"]) as client:
            error_of(client.post("/v1/classify", json=BODY), 403)
            assert client.get("/metrics").status_code == 200
            assert client.post("/admin/reload").status_code == 200

    def test_keys_come_and_go_while_it_runs(self, place: Place, keys: Path) -> None:
        with place.client() as client:

            def status(token: str) -> int:
                headers = {"Authorization": f"Bearer {token}"}
                return client.post("/v1/classify", json=BODY, headers=headers).status_code

            boss = {"Authorization": f"Bearer {self.tokens['boss']}"}
            new = add_key(keys, "new")
            remove_key(keys, "all")
            assert (status(new), status(self.tokens["all"])) == (401, 200)
            assert client.post("/admin/reload", headers=boss).json()["troubles"] == []
            assert (status(new), status(self.tokens["all"])) == (200, 401)
            keys.write_bytes(b"damaged")
            (trouble,) = client.post("/admin/reload", headers=boss).json()["troubles"]
            assert "cannot be read" in trouble
            assert (status(new), status(self.tokens["all"])) == (200, 401)
            keys.write_bytes(ApiKeyFile().to_bytes())
            assert client.post("/admin/reload", headers=boss).json()["troubles"] == []
            # the last one was taken away: it asks no more
            assert status(new) == 401

    def test_the_scheme_is_on_the_openapi_page(self, place: Place) -> None:
        with place.client() as client:
            page = client.get("/openapi.json").json()
        assert page["components"]["securitySchemes"] == {"HTTPBearer": {"type": "http", "scheme": "bearer"}}
        assert page["paths"]["/v1/classify"]["post"]["security"] == [{"HTTPBearer": []}]
        assert "security" not in page["paths"]["/healthz"]["get"]

    def test_the_log_has_the_keys_name(self, place: Place, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "softprompt.serving")
        with place.client(self.tokens["tone"]) as client:
            client.post("/v1/classify", json=BODY)
        assert [record.fields["key"] for record in caplog.records] == ["tone"]  # type: ignore[attr-defined]
        assert self.tokens["tone"] not in caplog.text


class TestMetrics:
    def test_what_is_counted(self, tmp_path: Path) -> None:
        with Place.of_store(a_store(tmp_path)).client() as client:
            client.post("/v1/classify", json=BODY)
            client.post("/v1/completions", json={"model": "words", "prompt": "x", "stream": True})
            lines = client.get("/metrics").text.splitlines()
        assert 'softprompt_requests_total{route="/v1/classify",status="200",task="tone"} 1.0' in lines
        assert 'softprompt_requests_total{route="/v1/completions",status="200",task="words"} 1.0' in lines
        assert 'softprompt_request_seconds_count{route="/v1/classify",task="tone"} 1.0' in lines
        assert 'softprompt_tokens_total{kind="completion",task="tone"} 0.0' in lines
        assert "softprompt_prompt_versions 4.0" in lines
        (made,) = [line for line in lines if line.startswith('softprompt_tokens_total{kind="completion",task="words"}')]
        assert float(made.split()[-1]) > 0

    def test_made_up_names_make_no_series(self, tmp_path: Path) -> None:
        with Place.of_store(a_store(tmp_path)).client() as client:
            client.post("/v1/classify", json={"model": "made-up", "input": "x"})
            client.get("/made-up/path")
            client.get("/v1/models/made-up")
            client.request("MADEUP", "/v1/models")
            client.post("/v1/completions", json={"model": "tone@made-up", "prompt": "x"})
            text = client.get("/metrics").text
        assert "made" not in text.lower()
        assert 'softprompt_requests_total{route="other",status="404",task=""} 1.0' in text.splitlines()

    def test_an_engine_that_measures_itself(self, tmp_path: Path) -> None:
        place = Place.of_store(a_store(tmp_path))
        place.metrics.record_batch(SimpleNamespace(what="label", rows=3, seconds=0.5))
        numbers = dict.fromkeys((*GAUGES, *COUNTERS), 7)
        place.engine.snapshot = lambda: SimpleNamespace(**numbers)  # type: ignore[attr-defined]
        with place.client() as client:
            lines = client.get("/metrics").text.splitlines()
        assert 'softprompt_batch_rows_bucket{le="2.0",what="label"} 0.0' in lines
        assert 'softprompt_batch_rows_bucket{le="4.0",what="label"} 1.0' in lines
        assert "softprompt_engine_waiting 7.0" in lines
        assert "softprompt_engine_prefix_hits_total 7.0" in lines

    def test_an_address_that_others_reach_keeps_them_to_itself(self, tmp_path: Path) -> None:
        (tmp_path / "open").mkdir()
        with Place.of_store(a_store(tmp_path), host="0.0.0.0", no_auth=True).client() as client:
            assert client.post("/v1/classify", json=BODY).status_code == 200
            error_of(client.get("/metrics"), 403)
            error_of(client.post("/admin/reload"), 403)
        opened = Place.of_store(a_store(tmp_path / "open"), host="0.0.0.0", no_auth=True, public_metrics=True)
        with opened.client() as client:
            assert client.get("/metrics").status_code == 200
