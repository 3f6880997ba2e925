"""Conversations in a real vLLM: tiny random chat models with real templates, asked with prompts in messages."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import softprompt as sp
from softprompt.analysis.diagnostics.tiny_models import make_family_model
from softprompt.data.chats.chat_format import PLACEMENTS
from softprompt.data.chats.conversation import Message
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.export.vllm_embeddings import TEMPLATE_FILE, EmbeddedTasks, write_embeds
from softprompt.prompts.prefix import make_prefix

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from helpers import chat_models
from helpers.chat_prompts import LINES, LONG, SHORT, SYSTEM, chat_prompt, example_of

FAMILIES = ("qwen2_5", "qwen3", "llama3_1", "gemma3", "mistral_v3")
TOKENS = 8  # of a greedy completion
# heads as wide as vLLM's attention on a processor takes them
_SIZES = {"hidden_size": 128, "head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
_TURNS = (Message("user", "One?"), Message("assistant", "1"))


def make_chat_job(family: str, folder: Path) -> dict[str, Any]:
    """A job for ``in_vllm.py``: each prompt on each conversation, and the model alone, with what softprompt answers."""
    chat_models.make_family_model = lambda *given, **sizes: make_family_model(*given, **sizes, **_SIZES)
    chat_models.chat_base.cache_clear()
    chat_models.save_chat_model(family, folder / "model")
    base = chat_models.chat_base(family)
    prompts = {
        f"{place}-{number}": chat_prompt(family, placement=place, system=system, seed=number)
        for place in PLACEMENTS
        for number, system in enumerate((None, "", SYSTEM))
    }
    prompts["turns"] = chat_prompt(family, turns=_TURNS, seed=9)
    write_embeds(base, prompts, folder / "embeds")
    requests = [*_ask(base, prompts, EmbeddedTasks.load(folder / "embeds"))]
    return {
        "model": str(folder / "model"),
        "dtype": "float32",
        "context": 1024,
        "tokens": TOKENS,
        "ignore_eos": True,
        "never": [],
        "chat_template": (folder / "embeds" / TEMPLATE_FILE).read_text(encoding="utf-8"),
        "requests": requests,
    }


def _ask(base: sp.FrozenLM, prompts: Mapping[str, sp.Prompt], tasks: EmbeddedTasks) -> Iterator[dict[str, Any]]:
    for messages in (SHORT, LONG, LINES):
        for name, prompt in prompts.items():
            (text,) = ExampleEncoder(base, prompt.spec, prompt.length).encode_texts([example_of(messages)])
            given = tasks.request(name, messages, model="")["messages"]
            yield {"messages": given, "expected": _complete(base, prompt, list(text))}
        alone = base.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        yield {"messages": messages, "expected": _complete(base, None, list(alone))}


@torch.no_grad()
def _complete(base: sp.FrozenLM, prompt: sp.Prompt | None, ids: list[int]) -> list[int]:
    """Greedily, token by token and without a cache."""
    start = len(ids)
    for _ in range(TOKENS):
        given: Any = torch.tensor([ids])
        if prompt is None:
            logits = base.model(input_ids=given).logits[0, -1]
        else:
            hidden = make_prefix(base, prompt.state).hidden(given, torch.ones_like(given))
            logits = base.logits(hidden[0, -1:])[0]
        ids.append(int(logits.argmax()))
    return ids[start:]
