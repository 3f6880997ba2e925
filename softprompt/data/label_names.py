"""Names of classes: which ones one slip would turn into each other, and which are hardly names of classes at all."""

import math
import statistics
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from softprompt.errors import ConfigError, DataError
from softprompt.utils.arguments import describe_argument

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


def plain_label(value: Any) -> Any:
    """A label as it is called: numbers and booleans as strings; all else as it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))  # NaN stands for null
    return str(value) if finite else value


def check_labels(labels: Any) -> tuple[str, ...]:
    """The names of the classes; raises ConfigError for what is no list of strings."""
    names = () if labels is None else labels
    if isinstance(names, str | Mapping) or not isinstance(names, Iterable):
        advice = ": words for the labels of the data are verbalizers" if isinstance(names, Mapping) else ""
        got = describe_argument(labels)
        raise ConfigError(f"labels: expected a list of names, as ['no', 'yes'], got {got}{advice}")
    return tuple(_label_name(one, "labels") for one in names)


def check_verbalizers(verbalizers: Any) -> dict[str, str]:
    """Words by label; raises ConfigError for what is no mapping of strings."""
    if verbalizers is not None and not isinstance(verbalizers, Mapping):
        raise ConfigError(
            f"verbalizers: expected words by label, as {{'pos': 'good'}}, got {describe_argument(verbalizers)}"
        )
    words = {_label_name(label, "verbalizers"): word for label, word in (verbalizers or {}).items()}
    if wrong := [word for word in words.values() if not isinstance(word, str)]:
        raise ConfigError(f"verbalizers: expected words by label, got {describe_argument(wrong[0])}: give strings")
    return words


def _label_name(label: Any, where: str) -> str:
    """A label as rows that have it are read."""
    name = plain_label(label)
    if not isinstance(name, str):
        raise ConfigError(f"{where}: expected names of labels, got {describe_argument(label)}: give strings, as '1'")
    return name
