"""What a store writes about its versions and aliases: small JSON files that never change."""

import getpass
import os
import secrets
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, Field, StringConstraints, ValidationError

from softprompt.utils.records import Record
from softprompt.utils.safe_io import FILE_LIMIT, FILE_NAME, parse_json
from softprompt.utils.seals import SealedRecord
from softprompt.utils.summaries import summarize

MOST_FILES = 64  # of one version

FileName = Annotated[str, StringConstraints(pattern=f"^{FILE_NAME.pattern}$")]
Who = Annotated[str, StringConstraints(max_length=200)]


class StoreRecord(SealedRecord):
    """A JSON file of the store, which says if it was changed since."""

    schema_version: Literal[1] = 1

    def to_bytes(self) -> bytes:
        """What ``from_bytes`` reads back."""
        return (self.to_sealed() + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read a record that somebody else may have written; raises ValueError, in one line, if it is none."""
        values = parse_json(content)
        version = values.get("schema_version") if isinstance(values, dict) else None
        if version != 1:
            raise ValueError(
                f"it has schema version {version!r}, expected 1: use the release of softprompt that wrote it"
            )
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{one}: " for one in (".".join(map(str, first["loc"])),) if one)
            raise ValueError(f"{where}{first['msg'].removeprefix('Value error, ')}") from error


class Marker(StoreRecord):
    """What tells a store from any other folder."""

    what: Literal["softprompt store"] = "softprompt store"


class FileDigest(Record):
    """Size in bytes and SHA-256 of a file."""

    size: int = Field(ge=0, le=FILE_LIMIT)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Version(StoreRecord):
    """What is known of one version beside its files.

    Attributes:
        parent: what it was started from: ``NAME@NUMBER`` in the same store, or as its maker called it.
    """

    name: str
    number: int
    created: AwareDatetime
    by: Who
    parent: Annotated[str, StringConstraints(max_length=4096)] | None = None
    files: dict[FileName, FileDigest] = Field(max_length=MOST_FILES)

    @classmethod
    def new(
        cls,
        name: str,
        number: int,
        files: Mapping[str, FileDigest],
        *,
        parent: str | None = None,
        by: str | None = None,
    ) -> Self:
        """A version made now; ``by`` is whoever runs this, if not given."""
        return cls(name=name, number=number, created=now(), by=by or name_user(), parent=parent, files={**files})

    def __str__(self) -> str:
        return f"{self.name}@{self.number}"

    def __repr__(self) -> str:
        made = f"{self.created:%Y-%m-%d %H:%M} by {self.by}"
        return summarize(self, str(self), made, parent=self.parent, files=list(self.files))


class AliasChange(StoreRecord):
    """One move of an alias.

    Attributes:
        token: tells this move from another's.
        before, to: the versions it moved between; ``before`` is none for the first.
        forced: whether the gate had refused it.
        gate: the figures of the comparison, if there was one.
    """

    token: str
    action: Literal["promote", "rollback"]
    name: str
    alias: str
    before: int | None
    to: int = Field(ge=1)
    when: AwareDatetime
    by: Who
    forced: bool = False
    gate: dict[str, Any] | None = None

    @classmethod
    def new(cls, action: Literal["promote", "rollback"], *, by: str | None = None, **facts: Any) -> Self:
        """A move made now; ``by`` is whoever runs this, if not given."""
        return cls(action=action, token=secrets.token_hex(16), when=now(), by=by or name_user(), **facts)


def name_user() -> str:
    """The user and the machine, as ``user@machine``."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"[:200]


def now() -> datetime:
    """To the second, in UTC."""
    return datetime.now(UTC).replace(microsecond=0)
