"""Seals: a file that a later step takes for the truth carries the SHA-256 of all that it says.

A changed bit is noticed when the file is read, or changes nothing that is read. What was written before there were
seals has none, and is read as it is.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import model_validator

from softprompt.utils.records import Record
from softprompt.utils.safe_io import FILE_LIMIT, parse_json, read_file

SEAL = "sha256"
BROKEN = "its SHA-256 is not the one that it was written with"


def json_digest(values: Any) -> str:
    """SHA-256 of a JSON value, however it is laid out."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def seal(values: Mapping[Any, Any], name: str = SEAL) -> dict[str, Any]:
    """A JSON object with its digest in it, under ``name``."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return {**plain, name: json_digest(plain)}


def unseal(values: Any, name: str = SEAL) -> dict[str, Any]:
    """``seal`` undone; raises ValueError if it is no object, or not what was sealed."""
    if not isinstance(values, dict):
        raise ValueError("expected a JSON object")
    plain = {key: value for key, value in values.items() if key != name}
    if name in values and values[name] != json_digest(plain):
        raise ValueError(BROKEN)
    return plain


def read_sealed(path: Path) -> dict[str, Any]:
    """A file of ``seal`` values; raises OSError or ValueError if it cannot be read or is damaged."""
    return unseal(parse_json(read_file(path), limit=FILE_LIMIT))


class SealedRecord(Record):
    """A record that is kept in a file of its own."""

    @model_validator(mode="before")
    @classmethod
    def _unsealed(cls, values: Any) -> Any:
        return unseal(values) if isinstance(values, dict) else values

    def to_sealed(self) -> str:
        """JSON that the model reads, and that says if it was changed since."""
        return json.dumps(seal(self.model_dump(mode="json")), indent=1, ensure_ascii=False)
