"""What the fused decoder is read with in tests: token ids, masks and prompts of the families that it serves."""

import torch
from torch import Tensor

from softprompt.models.frozen_lm import FrozenLM

FUSED = ("llama", "gemma3", "qwen3", "mistral", "qwen2")


def ids_of(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(5, 300, (rows, length), generator=torch.Generator().manual_seed(seed))


def ragged(lengths: list[int]) -> Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def learned(base: FrozenLM, length: int, seed: int) -> Tensor:
    noise = torch.randn(length, base.embedding_size, generator=torch.Generator().manual_seed(seed))
    return (noise * base.embedding_std).requires_grad_()
