"""A teacher's answers in a file, whole or not at all: a run that goes on does not ask it again."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from softprompt.config import DistillConfig
from softprompt.data.examples import Example
from softprompt.data.task import Task
from softprompt.errors import TrainingError, map_write_errors
from softprompt.models.frozen_lm import FrozenLM
from softprompt.training.callbacks.callback import Callback
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.distillation.teacher import Teacher, ask_teacher
from softprompt.training.distillation.teacher_answers import Answers, Completions, LabelAnswers
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


def ask_or_load_answers(
    base: FrozenLM,
    task: Task,
    teacher: Teacher,
    settings: DistillConfig,
    splits: Mapping[str, Sequence[Example]],
    checkpoint: Checkpoint | None,
    restart: bool,
    callback: Callback,
) -> tuple[dict[str, Answers], float]:
    """What the teacher says, and the seconds it took: from the run's folder, or by asking it."""
    path = None if checkpoint is None else checkpoint.folder / ANSWERS_FILE
    identity = ""
    if path is not None and checkpoint is not None:
        inputs = [[split, [_describe_input(one) for one in some]] for split, some in splits.items()]
        parts = {name: checkpoint.identity[name] for name in ("base", "device and dtype", "task", "versions")}
        # how the student learns makes no difference to what the teacher says
        facts = [parts, inputs, teacher.digest, settings.model_dump()]
        identity = hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()
        if not restart and (kept := load_answers(path, identity)) is not None:
            callback.on_message("the teacher's answers are there already")
            return kept
    began = time.perf_counter()
    answers = ask_teacher(base, task.spec, teacher, settings, splits, callback.on_message)
    seconds = time.perf_counter() - began
    if path is not None:
        save_answers(path, answers, identity, seconds)
    return answers, seconds


def _describe_input(example: Example) -> tuple[Any, ...]:
    """What a teacher reads of it."""
    turns = () if example.conversation is None else (example.conversation.to_row(),)
    return (example.text, sorted(example.columns.items()), *turns)
