"""Language models of a few thousand weights, one for each way in which families differ, and a tokenizer for them.

Weights are random but seeded, and large enough that logits differ clearly. Nothing here is cached on disk.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from softprompt.analysis.diagnostics import tiny_models
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.state import PromptState

BOS, EOS, PAD = tiny_models.BOS, tiny_models.EOS, tiny_models.PAD
VOCABULARY, CONTEXT, WINDOW = tiny_models.VOCABULARY, tiny_models.CONTEXT, tiny_models.WINDOW
WITHOUT_BOS = tiny_models.WITHOUT_BOS

# each differs from the others in a way that matters here; softprompt.analysis.diagnostics.tiny_models has more of them
FAMILIES = (
    *("llama", "gemma3", "qwen3", "mistral", "gpt2", "gpt_neox", "opt", "gemma2", "cohere", "granite", "phi", "bloom"),
    *("gpt_neo", "mpt", "falcon_h1", "mamba"),
)
SLIDING = ("gemma3", "mistral", "gemma2", "gpt_neo")  # some layers see no more than WINDOW tokens
# recurrent layers, or (MPT) distances counted over padding too: no cache to share
NOT_SHARING = ("mamba", "falcon_h1", "mpt")


@cache
def tiny_base(family: str) -> FrozenLM:
    """The family's model in float32, frozen; the same object for every test."""
    return FrozenLM(tiny_model(family), tiny_tokenizer(family), f"tiny {family}")


def save_tiny(folder: Path, family: str) -> Path:
    """Write the family's model and tokenizer as a folder that ``from_pretrained`` reads."""
    tiny_model(family).save_pretrained(folder)
    tiny_tokenizer(family).save_pretrained(folder)
    return folder


def tiny_model(family: str) -> PreTrainedModel:
    """A new model of the family, always with the same weights."""
    model: PreTrainedModel = tiny_models.make_family_model(family)[0]
    return model


def plain_logits(base: FrozenLM, prompt: Tensor | None, ids: Sequence[int]) -> Tensor:
    """The reference: BOS, prompt ``[P, H]`` and token ids concatenated, through the transformers model: ``[T, V]``."""
    embed = base.model.get_input_embeddings()
    bos = base.tokenizer("", add_special_tokens=True).input_ids
    parts = [embed(torch.tensor(bos, dtype=torch.long)), embed(torch.tensor(ids, dtype=torch.long))]
    if prompt is not None:
        parts.insert(1, prompt)
    embeddings = torch.cat(parts)[None]
    logits: Tensor = base.model(inputs_embeds=embeddings, use_cache=False).logits[0]
    return logits[len(logits) - len(ids) :]


def random_prompt(base: FrozenLM, length: int, seed: int = 7) -> Tensor:
    """``[P, H]`` as large as token embeddings, requiring gradient."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(length, base.embedding_size, generator=generator) * base.embedding_std).requires_grad_()


def as_state(prompt: Tensor | None) -> PromptState | None:
    """Virtual tokens ``[P, H]`` as what stands in front of a text; gradient flows through."""
    return None if prompt is None else PromptState.of_embeddings(prompt)


@cache
def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a few merges; it puts BOS in front unless the family is one of ``WITHOUT_BOS``."""
    tokenizer: PreTrainedTokenizerFast = tiny_models.make_family_tokenizer(family)
    return tokenizer
