"""Prompts that were learned on tiny models, and the logits that texts have behind them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from helpers.made_prompts import a_prompt
from helpers.tiny_models import tiny_base
from torch import Tensor

from softprompt.data.task import TaskSpec
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import compute_keys_and_values, make_prefix
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState

CLOSE = {"atol": 1e-4, "rtol": 1e-4}  # of logits in float32
SPEC = TaskSpec("classification", "{{ text }}; label:", ("bad", "good"), ("bad", "good"), 64)


def learned(family: str, kind: str = "embeddings", length: int = 5, seed: int = 1, **changes: Any) -> Prompt:
    """A prompt of the tiny model of ``family``, in the size of its embeddings or of what its layers keep."""
    base = tiny_base(family)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(length, base.embedding_size, generator=generator) * base.embedding_std
    state = PromptState.of_embeddings(tokens)
    if kind == "key_values":
        state = compute_keys_and_values(base, tokens)
        noisy = (one + 0.1 * torch.randn(one.shape, generator=generator) for one in state.tensors)
        state = replace(state, tensors=tuple(noisy))
    return replace(a_prompt(family), states=(state,), spec=SPEC, **changes)


@torch.no_grad()
def our_logits(base: FrozenLM, state: PromptState, ids: Sequence[int]) -> Tensor:
    """Of a text ``[T]`` behind BOS and the prompt: ``[T, V]``."""
    given = torch.tensor([list(ids)])
    prefix: Any = make_prefix(base, state)
    return base.logits(prefix.hidden(given, torch.ones_like(given))[0])


def text_ids(base: FrozenLM, text: str = "a good film and a bad story") -> list[int]:
    return list(base.tokenizer(text, add_special_tokens=False).input_ids)


@torch.no_grad()
def peft_logits(model: Any, ids: list[int]) -> Tensor:
    """Of the last ``len(ids)`` tokens that PEFT's model computed: ``[T, V]``."""
    logits: Tensor = model.eval()(input_ids=torch.tensor([ids])).logits[0]
    return logits[len(logits) - len(ids) :]
