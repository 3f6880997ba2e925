"""What a student begins as: words of its teacher, those that bring it nearest before anything is learned."""

from collections.abc import Mapping

import torch

from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.split_assignment import sample_indices
from softprompt.data.task import Task
from softprompt.errors import ConfigError
from softprompt.inference.scoring import AnswerScorer
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.state import PromptState
from softprompt.training.distillation.distillation_loss import FidelityValidation, targets_of
from softprompt.training.distillation.teacher import Answers
from softprompt.training.initialization import initialize

TRIED_ON = 64  # held-out inputs, at most


def check_teacher_start(teacher: PromptState, length: int) -> None:
    """Raise ConfigError if nothing of ``length`` virtual tokens can be made of the teacher."""
    if teacher.kind == "key_values" and teacher.length != length:
        raise ConfigError(
            f"init 'teacher': it holds keys and values of {teacher.length} virtual tokens, which cannot begin a "
            f"prompt of {length}: use --length {teacher.length}, or another init"
        )


def make_candidates(base: FrozenLM, task: Task, teacher: PromptState, length: int) -> dict[str, PromptState]:
    """Starts of ``length`` virtual tokens by what they are; one alone where the whole teacher fits."""
    if teacher.kind == "key_values":
        return {"whole": teacher}
    rows = teacher.tensor.float().cpu()
    if len(rows) <= length:
        # whole where it stands next to the text
        return {"whole": PromptState.of_embeddings(rows.repeat(length // len(rows) + 1, 1)[-length:])}
    spread = torch.linspace(0, len(rows) - 1, length).round().long()
    parts = {"end": rows[-length:], "beginning": rows[:length], "spread": rows[spread]}
    found = {name: PromptState.of_embeddings(part) for name, part in parts.items()}
    return found | {"instruction": initialize("text", base, task.spec, length, 0)}


def initialize_students(
    base: FrozenLM, task: Task, teacher: PromptState, lengths: Mapping[str, int], answers: Answers
) -> dict[int, tuple[str, PromptState]]:
    """For each length the candidate nearest to the teacher on some validation inputs, and what it is.

    Args:
        lengths: of each student.
        answers: of the teacher to the validation inputs.
    """
    found = {}
    chosen = sample_indices(task.validation, TRIED_ON)
    for length in sorted(set(lengths.values())):
        encoder = ExampleEncoder(base, task.spec, length)
        targets = targets_of(AnswerScorer(base, encoder.verbalizer), answers.at(chosen))
        near = FidelityValidation(base, targets, targets.items(encoder, [task.validation[index] for index in chosen]))
        tried = make_candidates(base, task, teacher, length)
        losses = {name: near.score(state)[1] if len(tried) > 1 else 0.0 for name, state in tried.items()}
        best = min(losses, key=losses.__getitem__)
        found[length] = best, tried[best]
    return found
