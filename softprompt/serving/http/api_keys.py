"""API keys: a file of their SHA-256, and what each may do.

A key is 256 random bits, so a plain hash of it tells nothing: what makes passwords need salt and slow hashes, that they
can be guessed, does not apply.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock
from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from softprompt.errors import ConfigError, map_write_errors
from softprompt.store.metadata import StoreRecord, now
from softprompt.utils.files import replace_file
from softprompt.utils.records import Record
from softprompt.utils.safe_io import TEXT_LIMIT, read_file
from softprompt.utils.seals import SEAL

PREFIX = "sp-"
LONGEST = 200  # characters of anything that may be a key

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Glob = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class ApiKey(Record):
    """One key, without the key itself.

    Attributes:
        name: what the log and ``keys list`` call it.
        sha256: of the key, hexadecimal.
        prompts: patterns (``*``, ``?``, ``[...]``) of the prompts' names, and of the base model's, that it may ask.
        admin: whether it may reload and read the metrics.
    """

    name: Name
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    prompts: tuple[Glob, ...] = ("*",)
    admin: bool = False
    created: AwareDatetime

    def allows(self, name: str) -> bool:
        """Whether it may ask the prompt, or base model, of this name."""
        return any(fnmatchcase(name, pattern) for pattern in self.prompts)


class ApiKeyFile(StoreRecord):
    """All keys. Who runs the server may edit the file by hand, so it has no seal, and one that is there is not read."""

    keys: tuple[ApiKey, ...] = Field((), max_length=10_000)

    @model_validator(mode="before")
    @classmethod
    def _unsealed(cls, values: Any) -> Any:
        return {key: value for key, value in values.items() if key != SEAL} if isinstance(values, dict) else values

    def to_bytes(self) -> bytes:
        return (self.model_dump_json(indent=1) + "\n").encode()

    def find(self, token: str) -> ApiKey | None:
        """The key that ``token`` is. It takes as long whichever it is, or if it is none."""
        digest = _digest(token[:LONGEST])
        found = None
        for key in self.keys:
            if hmac.compare_digest(digest, key.sha256):
                found = key
        return found


def read_keys(path: Path) -> ApiKeyFile:
    """The keys of a file; raises ConfigError if it is not there, or not such a file."""
    try:
        return ApiKeyFile.from_bytes(read_file(path, TEXT_LIMIT))
    except FileNotFoundError as error:
        raise ConfigError(f"the file of API keys '{path}' does not exist: softprompt keys add makes one") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"the file of API keys '{path}' cannot be read: {error}") from error


def add_key(path: Path, name: str, prompts: Sequence[str] = (), *, admin: bool = False) -> str:
    """Make a key and put it into the file, which is made if it is not there.

    Returns:
        The key, which is nowhere else.

    Raises:
        ConfigError: the name is taken or no name, or the file cannot be read.
        OutputError: the file cannot be written.
    """
    token = f"{PREFIX}{secrets.token_urlsafe(32)}"
    with map_write_errors(path, "give another file"):
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            before = read_keys(path) if path.exists() else ApiKeyFile()
            if any(key.name == name for key in before.keys):
                raise ConfigError(f"there is a key named '{name}' in '{path}': give another name, or remove it first")
            try:
                key = ApiKey(
                    name=name,
                    sha256=_digest(token),
                    prompts=tuple(prompts) or ("*",),
                    admin=admin,
                    created=now(),
                )
            except ValueError as error:
                raise ConfigError(
                    f"expected a name of letters, digits, '.', '-' and '_' (at most 64), got {name[:80]!r}"
                ) from error
            _write(path, ApiKeyFile(keys=(*before.keys, key)))
    return token


def remove_key(path: Path, name: str) -> None:
    """Take a key out of the file; raises as ``add_key``."""
    with map_write_errors(path, "give another file"), FileLock(f"{path}.lock"):
        before = read_keys(path)
        left = tuple(key for key in before.keys if key.name != name)
        if len(left) == len(before.keys):
            known = ", ".join(key.name for key in before.keys) or "none"
            raise ConfigError(f"there is no key named '{name}' in '{path}', its keys are: {known}")
        _write(path, ApiKeyFile(keys=left))


def _write(path: Path, keys: ApiKeyFile) -> None:
    replace_file(path, keys.to_bytes())
    path.chmod(0o600)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
