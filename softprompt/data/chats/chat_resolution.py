"""Whether the rows of a task are chats for a model: decided once, when the model is known."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

from softprompt.data.chats.chat_format import NO_TEMPLATE, OWN_TEMPLATE, ChatFormat
from softprompt.data.chats.chat_template import find_chat_template
from softprompt.data.chats.conversation import Conversation
from softprompt.data.chats.shared_parts import list_different
from softprompt.data.encoding.special_tokens import TokenizingModel
from softprompt.data.encoding.tokenization import find_marks
from softprompt.data.task import CLASSIFICATION_TEMPLATE, GENERATION_TEMPLATE, Task
from softprompt.errors import ConfigError

PLAIN_CHAT_TEMPLATE = "{{ text }}\nAssistant:"  # of conversations, for a model without a chat template
_THINKING = "enable_thinking"
_USUAL = (CLASSIFICATION_TEMPLATE, GENERATION_TEMPLATE)


def resolve_chat(base: TokenizingModel, task: Task, day: date | None = None) -> Task:
    """The task as it is for this model: its rows are turns of a chat where the model has a chat template.

    ``day``: what a chat template that writes the day is given; today if not given.

    Raises:
        ConfigError: a system prompt or template arguments for a model without a chat template.
        TemplateError: the chat template does not parse.
    """
    if task.chat is None:
        return task
    wanted, spec = task.chat, task.spec
    rows = [one.conversation for one in task.splits["all"] if one.conversation is not None]
    source, why = _find_source(base, wanted, spec.template)
    if source is None:
        if wanted.system or wanted.arguments:
            what = "a system prompt" if wanted.system else "arguments of the chat template"
            raise ConfigError(f"{what} needs a chat template, and {why}: write it into --template")
        template = PLAIN_CHAT_TEMPLATE if rows and spec.template in _USUAL else spec.template
        return _decided(task, replace(spec, template=template), [f"rows are read as plain text: {why}"] if rows else [])
    chat = _share_what_is_equal(wanted.with_template(source, day), rows)
    notes = [_describe_rows(rows, task)]
    if _THINKING in source and _THINKING not in chat.arguments and not any(map(_thinks, rows)):
        chat = replace(chat, arguments={**chat.arguments, _THINKING: False})
        notes.append(f"the model answers without thinking first (--chat-template-arg {_THINKING}=true has it think)")
    if left_out := find_chat_template(base.tokenizer, chat).left_out:
        notes.append(f"the chat template asks with {left_out!r}, which no finished answer has: it is left out")
    if not find_chat_template(base.tokenizer, chat).has_system_turn and chat.placement != "first":
        chat = replace(chat, placement="first")
    template = "{{ text }}" if spec.template in _USUAL else spec.template
    return _decided(task, replace(spec, template=template, chat=chat), notes)


def _decided(task: Task, spec: Any, notes: Sequence[str]) -> Task:
    splits = replace(task.splits, notes=(*task.splits.notes, *(note for note in notes if note)))
    return replace(task, spec=spec, splits=splits, chat=None)


def _find_source(base: TokenizingModel, chat: ChatFormat, template: str) -> tuple[str | None, str]:
    """The chat template, or ``None`` and why there is none."""
    if chat.template == NO_TEMPLATE:
        return None, "--chat-template none was given"
    if base.architecture == "encoder-decoder":
        return None, "an encoder-decoder model has no turns"
    if chat.template != OWN_TEMPLATE:
        return chat.template, ""
    own = find_own_template(base)
    if own is None:
        return None, "the model has no chat template"
    if template not in _USUAL and any(mark in template for mark in find_marks(base.tokenizer)):
        return None, "the template spells the model's special tokens itself"
    return own, ""


def find_own_template(base: TokenizingModel) -> str | None:
    """The chat template that a model has itself, as its Jinja2 source."""
    own = base.tokenizer.chat_template
    if isinstance(own, Mapping):
        own = own.get("default")
    return str(own) if own and base.architecture != "encoder-decoder" else None


def _share_what_is_equal(chat: ChatFormat, rows: Sequence[Conversation]) -> ChatFormat:
    """With the system message and the tools that all conversations have, if they have the same."""
    systems = list_different(one.system for one in rows)
    tools = list_different(one.tools for one in rows)
    if chat.system is None and len(systems) == 1:
        chat = replace(chat, system=systems[0])
    if not chat.tools and len(tools) == 1:
        chat = replace(chat, tools=tools[0])
    alike = all(one in (None, chat.system) for one in systems) and all(one in ((), chat.tools) for one in tools)
    return replace(chat, shared=chat.shared and alike)


def _describe_rows(rows: Sequence[Conversation], task: Task) -> str:
    if rows:
        return ""
    answer = "the label" if task.spec.kind == "classification" else "the output"
    return (
        f"the model has a chat template: each text is what a user says, and {answer} is the assistant's answer "
        "(--chat-template none leaves it out)"
    )


def _thinks(conversation: Conversation) -> bool:
    return any(one.reasoning for one in conversation.messages)
