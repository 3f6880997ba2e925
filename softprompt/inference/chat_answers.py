"""What prediction has to know of conversations: what ends an answer, and what stands in front of one without prompt."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from softprompt.data.chats.chat_template import find_chat_template
from softprompt.data.encoding.conversation_encoder import find_placement
from softprompt.data.encoding.placement import Placement
from softprompt.data.encoding.special_tokens import TokenizingModel
from softprompt.data.task import TaskSpec
from softprompt.errors import ConfigError
from softprompt.inference.generation import GenerationConfig
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


def check_placement(states: Sequence[PromptState], expected: Placement) -> None:
    """Raise ConfigError for prompts that do not stand where the conversations of their task leave room for them."""
    for state in states:
        if state.placement.added != expected.added or (expected.added and state.placement != expected):
            raise ConfigError(
                "this prompt stands elsewhere than its task's conversations say: it was learned with another chat "
                "template or system prompt; give the one that it was learned with, or learn it again"
            )
