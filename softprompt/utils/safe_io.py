"""Reading what somebody else may have written: files of bounded size, JSON and safetensors headers without tricks."""

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any

from softprompt.errors import ConfigError
from softprompt.utils.files import expand_user

TEXT_LIMIT = 4 * 2**20  # bytes of JSON, in a file of its own or a safetensors header; in memory it is twenty times that
FILE_LIMIT = 2**30  # bytes of any file of a prompt
_LONGEST_INTEGER = 20  # digits: 64 bits
FILE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")


def read_file(path: Path, limit: int = FILE_LIMIT) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: it is no regular file, or has more than ``limit`` bytes.
    """
    # a pipe without a writer would otherwise be waited for
    return read_open_file(os.open(path, os.O_RDONLY | os.O_NONBLOCK), limit)


def read_open_file(descriptor: int, limit: int) -> bytes:
    """What an open file holds, which is closed; raises as ``read_file``."""
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("expected a regular file")
        if facts.st_size > limit:
            raise ValueError(f"expected at most {limit:,} bytes, got {facts.st_size:,}")
        with open(descriptor, "rb", closefd=False) as stream:
            return stream.read(limit)
    finally:
        os.close(descriptor)


def parse_json(content: bytes, *, limit: int = TEXT_LIMIT, finite: bool = False) -> Any:
    """A JSON value.

    Args:
        limit: of bytes.
        finite: refuse NaN and infinities, which Python writes and JSON does not have.

    Raises:
        ValueError: it is too large, not JSON in UTF-8, nested too deep, names a key twice, has a number of more than 64
            bits, or text that is no Unicode.
    """
    if len(content) > limit:
        raise ValueError(f"expected at most {limit:,} bytes of JSON, got {len(content):,}")
    numbers: dict[str, Any] = {"parse_constant": _no_number, "parse_float": _finite} if finite else {}
    try:
        value = json.loads(content.decode(), object_pairs_hook=_each_once, parse_int=_integer, **numbers)
        # half of a surrogate pair passes for text until it is printed
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("its values are nested too deep") from error
    except UnicodeEncodeError as error:
        raise ValueError("it has text that is not Unicode") from error
    return value


def check_header(content: bytes) -> None:
    """Raise ValueError unless the header of a safetensors file has a sane size and names each tensor once.

    What it says of types, shapes and offsets is checked by safetensors itself, before it takes any memory.
    """
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(TEXT_LIMIT, len(content) - 8):
        raise ValueError(f"its header claims {size:,} bytes of {len(content):,}, at most {TEXT_LIMIT:,} are read")
    parse_json(content[8 : 8 + size])


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"it has the key {name[:80]!r} twice")
        values[name] = value
    return values


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (math.inf, -math.inf):
        raise ValueError(f"the number {digits[:40]} is too large")
    return value


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_INTEGER:
        raise ValueError(f"it has a whole number of {len(digits):,} digits")
    return int(digits)


def read_text(path: Path) -> str:
    """The text of a file, for a prompt that is written.

    Raises:
        ConfigError: it is not there, empty, too large, or no text in UTF-8.
    """
    try:
        text = read_file(expand_user(path), TEXT_LIMIT).decode()
    except FileNotFoundError as error:
        raise ConfigError(f"the prompt's file '{path}' does not exist: give one with the text") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"the prompt's file '{path}' cannot be read: {error}; expected text in UTF-8") from error
    if not text.strip():
        raise ConfigError(f"the prompt's file '{path}' is empty: expected the text that stands in front of the inputs")
    return text
