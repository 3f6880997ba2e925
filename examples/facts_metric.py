"""A metric of one's own, by which examples/generation.py is judged."""

import re
from collections.abc import Sequence


def facts_named(prediction: str, reference: Sequence[str]) -> float:
    """The share of the capitalised words of the accepted output that the answer has too."""
    wanted = set(re.findall(r"[A-Z][a-z]+", reference[0]))
    return len(wanted & set(re.findall(r"[A-Z][a-z]+", prediction))) / max(1, len(wanted))
