"""Distilling a system prompt: what the teacher of a chat reads that its student does not.

The teacher's conversations have the page of text in their system turn, and solved examples as turns behind it; the
student's have virtual tokens there. Both are written by the model's own chat template, and all else of them is alike.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date

from softprompt.data.chats.chat_format import ChatFormat
from softprompt.data.chats.chat_resolution import resolve_chat
from softprompt.data.chats.conversation import Conversation, Message
from softprompt.data.encoding.conversation_encoder import ConversationEncoder
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.splits import Splits
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import ConfigError, DataError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.written_prompt import solved_turns
from softprompt.training.distillation.teacher import NO_TEACHER, Teacher

KEPT = "a kept system prompt stands in the system turn of a chat"


def check_teacher(task: Task, text: str, shots: Sequence[Example], keep: str | None) -> None:
    """Raise ConfigError where no words teach, or some are given twice, before a model is known."""
    system = _system_of(task)
    if text.strip() and system is not None:
        raise ConfigError("the teacher's text is its system prompt: give it once, as system or as teacher")
    if keep is not None and task.chat is None and task.spec.chat is None:
        raise ConfigError(f"{KEPT}, and these texts are none: leave it out")
    if not (text.strip() or system or shots or _find_systems(task)):
        raise ConfigError(NO_TEACHER)


def write_teacher(
    base: FrozenLM, task: Task, text: str, shots: Sequence[Example], keep: str | None, day: date | None = None
) -> tuple[Task, Teacher]:
    """The task as a student learns it, and its teacher: a text or system prompt, with solved examples behind it.

    On a model with a chat template the text is the system prompt of the teacher's conversations, or, if none is given,
    the one that all rows begin with; elsewhere it stands in front of every text.

    Args:
        keep: what of the system prompt stays in the student's conversations.
        day: as for ``resolve_chat``.

    Raises:
        ConfigError: no words at all, or a kept system prompt for a model without a chat template.
        DataError: a row has another system message than the one to distil.
    """
    text = text.strip() or (_system_of(task) or "").strip()
    text = next((own for own in _find_systems(task) if own.strip() == text), text)
    plain = resolve_chat(base, _with_system(task, None), day)
    if plain.spec.chat is None:
        if keep is not None:
            raise ConfigError(f"{KEPT}, and rows are plain text for '{base.name}': leave it out")
        return plain, Teacher.written(base, plain.spec, text, shots)
    page = text or plain.spec.chat.system
    task = resolve_chat(base, _with_system(task, page), day)
    chat = task.spec.chat
    assert chat is not None
    _check_systems(task, page)
    spec = replace(task.spec, chat=replace(chat, system=keep, replaces=page))
    return replace(task, spec=spec), Teacher.of_chat(base, *_teacher_specs(base, spec, page, shots), len(shots))


def cut_inputs(base: FrozenLM, task: Task, teacher: Teacher, length: int, max_new_tokens: int) -> Task:
    """The conversations of a task as teacher and student both read them: too long ones cut to what either has room for.

    ``length``: virtual tokens of the longest student.
    """
    if task.spec.chat is None or teacher.spec is None:
        return task
    added = ConversationEncoder(base.tokenizer, task.spec, base.special_tokens.bos).length
    spare = max(0, length + added - teacher.tokens)
    room = max_new_tokens if task.spec.kind == "generation" else 0
    encoder = ExampleEncoder(base, teacher.spec, spare, room)
    parts = [tuple(encoder.cut_examples(part)) for part in (task.train, task.validation, task.test)]
    notes = (*task.splits.notes, *(f"behind the teacher {note}" for note in encoder.truncation_notes()))
    cut: Splits = replace(task.splits, train=parts[0], validation=parts[1], test=parts[2], notes=notes)
    return replace(task, splits=cut)


def _system_of(task: Task) -> str | None:
    """The system prompt that the task was given, if it was given one."""
    chat = task.chat or task.spec.chat
    return None if chat is None else chat.system


def _find_systems(task: Task) -> list[str]:
    """The system messages of the rows, each once."""
    rows = (one.conversation for one in task.splits["all"])
    return list(dict.fromkeys(one.system for one in rows if one is not None and one.system is not None))


def _with_system(task: Task, system: str | None) -> Task:
    if task.chat is not None:
        return replace(task, chat=replace(task.chat, system=system))
    if task.spec.chat is not None:
        chat = task.spec.chat if system is None else replace(task.spec.chat, system=system)
        return replace(task, spec=replace(task.spec, chat=chat))
    return task


def _check_systems(task: Task, page: str | None) -> None:
    """Raise DataError for the first row whose own system message is not the one that is distilled."""
    for example in task.splits["all"]:
        own = None if example.conversation is None else example.conversation.system
        if own not in (None, page):
            what = "its system message is not the one to distil" if page else "it has a system message of its own"
            raise DataError(
                example.locate_message(f"{what}: expected the same in every conversation, or none; correct the row")
            )


def _teacher_specs(
    base: FrozenLM, spec: TaskSpec, page: str | None, shots: Sequence[Example]
) -> tuple[TaskSpec, TaskSpec]:
    """How the teacher reads the inputs, and how the student does."""
    assert spec.chat is not None
    turns = solved_turns(base, spec, shots)
    # first: no virtual token stands within its text, which is then read as a whole
    chat: ChatFormat = replace(spec.chat, system=page, replaces=None, turns=turns, placement="first")
    taught = replace(spec, chat=chat)
    probe = Example("a", conversation=Conversation((Message("user", "a"),)))
    encoders = [ConversationEncoder(base.tokenizer, one, base.special_tokens.bos) for one in (taught, spec)]
    # where the system prompt is a part of the user's turn, each of its texts has it
    more, own = (len(one.encode([one.fill(probe)])[0]) for one in encoders)
    return replace(taught, max_length=spec.max_length + more - own), spec
