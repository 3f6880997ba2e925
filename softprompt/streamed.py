"""``--streaming``: training rows are left where they are; only validation, test and the first rows are read.

FOLDER        train, validation and test, one .jsonl, .csv, .tsv or .parquet file each
FILE          the training rows; its first ones are set aside for validation
hf:NAME       as published
"""

from pathlib import Path
from typing import Any

from softprompt.data import SPLITS, Splits, split_of
from softprompt.errors import DataError
from softprompt.examples import Columns
from softprompt.paths import expanded
from softprompt.rows import listed, optional_module
from softprompt.streams import Stream

HEAD = 1000  # training rows that labels, their frequencies and a start made of examples are taken from
HELD_OUT = 500  # of the first rows, set aside where there is no validation split
READ_AT_MOST = 5000  # rows of validation and of test
BUILDERS = {".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


def read_streamed(
    source: str | Path, *, text_column: str = "text", label_column: str = "label", target_column: str = "target"
) -> Splits:
    """Splits whose training rows are streamed (``Splits.stream``); ``train`` holds the first of them.

    Raises:
        DataError: anything missing, malformed or ambiguous; rows that are sorted by label.
        MissingExtraError: the extra ``data`` is not installed.
    """
    columns = Columns(text_column, label_column, target_column)
    streams = _opened(str(source), columns)
    if "train" not in streams:
        raise DataError(f"expected a train split in '{source}' to stream, got {listed(streams)}: name one train")
    notes = [
        f"Training rows are streamed: labels and start come from the first {HEAD:,}, and rows are shuffled within "
        "blocks (setting shuffle_buffer)."
    ]
    read = {split: streams[split].open().read(READ_AT_MOST) for split in ("validation", "test") if split in streams}
    train = streams["train"]
    if not read.get("validation"):
        read["validation"] = train.open().read(HELD_OUT)
        train = train.skipping(len(read["validation"]))
        notes.append(
            f"No validation split was given: the first {len(read['validation']):,} rows were set aside for it."
        )
    notes += [
        f"Only the first {READ_AT_MOST:,} {split} rows were read."
        for split, examples in read.items()
        if len(examples) == READ_AT_MOST
    ]
    head = train.open().read(HEAD)
    if not head:
        raise DataError(f"expected training rows in '{source}', got none beyond those set aside: leave --streaming out")
    if head[0].label is not None and len({one.label for one in head}) == 1:
        raise DataError(
            f"the first {len(head):,} rows of '{source}' all have the label '{head[0].label}': expected rows in random "
            "order, shuffle the file first, or leave --streaming out"
        )
    return Splits(tuple(head), tuple(read["validation"]), tuple(read.get("test", ())), str(source), tuple(notes), train)


def _opened(source: str, columns: Columns) -> dict[str, Stream]:
    datasets = optional_module("datasets")
    identity = source
    try:
        if source.startswith("hf:"):
            name, _, config = source.removeprefix("hf:").partition(":")
            published = datasets.load_dataset(name, config or None, streaming=True)
        else:
            files = _files(expanded(source))
            identity = ", ".join(f"{split} {path.name} {path.stat().st_size}" for split, path in files.items())
            published = {split: _file(datasets, path) for split, path in files.items()}
    except DataError:
        raise
    except Exception as error:  # what builders raise is not of one family
        raise DataError(
            f"expected data within reach at '{source}', got {type(error).__name__} ({str(error)[:300]}): give a "
            "folder, a file, hf:NAME or hf:NAME:CONFIG"
        ) from error
    streams: dict[str, Stream] = {}
    for given, data in published.items():
        split = split_of(given)
        if split is not None and split not in streams:
            features = data.features or {}
            classes = {key: kind.names for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
            streams[split] = Stream(data, columns, classes, f"{source} {given}", identity)
    return streams


def _files(place: Path) -> dict[str, Path]:
    if not place.exists():
        raise DataError(f"expected a file or folder at '{place}', found none: Hugging Face data sets are hf:NAME")
    if place.is_dir():
        found: dict[str, Path] = {}
        for path in sorted(place.iterdir()):
            split = split_of(path.stem.lower())
            if split is not None and path.suffix.lower() in BUILDERS:
                if split in found:
                    got = listed([found[split].name, path.name], " and ")
                    raise DataError(f"expected one {split} file in '{place}', got {got}: move or rename one of them")
                found[split] = path
        return {split: found[split] for split in SPLITS if split in found}
    if place.suffix.lower() not in BUILDERS:
        raise DataError(
            f"expected a file ending in {', '.join(BUILDERS)} to stream, got '{place.name}': convert it, or leave "
            "--streaming out"
        )
    return {"train": place}


def _file(datasets: Any, path: Path) -> Any:
    ending = path.suffix.lower()
    more = {"sep": "\t"} if ending == ".tsv" else {}
    return datasets.load_dataset(BUILDERS[ending], data_files={"train": str(path)}, streaming=True, **more)["train"]
