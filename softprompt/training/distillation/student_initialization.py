"""What a student begins as: words of its teacher, those that bring it nearest before anything is learned."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from softprompt.data.encoding.conversation_encoder import find_placement
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.encoding.tokenization import safe_tokenizer
from softprompt.data.split_assignment import sample_indices
from softprompt.data.task import Task
from softprompt.errors import ConfigError
from softprompt.inference.scoring import AnswerScorer
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.state import PromptState
from softprompt.training.distillation.distillation_loss import FidelityValidation, targets_of
from softprompt.training.distillation.teacher import Teacher
from softprompt.training.distillation.teacher_answers import Answers
from softprompt.training.initialization import initialize

TRIED_ON = 64  # held-out inputs, at most
SENTENCES_TRIED_ON = 16  # each sentence of a system prompt for itself
MOST_SENTENCES = 64  # that are tried
SHORTEST_SENTENCE = 4  # tokens
_ENDS = (".", "!", "?", ":", ";", "\u3002", "\uff01", "\uff1f")  # those of Chinese and Japanese among them


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
        return {"whole": _place(base, task, rows.repeat(length // len(rows) + 1, 1)[-length:])}
    spread = torch.linspace(0, len(rows) - 1, length).round().long()
    parts = {"end": rows[-length:], "beginning": rows[:length], "spread": rows[spread]}
    found = {name: _place(base, task, part) for name, part in parts.items()}
    return found | {"instruction": initialize("text", base, task.spec, length, 0)}


def initialize_students(
    base: FrozenLM, task: Task, teacher: Teacher, lengths: Mapping[str, int], answers: Answers
) -> dict[int, tuple[str, PromptState]]:
    """For each length the candidate nearest to the teacher on some validation inputs, and what it is.

    Args:
        lengths: of each student.
        answers: of the teacher to the validation inputs.
    """
    found: dict[int, tuple[str, PromptState]] = {}
    wanted = sorted(set(lengths.values()))
    if not wanted:
        return found
    near = _measure(base, task, answers, wanted[-1], TRIED_ON)
    sentences: list[list[int]] = []
    if teacher.spec is not None and wanted[0] < teacher.start.length:
        sentences = _rank_sentences(base, task, teacher, answers)
    for length in wanted:
        tried = make_candidates(base, task, teacher.start, length)
        if len(tried) > 1 and sentences:
            rows = teacher.start.tensor.float().cpu()
            tried["sentences"] = _place(base, task, rows[choose_sentences(sentences, length)])
        losses = {name: near.score(state)[1] if len(tried) > 1 else 0.0 for name, state in tried.items()}
        best = min(losses, key=losses.__getitem__)
        found[length] = best, tried[best]
    return found


def _measure(base: FrozenLM, task: Task, answers: Answers, length: int, most: int) -> FidelityValidation:
    """How near prompts of at most ``length`` virtual tokens come on ``most`` validation inputs."""
    chosen = sample_indices(task.validation, most)
    encoder = ExampleEncoder(base, task.spec, length)
    targets = targets_of(AnswerScorer(base, encoder.verbalizer), answers.at(chosen))
    return FidelityValidation(base, targets, targets.items(encoder, [task.validation[index] for index in chosen]))


def _place(base: FrozenLM, task: Task, rows: Tensor) -> PromptState:
    state = PromptState.of_embeddings(rows)
    return state if task.spec.chat is None else replace(state, placement=find_placement(base, task.spec))


def _rank_sentences(base: FrozenLM, task: Task, teacher: Teacher, answers: Answers) -> list[list[int]]:
    """Sentences of the teacher as places of their tokens, those first that alone come nearest to all of it."""
    near = _measure(base, task, answers, teacher.start.length, SENTENCES_TRIED_ON)
    rows = teacher.start.tensor.float().cpu()
    sentences = split_sentences(base.tokenizer, teacher.word_ids)
    tried, others = sentences[:MOST_SENTENCES], sentences[MOST_SENTENCES:]
    losses = [near.score(_place(base, task, rows[sentence]))[1] for sentence in tried]
    return [*(tried[index] for index in sorted(range(len(tried)), key=losses.__getitem__)), *others]


def split_sentences(tokenizer: Any, ids: Sequence[int]) -> list[list[int]]:
    """Places of each sentence's tokens: a line, or what punctuation ends; short ones go with the next."""
    found: list[list[int]] = [[]]
    decode = safe_tokenizer(tokenizer).decode
    for place, token in enumerate(ids):
        found[-1].append(place)
        said = decode([token])
        if ("\n" in said or said.rstrip().endswith(_ENDS)) and len(found[-1]) >= SHORTEST_SENTENCE:
            found.append([])
    return [sentence for sentence in found if sentence]


def choose_sentences(ranked: Sequence[Sequence[int]], length: int) -> list[int]:
    """``length`` places: of the first sentences that fit, in the order of the text, and of the beginning of another."""
    chosen: list[int] = []
    left_out: list[Sequence[int]] = []
    for sentence in ranked:
        if len(chosen) + len(sentence) <= length:
            chosen += sentence
        else:
            left_out.append(sentence)
    for sentence in left_out:
        chosen += sentence[: length - len(chosen)]
    return sorted(chosen)
