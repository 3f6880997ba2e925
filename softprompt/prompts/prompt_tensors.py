"""Prompts as named tensors, as ``prompt.safetensors`` holds them, and back, with nothing about them believed."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from softprompt.data.encoding.placement import Placement
from softprompt.prompts.state import PromptState

LABELS = "label_rows"


def name_tensors(states: Sequence[PromptState]) -> dict[str, torch.Tensor]:
    """By name: ``prompt``, or ``layer.0``, ... for keys and values; behind ``member.0.`` and so on in an ensemble.

    ``label_rows`` are those of labels that were learned with it.
    """
    named = {}
    for member, state in enumerate(states):
        start = f"member.{member}." if len(states) > 1 else ""
        for index, tensor in enumerate(state.tensors):
            name = "prompt" if state.kind == "embeddings" else f"layer.{index}"
            named[start + name] = tensor
        if state.label_rows is not None:
            named[start + LABELS] = state.label_rows
    return {name: tensor.detach().float().contiguous().cpu().clone() for name, tensor in named.items()}


def parse_states(
    named: Mapping[str, torch.Tensor], kind: Any, members: int, placement: Placement
) -> tuple[PromptState, ...]:
    """``name_tensors`` undone.

    Raises:
        KeyError, ValueError: the tensors are not those of such a prompt.
    """
    if kind not in ("embeddings", "key_values") or type(members) is not int or not 1 <= members <= len(named):
        raise ValueError(f"kind {kind!r} with {members!r} members in {len(named)} tensors")
    states = []
    for member in range(members):
        start = f"member.{member}." if members > 1 else ""
        if kind == "embeddings":
            tensors = [named[f"{start}prompt"]]
        else:
            count = sum(name.startswith(f"{start}layer.") for name in named)
            tensors = [named[f"{start}layer.{index}"] for index in range(max(count, 1))]
        dimensions = 2 if kind == "embeddings" else 4
        for tensor in tensors:
            pair = kind == "embeddings" or tensor.shape[:1] == (2,)
            if (
                tensor.dtype != torch.float32
                or tensor.ndim != dimensions
                or not pair
                or tensor.shape[-2] != tensors[0].shape[-2]
                or not tensor.numel()
            ):
                raise ValueError(f"kind {kind!r} with shape {tuple(tensor.shape)} of {tensor.dtype}")
        rows = named.get(start + LABELS)
        if rows is not None and (rows.dtype != torch.float32 or rows.ndim != 2 or not rows.numel()):
            raise ValueError(f"label rows of shape {tuple(rows.shape)} of {rows.dtype}")
        states.append(PromptState(kind, tuple(tensors), placement, label_rows=rows))
    if sum(len(state.numbers) for state in states) != len(named):
        raise ValueError(f"{len(named)} tensors, expected {sum(len(state.numbers) for state in states)}")
    if len({state.label_rows is None or state.label_rows.shape for state in states}) > 1:
        raise ValueError("rows of labels that are not of one kind in all members")
    return tuple(states)
