"""Language models of a few thousand weights, one for each way in which families differ, and a tokenizer for them.

Weights are random but seeded, and large enough that logits differ clearly. Nothing here is cached on disk.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from softprompt.base import FrozenLM

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
VOCABULARY = 320  # tokens, the bytes and some merges
CONTEXT = 160  # positions
WINDOW = 8  # tokens that a sliding layer sees, its own counted

_GROUPED: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _GROUPED),
    "gemma3": (
        "gemma3_text",
        {
            **_GROUPED,
            "num_hidden_layers": 3,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen3": ("qwen3", {**_GROUPED, "head_dim": 8}),
    "mistral": ("mistral", {**_GROUPED, "sliding_window": WINDOW}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}),
    "gpt_neox": (
        "gpt_neox",
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT,
        },
    ),
    "opt": (
        "opt",
        {
            "hidden_size": 32,
            "word_embed_proj_dim": 16,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT,
        },
    ),
    "gemma2": (
        "gemma2",
        {
            **_GROUPED,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": WINDOW,
            "final_logit_softcapping": 3.0,
            "attn_logit_softcapping": 5.0,
        },
    ),
    "cohere": ("cohere", {**_GROUPED, "logit_scale": 0.25}),
    "granite": ("granite", {**_GROUPED, "logits_scaling": 2.0, "embedding_multiplier": 3.0}),
    "phi": (
        "phi",
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT,
        },
    ),
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "gpt_neo": (
        "gpt_neo",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
            "max_position_embeddings": CONTEXT,
        },
    ),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": CONTEXT}),
    "falcon_h1": (
        "falcon_h1",
        {
            **_GROUPED,
            "head_dim": 8,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "lm_head_multiplier": 0.5,
        },
    ),
    "mamba": ("mamba", {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "time_step_rank": 4}),
}
FAMILIES = tuple(_FAMILIES)
WITHOUT_BOS = ("qwen3", "gpt2", "gpt_neox", "gpt_neo", "bloom")  # their tokenizers put nothing in front of a text
SLIDING = ("gemma3", "mistral", "gemma2", "gpt_neo")  # some layers see no more than WINDOW tokens
# recurrent layers, or (MPT) distances counted over padding too: no cache to share
NOT_SHARING = ("mamba", "falcon_h1", "mpt")

_WORDS = (
    "a good film and a great story, a bad film and a dull story; the film is good, the story is bad. "
    "what is the film? the story is great! positive negative neutral: Label: Output: the cat sat on the mat"
)


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
    model_type, settings = _FAMILIES[family]
    tokenizer = tiny_tokenizer(family)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CONFIG_MAPPING[model_type](**settings, **ids, pad_token_id=tokenizer.pad_token_id, vocab_size=VOCABULARY)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(sum(map(ord, family)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # state-space constants have ranges of their own
            if parameter.ndim < 2 or name.endswith("A_log"):
                parameter.add_(0.1 * noise)
                # else Gemma's large embeddings, which are its output layer too, make it repeat its input
                if "post_" in name and family.startswith("gemma"):
                    parameter.add_(4.0)
            else:
                parameter.copy_(1.5 * noise / parameter.shape[-1] ** 0.5)
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


@cache
def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a few merges; it puts BOS in front unless the family is one of ``WITHOUT_BOS``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_WORDS], trainer)
    if family not in WITHOUT_BOS:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)
