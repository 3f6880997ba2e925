"""What a server keeps of some of its requests: a record for each text, and how long records stay."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue

from softprompt.errors import ConfigError
from softprompt.utils.seals import BROKEN, SEAL, json_digest, seal

TEXT_CHARACTERS = 20_000  # of a text or an answer that are kept
LONGEST_SPAN = 36_500 * 86_400  # seconds: a century

_SPAN = re.compile(r"([1-9][0-9]{0,5})([mhd])")
_SECONDS = {"m": 60, "h": 3600, "d": 86400}

Name = Annotated[str, Field(max_length=300)]
Words = Annotated[str, Field(max_length=TEXT_CHARACTERS)]
Count = Annotated[int, Field(ge=0, le=2**31)]


class RequestRecord(BaseModel):
    """One text of a request.

    Attributes:
        time: when it was answered, in seconds since 1970.
        request: its id.
        prompt: ``name@version``.
        key: name of the API key.
        route: that was asked.
        characters: of the text.
        tokens: of template and text, as they are read.
        rare: how many of these are not among the frequent ones of the prompt's profile; not known without one.
        text, columns: only where the server was told to keep texts.
        answer: the label, or the completion where texts are kept.
        probabilities: of the labels.
        milliseconds: of the whole request.
        status: of HTTP.
        error: its code, if it ended in one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    time: FiniteFloat = Field(ge=0, le=2**40)
    request: Name
    prompt: Name
    key: Name = ""
    route: Name = ""
    characters: Count
    tokens: Count | None = None
    rare: Count | None = None
    text: Words | None = None
    columns: dict[Name, JsonValue] | None = None
    answer: Words | None = None
    probabilities: dict[Name, Annotated[float, Field(ge=0, le=1.001)]] | None = None
    milliseconds: FiniteFloat = Field(ge=0)
    status: Count = 200
    error: Name = ""

    @property
    def confidence(self) -> float | None:
        """The probability of the label that was answered."""
        return min(max(self.probabilities.values()), 1.0) if self.probabilities else None

    def to_row(self) -> dict[str, Any]:
        """What is written: the values that there are, with their digest."""
        return seal(self.model_dump(exclude_none=True))

    @classmethod
    def from_row(cls, row: dict[str, Any] | None) -> Self:
        """``to_row`` undone, of a file that anybody may have written; raises ValueError for what is no record."""
        if row is None:
            raise ValueError("no row")
        record = cls.model_validate({name: value for name, value in row.items() if name != SEAL})
        if row.get(SEAL) not in (None, json_digest(record.model_dump(exclude_none=True))):
            raise ValueError(BROKEN)
        return record


def parse_span(span: str, what: str) -> int:
    """Seconds of a span as ``7d``, ``12h``, ``30m``; raises ConfigError, which calls it ``what``."""
    found = _SPAN.fullmatch(span)
    if found is None:
        raise ConfigError(f"{what}: expected a number with m, h or d, as in 7d, got '{span}'")
    seconds = int(found[1]) * _SECONDS[found[2]]
    if seconds > LONGEST_SPAN:
        raise ConfigError(f"{what}: expected at most {LONGEST_SPAN // _SECONDS['d']:,}d, got '{span}'")
    return seconds


@dataclass(frozen=True)
class Retention:
    """How much of a file of samples stays: so many rows, or those of so many seconds."""

    rows: int | None = None
    seconds: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Retention":
        """``100000`` rows, or ``30d``; raises ConfigError."""
        if re.fullmatch(r"[1-9][0-9]{0,8}", text):
            return cls(rows=int(text))
        try:
            return cls(seconds=parse_span(text, ""))
        except ConfigError as error:
            raise ConfigError(
                f"sample_keep: expected a number of rows, as 100000, or a span, as 30d, got '{text}'"
            ) from error
