"""How many requests and tokens a minute each API key may have: a token bucket for each, in this process.

A bucket holds a minute's worth and refills evenly, by a clock that nobody sets. Tokens are taken when a request comes,
as many as it may come to, and those that it did not come to are given back at its end: however many come at once, no
more are let in than there is room for. What is refused for its tokens was a request all the same.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from softprompt.serving.http.api_keys import ApiKey, PerMinute
from softprompt.serving.http.http_errors import ApiError

Kind: TypeAlias = Literal["requests", "tokens"]

MINUTE = 60.0
CHARACTERS_A_TOKEN = 4  # of a text that was not tokenised yet
MOST_KEPT = 10_000  # keys whose buckets are held; the full ones go first
RATE_HEADERS = tuple(
    f"x-ratelimit-{what}-{kind}" for kind in ("requests", "tokens") for what in ("limit", "remaining", "reset")
)


@dataclass
class Bucket:
    """What was taken of a limit and has not come back.

    Attributes:
        limit: a minute.
        used: at the time ``since``; never below 0, above the limit where a request came to more than was thought.
    """

    limit: int
    used: float = 0.0
    since: float = -math.inf

    def refill(self, now: float) -> None:
        """Let come back what came back until ``now``."""
        if now > self.since:
            self.used = max(0.0, self.used - (now - self.since) * self.limit / MINUTE)
            self.since = now

    def add(self, amount: int) -> None:
        """Take more, or give back what is negative."""
        self.used = max(0.0, self.used + amount)

    def seconds_until(self, free: int) -> float:
        """Until so much is free, if nothing more is taken."""
        return max(0.0, (self.used + free - self.limit) * MINUTE / self.limit)


class RateLimiter:
    """The buckets of all keys; to be used from one event loop."""

    def __init__(
        self,
        requests: int | None = None,
        tokens: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        count: Callable[[Kind], None] = lambda kind: None,
    ) -> None:
        """Limits of keys that have none of their own.

        Args:
            requests, tokens: a minute; ``None`` for no limit.
            clock: seconds that never go back.
            count: is told of every request that is refused.
        """
        self._defaults: dict[Kind, int | None] = {"requests": requests, "tokens": tokens}
        self._clock, self._count = clock, count
        self._buckets: dict[str, dict[Kind, Bucket]] = {}

    def admit(self, key: ApiKey, name: str) -> "Admission | None":
        """Take a request of a key; ``None`` where it has no limits.

        Args:
            name: of the key, for whoever asks; empty where there are no keys.

        Raises:
            ApiError: 429, it has asked too often.
        """
        given: dict[Kind, PerMinute | None] = {"requests": key.requests_per_minute, "tokens": key.tokens_per_minute}
        asked = {kind: self._defaults[kind] if own is None else own for kind, own in given.items()}
        limits = {kind: limit for kind, limit in asked.items() if isinstance(limit, int)}
        if not limits:
            return None
        if len(self._buckets) >= MOST_KEPT and key.name not in self._buckets:
            self._forget_full()
        buckets = self._buckets.setdefault(key.name, {})
        for kind, limit in limits.items():
            bucket = buckets.setdefault(kind, Bucket(limit))
            bucket.refill(self._clock())
            bucket.limit = limit  # which the file may have changed meanwhile
        admission = Admission(name, {kind: buckets[kind] for kind in limits}, self._clock, self._count)
        admission.take("requests", 1)
        return admission

    def _forget_full(self) -> None:
        for name, buckets in list(self._buckets.items()):
            for bucket in buckets.values():
                bucket.refill(self._clock())
            if not any(bucket.used for bucket in buckets.values()):
                del self._buckets[name]


@dataclass
class Admission:
    """A request that was let in, and what it has taken.

    Attributes:
        name: of the key; none, where all who ask share the limits.
        buckets: of the limits that it has.
        tokens: that were taken for it.
    """

    name: str
    buckets: dict[Kind, Bucket]
    clock: Callable[[], float]
    count: Callable[[Kind], None]
    tokens: int = 0

    def take(self, kind: Kind, amount: int) -> None:
        """Take from a bucket, if the key has this limit; raises ApiError (429) if there is not as much."""
        if (bucket := self.buckets.get(kind)) is None:
            return
        bucket.refill(self.clock())
        if bucket.seconds_until(amount) > 0:
            self.count(kind)
            raise self._make_error(kind, amount)
        bucket.add(amount)
        if kind == "tokens":
            self.tokens += amount

    def settle(self, tokens: int) -> None:
        """What the request came to at its end takes the place of what was taken for it; the first time counts."""
        if self.tokens:
            self.buckets["tokens"].add(tokens - self.tokens)
            self.tokens = 0

    def to_headers(self) -> dict[str, str]:
        """OpenAI's headers: limit, what is left of it, and the time until all of it is."""
        headers: dict[str, str] = {}
        for kind, bucket in self.buckets.items():
            bucket.refill(self.clock())
            headers |= {
                f"x-ratelimit-limit-{kind}": str(bucket.limit),
                f"x-ratelimit-remaining-{kind}": str(max(0, math.floor(bucket.limit - bucket.used))),
                f"x-ratelimit-reset-{kind}": format_duration(bucket.seconds_until(bucket.limit)),
            }
        return headers

    def _make_error(self, kind: Kind, amount: int) -> ApiError:
        bucket = self.buckets[kind]
        whose = f"the API key '{self.name}'" if self.name else "this server"
        head = f"rate limit of {whose}, {kind} a minute: limit {bucket.limit:,}"
        headers = self.to_headers()
        if amount > bucket.limit:
            message = f"{head}, this one may come to {amount:,}: send fewer texts, or a smaller max_tokens"
            # OpenAI's clients try again by themselves, unless they are told not to
            headers["x-should-retry"] = "false"
        else:
            seconds = bucket.seconds_until(amount)
            used = f"used {math.ceil(bucket.used):,}, requested {amount:,}"
            message = f"{head}, {used}: try again in {format_duration(seconds)}"
            headers["Retry-After"] = str(math.ceil(seconds))
        return ApiError(429, "rate_limit_exceeded", message, kind=kind, headers=headers)


def format_duration(seconds: float) -> str:
    """As OpenAI writes it: ``120ms``, ``1.5s``, ``6m0s``, ``1h0m0s``; never less than it is."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    tenths = math.ceil(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    said = f"{rest / 10:g}s"
    return f"{hours}h{minutes}m{said}" if hours else f"{minutes}m{said}" if minutes else said
