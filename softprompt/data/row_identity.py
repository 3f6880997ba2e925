"""What a row is: all that the model reads of it, and its answer; the one key wherever rows are compared.

Two rows are the same where the columns that the template uses hold the same, as ``{{ }}`` prints it, and the answers
are the same. Where the template is not known, all columns count.
"""

import hashlib
import json
from collections.abc import Collection

from softprompt.data.column_values import format_value
from softprompt.data.examples import Example

InputKey = tuple[tuple[str, str], ...]  # column by column, in the order of their names
RowKey = tuple[InputKey, tuple[str, ...]]


def input_key(example: Example, names: Collection[str] | None = None) -> InputKey:
    """What the model reads of ``example`` through a template that uses the columns ``names``, ``text`` among them."""
    if not names:
        names = {"text", *example.columns}
    if example.conversation is not None:
        turns = json.dumps(example.conversation.without_answer().to_row(), sort_keys=True, ensure_ascii=False)
        beside = sorted(name for name in names if name in example.columns)
        return (("messages", turns), *((name, format_value(example.columns[name])) for name in beside))
    if len(names) == 1 and "text" in names:
        return (("text", example.text),)  # what most tasks have
    values = {**example.columns, "text": example.text}
    # a row that has none of the columns is still told from others by its text
    return tuple((name, format_value(values[name])) for name in sorted(names) if name in values) or (
        ("text", example.text),
    )


def row_key(example: Example, read: InputKey) -> RowKey:
    """What the model reads of ``example``, and the answer: the label, or the outputs."""
    return read, example.references if example.label is None else (example.label,)


def hash_input(found: InputKey, salt: str = "") -> int:
    """64 bits of what is read, the same on every machine and in every order of the rows."""
    content = json.dumps(found, ensure_ascii=False).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, key=salt.encode()).digest(), "big")
