"""What a sweep may choose from: ``learning-rate=0.03..0.3:log;length=20,50,100;method=prompt-tuning,prefix-tuning``.

In a TOML, YAML or JSON file, a setting a line: a list is a choice, ``"0.03..0.3:log"`` or ``{low, high, log}`` a range.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeAlias, get_args

from softprompt.config import TrainConfig, describe_unknown_setting, parse_value, read_settings_file
from softprompt.errors import ConfigError

FORM = (
    "expected NAME=VALUE,VALUE or NAME=LOW..HIGH or NAME=LOW..HIGH:log, as in learning-rate=0.03..0.3:log;length=20,50"
)
# these decide what validation is, or where a run is kept: a trial that had its own could not be held against the others
FIXED = ("validation_limit", "checkpoint_every", "method_options")

PlainValue: TypeAlias = bool | int | float | str


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[PlainValue, ...]

    def __contains__(self, value: object) -> bool:
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.values)

    @property
    def probes(self) -> tuple[PlainValue, ...]:
        """The values whose being allowed makes all allowed."""
        return self.values

    def __str__(self) -> str:
        return ",".join(map(str, self.values))


@dataclass(frozen=True)
class Range:
    """A number between two, both included; ``log``: every factor is as likely as any other."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether it holds whole numbers alone."""
        return isinstance(self.low, int)

    def __contains__(self, value: object) -> bool:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and self.low <= value <= self.high
            and (not self.whole or float(value).is_integer())
        )

    @property
    def probes(self) -> tuple[PlainValue, ...]:
        return self.low, self.high

    def __str__(self) -> str:
        return f"{self.low}..{self.high}{':log' if self.log else ''}"


Axis: TypeAlias = Choice | Range


@dataclass(frozen=True)
class SearchSpace:
    """Settings by name, each with what it may be."""

    axes: Mapping[str, Axis]

    @classmethod
    def parse(cls, text: str) -> "SearchSpace":
        """Read it off the command line: the space itself, or the name of a file that holds it.

        Raises:
            ConfigError: it cannot be read, names a setting that there is not, or one twice.
        """
        if "=" not in text and Path(text).suffix.lower() in (".toml", ".yaml", ".yml", ".json"):
            return cls._read_file(text)
        axes: dict[str, Axis] = {}
        for part in filter(None, map(str.strip, text.split(";"))):
            name, equals, values = (piece.strip() for piece in part.partition("="))
            if not equals or not name or not values:
                raise ConfigError(f"space '{part}': {FORM}")
            key = _find_setting(name, f"space '{part}'")
            if key in axes:
                raise ConfigError(f"space '{part}': expected each setting once, got '{name}' twice")
            axes[key] = _parse_axis(key, values, f"space '{part}'")
        if not axes:
            raise ConfigError(f"space '{text}': {FORM}")
        return cls(axes)

    @classmethod
    def _read_file(cls, name: str) -> "SearchSpace":
        axes: dict[str, Axis] = {}
        for given, values in read_settings_file(Path(name)).items():
            where = f"space '{given}' in '{name}'"
            key = _find_setting(given, where)
            if key in axes:
                raise ConfigError(f"{where}: expected each setting once, got it twice")
            axes[key] = _convert_axis(key, values, where)
        if not axes:
            raise ConfigError(f"space in '{name}': expected settings by name, got none")
        return cls(axes)

    @property
    def size(self) -> float:
        """How many combinations there are; infinite with a range of real numbers in it."""
        sizes = (
            len(axis.values) if isinstance(axis, Choice) else axis.high - axis.low + 1 if axis.whole else math.inf
            for axis in self.axes.values()
        )
        return math.prod(sizes)

    def combinations(self) -> Iterator[dict[str, PlainValue]]:
        """Every combination of a space that has no range of real numbers, in a fixed order."""
        values = [
            axis.values if isinstance(axis, Choice) else range(int(axis.low), int(axis.high) + 1)
            for axis in self.axes.values()
        ]
        for chosen in itertools.product(*values):
            yield dict(zip(self.axes, chosen, strict=True))

    def check(self, fixed: TrainConfig, check: Callable[[TrainConfig], object] = lambda config: None) -> None:
        """Refuse what no trial could run with: each value, or end of a range, is tried beside the first of the others.

        Raises:
            ConfigError: a setting that ``fixed`` sets too, or a value that it cannot take; whatever ``check`` raises.
        """
        if twice := sorted(set(self.axes) & fixed.model_fields_set):
            raise ConfigError(f"'{twice[0]}' is given and in the space too: leave it out of one of them")
        firsts = {name: axis.probes[0] for name, axis in self.axes.items()}
        for name, axis in self.axes.items():
            for value in axis.probes:
                check(build_trial_config(fixed, {**firsts, name: value}))

    def defaults(self, fixed: TrainConfig) -> dict[str, PlainValue] | None:
        """What the settings are when nobody searches, if all of that lies in the space."""
        usual = {name: getattr(fixed, name) for name in self.axes}
        return usual if all(usual[name] in axis for name, axis in self.axes.items()) else None

    def to_dict(self) -> dict[str, str]:
        """Each setting as it is typed."""
        return {name: str(axis) for name, axis in self.axes.items()}


def build_trial_config(fixed: TrainConfig, chosen: Mapping[str, Any]) -> TrainConfig:
    """The settings of a trial; ConfigError if they do not go together."""
    return TrainConfig.build(**{**fixed.model_dump(exclude_unset=True), **chosen})


def _find_setting(name: str, where: str) -> str:
    key = {"lr": "learning_rate"}.get(name, name.replace("-", "_"))
    if key not in TrainConfig.model_fields:
        raise ConfigError(f"{where}: {describe_unknown_setting(key, TrainConfig)}")
    if key in FIXED:
        raise ConfigError(f"{where}: '{name}' is the same for all trials of a sweep: leave it out of the space")
    return key


def _parse_axis(key: str, values: str, where: str) -> Axis:
    low, dots, rest = values.partition("..")
    if not dots:
        pieces = [value.strip() for value in values.split(",")]
        if not all(pieces):
            raise ConfigError(f"{where}: {FORM}")
        return _make_choice([_parse_value(piece, where) for piece in pieces], where)
    high, colon, scale = rest.partition(":")
    if colon and scale.strip() != "log":
        raise ConfigError(f"{where}: expected nothing or ':log' behind a range, got ':{scale.strip()}'")
    return _make_range(key, _parse_value(low, where), _parse_value(high, where), bool(colon), where)


def _parse_value(text: str, where: str) -> Any:
    """As ``parse_value``; what YAML 1.1 takes for a word though it is a number, ``1e-3``, is a number."""
    value = parse_value(text, where)
    if isinstance(value, str) and re.fullmatch(r"[+-]?[\d.]+e[+-]?\d+", value, re.IGNORECASE):
        return float(value)
    return value


def _convert_axis(key: str, values: Any, where: str) -> Axis:
    if isinstance(values, str) and ".." in values:
        return _parse_axis(key, values, where)
    if isinstance(values, Mapping):
        if not {"low", "high"} <= values.keys() <= {"low", "high", "log"} or not isinstance(
            values.get("log", False), bool
        ):
            raise ConfigError(f"{where}: expected low, high and perhaps log (true or false), got {dict(values)!r}")
        return _make_range(key, values["low"], values["high"], values.get("log", False), where)
    return _make_choice(values if isinstance(values, list) else [values], where)


def _make_choice(values: list[Any], where: str) -> Choice:
    if wrong := [value for value in values if not isinstance(value, PlainValue)]:
        raise ConfigError(f"{where}: expected plain values (numbers, words, true, false), got {wrong[0]!r}")
    found = Choice(tuple(values))
    if not values or any(value in Choice(tuple(values[:place])) for place, value in enumerate(values)):
        raise ConfigError(f"{where}: expected values, each of them once, got {', '.join(map(str, values)) or 'none'}")
    return found


def _make_range(key: str, low: Any, high: Any, log: bool, where: str) -> Range:
    if not all(
        isinstance(end, int | float) and not isinstance(end, bool) and math.isfinite(end) for end in (low, high)
    ):
        raise ConfigError(f"{where}: expected two numbers as ends of the range, got {low!r} and {high!r}")
    kind = TrainConfig.model_fields[key].annotation
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if not {int, float} & set(kinds):
        raise ConfigError(f"{where}: '{key}' is no number: expected its values with commas between them")
    if int in kinds and not all(float(end).is_integer() for end in (low, high)):
        raise ConfigError(f"{where}: '{key}' is a whole number, got the range {low} to {high}")
    if low >= high or (log and low <= 0):
        more = " above 0" if log else ""
        raise ConfigError(f"{where}: expected a range from a smaller to a larger number{more}, got {low} to {high}")
    number = int if int in kinds else float
    return Range(number(low), number(high), log)
