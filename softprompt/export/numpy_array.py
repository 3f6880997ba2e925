"""One NumPy array of virtual tokens, as google-research/prompt-tuning publishes prompts (Lester et al. 2021).

There a file holds ``[P, H]`` in float32 (its tests also have float64), without a batch dimension, and the vectors go in
front of the embedded text. They are taken and given as they are, in the scale in which the first layer sees token
embeddings: T5, for which these prompts were made, does not scale its embeddings, so the two are the same there.
"""

import io
import tokenize
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from softprompt.errors import PromptFileError
from softprompt.export.export_formats import ExportRequest, ImportedState
from softprompt.export.virtual_tokens import check_labels
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.utils.files import check_free, write_file
from softprompt.utils.messages import map_read_errors

MOST_BYTES = 2**30  # of numbers in a file: more than any prompt has, less than fills the memory
MOST_HEADER_BYTES = 10_000

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def write_npy(prompt: Prompt, path: Path) -> None:
    """Write the virtual tokens ``[P, H]`` in float32.

    Raises:
        PromptFileError: an ensemble, keys and values, or a prompt that holds BOS itself or stands among other tokens.
        OutputError: the place is taken, or cannot be written.
    """
    check_labels({prompt.method: prompt})
    if prompt.state.kind != "embeddings":
        raise PromptFileError(
            "this prompt holds keys and values of every layer, and a .npy file has room for virtual tokens only: "
            "learn one with prompt-tuning, p-tuning or residual instead"
        )
    if not prompt.state.behind_bos:
        raise PromptFileError(
            "this prompt does not stand behind BOS, which a .npy file cannot tell: use --format peft instead"
        )
    if prompt.state.placement.added:
        raise PromptFileError(
            "this prompt stands among other tokens, in the system turn of a conversation, which a .npy file cannot "
            "tell: use --format peft instead"
        )
    check_free(path)
    content = io.BytesIO()
    np.save(content, prompt.state.tensor.detach().float().cpu().numpy(), allow_pickle=False)
    write_file(path, content.getvalue())


def write(request: ExportRequest) -> dict[str, Any]:
    """``write_npy`` as an export format."""
    write_npy(request.prompt, request.out)
    return {}


def read(place: Path) -> ImportedState:
    """``read_npy`` as an export format."""
    state = read_npy(place)
    return ImportedState(place, lambda base: state)


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
            shape, columns_first, dtype = _read_header(stream, path)
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


def _read_header(stream: BinaryIO, path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type of the numbers that follow in ``stream``."""
    # a Python literal, of which numpy evaluates no more than this
    head = io.BytesIO(stream.read(MOST_HEADER_BYTES))
    try:
        with warnings.catch_warnings(action="ignore"):
            shape, columns_first, dtype = _HEADERS[np.lib.format.read_magic(head)](head)
        if dtype.names or min(shape, default=0) < 0:
            raise ValueError
    except (ValueError, KeyError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise PromptFileError(
            f"'{path}' is no .npy file, or its header is damaged: expected a plain NumPy array"
        ) from error
    if dtype.kind != "f" or dtype.itemsize > 8:
        what = "objects, which are never unpickled" if dtype.hasobject else "no floating-point numbers"
        raise PromptFileError(
            f"'{path}' holds {dtype.str} ({what}): expected float32, float64 or float16; save it as float32"
        )
    if len(shape) != 2 or min(shape) < 1:
        raise PromptFileError(
            f"'{path}' has shape {shape}: expected two dimensions, virtual tokens and embedding size, such as "
            "(100, 768)"
        )
    stream.seek(head.tell())
    return shape, columns_first, dtype
