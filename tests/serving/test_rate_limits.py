"""Limits of requests and tokens a minute: what they let in, what they say, and that nothing gets around them."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from helpers.tiny_server import Clock, Place, a_store, error_of, wait_for
from starlette.testclient import TestClient

from softprompt.serving.http.api_keys import ApiKey, add_key, remove_key, update_key
from softprompt.serving.http.http_errors import ApiError
from softprompt.serving.http.rate_limits import MOST_KEPT, RateLimiter, format_duration

BODY = {"model": "tone", "input": "a fine film"}
WORDS = {"model": "words", "prompt": "a fine film", "max_tokens": 8}


def a_key(name: str = "ci", **limits: Any) -> ApiKey:
    return ApiKey(name=name, sha256="0" * 64, created=datetime(2026, 1, 1, tzinfo=UTC), **limits)


def refusal(limiter: RateLimiter, key: ApiKey) -> ApiError:
    with pytest.raises(ApiError) as caught:
        limiter.admit(key, key.name)
    return caught.value


def let_in(limiter: RateLimiter, key: ApiKey) -> int:
    """How many requests of a key are let in now."""
    for number in range(10_000):
        try:
            limiter.admit(key, key.name)
        except ApiError:
            return number
    raise AssertionError("no limit")


class TestBuckets:
    def test_a_minutes_worth_at_once_and_evenly_from_then_on(self) -> None:
        clock, key = Clock(), a_key(requests_per_minute=6)
        limiter = RateLimiter(clock=clock)
        assert let_in(limiter, key) == 6
        assert refusal(limiter, key).headers["Retry-After"] == "10"
        clock.now = 9.9
        assert refusal(limiter, key).headers["Retry-After"] == "1"
        clock.now = 10
        assert let_in(limiter, key) == 1
        clock.now = 10_000
        assert let_in(limiter, key) == 6

    def test_never_more_than_the_limit_in_the_long_run(self) -> None:
        clock, key = Clock(), a_key(requests_per_minute=7)
        limiter, total = RateLimiter(clock=clock), 0
        for second in range(600):
            clock.now = second + second % 3 / 10
            total += let_in(limiter, key)
        # the first minute's at once, and what came back in ten minutes
        assert total == 7 + 7 * 10 - 1

    def test_each_key_has_its_own(self) -> None:
        limiter = RateLimiter(3, clock=Clock())
        assert [let_in(limiter, a_key(name)) for name in ("one", "two")] == [3, 3]
        assert let_in(limiter, a_key("three", requests_per_minute=5)) == 5

    def test_a_key_without_limits(self) -> None:
        assert RateLimiter(clock=Clock()).admit(a_key(), "ci") is None
        free = a_key(requests_per_minute="unlimited", tokens_per_minute="unlimited")
        assert RateLimiter(1, 1, Clock()).admit(free, "ci") is None

    def test_tokens_that_did_not_come_are_given_back(self) -> None:
        limiter, key = RateLimiter(clock=Clock()), a_key(tokens_per_minute=100)
        first, second = limiter.admit(key, key.name), limiter.admit(key, key.name)
        assert first is not None
        assert second is not None
        first.take("tokens", 60)
        with pytest.raises(ApiError, match=r"tokens a minute: limit 100, used 60, requested 60: try again in 12s"):
            second.take("tokens", 60)
        first.settle(20)
        first.settle(0)  # only once
        second.take("tokens", 60)
        assert second.to_headers()["x-ratelimit-remaining-tokens"] == "20"

    def test_more_tokens_than_were_thought_are_paid_for_later(self) -> None:
        clock, key = Clock(), a_key(tokens_per_minute=60)
        limiter = RateLimiter(clock=clock)
        admission = limiter.admit(key, key.name)
        assert admission is not None
        admission.take("tokens", 10)
        admission.settle(90)
        assert admission.to_headers()["x-ratelimit-remaining-tokens"] == "0"
        with pytest.raises(ApiError) as caught:
            admission.take("tokens", 1)
        assert caught.value.headers is not None
        assert caught.value.headers["Retry-After"] == "31"

    def test_what_is_refused_for_its_tokens_was_a_request(self) -> None:
        """Whoever asks for too much cannot ask without end."""
        limiter, key = RateLimiter(clock=Clock()), a_key(requests_per_minute=5, tokens_per_minute=10)
        for _ in range(3):
            admission = limiter.admit(key, key.name)
            assert admission is not None
            with pytest.raises(ApiError):
                admission.take("tokens", 11)
        assert let_in(limiter, key) == 2
        assert admission is not None
        assert admission.to_headers()["x-ratelimit-remaining-tokens"] == "10"

    def test_what_never_fits_is_not_to_be_tried_again(self) -> None:
        admission = RateLimiter(clock=Clock()).admit(a_key(tokens_per_minute=10), "ci")
        assert admission is not None
        with pytest.raises(ApiError, match="limit 10, this one may come to 11: send fewer texts, or") as caught:
            admission.take("tokens", 11)
        assert caught.value.headers is not None
        assert caught.value.headers["x-should-retry"] == "false"
        assert "Retry-After" not in caught.value.headers

    def test_a_changed_limit_counts_what_was_used(self) -> None:
        clock = Clock()
        limiter = RateLimiter(clock=clock)
        assert let_in(limiter, a_key(requests_per_minute=10)) == 10
        assert let_in(limiter, a_key(requests_per_minute=15)) == 5
        error = refusal(limiter, a_key(requests_per_minute=5))
        assert error.headers["Retry-After"] == "132"  # (15 + 1 - 5) / (5 / 60 s)

    def test_a_clock_that_goes_back_gives_nothing_away(self) -> None:
        clock, key = Clock(), a_key(requests_per_minute=6)
        limiter = RateLimiter(clock=clock)
        clock.now = 1000
        assert let_in(limiter, key) == 6
        clock.now = -1000
        assert let_in(limiter, key) == 0
        clock.now = 1010
        assert let_in(limiter, key) == 1

    def test_a_huge_limit(self) -> None:
        admission = RateLimiter(clock=Clock()).admit(a_key(requests_per_minute=10**9, tokens_per_minute=10**9), "ci")
        assert admission is not None
        admission.take("tokens", 10**9)
        assert admission.to_headers()["x-ratelimit-remaining-requests"] == str(10**9 - 1)
        assert admission.to_headers()["x-ratelimit-reset-requests"] == "1ms"

    def test_keys_that_ask_no_more_are_forgotten(self) -> None:
        clock = Clock()
        limiter = RateLimiter(3, clock=clock)
        owing = limiter.admit(a_key("owing", tokens_per_minute=1), "owing")
        assert owing is not None
        owing.take("tokens", 1)
        owing.settle(10)
        for number in range(MOST_KEPT):
            limiter.admit(a_key(f"key{number}"), "ci")
        clock.now = 120
        limiter.admit(a_key("new"), "new")
        assert len(limiter._buckets) == 2  # those who owe stay
        assert refusal_of_tokens(limiter, "owing")

    @pytest.mark.parametrize(
        ("seconds", "said"),
        [
            (0, "0ms"),
            (0.0121, "13ms"),
            (1, "1s"),
            (1.5, "1.5s"),
            (59.99, "1m0s"),
            (60, "1m0s"),
            (360, "6m0s"),
            (3661.2, "1h1m1.2s"),
        ],
    )
    def test_durations_as_openai_writes_them(self, seconds: float, said: str) -> None:
        assert format_duration(seconds) == said


def refusal_of_tokens(limiter: RateLimiter, name: str) -> bool:
    admission = limiter.admit(a_key(name, tokens_per_minute=1), name)
    assert admission is not None
    with pytest.raises(ApiError):
        admission.take("tokens", 1)
    return True


class TestServer:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def keys(self, tmp_path: Path) -> Path:
        return tmp_path / "keys.json"

    @pytest.fixture
    def client(self, keys: Path, tmp_path: Path, clock: Clock) -> Iterator[TestClient]:
        """Of a key with three requests a minute."""
        token = add_key(keys, "ci", admin=True, requests_per_minute=3)
        self.place = Place.of_store(a_store(tmp_path), keys=str(keys), clock=clock, tokens_per_minute=1000)
        with self.place.client(token) as client:
            yield client

    def test_openais_headers_and_error(self, client: TestClient, clock: Clock) -> None:
        answers = [client.post("/v1/classify", json=BODY) for _ in range(3)]
        assert [one.headers["x-ratelimit-remaining-requests"] for one in answers] == ["2", "1", "0"]
        used = answers[0].json()["usage"]["total_tokens"]
        head = {name: value for name, value in answers[0].headers.items() if name.startswith("x-ratelimit")}
        assert head == {
            "x-ratelimit-limit-requests": "3",
            "x-ratelimit-remaining-requests": "2",
            "x-ratelimit-reset-requests": "20s",
            "x-ratelimit-limit-tokens": "1000",
            "x-ratelimit-remaining-tokens": str(1000 - used),
            "x-ratelimit-reset-tokens": format_duration(used * 60 / 1000),
        }
        refused = client.post("/v1/classify", json=BODY)
        error = error_of(refused, 429)
        assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
        assert error["message"] == (
            "rate limit of the API key 'ci', requests a minute: limit 3, used 3, requested 1: try again in 20s"
        )
        assert refused.headers["retry-after"] == "20"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        clock.now += 20
        assert client.post("/v1/classify", json=BODY).status_code == 200

    def test_all_that_asks_the_model_counts_and_nothing_else(self, client: TestClient) -> None:
        assert client.get("/v1/models").status_code == client.get("/healthz").status_code == 200
        assert "x-ratelimit-limit-requests" not in client.get("/metrics").headers
        client.post("/v1/completions", json=WORDS)
        client.post("/v1/chat/completions", json={"model": "words", "messages": [{"role": "user", "content": "x"}]})
        error_of(client.post("/v1/classify", content=b"{"), 415)
        for path in ("/v1/completions", "/v1/chat/completions", "/v1/classify"):
            error_of(client.post(path, json={}), 429)
        assert client.get("/v1/models").status_code == client.post("/admin/reload").status_code == 200
        assert 'softprompt_rate_limited_total{limit="requests"} 3.0' in client.get("/metrics").text.splitlines()

    def test_tokens(self, client: TestClient, keys: Path, clock: Clock) -> None:
        update_key(keys, "ci", requests_per_minute="unlimited", tokens_per_minute=50)
        client.post("/admin/reload")
        answer = client.post("/v1/completions", json=WORDS)
        used = answer.json()["usage"]["total_tokens"]
        assert answer.headers["x-ratelimit-remaining-tokens"] == str(50 - used)
        error = error_of(client.post("/v1/completions", json={**WORDS, "max_tokens": 32}), 429)
        assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
        # what failed is given back
        self.place.engine.failure = RuntimeError("broken")
        before = client.post("/v1/completions", json={"model": "nobody", "prompt": "x"})
        assert client.post("/v1/completions", json=WORDS).status_code == 500
        after = client.post("/v1/completions", json={"model": "nobody", "prompt": "x"})
        name = "x-ratelimit-remaining-tokens"
        assert before.headers[name] == after.headers[name]
        never = error_of(client.post("/v1/completions", json={**WORDS, "prompt": ["x", "y"], "max_tokens": 32}), 429)
        assert "may come to" in never["message"]

    def test_a_stream_takes_what_it_may_come_to_until_it_ends(self, client: TestClient, keys: Path) -> None:
        update_key(keys, "ci", requests_per_minute="unlimited", tokens_per_minute=100)
        client.post("/admin/reload")
        body = {**WORDS, "stream": True, "stream_options": {"include_usage": True}}
        streamed = client.post("/v1/completions", json=body)
        assert "x-ratelimit-limit-requests" not in streamed.headers
        left = int(streamed.headers["x-ratelimit-remaining-tokens"])
        usage = [json.loads(line[6:]) for line in streamed.text.split("\n\n") if line.startswith("data: {")][-1][
            "usage"
        ]
        after = client.post("/v1/classify", json={"model": "nobody", "input": "x"})
        assert left < int(after.headers["x-ratelimit-remaining-tokens"]) == 100 - usage["total_tokens"]

    def test_limits_follow_the_file(self, client: TestClient, keys: Path) -> None:
        for _ in range(3):
            client.post("/v1/classify", json=BODY)
        error_of(client.post("/v1/classify", json=BODY), 429)
        update_key(keys, "ci", requests_per_minute=5)
        assert client.post("/admin/reload").json()["troubles"] == []
        answer = client.post("/v1/classify", json=BODY)
        assert (answer.status_code, answer.headers["x-ratelimit-remaining-requests"]) == (200, "1")
        # a damaged file leaves everything, the limits too
        keys.write_bytes(b"damaged")
        client.post("/admin/reload")
        assert client.post("/v1/classify", json=BODY).headers["x-ratelimit-remaining-requests"] == "0"
        error_of(client.post("/v1/classify", json=BODY), 429)

    def test_a_new_key_of_the_same_name_has_not_more(self, client: TestClient, keys: Path) -> None:
        for _ in range(3):
            client.post("/v1/classify", json=BODY)
        remove_key(keys, "ci")
        token = add_key(keys, "ci", admin=True, requests_per_minute=3)
        self.place.access.reload()
        headers = {"Authorization": f"Bearer {token}"}
        error_of(client.post("/v1/classify", json=BODY, headers=headers), 429)

    def test_without_keys_the_servers_limits_are_for_all_together(self, tmp_path: Path, clock: Clock) -> None:
        (tmp_path / "open").mkdir()
        with Place.of_store(a_store(tmp_path / "open"), clock=clock, requests_per_minute=2).client() as client:
            found = [client.post("/v1/classify", json=BODY) for _ in range(3)]
        assert [one.status_code for one in found] == [200, 200, 429]
        assert error_of(found[2], 429)["message"].startswith("rate limit of this server, requests a minute: limit 2")

    def test_many_at_once_are_not_more(self, client: TestClient, keys: Path) -> None:
        update_key(keys, "ci", requests_per_minute=20, tokens_per_minute="unlimited")
        client.post("/admin/reload")
        transport = httpx.ASGITransport(self.place.app)

        async def ask() -> list[int]:
            async with httpx.AsyncClient(
                transport=transport, base_url="http://127.0.0.1", headers=client.headers
            ) as one:
                answers = await asyncio.gather(*(one.post("/v1/classify", json=BODY) for _ in range(50)))
            return [answer.status_code for answer in answers]

        found = asyncio.run(ask())
        assert (found.count(200), found.count(429)) == (20, 30)

    def test_tokens_of_many_at_once_are_taken_before_they_are_made(self, client: TestClient, keys: Path) -> None:
        update_key(keys, "ci", requests_per_minute="unlimited", tokens_per_minute=150)
        client.post("/admin/reload")
        self.place.engine.hold.set()
        transport = httpx.ASGITransport(self.place.app)

        async def ask() -> list[int]:
            async with httpx.AsyncClient(
                transport=transport, base_url="http://127.0.0.1", headers=client.headers
            ) as one:
                asked = [
                    asyncio.create_task(one.post("/v1/completions", json={**WORDS, "max_tokens": 32})) for _ in "12345"
                ]
                await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                while len(self.place.engine.asked) + sum(task.done() for task in asked) < 5:
                    await asyncio.sleep(0)
                self.place.engine.hold.clear()
                return [answer.status_code for answer in await asyncio.gather(*asked)]

        found = asyncio.run(ask())
        assert (found.count(200), found.count(429)) == (3, 2)

    def test_a_client_that_leaves_pays_for_what_was_read(self, client: TestClient, keys: Path) -> None:
        update_key(keys, "ci", requests_per_minute="unlimited", tokens_per_minute=100)
        client.post("/admin/reload")
        self.place.engine.hold.set()
        error_of(client.post("/v1/classify", json=BODY, headers={"X-Request-Timeout": "1"}), 504)
        self.place.engine.hold.clear()
        after = client.post("/v1/classify", json={"model": "nobody", "input": "x"})
        assert int(after.headers["x-ratelimit-remaining-tokens"]) < 100

    @pytest.mark.parametrize("grown", [True, False])
    def test_a_client_that_leaves_a_stream_pays_for_what_grew(
        self, client: TestClient, keys: Path, grown: bool
    ) -> None:
        update_key(keys, "ci", requests_per_minute="unlimited", tokens_per_minute=200)
        self.place.access.reload()
        hold = self.place.engine.hold_pieces if grown else self.place.engine.hold
        hold.set()
        body, headers = {**WORDS, "stream": True, "max_tokens": 32}, dict(client.headers)
        with self.place.running() as address:

            def left() -> int:
                asked = httpx.post(f"{address}/v1/classify", json={"model": "nobody", "input": "x"}, headers=headers)
                return int(asked.headers["x-ratelimit-remaining-tokens"])

            with httpx.Client(headers=headers, timeout=60) as leaving:
                if grown:
                    with leaving.stream("POST", f"{address}/v1/completions", json=body) as response:
                        lines = response.iter_lines()  # kept: without it the stream is closed
                        next(lines)
                        assert 100 < left() < 160
                else:
                    with pytest.raises(httpx.ReadTimeout):
                        leaving.post(f"{address}/v1/completions", json=body, timeout=1)
            # all but what was read, and perhaps a piece
            wait_for(lambda: left() > 160)
            assert left() < 200
            hold.clear()

    def test_the_openai_client_understands(self, client: TestClient, keys: Path, clock: Clock) -> None:
        asked = openai.OpenAI(
            api_key=client.headers["Authorization"].removeprefix("Bearer "),
            base_url="http://127.0.0.1/v1",
            http_client=client,
            max_retries=0,
        )
        for _ in range(3):
            asked.completions.create(**WORDS)  # type: ignore[call-overload]
        with pytest.raises(openai.RateLimitError) as caught:
            asked.completions.create(**WORDS)  # type: ignore[call-overload]
        assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")
        assert caught.value.response.headers["retry-after"] == "20"
