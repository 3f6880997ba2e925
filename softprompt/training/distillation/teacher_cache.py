"""A teacher's answers in a file, whole or not at all: a run that goes on does not ask it again."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from torch import Tensor

from softprompt.errors import TrainingError, map_write_errors
from softprompt.training.distillation.teacher import Answers, Completions, LabelAnswers
from softprompt.utils.files import replace_file
from softprompt.utils.sealed_tensors import read_sealed_tensors, seal_tensors

ANSWERS_FILE = "teacher.safetensors"


def save_answers(path: Path, answers: Mapping[str, Answers], identity: str, seconds: float) -> None:
    """Write the answers of each split.

    Args:
        identity: of teacher, inputs and settings: what another run must share to use the file.
        seconds: that answering took.

    Raises:
        OutputError: no space, or no permission.
    """
    tensors = {
        f"{split}/{field.name}": getattr(answer, field.name)
        for split, answer in answers.items()
        for field in fields(answer)
    }
    with map_write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, seal_tensors(tensors, {"identity": identity, "seconds": seconds}))


def load_answers(path: Path, identity: str) -> tuple[dict[str, Answers], float] | None:
    """The answers and the seconds they took; ``None`` if there are none, or those of another run.

    Raises:
        TrainingError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        tensors, facts = read_sealed_tensors(path)
        if facts["identity"] != identity:
            return None
        by_split: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            split, _, part = name.partition("/")
            by_split.setdefault(split, {})[part] = tensor
        found: dict[str, Answers] = {
            split: LabelAnswers(**parts) if "log_probabilities" in parts else Completions(**parts)
            for split, parts in by_split.items()
        }
        return found, float(facts["seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"the teacher's answers in '{path}' are damaged: {error}; ask it again with --restart"
        ) from error
