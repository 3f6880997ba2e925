"""One NumPy array of virtual tokens, as google-research/prompt-tuning publishes prompts (Lester et al. 2021).

There a file holds ``[P, H]`` in float32 (its tests also have float64), without a batch dimension, and the vectors go in
front of the embedded text. They are taken and given as they are, in the scale in which the first layer sees token
embeddings: T5, for which these prompts were made, does not scale its embeddings, so the two are the same there.
"""

import io
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from softprompt.errors import PromptFileError
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.utils.files import check_free, write_file
from softprompt.utils.messages import map_read_errors

MOST_BYTES = 2**30  # of numbers in a file: more than any prompt has, less than fills the memory
MOST_HEADER_BYTES = 10_000

_LENGTHS = {b"\x93NUMPY\x01\x00": 2, b"\x93NUMPY\x02\x00": 4}  # bytes that the length of the header has, by version
_TYPES = {f"{order}f{size}" for order in "<>" for size in (2, 4, 8)}
_HEADER = re.compile(
    r"\{'descr': '(?P<type>[^']{1,8})', 'fortran_order': (?P<columns_first>True|False), "
    r"'shape': \((?P<shape>[\d, ]{0,99})\), \} *\n"
)


def write_npy(prompt: Prompt, path: Path) -> None:
    """Write the virtual tokens ``[P, H]`` in float32.

    Raises:
        PromptFileError: an ensemble, keys and values, or a prompt that holds BOS itself.
        OutputError: the place is taken, or cannot be written.
    """
    if prompt.state.kind != "embeddings":
        raise PromptFileError(
            "this prompt holds keys and values of every layer, and a .npy file has room for virtual tokens only: "
            "learn one with prompt-tuning, p-tuning or residual instead"
        )
    if not prompt.state.behind_bos:
        raise PromptFileError(
            "this prompt does not stand behind BOS, which a .npy file cannot tell: use --format peft instead"
        )
    check_free(path)
    content = io.BytesIO()
    np.save(content, prompt.state.tensor.detach().float().cpu().numpy(), allow_pickle=False)
    write_file(path, content.getvalue())


def read_npy(path: Path) -> PromptState:
    """Virtual tokens ``[P, H]`` out of a file; nothing in it is believed unchecked, and nothing is unpickled.

    Raises:
        PromptFileError: no such array, or not whole, or not all of it finite numbers.
        DataError: it cannot be read.
    """
    with map_read_errors(path):
        # a pipe or a device may never end
        if path.exists() and not path.is_file():
            raise PromptFileError(f"'{path}' is no file: expected a .npy file of virtual tokens")
        with path.open("rb") as stream:
            shape, columns_first, dtype = _header(stream, path)
            size = shape[0] * shape[1] * dtype.itemsize
            if size > MOST_BYTES:
                raise PromptFileError(
                    f"'{path}' says that it holds {shape[0]:,} virtual tokens of {shape[1]:,} values: expected at most "
                    f"{MOST_BYTES:,} bytes"
                )
            content = stream.read(size + 1)
    if len(content) != size:
        what = "more follow" if len(content) > size else f"{len(content):,} are there"
        raise PromptFileError(f"'{path}' is damaged: its header announces {size:,} bytes of numbers, {what}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused below
        values = np.frombuffer(content, dtype).reshape(shape, order="F" if columns_first else "C").astype(np.float32)
    if not np.isfinite(values).all():
        raise PromptFileError(f"'{path}' has values that are no finite numbers in float32: expected a learned prompt")
    return PromptState.of_embeddings(torch.from_numpy(np.ascontiguousarray(values)))


def _header(stream: BinaryIO, path: Path) -> tuple[list[int], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type of the numbers that follow in ``stream``."""
    start = stream.read(8)
    length = _LENGTHS.get(start)
    size = int.from_bytes(stream.read(length), "little") if length is not None else 0
    # a Python literal, which is matched here and never evaluated
    found = _HEADER.fullmatch(stream.read(size).decode("latin-1")) if 0 < size <= MOST_HEADER_BYTES else None
    if found is None:
        raise PromptFileError(f"'{path}' is no .npy file, or its header is damaged: expected a plain NumPy array")
    if found["type"] not in _TYPES:
        what = "objects, which are never unpickled" if found["type"] == "|O" else "no floating-point numbers"
        raise PromptFileError(
            f"'{path}' holds {found['type']} ({what}): expected float32, float64 or float16; save it as float32"
        )
    shape = [int(number) for number in re.findall(r"\d+", found["shape"])]
    if len(shape) != 2 or min(shape) < 1:
        raise PromptFileError(
            f"'{path}' has shape {tuple(shape)}: expected two dimensions, virtual tokens and embedding size, such as "
            "(100, 768)"
        )
    return shape, found["columns_first"] == "True", np.dtype(found["type"])
