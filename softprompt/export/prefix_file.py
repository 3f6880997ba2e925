"""Keys and values of a prompt in a file, as the connector of a stock vLLM reads them.

A safetensors file for each prompt: ``keys.0``, ``values.0``, and so on, of each layer ``[K, P', D]``, rotated as they
stand in a cache. Beside them, as metadata, the token ids that hold their place in requests, and a sample of the weights
that they were computed with, by which a checkpoint of another model is told from theirs.

Shapes: ``P'`` tokens of BOS, what stands before the virtual tokens, and these; ``K`` heads of keys, ``D`` their size.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompt.errors import BaseModelError, PromptFileError

KEY_DIGITS = 32
KEY = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}")  # what a prompt is called in requests, and the name of its file
SUFFIX = ".safetensors"
SCHEMA_VERSION = 1

_FACTS = "softprompt"  # the metadata
_NAMES = ("keys", "values")
_SAMPLED = 256  # weights of a model that are looked at, at most
_VALUES = 8  # of each of them
_TOLERANCE = 1e-2  # of a value, which another precision rounds


@dataclass(frozen=True)
class PrefixFacts:
    """A prompt as a request meets it.

    Attributes:
        ids: token ids ``P'`` that stand in its place.
        base: name of the model that it was computed with.
        weights: a sample of its weights (``sample_weights``).
        probe: token ids of a request, and what the model says behind them (``note_probe``).
    """

    ids: tuple[int, ...]
    base: str
    weights: Mapping[str, Sequence[tuple[int, float]]]
    probe: Mapping[str, Sequence[float]]


Layers = Sequence[tuple[Tensor, Tensor]]  # keys and values of each, ``[K, P', D]`` both


def prefix_path(folder: Path, key: str) -> Path:
    """The file of a prompt; raises PromptFileError for what is no key."""
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise PromptFileError(f"expected a prompt by {KEY_DIGITS} hexadecimal digits, got {key!r}")
    return folder / f"{key}{SUFFIX}"


def save_prefix(facts: PrefixFacts, layers: Layers, path: Path) -> None:
    """Write the file; raises OSError."""
    from safetensors.torch import save_file

    tensors = {
        f"{name}.{index}": tensor.contiguous().cpu()
        for index, pair in enumerate(layers)
        for name, tensor in zip(_NAMES, pair, strict=True)
    }
    told = {
        "schema_version": SCHEMA_VERSION,
        "ids": list(facts.ids),
        "base": facts.base,
        "probe": facts.probe,
        "weights": {name: [list(one) for one in values] for name, values in facts.weights.items()},
    }
    save_file(tensors, path, {_FACTS: json.dumps(told)})


def read_facts(path: Path) -> tuple[PrefixFacts, list[tuple[int, int]]]:
    """What a file says of its prompt, and heads ``K`` and size ``D`` of each layer, without the numbers.

    Raises:
        PromptFileError: it is missing or damaged.
    """
    with _open(path) as file:
        told = json.loads((file.metadata() or {})[_FACTS])
        if told["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"version {told['schema_version']} of such files")
        ids = tuple(int(one) for one in told["ids"])
        weights = {name: [(int(at), float(value)) for at, value in one] for name, one in told["weights"].items()}
        count = len(file.keys()) // 2
        shapes = [file.get_slice(f"{name}.{index}").get_shape() for index in range(count) for name in _NAMES]
        if not shapes or any(len(one) != 3 or one[1] != len(ids) for one in shapes) or shapes[::2] != shapes[1::2]:
            raise ValueError("tensors of another shape than the ids")
        facts = PrefixFacts(ids, str(told["base"]), weights, dict(told["probe"]))
        return facts, [(heads, size) for heads, _, size in shapes[::2]]


def load_layers(path: Path) -> Layers:
    """Keys and values of each layer; raises PromptFileError if the file is missing or damaged."""
    with _open(path) as file:
        count = len(file.keys()) // 2
        return [(file.get_tensor(f"keys.{index}"), file.get_tensor(f"values.{index}")) for index in range(count)]


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """A file of a prompt, open; what is wrong with it is a PromptFileError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except FileNotFoundError as error:
        raise PromptFileError(f"there is no prompt in '{path}'") from error
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise PromptFileError(f"'{path}' is damaged: {error}") from error


def sample_weights(weights: Iterable[tuple[str, Tensor]]) -> dict[str, list[tuple[int, float]]]:
    """Some values of some weights, by name and place: enough to tell a model from another of the same shape."""
    plain = [(name, one) for name, one in weights if one.is_floating_point()]
    chosen = plain[:: max(1, math.ceil(len(plain) / _SAMPLED))]
    return {name: [(at, float(one.reshape(-1)[at])) for at in _places(one.numel())] for name, one in chosen}


def check_weights(prefix: PrefixFacts, checkpoint: Path) -> bool:
    """Compare the sample with a checkpoint's safetensors files, by the names that both have.

    Returns:
        Whether there was anything to compare; weights that are quantized have other names or no floating-point values.

    Raises:
        BaseModelError: it is another model.
    """
    compared = False
    for name, found in _read_places(prefix.weights, checkpoint):
        compared = True
        expected = [value for _, value in prefix.weights[name]]
        close = (abs(one - two) <= _TOLERANCE * max(abs(one), 1e-3) for one, two in zip(expected, found, strict=True))
        if not all(close):
            raise BaseModelError(
                f"this prompt was learned on '{prefix.base}', whose weights ('{name}') are others than those of "
                f"'{checkpoint}': start vLLM on the model that it was learned on"
            )
    return compared


def _places(size: int) -> list[int]:
    return sorted({int(at) for at in torch.linspace(0, size - 1, min(_VALUES, size), dtype=torch.float64)})


def _read_places(
    weights: Mapping[str, Sequence[tuple[int, float]]], checkpoint: Path
) -> Iterator[tuple[str, list[float]]]:
    """The values of a checkpoint at the places of ``weights``, of those that it has as floating-point numbers."""
    from safetensors import safe_open

    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in weights.keys() & set(opened.keys()):
                part = opened.get_slice(name)
                shape = part.get_shape()
                if part.get_dtype() not in ("F32", "F16", "BF16") or len(shape) not in (1, 2):
                    continue
                if any(at >= math.prod(shape) for at, _ in weights[name]):
                    yield name, [math.nan] * len(weights[name])
                    continue
                yield name, [float(_at(part, shape, at)) for at, _ in weights[name]]


def _at(part: Any, shape: Sequence[int], place: int) -> Tensor:
    """One value of a tensor that is not read as a whole."""
    if len(shape) == 1:
        return part[place : place + 1].reshape(())  # type: ignore[no-any-return]
    row, column = divmod(place, shape[1])
    return part[row : row + 1, column : column + 1].reshape(())  # type: ignore[no-any-return]
