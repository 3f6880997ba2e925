"""Whether a program's output has the shape that a page shows: the same words, with other numbers in them."""

import json
import re
from collections.abc import Iterable
from typing import Any

NUMBER = re.compile(r"(?<![A-Za-z_@#{-])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?%?")
# what depends on weights, time or folder, and so on the run
VARYING = (
    (re.compile(r"\b(?:cmpl|chatcmpl)-[0-9a-f]+"), "ID"),
    (re.compile(r"\b[0-9a-f]{12,64}\b"), "HASH"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:\+\d\d:\d\d)?"), "TIME"),
    (re.compile(r"\b(?:positive|negative)\b"), "LABEL"),
    (re.compile(r"\b(?:float32|bfloat16|float16)\b"), "DTYPE"),
    (NUMBER, "0"),
    (re.compile(r"-{3,}"), "---"),
)


def find_missing(shown: Iterable[str], got: str) -> list[str]:
    """The lines that are shown and not in the output, in this order; ``...`` stands for any lines."""
    ahead = iter([normalize_line(line) for line in got.splitlines()])
    there = list(ahead)
    missing, place = [], 0
    for line in shown:
        wanted = normalize_line(line)
        if wanted in ("", "..."):
            continue
        found = next((at for at in range(place, len(there)) if _is_like(wanted, there[at])), None)
        if found is None:
            missing.append(line)
        else:
            place = found + 1
    return missing


def find_missing_headings(shown: Iterable[str], got: str) -> list[str]:
    """The headings of tables that are shown and that the output does not have."""
    lines = list(shown)
    headings = [lines[at - 1] for at in range(1, len(lines)) if re.fullmatch(r"[-\s]{3,}", lines[at])]
    there = {" ".join(line.split()) for line in got.splitlines()}
    return [heading for heading in headings if " ".join(heading.split()) not in there]


def normalize_line(line: str) -> str:
    if line.startswith("{") and line.rstrip().endswith("}"):
        return line.strip()
    for pattern, word in VARYING:
        line = pattern.sub(word, line)
    return " ".join(line.split())


def _is_like(wanted: str, got: str) -> bool:
    if wanted.startswith("{") and got.startswith("{"):
        try:
            return _has_keys(json.loads(wanted), json.loads(got))
        except ValueError:
            return False
    if "..." in wanted:
        return re.fullmatch(".*".join(map(re.escape, wanted.split("..."))), got) is not None
    return wanted == got


def _has_keys(wanted: Any, got: Any) -> bool:
    """Whether every key is there, with a value of the same kind."""
    if isinstance(wanted, dict) and isinstance(got, dict):
        return all(key in got and _has_keys(value, got[key]) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(got, list):
        return len(wanted) <= len(got) and all(map(_has_keys, wanted, got))
    if isinstance(wanted, int | float) and isinstance(got, int | float):
        return isinstance(wanted, bool) == isinstance(got, bool)
    return type(wanted) is type(got)
