"""A server on a tiny chat model, and what plain ``transformers`` generates behind the same embeddings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from helpers.chat_models import chat_base, chat_template
from helpers.tiny_models import random_prompt
from helpers.tiny_server import RealPlace

from softprompt.data.chats.chat_format import ChatFormat
from softprompt.data.chats.chat_template import find_chat_template
from softprompt.data.encoding.conversation_encoder import find_placement
from softprompt.data.task import TaskSpec
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.serving.engine.inference_engine import InferenceEngine
from softprompt.serving.engine.prompt_registry import PromptRegistry
from softprompt.store.prompt_sources import PromptSource, StoreSource
from softprompt.store.version_store import Store

BASE = "chatty"
SYSTEM = "Be brief."


def chat_spec(family: str, **options: Any) -> TaskSpec:
    chat = ChatFormat(chat_template(family), **options)
    return TaskSpec("generation", "{{ text }}", chat=chat, max_length=2000)


def chat_prompt(family: str, spec: TaskSpec, seed: int = 1) -> Prompt:
    """Four virtual tokens where the conversations of ``spec`` have them."""
    base = chat_base(family)
    state = PromptState("embeddings", (random_prompt(base, 4, seed).detach(),), find_placement(base, spec))
    return Prompt((state,), spec, base.name, base.fingerprint, "prompt-tuning")


def chat_store(family: str, folder: Path, **specs: TaskSpec) -> Store:
    store = Store(folder / "store")
    for number, (name, spec) in enumerate(specs.items(), start=1):
        store.put(chat_prompt(family, spec, number), name)
    return store


class ChatPlace(RealPlace):
    """With the model of a chat family."""

    def __init__(self, family: str, source: PromptSource, **settings: Any) -> None:
        self.base = chat_base(family)
        super().__init__(source, **settings)

    @classmethod
    def of_family(cls, family: str, store: Store, **settings: Any) -> "ChatPlace":
        return cls(family, StoreSource(str(store.url)), **settings)

    def make_engine(self) -> Any:
        return InferenceEngine(self.base, observer=self.metrics)

    def make_registry(self, source: PromptSource) -> PromptRegistry:
        return PromptRegistry(self.base, source, base_name=BASE, default_alias=self.config.default_alias)


def written_by_transformers(family: str, messages: Sequence[Any], *, ask: bool = True, **options: Any) -> list[int]:
    """Ids of a conversation by the tokenizer's own ``apply_chat_template``."""
    tokenizer = chat_base(family).tokenizer
    found = tokenizer.apply_chat_template([*messages], add_generation_prompt=ask, **options)
    return list(found["input_ids"])


def generated_by_transformers(base: FrozenLM, ids: Sequence[int], prompt: Prompt | None, room: int) -> list[int]:
    """Greedy tokens of ``generate`` behind ``ids``, with the prompt's virtual tokens behind what its front is."""
    embedded = base.embed(torch.tensor(ids, device=base.device))
    if prompt is not None:
        assert prompt.spec.chat is not None
        template = find_chat_template(base.tokenizer, prompt.spec.chat)
        front = base.tokenizer.encode(template.front, add_special_tokens=False)
        assert list(ids[: len(front)]) == front
        parts = [embedded[: len(front)], prompt.states[0].tensor.to(embedded), embedded[len(front) :]]
        embedded = torch.cat(parts)
    found = base.model.generate(
        inputs_embeds=embedded[None],
        attention_mask=torch.ones(1, len(embedded), dtype=torch.long),
        max_new_tokens=room,
        do_sample=False,
    )
    return [int(one) for one in found[0]]
