"""API keys: a file of their SHA-256, and what each may do, how often, and until when.

A key is 256 random bits, so a plain hash of it tells nothing: what makes passwords need salt and slow hashes, that they
can be guessed, does not apply.
"""

import hashlib
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from filelock import FileLock
from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints, ValidationError, model_validator

from softprompt.errors import ConfigError, map_write_errors, shorten
from softprompt.serving.request_log.request_records import parse_span
from softprompt.store.metadata import StoreRecord, now
from softprompt.utils.files import replace_file
from softprompt.utils.records import Record
from softprompt.utils.safe_io import TEXT_LIMIT, read_file
from softprompt.utils.seals import SEAL

PREFIX = "sp-"
LONGEST = 200  # characters of anything that may be a key
MOST_A_MINUTE = 10**9
MOST_KEYS = 10_000
UNLIMITED: Literal["unlimited"] = "unlimited"

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Glob = Annotated[str, StringConstraints(min_length=1, max_length=200)]
UtcTime = Annotated[AwareDatetime, AfterValidator(lambda when: _to_utc(when))]
PerMinute: TypeAlias = Annotated[int, Field(ge=1, le=MOST_A_MINUTE, strict=True)] | Literal["unlimited"]


class ApiKey(Record):
    """One key, without the key itself.

    Attributes:
        name: what the log and ``keys list`` call it.
        sha256: of the key, hexadecimal.
        prompts: patterns (``*``, ``?``, ``[...]``) of the prompts' names, and of the base model's, that it may ask.
        admin: whether it may reload and read the metrics.
        expires: from when on it is refused; never, if not given.
        requests_per_minute, tokens_per_minute: that it may ask; the server's defaults, if not given.
    """

    name: Name
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    prompts: tuple[Glob, ...] = ("*",)
    admin: bool = False
    created: AwareDatetime
    expires: UtcTime | None = None
    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None

    def is_expired(self, at: datetime) -> bool:
        """Whether it is refused at this time."""
        return self.expires is not None and at >= self.expires

    def allows(self, name: str) -> bool:
        """Whether it may ask the prompt, or base model, of this name."""
        return any(fnmatchcase(name, pattern) for pattern in self.prompts)


class ApiKeyFile(StoreRecord):
    """All keys. Who runs the server may edit the file by hand, so it has no seal, and one that is there is not read."""

    keys: tuple[ApiKey, ...] = Field((), max_length=MOST_KEYS)

    @model_validator(mode="before")
    @classmethod
    def _unsealed(cls, values: Any) -> Any:
        return {key: value for key, value in values.items() if key != SEAL} if isinstance(values, dict) else values

    def to_bytes(self) -> bytes:
        # without what is not set, so that earlier releases read it
        return (self.model_dump_json(indent=1, exclude_none=True) + "\n").encode()

    def find(self, token: str) -> ApiKey | None:
        """The key that ``token`` is, expired or not. The time it takes tells of hashes, and of no key."""
        return self._keys_by_digest.get(_digest(token[:LONGEST]))

    @cached_property
    def _keys_by_digest(self) -> dict[str, ApiKey]:
        return {key.sha256: key for key in self.keys}


def read_keys(path: Path) -> ApiKeyFile:
    """The keys of a file; raises ConfigError if it is not there, or not such a file."""
    return read_changed_keys(path, "")[0] or ApiKeyFile()


def read_changed_keys(path: Path, known: str) -> tuple[ApiKeyFile | None, str]:
    """The keys of a file with the SHA-256 of its content; none, if that is the one that is ``known``. Thousands of keys
    take a second to be read. Raises as ``read_keys``."""
    try:
        content = read_file(path, TEXT_LIMIT)
        digest = hashlib.sha256(content).hexdigest()
        return (None if digest == known else ApiKeyFile.from_bytes(content)), digest
    except FileNotFoundError as error:
        raise ConfigError(f"the file of API keys '{path}' does not exist: softprompt keys add makes one") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"the file of API keys '{path}' cannot be read: {error}") from error


def add_key(
    path: Path,
    name: str,
    prompts: Sequence[str] = (),
    *,
    admin: bool = False,
    expires: datetime | None = None,
    requests_per_minute: PerMinute | None = None,
    tokens_per_minute: PerMinute | None = None,
) -> str:
    """Make a key and put it into the file, which is made if it is not there; see ``ApiKey``.

    Returns:
        The key, which is nowhere else.

    Raises:
        ConfigError: the name is taken or no name, another value is none, or the file cannot be read.
        OutputError: the file cannot be written.
    """
    token = f"{PREFIX}{secrets.token_urlsafe(32)}"
    with map_write_errors(path, "give another file"):
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            before = read_keys(path) if path.exists() else ApiKeyFile()
            if any(key.name == name for key in before.keys):
                raise ConfigError(f"there is a key named '{name}' in '{path}': give another name, or remove it first")
            key = _make_key(
                name=name,
                sha256=_digest(token),
                prompts=tuple(prompts) or ("*",),
                admin=admin,
                created=now(),
                expires=expires,
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
            )
            _write(path, (*before.keys, key))
    return token


def update_key(path: Path, name: str, **changes: Any) -> ApiKey:
    """Change what a key may do, by fields of ``ApiKey``; the key itself stays. Raises as ``add_key``."""

    def change(key: ApiKey) -> tuple[ApiKey]:
        return (_make_key(**{**dict(key), **changes}),)

    (changed,) = [key for key in _rewrite(path, name, change) if key.name == name]
    return changed


def remove_key(path: Path, name: str) -> None:
    """Take a key out of the file; raises as ``add_key``."""
    _rewrite(path, name, lambda key: ())


def parse_expiry(text: str, at: datetime) -> datetime | None:
    """When a key expires: ``90d`` (``12h``, ``30m``) from ``at`` on, a date or time (of UTC, if it has no zone of its
    own), or ``never``; raises ConfigError."""
    if text == "never":
        return None
    try:
        when = datetime.fromisoformat(text) if "-" in text else at + timedelta(seconds=parse_span(text, ""))
        when = _to_utc(when if when.tzinfo else when.replace(tzinfo=UTC))
    except (ConfigError, ValueError, OverflowError) as error:
        expected = "a span as 90d or 12h, a date as 2030-01-31, or never"
        raise ConfigError(f"expires: expected {expected}, got '{text[:80]}'") from error
    if when <= at:
        raise ConfigError(f"expires: expected a time to come, got {when:%Y-%m-%d %H:%M} UTC")
    return when


def parse_per_minute(text: str, what: str) -> PerMinute | None:
    """A limit: a number, ``unlimited``, or ``default`` for the server's; raises ConfigError, with its name ``what``."""
    if text == UNLIMITED:
        return UNLIMITED
    if text == "default":
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and 1 <= int(text) <= MOST_A_MINUTE):
        raise ConfigError(
            f"{what}: expected a number of 1 to {MOST_A_MINUTE:,}, unlimited, or default for the server's, got "
            f"'{text[:80]}'"
        )
    return int(text)


def _to_utc(when: datetime) -> datetime:
    try:
        return when.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("expected a time of the years 1 to 9999 in UTC") from error


def _make_key(**values: Any) -> ApiKey:
    try:
        return ApiKey(**values)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        expected = "letters, digits, '.', '-' and '_' (at most 64)" if field == "name" else first["msg"]
        raise ConfigError(f"expected a {field} of {expected}, got {str(first['input'])[:80]!r}") from error


def _rewrite(path: Path, name: str, change: Callable[[ApiKey], tuple[ApiKey, ...]]) -> tuple[ApiKey, ...]:
    """Put what ``change`` gives in the place of a key; all keys as they are then."""
    with map_write_errors(path, "give another file"), FileLock(f"{path}.lock"):
        before = read_keys(path).keys
        if all(key.name != name for key in before):
            known = ", ".join(key.name for key in before) or "none"
            raise ConfigError(f"there is no key named '{name}' in '{path}', its keys are: {shorten(known, 500)}")
        after = tuple(new for key in before for new in (change(key) if key.name == name else (key,)))
        _write(path, after)
    return after


def _write(path: Path, keys: Sequence[ApiKey]) -> None:
    if len(keys) > MOST_KEYS:
        raise ConfigError(f"'{path}' has {MOST_KEYS:,} keys, as many as a file may have: remove one first")
    content = ApiKeyFile(keys=tuple(keys)).to_bytes()
    if len(content) > TEXT_LIMIT:
        raise ConfigError(f"'{path}' would have {len(content):,} bytes, more than is read: remove a key first")
    replace_file(path, content)
    path.chmod(0o600)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
