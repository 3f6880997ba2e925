"""Keys with an end, and terms that are changed: the file, the command, and a running server."""

import json
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.small_tasks import command
from helpers.tiny_server import Clock, Place, a_store, error_of

from softprompt.errors import ConfigError
from softprompt.serving.http.api_keys import (
    MOST_KEYS,
    ApiKey,
    ApiKeyFile,
    add_key,
    parse_expiry,
    parse_per_minute,
    read_keys,
    update_key,
)

BODY = {"model": "tone", "input": "a fine film"}
AT = datetime(2026, 11, 29, 12, tzinfo=UTC)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def listed(keys: Path) -> list[dict[str, Any]]:
    return list(json.loads(command("keys", "list", "--file", keys, "--json").out)["keys"])


class TestTerms:
    @pytest.mark.parametrize(
        ("text", "when"),
        [
            ("90d", AT + timedelta(days=90)),
            ("30m", AT + timedelta(minutes=30)),
            ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC)),
            ("2027-01-31T12:00", datetime(2027, 1, 31, 12, tzinfo=UTC)),
            ("2027-07-31T12:00+02:00", datetime(2027, 7, 31, 10, tzinfo=UTC)),
            ("never", None),
        ],
    )
    def test_when(self, text: str, when: datetime | None) -> None:
        found = parse_expiry(text, AT)
        assert found == when
        assert found is None or found.tzinfo is UTC

    @pytest.mark.parametrize(
        "text", ["", "0d", "-5d", "90", "2027-02-30", "tomorrow", "99999999d", "9999-12-31T23:59-12:00"]
    )
    def test_no_time(self, text: str) -> None:
        with pytest.raises(ConfigError, match="expires: expected a span as 90d or 12h, a date as 2030-01-31, or never"):
            parse_expiry(text, AT)

    @pytest.mark.parametrize("text", ["2026-11-29", "2026-11-29T12:00", "1970-01-01"])
    def test_a_time_that_is_over(self, text: str) -> None:
        with pytest.raises(ConfigError, match=r"expected a time to come, got .* UTC"):
            parse_expiry(text, AT)

    def test_limits(self) -> None:
        assert [parse_per_minute(text, "x") for text in ("1", "1000000000", "unlimited", "default")] == [
            1,
            10**9,
            "unlimited",
            None,
        ]

    @pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "1e3", "1000000001", "9" * 5000, "٣", "none"])
    def test_no_limit(self, text: str) -> None:
        with pytest.raises(ConfigError, match="rate: expected a number of 1 to 1,000,000,000, unlimited, or default"):
            parse_per_minute(text, "rate")

    @pytest.mark.parametrize("wrong", [0, -1, 10**9 + 1, 1.5, True, "60", "Unlimited", [], {}])
    def test_a_file_with_a_wrong_limit(self, keys: Path, wrong: object) -> None:
        add_key(keys, "one")
        written = json.loads(keys.read_text())
        written["keys"][0]["tokens_per_minute"] = wrong
        keys.write_text(json.dumps(written))
        with pytest.raises(ConfigError, match=r"cannot be read: keys\.0\.tokens_per_minute"):
            read_keys(keys)

    def test_a_time_without_a_zone_is_refused(self, keys: Path) -> None:
        add_key(keys, "one")
        written = json.loads(keys.read_text())
        written["keys"][0]["expires"] = "2030-01-31"
        keys.write_text(json.dumps(written))
        with pytest.raises(ConfigError, match=r"keys\.0\.expires: Input should have timezone info"):
            read_keys(keys)


class TestFile:
    def test_a_file_of_before_is_read_and_written_as_it_was(self, keys: Path) -> None:
        old = {"name": "one", "sha256": "a" * 64, "prompts": ["*"], "admin": False, "created": "2026-01-01T00:00:00Z"}
        keys.write_text(json.dumps({"schema_version": 1, "keys": [old]}))
        (key,) = read_keys(keys).keys
        assert (key.expires, key.requests_per_minute, key.tokens_per_minute) == (None, None, None)
        add_key(keys, "two")
        assert json.loads(keys.read_text())["keys"][0] == old

    def test_a_key_whose_terms_change_stays_the_same(self, keys: Path) -> None:
        token = add_key(keys, "one", ["tone"], requests_per_minute=5)
        update_key(keys, "one", expires=AT, tokens_per_minute=100)
        key = read_keys(keys).find(token)
        assert key is not None
        assert (key.prompts, key.requests_per_minute, key.tokens_per_minute, key.expires) == (("tone",), 5, 100, AT)
        update_key(keys, "one", expires=None, requests_per_minute=None)
        assert "expires" not in keys.read_text()
        with pytest.raises(ConfigError, match="there is no key named 'two'"):
            update_key(keys, "two", expires=None)

    def test_it_expires_at_the_moment_wherever_that_is_written(self) -> None:
        eastern = AT.astimezone(timezone(timedelta(hours=9)))
        key = ApiKey(name="one", sha256="0" * 64, created=AT, expires=eastern)
        assert not key.is_expired(AT - timedelta(microseconds=1))
        assert key.is_expired(AT)

    def test_ten_thousand_keys(self, keys: Path) -> None:
        token = add_key(keys, "one", expires=AT, requests_per_minute=10**9, tokens_per_minute=10**9)
        (key,) = read_keys(keys).keys
        others = [key.model_copy(update={"name": f"key{n}", "sha256": f"{n:064x}"}) for n in range(MOST_KEYS - 1)]
        keys.write_bytes(ApiKeyFile(keys=(*others, key)).to_bytes())
        found = read_keys(keys)
        assert len(found.keys) == MOST_KEYS
        assert found.find(token) == key
        with pytest.raises(ConfigError, match="has 10,000 keys, as many as a file may have: remove one first"):
            add_key(keys, "more")
        many = tuple(f"{number:0200d}" for number in range(25_000))
        with pytest.raises(ConfigError, match=r"would have 5,\d+,\d+ bytes, more than is read: remove a key first"):
            add_key(keys.with_name("wide.json"), "wide", many)
        # and not all of their names
        with pytest.raises(ConfigError, match="there is no key named 'more'") as caught:
            update_key(keys, "more", expires=None)
        assert len(str(caught.value)) < 1000


class TestCommands:
    def test_terms_are_set_shown_and_changed(self, keys: Path) -> None:
        terms = ("--expires", "90d", "--requests-per-minute", "60", "--tokens-per-minute", "unlimited")
        made = json.loads(command("keys", "add", "ci", "--file", keys, *terms, "--json").out)
        assert made["requests_per_minute"] == 60
        (one,) = listed(keys)
        assert (one["requests_per_minute"], one["tokens_per_minute"], one["expired"]) == (60, "unlimited", False)
        assert datetime.fromisoformat(one["expires"]) - datetime.fromisoformat(one["created"]) == timedelta(days=90)
        shown = command("keys", "list", "--file", keys).out.strip().split("\t")
        assert shown[4:] == [f"expires {one['expires']}", "60 requests/min, unlimited tokens/min"]
        changed = command(
            "keys", "update", "ci", "--file", keys, "--expires", "never", "--requests-per-minute", "default"
        )
        assert changed.out.strip().split("\t")[4:] == ["never expires", "unlimited tokens/min"]
        assert read_keys(keys).find(made["key"]) is not None

    def test_an_expired_key_is_shown_as_one(self, keys: Path) -> None:
        add_key(keys, "old", expires=datetime(2020, 1, 1, tzinfo=UTC))
        assert listed(keys)[0]["expired"]
        assert "\texpired 2020-01-01T00:00:00Z\tdefault limits" in command("keys", "list", "--file", keys).out

    def test_mistakes(self, keys: Path) -> None:
        add_key(keys, "ci")
        for options, words in (
            (("--expires", "soon"), "expires: expected a span as 90d"),
            (("--requests-per-minute", "-1"), "requests_per_minute: expected a number of 1"),
            (("--tokens-per-minute", "many"), "tokens_per_minute: expected a number of 1"),
        ):
            for verb in (("add", "new"), ("update", "ci")):
                done = command("keys", *verb, "--file", keys, *options)
                assert (done.code, done.error.startswith(words)) == (2, True), done.error
        assert command("keys", "update", "ci", "--file", keys).error.startswith("expected something to change")
        assert [one["name"] for one in listed(keys)] == ["ci"]


class TestServer:
    def test_an_expired_key(self, keys: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        clock = Clock()
        token = add_key(keys, "ci", expires=clock.start + timedelta(hours=1))
        add_key(keys, "other")
        with Place.of_store(a_store(tmp_path), keys=str(keys), clock=clock).client(token) as client:
            assert client.post("/v1/classify", json=BODY).status_code == 200
            clock.now = 3600
            caplog.set_level("INFO", "softprompt.serving")
            for method, path in (("POST", "/v1/classify"), ("GET", "/v1/models"), ("GET", "/metrics")):
                response = client.request(method, path, json=BODY)
                error = error_of(response, 401)
                assert (error["type"], error["code"]) == ("authentication_error", "expired_api_key")
                expired = (clock.start + timedelta(hours=1)).strftime("%Y-%m-%d at %H:%M")
                assert error["message"] == f"this API key expired on {expired} UTC: ask for a new one"
                assert response.headers["www-authenticate"].startswith('Bearer error="invalid_token"')
            # of whom, so that somebody can tell them
            assert {record.fields["key"] for record in caplog.records} == {"ci"}  # type: ignore[attr-defined]
            # the clock was wrong, and is set right
            clock.now = 0
            assert client.post("/v1/classify", json=BODY).status_code == 200
            update_key(keys, "ci", expires=None)
            clock.now = 7200
            error_of(client.post("/v1/classify", json=BODY), 401)

    @pytest.mark.parametrize(
        ("written", "said"),
        [("2020-01-01T09:00:00+09:00", "2020-01-01 at 00:00 UTC"), ("0001-01-01T00:00:00+14:00", "")],
    )
    def test_a_time_of_another_zone_in_the_file(self, keys: Path, tmp_path: Path, written: str, said: str) -> None:
        token = add_key(keys, "ci")
        add_key(keys, "other")
        place = Place.of_store(a_store(tmp_path), keys=str(keys))
        edited = json.loads(keys.read_text())
        edited["keys"][0]["expires"] = written
        keys.write_text(json.dumps(edited))
        if not said:
            with pytest.raises(ConfigError, match=r"keys\.0\.expires: expected a time of the years 1 to 9999 in UTC"):
                place.access.reload()
            return
        place.access.reload()
        with place.client(token) as client:
            assert said in error_of(client.get("/v1/models"), 401)["message"]

    def test_a_longer_time_is_seen_at_the_next_look(self, keys: Path, tmp_path: Path) -> None:
        clock = Clock()
        token = add_key(keys, "ci", admin=True, expires=clock.start + timedelta(hours=1))
        place = Place.of_store(a_store(tmp_path), keys=str(keys), clock=clock)
        with place.client(token) as client:
            clock.now = 3600
            error_of(client.post("/admin/reload"), 401)
            update_key(keys, "ci", expires=clock.date() + timedelta(hours=1))
            place.access.reload()
            assert client.post("/v1/classify", json=BODY).status_code == 200

    def test_keys_are_read_beside_the_loop_of_requests_and_only_when_they_changed(
        self, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        token = add_key(keys, "ci", admin=True)
        place = Place.of_store(a_store(tmp_path), keys=str(keys))
        read: list[int] = []
        parse = ApiKeyFile.from_bytes

        def from_bytes(content: bytes) -> ApiKeyFile:
            read.append(threading.get_ident())
            return parse(content)

        monkeypatch.setattr(ApiKeyFile, "from_bytes", from_bytes)
        with place.client(token) as client:
            assert client.post("/admin/reload").status_code == 200
            assert read == []
            add_key(keys, "other")
            read.clear()
            assert client.post("/admin/reload").status_code == 200
            (thread,) = read
            assert thread != client.portal.call(threading.get_ident)  # type: ignore[union-attr]

    def test_a_stream_that_has_begun_goes_on(self, keys: Path, tmp_path: Path) -> None:
        clock = Clock()
        token = add_key(keys, "ci", expires=clock.start + timedelta(hours=1), tokens_per_minute=1000)
        place = Place.of_store(a_store(tmp_path), keys=str(keys), clock=clock)
        body = {"model": "words", "prompt": "a fine film", "stream": True}
        with place.running() as address:
            place.engine.hold_pieces.set()
            headers = {"Authorization": f"Bearer {token}"}
            with httpx.stream("POST", f"{address}/v1/completions", json=body, headers=headers, timeout=60) as response:
                lines = response.iter_lines()
                assert next(lines).startswith("data: ")
                clock.now = 3600
                place.engine.hold_pieces.clear()
                assert [line for line in lines if line][-1] == "data: [DONE]"
            assert httpx.get(f"{address}/v1/models", headers=headers).status_code == 401

    def test_a_server_whose_keys_have_all_expired_does_not_start(self, keys: Path, tmp_path: Path) -> None:
        add_key(keys, "ci", expires=datetime(2020, 1, 1, tzinfo=UTC))
        store = a_store(tmp_path)
        with pytest.raises(ConfigError, match=r"every API key in .* has expired, nobody could ask"):
            Place.of_store(store, keys=str(keys))
