"""``--streaming``: training rows are left where they are; only validation, test and the first rows are read.

FOLDER        train, validation and test, one file each
FILE          split about 80/10/10 by a hash of what is read of each row, as it is without --streaming
hf:NAME       as published
"""

import heapq
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from softprompt.data.chats.shared_parts import describe_shared_parts
from softprompt.data.example_stream import ExampleStream, HubRows
from softprompt.data.examples import Columns, Example, keep_answered
from softprompt.data.readers.example_reader import SPLITS, BadRows, check_file, find_split, load_hub_parts, split_files
from softprompt.data.readers.file_rows import FileRows
from softprompt.data.row_identity import hash_input, input_key
from softprompt.data.split_assignment import assign_split
from softprompt.data.splits import HELD_OUT_SHARE, ReadOptions, Splits
from softprompt.errors import DataError
from softprompt.utils.files import expand_user
from softprompt.utils.messages import map_read_errors, quote_names

HEAD = 1000  # training rows that labels, their frequencies and a start made of examples are taken from
KEPT = 5000  # rows of validation and of test
LOOKED_AT = 100_000  # rows that these are drawn from
_AT_ONCE = 1000


def stream_splits(source: Any, **options: Any) -> Splits:
    """Splits whose training rows are streamed (``Splits.stream``); ``train`` holds the first of them.

    Args:
        source: a file, a folder, ``hf:NAME``, or an ``IterableDataset`` or several by their splits.
        options: as for ``read_splits``.

    Raises:
        DataError: anything missing, malformed or ambiguous; rows that are sorted by label.
        MissingExtraError: ``hf:`` or Parquet without the extra ``data``.
    """
    how = ReadOptions.build(**options)
    names, seed = how.names, how.seed
    streams = _open_streams(source, how.columns, how.bad_rows)
    published = not isinstance(source, str | Path) or str(source).startswith("hf:")
    source = str(source) if isinstance(source, str | Path) else type(source).__name__
    if "train" not in streams:
        raise DataError(f"expected a train split in '{source}' to stream, got {quote_names(streams)}: name one train")
    notes = [
        f"Training rows are streamed: labels and start come from the first {HEAD:,}, and rows are shuffled within "
        "blocks (setting shuffle_buffer)."
    ]
    if how.bad_rows == "skip":
        notes.append("Training rows that cannot be used are left out as they come.")
    key = partial(_hash_row, names=names, salt=f"sample {seed}")
    read: dict[str, list[Example]] = {}
    seen: dict[str, int] = {}
    for split in ("validation", "test"):
        if split in streams and _lacks_answers(streams[split]):
            notes.append(f"The split '{split}' of '{source}' was not used: no row has a label or output.")
        elif split in streams:
            read[split], seen[split], told = _sample_rows(streams[split], split, KEPT, key)
            notes += told
    train = streams["train"]
    if not read.get("validation"):
        alone = streams.keys() == {"train"} and not published and not expand_user(source).is_dir()
        tested = HELD_OUT_SHARE if alone else 0.0
        side = partial(assign_split, validation=HELD_OUT_SHARE, test=tested, seed=seed, names=names)
        for number, split in ((1, "validation"), *([(2, "test")] if alone else [])):
            rest = train.without(partial(_is_in_other_split, side, number))
            read[split], seen[split], told = _sample_rows(rest, split, KEPT, key)
            notes += told
        train = train.without(partial(_is_in_other_split, side, 0))
        what = "One file was given" if alone else "No validation split was given"
        notes.append(
            f"{what}: about {HELD_OUT_SHARE:.0%} of its rows were set aside for validation"
            f"{', and as many for test' if alone else ''} (by a hash of what is read of each row and seed {seed}, as "
            "without --streaming)."
        )
        if not read["validation"]:
            raise DataError(
                f"expected some hundred rows in '{source}', of which some are set aside for validation, got too few: "
                "leave --streaming out"
            )
    rows = train.open()
    head = rows.read(HEAD)
    notes += rows.notes
    if not head:
        raise DataError(f"expected training rows in '{source}', got none beyond those set aside: leave --streaming out")
    if head[0].label is not None and len({one.label for one in head}) == 1:
        raise DataError(
            f"the first {len(head):,} rows of '{source}' all have the label '{head[0].label}': expected rows in random "
            "order, shuffle the file first, or leave --streaming out"
        )
    validation, test = tuple(read["validation"]), tuple(read.get("test", ()))
    told = list(dict.fromkeys([*notes, *describe_shared_parts((*head, *validation, *test))]))
    return Splits(tuple(head), validation, test, source, tuple(told), train, how.columns.names(), seen)


def _hash_row(example: Example, names: Collection[str] | None, salt: str) -> int:
    return hash_input(input_key(example, names), salt)


def _is_in_other_split(side: "partial[int]", number: int, example: Example) -> bool:
    return side(example) != number


def _lacks_answers(stream: ExampleStream) -> bool:
    found = replace(stream, columns=stream.columns._replace(optional=True), bad_rows="skip").open().read(_AT_ONCE)
    return bool(found) and not keep_answered(found)


def _sample_rows(
    stream: ExampleStream, split: str, most: int, key: "partial[int]"
) -> tuple[list[Example], int, list[str]]:
    """At most so many rows of a split in their order, drawn by their hash; of how many; what there is to say of it."""
    rows, seen = stream.open(), 0
    kept: list[tuple[int, int, Example]] = []  # a heap: on top, with its sign turned, the largest hash
    notes: list[str] = []
    while seen < LOOKED_AT and (examples := rows.read(_AT_ONCE)):
        notes += rows.notes
        for example in examples:
            add = heapq.heappush if len(kept) < most else heapq.heappushpop
            add(kept, (-key(example), -seen, example))
            seen += 1
    if len(kept) < seen and split != "train":
        notes.append(f"{len(kept):,} of {'the first ' * (seen >= LOOKED_AT)}{seen:,} {split} rows were drawn.")
    return [example for _, _, example in sorted(kept, key=lambda one: -one[1])], seen, notes


def _open_streams(source: Any, columns: Columns, bad_rows: BadRows) -> dict[str, ExampleStream]:
    streams: dict[str, ExampleStream] = {}
    there = None
    if not isinstance(source, str | Path):
        there, source = source if isinstance(source, Mapping) else {"train": source}, type(source).__name__
    elif str(source).startswith("hf:"):
        there, source = load_hub_parts(str(source), streaming=True), str(source)
    if there is not None:
        for given, data in there.items():
            split = find_split(given)
            if split is not None and split not in streams:
                name = f"{source} {given}"
                streams[split] = ExampleStream(partial(HubRows, data, name), columns, name, source, bad_rows)
        return streams
    path = expand_user(source)
    with map_read_errors(path):
        files = split_files(path) if path.is_dir() else {"train": path}
        for one in files.values():
            check_file(one)
        identity = ", ".join(f"{split} {one.name} {one.stat().st_size}" for split, one in files.items())
    for split in SPLITS:
        if split in files:
            streams[split] = ExampleStream(
                partial(FileRows, files[split]), columns, str(files[split]), identity, bad_rows
            )
    return streams
