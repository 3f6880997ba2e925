"""What prediction has to know of conversations: what ends an answer, and what they begin with.

What a prompt was learned with decides what a system message does. Behind one that was learned with a system prompt
beside its virtual tokens, another one stands in its place; one that was learned with none has none; one whose
conversations each brought their own takes any. Tools stand wherever the chat template writes them. The virtual tokens
then begin a prefix of their own, which ends with them; or with what is the conversation's own, where that stands in
front of them.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from softprompt.data.chats.call_form import CallForm
from softprompt.data.chats.chat_format import ChatFormat, keeps_shared_turns
from softprompt.data.chats.chat_template import find_chat_template
from softprompt.data.chats.conversation import Conversation
from softprompt.data.encoding.conversation_encoder import find_placement
from softprompt.data.encoding.placement import BEHIND_BOS, Placement
from softprompt.data.encoding.special_tokens import TokenizingModel
from softprompt.data.encoding.tokenization import compile_marks
from softprompt.data.task import TaskSpec
from softprompt.errors import ConfigError, DataError
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.grammar import Grammar, Mark
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.state import PromptState


def end_with_turns(base: TokenizingModel, spec: TaskSpec, generation: GenerationConfig) -> GenerationConfig:
    """With the end of the assistant's turn among what ends an answer, where the task's texts are conversations."""
    if spec.chat is None:
        return generation
    template = find_chat_template(base.tokenizer, spec.chat)
    ends = () if template.end_id is None else (template.end_id,)
    return replace(generation, ends=ends, answer_mark=template.answer_mark)


def make_bare_state(base: FrozenLM, spec: TaskSpec) -> PromptState | None:
    """What conversations share where no prompt was learned: a prompt of no virtual tokens; ``None`` is BOS alone."""
    if spec.chat is None:
        return None
    none = torch.zeros(0, base.embedding_size, device=base.device)
    return PromptState("embeddings", (none,), find_placement(base, spec))


def make_bare_states(base: TokenizingModel, spec: TaskSpec) -> tuple[PromptState, ...]:
    """What stands in front of every conversation where no prompt was learned; nothing where that is BOS alone.

    Of a model that runs elsewhere nothing is made: there it is asked by token ids.
    """
    alone = spec.chat is None or find_placement(base, spec) == BEHIND_BOS
    state = make_bare_state(base, spec) if not alone and isinstance(base, FrozenLM) else None
    return () if state is None else (state,)


def make_call_grammar(form: CallForm, tools: Mapping[str, Mapping[str, Any]], marks: Mapping[str, int]) -> Grammar:
    """An answer that calls one of ``tools``, which are schemas of arguments by name, to its end."""
    pattern = compile_marks(marks)

    def split(words: str) -> list[str | Mark]:
        pieces = re.split(f"({pattern.pattern})", words)
        return [Mark(piece) if piece in marks else piece for piece in pieces if piece]

    def write(name: str) -> list[str | Mark]:
        return split(form.before + (json.dumps(name)[1:-1] if form.is_json else name) + form.between)

    end = ["}"] if form.is_json else []
    return Grammar.of_alternatives(*([*write(name), schema, *end] for name, schema in tools.items()))


def check_placement(states: Sequence[PromptState], expected: Placement) -> None:
    """Raise ConfigError for prompts that do not stand where the conversations of their task leave room for them."""
    for state in states:
        # whether BOS stands in front is the prompt's own: one that was learned elsewhere may hold it
        if (state.placement.before, state.placement.behind) != (expected.before, expected.behind):
            raise ConfigError(
                "this prompt stands elsewhere than its task's conversations say: it was learned with another chat "
                "template or system prompt; give the one that it was learned with, or learn it again"
            )


@dataclass(frozen=True)
class ChatBeginning:
    """How a conversation begins behind a prompt.

    Attributes:
        name: tells it from others of the same prompt; empty for that which all conversations share.
        spec: the task, whose conversations begin so.
        states: the prompt in this place.
    """

    name: str
    spec: TaskSpec
    states: tuple[PromptState, ...]


def find_beginning(
    base: TokenizingModel,
    spec: TaskSpec,
    states: Sequence[PromptState],
    conversation: Conversation | None,
    changes: Mapping[str, Any] | None = None,
) -> ChatBeginning:
    """The beginning of a conversation, or of a row of text, behind the prompt of ``states``.

    Args:
        changes: of the task's ``ChatFormat``, its ``arguments`` or what it asks with.

    Raises:
        DataError: it has a system message, and the prompt was learned with none; or tools that cannot be written.
    """
    usual = ChatBeginning("", spec, tuple(states))
    if spec.chat is None:
        return usual
    conversation = None if conversation is None else conversation.without_answer()
    chat = replace(spec.chat, **(changes or {}))
    shared = conversation is None or not chat.shared or keeps_shared_turns(chat, conversation)
    if shared and chat == spec.chat:
        return usual
    said = conversation or Conversation(())
    if not shared:
        _check_replaced(base, chat, said, learned=bool(states))
    for tried in ([chat] if shared else []) + [replace(chat, shared=False)]:
        changed = replace(spec, chat=tried)
        if found := _keep_place(base, changed, states, said):
            return ChatBeginning(_name(tried), changed, found)
    system = chat.system if said.system in (None, chat.replaces) else said.system
    own = replace(chat, system=system, tools=said.tools or chat.tools)
    if any(one.kind == "key_values" for one in states):
        raise DataError(
            "its system message or tools stand in front of the prompt, whose keys and values were learned behind "
            "others: leave them out"
        )
    changed = replace(spec, chat=own)
    place = find_placement(base, changed)
    return ChatBeginning(_name(own), changed, _place(states, place))


def _check_replaced(base: TokenizingModel, chat: ChatFormat, conversation: Conversation, *, learned: bool) -> None:
    if learned and conversation.system not in (None, chat.replaces) and chat.system is None:
        raise DataError(
            "it has a system message, and the prompt was learned without one, so there is none to replace: leave it out"
        )
    if conversation.tools and not find_chat_template(base.tokenizer, chat).takes_tools:
        raise DataError("it has tools, and this model's chat template has no place for them: leave them out")


def _keep_place(
    base: TokenizingModel, spec: TaskSpec, states: Sequence[PromptState], conversation: Conversation
) -> tuple[PromptState, ...] | None:
    """The prompt where it stands, with what its task has behind it; ``None`` if this begins in another way."""
    assert spec.chat is not None
    template, place = find_chat_template(base.tokenizer, spec.chat), find_placement(base, spec)
    if any(one.placement.before != place.before for one in states):
        return None
    if conversation.messages:
        rendered = template.render(conversation)
        if rendered.text[: rendered.place] != template.front:
            return None
    return _place(states, place)


def _place(states: Sequence[PromptState], place: Placement) -> tuple[PromptState, ...]:
    """The prompts in another place, behind BOS as they were."""
    return tuple(replace(one, placement=replace(place, behind_bos=one.behind_bos)) for one in states)


def _name(chat: ChatFormat) -> str:
    facts = json.dumps(chat.to_dict(), sort_keys=True, default=str)
    return hashlib.sha256(facts.encode()).hexdigest()[:16]
