"""Names of classes: which ones one slip would turn into each other, and which are hardly names of classes at all."""

import math
import statistics
import unicodedata
from collections.abc import Iterable, Sequence

from softprompt.errors import DataError

MANY = 10  # classes; fewer are not questioned
WORDS = 5  # that a label has in the median where it looks like a sentence


def fold_label(label: str) -> str:
    """The same for labels that look or count alike: capitals, blanks, accents put together or not, full width,
    characters that are not seen, ``1`` and ``1.0``."""
    text = unicodedata.normalize("NFKC", label)
    seen = (one for one in text if unicodedata.category(one) != "Cf" and not "\ufe00" <= one <= "\ufe0f")
    text = unicodedata.normalize("NFKC", " ".join("".join(seen).split()).casefold())
    try:
        number = float(text)
    except ValueError:
        return text
    return repr(number + 0.0) if math.isfinite(number) else text


def find_lookalikes(labels: Iterable[str]) -> tuple[str, str] | None:
    """Two labels that one slip of the hand would turn into each other, if there are such."""
    seen: dict[str, str] = {}
    for label in labels:
        if (other := seen.setdefault(fold_label(label), label)) != label:
            return other, label
    return None


def quote_label(label: str) -> str:
    """A label in quotes, with the codes of its characters where they are not plain."""
    return repr(label) if label.isascii() else f"'{label}' ({ascii(label)[1:-1]})"


def suggest_label(label: str, known: Iterable[str]) -> str:
    """A hint that a label is another one, written otherwise; empty if it is not."""
    same = [one for one in known if fold_label(one) == fold_label(label)]
    return f"; did you mean {quote_label(same[0])}, got {quote_label(label)}?" if same else ""


def check_label_names(labels: Sequence[str], rows: int, source: str) -> list[str]:
    """What there is to say of the classes that ``rows`` rows have, where the user did not name them.

    Raises:
        DataError: two that can hardly be told apart, or nearly as many classes as rows.
    """
    if pair := find_lookalikes(labels):
        plain = len({" ".join(label.split()).casefold() for label in pair}) == 1
        how = "capitals or blanks" if plain else "the way they are written"
        raise DataError(
            f"{source}: labels {quote_label(pair[0])} and {quote_label(pair[1])} differ only in {how}: correct the "
            "rows, or name all labels if they are meant so"
        )
    if len(labels) < MANY:
        return []
    advice = "give --target-column if they are texts to be generated"
    if 2 * len(labels) > rows:
        raise DataError(
            f"{source}: expected rows that share their labels, got {len(labels):,} different labels in {rows:,} rows, "
            f"such as {quote_label(labels[0][:80])}: {advice}, or name all labels if they are classes"
        )
    if statistics.median(len(label.split()) for label in labels) >= WORDS:
        return [
            f"The {len(labels):,} different labels look like sentences, such as {quote_label(labels[0][:80])}: "
            f"{advice}."
        ]
    return []
