"""Models converted once: plain checkpoints in the user's cache folder, made from a GGUF file at the first call.

A folder there appears whole or not at all, is known by the SHA-256 of what it was made from, and has the sizes and
digests of its files noted in it, which are compared at every call. Later calls only find it.
"""

import copy
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from softprompt.errors import OutputError, map_write_errors

if TYPE_CHECKING:
    import torch

LIBRARIES = ("torch", "transformers", "safetensors", "gguf")
# tokens that end an answer of a chat model: a GGUF file names one of them, llama.cpp knows the others by these names
_TURN_ENDS = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>")
_MARKER = "softprompt.json"
_MARKER_SCHEMA = 1

Progress = Callable[[str], None]
Builder = Callable[[Path, Progress], Mapping[str, Any]]


def cache_folder() -> Path:
    """The folder that converted models are kept in; it need not exist yet.

    ``$SOFTPROMPT_CACHE``, else ``$XDG_CACHE_HOME/softprompt``, else ``~/.cache/softprompt``. A variable that is empty
    counts as not set, and so does a relative ``XDG_CACHE_HOME`` (its specification asks for that).

    Raises:
        OutputError: no variable is set and the user has no home folder.
    """
    own = os.environ.get("SOFTPROMPT_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    try:
        if own:
            return Path(own).expanduser().absolute()
        if shared and Path(shared).is_absolute():
            return Path(shared) / "softprompt"
        return Path.home() / ".cache" / "softprompt"
    except RuntimeError as error:
        raise OutputError(
            "expected a home folder for the model cache, got none: set SOFTPROMPT_CACHE to a folder"
        ) from error


def gguf_folder(gguf: Path, dtype: "torch.dtype", *, progress: Progress | None = None) -> Path:
    """The checkpoint in ``dtype`` that a GGUF file is converted to, at the first call for a file of this content.

    The numbers are those that ``transformers`` unpacks from the file.

    Raises:
        OutputError: the cache folder cannot be written.
        Exception: what ``transformers`` raises for a file that it cannot read.
    """
    precision = str(dtype).removeprefix("torch.")
    digest = hash_file(gguf)

    def build(folder: Path, say: Progress) -> Mapping[str, Any]:
        say(f"converting {gguf.name} to {precision}, once: kept in {folder.parent}")
        convert_gguf(gguf, folder, dtype)
        return {"model": gguf.name, "libraries": {name: version(name) for name in LIBRARIES}}

    return prepare_folder(
        cache_folder(), f"gguf-{digest[:24]}-{precision}", digest, build, progress or (lambda _: None)
    )


def prepare_folder(cache: Path, name: str, source_sha256: str, build: Builder, say: Progress) -> Path:
    """``cache/name``, made by ``build`` unless a good one is there.

    It appears whole or not at all, whatever interrupts it; of several processes at once, one builds and the others
    wait.

    Args:
        build: writes into an empty folder, and returns what the marker there shall tell of it.
        say: is told, in one line, what is worth telling while building or waiting.
    """
    from filelock import FileLock, Timeout

    folder = cache / name
    if _is_good(folder, source_sha256):
        return folder
    with writing_cache(folder):
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / f".{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"another process is building {folder}: waiting for it")
            lock.acquire()
    try:
        if not _is_good(folder, source_sha256):
            _build_in_place(folder, source_sha256, build, say)
    finally:
        lock.release()
    return folder


def _build_in_place(folder: Path, source_sha256: str, build: Builder, say: Progress) -> None:
    """Build beside ``folder`` and rename; the caller holds the lock, so whatever lies there is a leftover."""
    for leftover in folder.parent.glob(f".{folder.name}.part-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    part = folder.parent / f".{folder.name}.part-{os.getpid()}"
    try:
        with writing_cache(folder):
            part.mkdir()
        facts = build(part, say)
        with writing_cache(folder):
            _seal(part, source_sha256, facts)
            if folder.exists():
                folder.rename(folder.parent / f".{folder.name}.part-damaged")
            part.rename(folder)
            _sync(folder.parent)
    finally:
        for leftover in folder.parent.glob(f".{folder.name}.part-*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _seal(folder: Path, source_sha256: str, facts: Mapping[str, Any]) -> None:
    """Bring the files to the disk and write the marker that makes the folder good, as the last of them."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    marker = {
        "schema": _MARKER_SCHEMA,
        "source_sha256": source_sha256,
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": hash_file(path)} for path in files},
        **facts,
    }
    (folder / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    for path in [*files, folder / _MARKER, folder]:
        _sync(path)


def _is_good(folder: Path, source_sha256: str) -> bool:
    """Whether the marker is there, of this schema and source, and every file is the one it names."""
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        return (
            marker["schema"] == _MARKER_SCHEMA
            and marker["source_sha256"] == source_sha256
            and all(_has_digest(folder / name, facts) for name, facts in marker["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _has_digest(path: Path, facts: Mapping[str, Any]) -> bool:
    """Whether a file is the one of these facts. What rots on a disk keeps its time, so the digest is always taken."""
    return bool(path.stat().st_size == facts["bytes"] and hash_file(path) == facts["sha256"])


def convert_gguf(gguf: Path, folder: Path, dtype: "torch.dtype") -> None:
    """Write what a GGUF file holds as a plain checkpoint into ``folder``."""
    from softprompt.models.quantization import silence_logging

    with silence_logging():
        from transformers import AutoModelForCausalLM, AutoTokenizer

    read: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    with silence_logging(), no_progress_bars(), _read_fields_once():
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=dtype, **read)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **read)
        # the weights are plain by now, yet save_pretrained refuses as long as these say 'quantized'
        del model.config.quantization_config
        model.hf_quantizer = None
        if ends := _list_turn_ends(tokenizer, model.get_input_embeddings().weight.shape[0]):
            model.generation_config.eos_token_id = list(dict.fromkeys([tokenizer.eos_token_id, *ends]))
        save_checkpoint(model, tokenizer, folder)


def _list_turn_ends(tokenizer: Any, rows: int) -> list[int]:
    """The ids below ``rows`` of special tokens that end an answer, if the tokenizer has a chat template."""
    added = tokenizer.added_tokens_decoder.items() if tokenizer.chat_template else ()
    special = {token.content: number for number, token in added if token.special and number < rows}
    # in gpt-oss, which returns, it ends a message of the answer only
    going_on = {"<|end|>"} if "<|return|>" in special else set()
    return [special[token] for token in _TURN_ENDS if token in special and token not in going_on]


@contextmanager
def _read_fields_once() -> Iterator[None]:
    """Within it transformers reads a GGUF file's fields once, where it would for configuration, tokenizer and weights.

    A vocabulary of 262,144 tokens is a million small reads, each of which a ``memmap`` makes five times as slow.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils

    class PlainReader(gguf.GGUFReader):
        data: Any

        def _get(self, *place: Any, **options: Any) -> Any:
            self.data = self.data.view(np.ndarray)
            return super()._get(*place, **options)

    library, reading = vars(modeling_gguf_pytorch_utils), vars(gguf)
    reader = reading["GGUFReader"]
    load = library["load_gguf_checkpoint"]
    load_fields = functools.cache(load)

    def load_once(path: str, return_tensors: bool = False, **options: Any) -> Any:
        return load(path, return_tensors=True, **options) if return_tensors else copy.deepcopy(load_fields(path))

    library["load_gguf_checkpoint"], reading["GGUFReader"] = load_once, functools.cache(PlainReader)
    try:
        yield
    finally:
        library["load_gguf_checkpoint"], reading["GGUFReader"] = load, reader


def save_checkpoint(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a checkpoint; raises OutputError, with advice that fits the cache."""
    with writing_cache(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep transformers' progress bars off the terminal; they are as they were afterwards."""
    from transformers import modeling_gguf_pytorch_utils, utils

    switch: Any = utils.logging
    gguf_reader = vars(modeling_gguf_pytorch_utils)
    shown = switch.is_progress_bar_enabled()
    # the GGUF reader has a bar of its own that does not heed the switch
    own_bar = gguf_reader.get("tqdm")
    switch.disable_progress_bar()
    gguf_reader["tqdm"] = switch.tqdm
    try:
        yield
    finally:
        gguf_reader["tqdm"] = own_bar
        if shown:
            switch.enable_progress_bar()


def writing_cache(path: Path) -> AbstractContextManager[None]:
    """`errors.writing`, with the advice that fits the cache, whose place no command line option sets."""
    return map_write_errors(path, "set SOFTPROMPT_CACHE to another folder")


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Wait until the file, or the list of names in the folder, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
