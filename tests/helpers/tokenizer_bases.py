"""A tiny Llama with a tokenizer of each style."""

import torch
from helpers.tokenizer_styles import STYLES, style
from transformers import LlamaConfig, LlamaForCausalLM

from softprompt.models.frozen_lm import FrozenLM

# those with an end of text that a decoder-only model can have
NAMES = [name for name in STYLES if name not in ("t5", "bert")]


def base_of(name: str) -> FrozenLM:
    torch.manual_seed(0)
    tokenizer = style(name)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
    )
    return FrozenLM(LlamaForCausalLM(config), tokenizer, name)
