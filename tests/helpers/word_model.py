"""A tiny model that reads whole words, in a folder, and rows of data made of them."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ("a", "the", "film", "good", "bad")


def write_rows(path: Path, count: int) -> Path:
    draw = random.Random(0)
    rows = [
        {"text": " ".join(draw.choices(WORDS, k=1 + i % 12)) + f" {i}", "label": ("negative", "positive")[i % 2]}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_model(folder: Path, words: Sequence[str] = ()) -> Path:
    """A Llama of two layers with a vocabulary of words, these among them."""
    vocabulary = ("<pad>", "<bos>", "<eos>", "<unk>", "Label", ":", "negative", "positive", "Classify", *WORDS, *words)
    vocabulary = tuple(dict.fromkeys(vocabulary))
    tokenizer: Any = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
