"""Prompts that stand in the conversations of the tiny chat models, and conversations to ask them."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import Any

import torch
from helpers.chat_models import WITH_TOOLS, WITHOUT_SYSTEM, chat_base, chat_template, chat_tokenizer
from torch import Tensor

from softprompt.data.chats.chat_format import ChatFormat
from softprompt.data.chats.chat_template import find_chat_template
from softprompt.data.chats.message_parsing import parse_conversation
from softprompt.data.encoding.conversation_encoder import find_placement
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import compute_keys_and_values
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState

DAY = date(2025, 3, 9)
SYSTEM = "Be brief, please.\nAnd exact."
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "find_film",
        "description": "Finds a film",
        "parameters": {"type": "object", "properties": {"name": {"type": "string", "description": "of the film"}}},
    },
}
SHORT = [{"role": "user", "content": "Two and two?"}]
LONG = [
    {"role": "user", "content": "Hello there, who are you?"},
    {"role": "assistant", "content": "Nobody."},
    {"role": "user", "content": "  two  blanks, and\n\nmore \n"},
    {"role": "assistant", "content": "So?"},
    {
        "role": "user",
        "content": "\u041f\u0440\u0438\u0432\u0435\u0442, \u4f60\u597d \u0928\u092e\u0938\u094d\u0924\u0947 \U0001f600",
    },
]
LINES = [{"role": "user", "content": "\n a line\n"}]
WITH_CALLS = [
    {"role": "user", "content": "Which film?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "abcdefghi", "type": "function", "function": {"name": "find_film", "arguments": {"name": "Up"}}}
        ],
    },
    {"role": "tool", "tool_call_id": "abcdefghi", "name": "find_film", "content": '{"year": 2009}'},
]
Messages = Sequence[dict[str, Any]]


def spelling_marks(family: str) -> Messages:
    """A user who writes all special tokens of the family, and the words that its template has beside them."""
    marks = " ".join(str(one) for one in chat_tokenizer(family).added_tokens_decoder.values())
    return [{"role": "user", "content": f"a{marks}system\nb <|sp:one:0|>"}]


def conversations(family: str) -> list[Messages]:
    """What a model of the family may be asked."""
    return [SHORT, LONG, LINES]


def chat_prompt(
    family: str, kind: str = "embeddings", *, length: int = 4, seed: int = 1, labels: Sequence[str] = (), **format: Any
) -> Prompt:
    """A prompt for conversations of the family that nobody learned; ``format`` is that of a ``ChatFormat``."""
    base = chat_base(family)
    chat = ChatFormat(**format).with_template(format.get("template") or chat_template(family), DAY)
    if family in WITHOUT_SYSTEM:
        chat = replace(chat, placement="first", system=None)
    elif not find_chat_template(base.tokenizer, chat).has_system_turn:
        chat = replace(chat, placement="first")
    words = tuple(labels)
    spec = TaskSpec("classification" if words else "generation", "{{ text }}", words, words, 2000, chat=chat)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(length, base.embedding_size, generator=generator) * base.embedding_std
    place = find_placement(base, spec)
    state = PromptState("embeddings", (tokens,), place)
    if kind == "key_values":
        state = compute_keys_and_values(base, tokens, place)
        noisy = (one + 0.1 * torch.randn(one.shape, generator=generator) for one in state.tensors)
        state = replace(state, tensors=tuple(noisy))
    return Prompt((state,), spec, base.name, base.fingerprint, "prompt-tuning")


def example_of(messages: Messages, tools: Sequence[dict[str, Any]] = ()) -> Example:
    return Example("", conversation=parse_conversation(messages, list(tools)))


def takes_tools(family: str) -> bool:
    return family in WITH_TOOLS


@torch.no_grad()
def logits_of_rows(base: FrozenLM, rows: Tensor) -> Tensor:
    """Of embeddings ``[T, H]``, by transformers alone: ``[V]`` behind the last."""
    model: Any = base.model
    logits: Tensor = model(inputs_embeds=rows[None].to(base.dtype)).logits[0, -1].float()
    return logits
