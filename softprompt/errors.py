"""What can go wrong, as one tree.

    SoftpromptError              a mistake that the caller can mend: one line, exit code 2
    |- ConfigError               a setting that is unknown, of the wrong type, or out of range
    |- DataError                 a file, column, line, label or split of the user's data
    |- TemplateError             a template that does not parse, uses no column, or leaves no room for text
    |- BaseModelError            a base model that is not there, does not load, or does not fit
    |  `- NotFiniteError         a text for which it gives no numbers, hence no answer
    |- PromptFileError           a saved prompt that is damaged, or made for another base model
    |- StoreError                a store, version or alias that is not there, is damaged, or cannot be reached
    |  `- GateError              a version that was not promoted, being worse than the one in place
    |- GrammarError              a schema or grammar that answers cannot follow
    |- OutputError               a place that cannot be written: exists already, no space, no permission
    |- TrainingError             a run that cannot go on: the loss is not a number, a checkpoint of another run
    `- MissingExtraError         an optional dependency that is not installed; names the extra

Every message says what was expected, what was got, and what to do.
"""

import errno
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ERROR_CHARACTERS = 2000  # of an error or a note; what is longer is cut in the middle, for its end says what to do


# joiners that Persian, Indian scripts and emoji are spelled with
_SPELLING = "\u200c\u200d"


_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


# Control characters, what turns the direction of writing or is not seen at all, line separators, halves of surrogate
# pairs: all that a terminal may act on or leave out. Made of the categories, so that one expression finds them fast.
_ACTED_ON = re.compile(
    "["
    + "".join(
        re.escape(chr(code))
        for code in (*range(0x3000), *range(0xFE00, 0x1_0000), *range(0x1_1000, 0x1_E000), *range(0xE_0000, 0xE_0100))
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Zl", "Zp") and chr(code) not in _SPELLING
    )
    + "\ud800-\udfff]"
)


class SoftpromptError(Exception):
    """Base of every error that the user can mend. ``str(error)`` is one line, that can be shown (see ``printable``)."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split()), ERROR_CHARACTERS))


class ConfigError(SoftpromptError):
    """A setting is unknown, of the wrong type, or out of range."""


class DataError(SoftpromptError):
    """The user's data cannot be used as it is."""


class TemplateError(SoftpromptError):
    """The template does not parse, uses no column of the data, or leaves no room for the text."""


class BaseModelError(SoftpromptError):
    """The base model is not there, does not load, or does not fit the request."""


class NotFiniteError(BaseModelError):
    """The model gives numbers that are not finite for a text, so there is no answer; ``row`` counts from 0."""

    def __init__(self, row: int, place: str = "") -> None:
        self.row = row
        super().__init__(
            f"{place or f'text {row + 1}'}: the model gives numbers that are not finite here, so that no answer can be "
            "told: try --dtype float32; if that does not help, the prompt or the model is damaged"
        )


class PromptFileError(SoftpromptError):
    """A saved prompt is damaged, of another schema, or made for another base model."""


class StoreError(SoftpromptError):
    """A store, or a name, version or alias in it, is not there, is damaged, or cannot be reached."""


class GateError(StoreError):
    """A version is significantly worse than the one in place, and was not promoted; ``verdict`` is the gate's."""

    def __init__(self, message: str, verdict: Any) -> None:
        super().__init__(message)
        self.verdict = verdict


class GrammarError(SoftpromptError):
    """A JSON schema, regular expression or grammar that answers cannot follow, or that takes too much work."""


class OutputError(SoftpromptError):
    """Something cannot be written where the user asked for it."""


class TrainingError(SoftpromptError):
    """Training cannot go on."""


class MissingExtraError(SoftpromptError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package '{package}', which is not installed: pip install 'softprompt[{extra}]'"
        )


@contextmanager
def map_write_errors(path: Path, instead: str = "give another --out") -> Iterator[None]:
    """Turn the operating system's write errors, safetensors' among them, into one ``OutputError`` that names ``path``.

    ``instead`` is the advice where this place cannot be written at all.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and not _is_safetensors_error(error):
            raise
        code, reason = _system_error(error)
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(
                f"no space left to write '{path}': free some space, or {instead}; nothing half-written was kept"
            ) from error
        if code in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise OutputError(f"no permission to write '{path}': {instead}") from error
        raise OutputError(f"cannot write '{path}': {reason}; {instead}") from error


def _is_safetensors_error(error: Exception) -> bool:
    # an OSError in some releases of safetensors, not in others; told by its name, to not import the library here
    return type(error).__name__ == "SafetensorError"


def _system_error(error: Exception) -> tuple[int | None, str]:
    """The operating system's error number, if the error tells one, and the reason in words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno, error.strerror or str(error)
    # Rust ends its message with the number
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        return int(found[1]), os.strerror(int(found[1]))
    return None, str(error)


def printable(text: object, most: int | None = None) -> str:
    """``text`` on one line: what a terminal would act on is spelled out, as ``\\x1b``, ``\\u202e`` or ``\\n``.

    Args:
        most: characters; of a longer text the middle is left out, and said to be.
    """
    text = str(text)
    left_out = 0
    if most is not None and len(text) > most:
        # before the rest, so that a text of any size costs little
        head, tail = text[: most * 2 // 3], text[-(most // 3) :]
        left_out = len(text) - len(head) - len(tail)
        text = f"{head} ... [{left_out:,} characters left out] ... {tail}"
    return _ACTED_ON.sub(_spelled, text)


def shorten(text: object, most: int) -> str:
    """The beginning of a text in a cell or line of ``most`` characters, its white space joined."""
    line = " ".join(str(text)[: 4 * most].split())
    return printable(line if len(line) <= most else f"{line[: most - 1]}…")


def printable_json(value: Any, **how: Any) -> str:
    """``value`` as JSON of one line that means the same and can be shown: characters as above are escaped in it."""
    return _ACTED_ON.sub(_escaped, json.dumps(value, ensure_ascii=False, allow_nan=False, **how))


def _spelled(found: re.Match[str]) -> str:
    character = found[0]
    if character in _SHORT:
        return _SHORT[character]
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x1_0000 else f"\\U{code:08x}"


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]
