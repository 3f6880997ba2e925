"""Safetensors files that carry the SHA-256 of all that they say (see seals.py)."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from softprompt.utils.safe_io import FILE_LIMIT, parse_json
from softprompt.utils.seals import BROKEN, seal, unseal


def seal_tensors(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """A safetensors file of ``tensors`` and what is said of them."""
    content = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    # one entry, for safetensors does not keep the order of several
    told = seal({**facts, "tensors": _digest(content)})
    return save(content, metadata={"softprompt": json.dumps(told)})


def read_sealed_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What ``seal_tensors`` was given; no facts if it was written by something else.

    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            told = (stream.metadata() or {}).get("softprompt")
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (no mapping)
        if told is None:
            return tensors, {}
        facts = unseal(parse_json(told.encode(), limit=FILE_LIMIT))
        whole = _digest(tensors) == facts.pop("tensors")
    except (OSError, ValueError):
        raise
    except (SafetensorError, KeyError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    if not whole:
        raise ValueError(BROKEN)
    return tensors, facts


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        if tensor.numel():
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
