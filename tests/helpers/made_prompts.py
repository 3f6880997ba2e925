"""A prompt that nobody learned."""

import torch
from helpers.tiny_models import tiny_base

from softprompt.data.task import TaskSpec
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState


def a_prompt(family: str = "llama") -> Prompt:
    base = tiny_base(family)
    generator = torch.Generator().manual_seed(1)
    return Prompt(
        states=(PromptState.of_embeddings(torch.randn(5, base.embedding_size, generator=generator)),),
        spec=TaskSpec("classification", "{{ text }} é:", ("a", "b"), ("gut", "schlecht"), 64),
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        method="prompt-tuning",
        metrics={"test": {"metric": "accuracy", "value": 0.5}},
        training={"steps": 3},
        data={"source": "here"},
        seed=7,
        versions={"torch": "2"},
        parent="prompts/older",
        extra_files={"history.jsonl": '{"step": 1}\n'},
    )
