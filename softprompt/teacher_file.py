"""A teacher's answers in a file, whole or not at all: a run that goes on does not ask it again."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from softprompt.errors import TrainingError, writing
from softprompt.folders import replace_file
from softprompt.teacher import Answers, Completions, LabelAnswers

ANSWERS_FILE = "teacher.safetensors"


def save_answers(path: Path, answers: Mapping[str, Answers], identity: str, seconds: float) -> None:
    """Write the answers of each split.

    Args:
        identity: of teacher, inputs and settings: what another run must share to use the file.
        seconds: that answering took.

    Raises:
        OutputError: no space, or no permission.
    """
    from safetensors.torch import save

    tensors = {
        f"{split}/{field.name}": getattr(answer, field.name).contiguous().clone()
        for split, answer in answers.items()
        for field in fields(answer)
    }
    facts = {"identity": identity, "seconds": seconds, "sha256": _digest(tensors)}
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, save(tensors, metadata={"teacher": json.dumps(facts)}))


def load_answers(path: Path, identity: str) -> tuple[dict[str, Answers], float] | None:
    """The answers and the seconds they took; ``None`` if there are none, or those of another run.

    Raises:
        TrainingError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as stream:
            facts = json.loads(stream.metadata()["teacher"])
            if facts["identity"] != identity:
                return None
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (no mapping)
        if _digest(tensors) != facts["sha256"]:
            raise ValueError("its SHA-256 is not the one it was written with")
        by_split: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            split, _, part = name.partition("/")
            by_split.setdefault(split, {})[part] = tensor
        found: dict[str, Answers] = {
            split: LabelAnswers(**parts) if "log_probabilities" in parts else Completions(**parts)
            for split, parts in by_split.items()
        }
        return found, float(facts["seconds"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"the teacher's answers in '{path}' are damaged: {error}; ask it again with --restart"
        ) from error


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
