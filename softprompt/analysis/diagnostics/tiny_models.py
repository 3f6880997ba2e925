"""Model families, each as a model of a few thousand weights: what `softprompt doctor --families` and the tests measure.

The tiny models are built without any file or network. Weights are random but seeded, and large enough that logits
differ clearly. Sizes are small; what makes a family itself (windows, grouped heads, position scheme, experts, soft
caps, recurrent layers) is all there.
"""

from functools import cache
from typing import Any

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
VOCABULARY = 320  # tokens, the bytes and some merges
CONTEXT = 160  # positions
WINDOW = 8  # tokens that a sliding layer sees, its own counted

_HEADS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
_GROUPED: dict[str, Any] = {**_HEADS, "num_key_value_heads": 2}
_SIZED: dict[str, Any] = {**_GROUPED, "head_dim": 8}
_GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
_HALF_SLIDING: dict[str, Any] = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
}
_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
_GEMMA4: dict[str, Any] = {**_SIZED, **_HALF_SLIDING, "global_head_dim": 16}

_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _GROUPED),
    "gemma3": (
        "gemma3_text",
        {
            **_SIZED,
            "num_hidden_layers": 3,
            "query_pre_attn_scalar": 8,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen3": ("qwen3", _SIZED),
    "mistral": ("mistral", {**_GROUPED, "sliding_window": WINDOW}),
    "gpt2": ("gpt2", _GPT2),
    "gpt_neox": ("gpt_neox", _HEADS),
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
            **_SIZED,
            "query_pre_attn_scalar": 8,
            "sliding_window": WINDOW,
            "final_logit_softcapping": 3.0,
            "attn_logit_softcapping": 5.0,
        },
    ),
    "cohere": ("cohere", {**_GROUPED, "logit_scale": 0.25}),
    "granite": ("granite", {**_GROUPED, "logits_scaling": 2.0, "embedding_multiplier": 3.0}),
    "phi": ("phi", _HEADS),
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
            **_SIZED,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "lm_head_multiplier": 0.5,
        },
    ),
    "mamba": ("mamba", {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "time_step_rank": 4}),
    "gemma": ("gemma", _SIZED),
    "gemma3n": (
        "gemma3n_text",
        {
            **_SIZED,
            "num_hidden_layers": 4,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 2,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        },
    ),
    "gemma4": ("gemma4_text", {**_GEMMA4, "hidden_size_per_layer_input": 0}),
    "gemma4_per_layer": (
        "gemma4_text",
        {**_GEMMA4, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY},
    ),
    "qwen2": ("qwen2", _GROUPED),
    "qwen3_moe": ("qwen3_moe", {**_SIZED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    "qwen3_next": (
        "qwen3_next",
        {
            **_SIZED,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
    "llama4": (
        "llama4_text",
        {
            **_SIZED,
            "num_hidden_layers": 4,
            "intermediate_size_mlp": 48,
            "attention_chunk_size": WINDOW,
            "no_rope_layers": [1, 1, 1, 0],
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
        },
    ),
    "mixtral": ("mixtral", {**_GROUPED, **_EXPERTS}),
    "ministral": ("ministral", {**_SIZED, "sliding_window": WINDOW}),
    "phi3": ("phi3", {**_GROUPED, "sliding_window": WINDOW}),
    "olmo2": ("olmo2", _GROUPED),
    "olmo3": ("olmo3", {**_GROUPED, **_HALF_SLIDING}),
    "olmoe": ("olmoe", {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": (
        "gpt_oss",
        {
            **_SIZED,
            **_HALF_SLIDING,
            **_EXPERTS,
            # the default stretches positions for a longer context than this
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {
            **_HEADS,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
        },
    ),
    "stablelm": ("stablelm", _GROUPED),
    "starcoder2": ("starcoder2", {**_GROUPED, "sliding_window": WINDOW}),
    "falcon": ("falcon", _HEADS),
    "falcon_alibi": ("falcon", {**_HEADS, "alibi": True, "multi_query": False}),
    "glm4": ("glm4", _SIZED),
    "smollm3": ("smollm3", {**_GROUPED, "no_rope_layers": [1, 0]}),
    "cohere2": ("cohere2", {**_SIZED, **_HALF_SLIDING}),
    "exaone4": ("exaone4", {**_SIZED, **_HALF_SLIDING}),
    "ernie4_5": ("ernie4_5", _SIZED),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", _SIZED),
    "nemotron": ("nemotron", _SIZED),
    "granitemoe": ("granitemoe", {**_GROUPED, **_EXPERTS, "logits_scaling": 2.0}),
    "gptj": ("gptj", {**_GPT2, "rotary_dim": 4}),
    "gpt_bigcode": ("gpt_bigcode", _GPT2),
    "xglm": (
        "xglm",
        {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48, "max_position_embeddings": CONTEXT},
    ),
    "minimax": ("minimax", {**_SIZED, **_EXPERTS}),
    "lfm2": ("lfm2", {**_GROUPED, "layer_types": ["conv", "full_attention"]}),
    "jamba": (
        "jamba",
        {
            **_GROUPED,
            "num_experts": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
        },
    ),
    "recurrent_gemma": (
        "recurrent_gemma",
        {**_SIZED, "lru_width": 32, "attention_window_size": WINDOW, "block_types": ["recurrent", "attention"]},
    ),
    "rwkv": (
        "rwkv",
        {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, "context_length": CONTEXT},
    ),
}
_T5: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_BART: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": CONTEXT,
}
_GATED: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
# what a decoder starts with, and whether BOS stands in front of texts; EOS stands behind all
_ENCODER_DECODERS: dict[str, tuple[str, dict[str, Any], str, bool]] = {
    "t5": ("t5", _T5, PAD, False),
    "t5_v1_1": ("t5", {**_T5, **_GATED, "num_decoder_layers": 3}, PAD, False),
    "mt5": ("mt5", {**_T5, **_GATED}, PAD, False),
    "umt5": ("umt5", {**_T5, **_GATED}, PAD, False),
    "switch_transformers": (
        "switch_transformers",
        {**_T5, "num_experts": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
        PAD,
        False,
    ),
    "longt5": ("longt5", {**_T5, "local_radius": 3}, PAD, False),
    "bart": ("bart", _BART, EOS, True),
    "mbart": ("mbart", {**_BART, "scale_embedding": True}, EOS, True),
    "plbart": ("plbart", _BART, EOS, True),
    "mvp": ("mvp", _BART, EOS, True),
    "pegasus": ("pegasus", {**_BART, "scale_embedding": True, "encoder_layers": 3}, PAD, False),
    "bigbird_pegasus": ("bigbird_pegasus", {**_BART, "attention_type": "original_full"}, PAD, False),
    "marian": ("marian", {**_BART, "scale_embedding": True}, PAD, False),
    "m2m_100": ("m2m_100", {**_BART, "scale_embedding": True}, EOS, True),
    "blenderbot": ("blenderbot", _BART, BOS, False),
    "led": (
        "led",
        {
            **_BART,
            "attention_window": 8,
            "max_encoder_position_embeddings": CONTEXT,
            "max_decoder_position_embeddings": CONTEXT,
        },
        EOS,
        True,
    ),
    "prophetnet": (
        "prophetnet",
        {
            "hidden_size": 32,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 4,
            "num_decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": CONTEXT,
        },
        BOS,
        False,
    ),
}
DECODERS, ENCODER_DECODERS = tuple(_SETTINGS), tuple(_ENCODER_DECODERS)
FAMILIES = DECODERS + ENCODER_DECODERS
# what the tokenizers of these models do: they put nothing in front of a text
WITHOUT_BOS = (
    *("qwen2", "qwen3", "qwen3_moe", "qwen3_next", "gpt2", "gpt_neox", "gpt_neo", "gptj", "gpt_bigcode", "gpt_oss"),
    *("bloom", "falcon", "falcon_alibi", "olmo2", "olmo3", "olmoe", "phi3", "smollm3", "stablelm", "starcoder2"),
    *(family for family, (_, _, _, bos) in _ENCODER_DECODERS.items() if not bos),
)

_WORDS = (
    "a good film and a great story, a bad film and a dull story; the film is good, the story is bad. "
    "what is the film? the story is great! positive negative neutral: Label: Output: the cat sat on the mat"
)


def make_family_model(family: str) -> tuple[Any, Any]:
    """A new model of the family, in float32 and always with the same weights, and its tokenizer.

    Raises:
        KeyError: ``family`` is not one of ``FAMILIES``.
    """
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    tokenizer = make_family_tokenizer(family)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    maker: Any = AutoModelForCausalLM
    if family in _ENCODER_DECODERS:
        model_type, settings, start, _ = _ENCODER_DECODERS[family]
        ids["decoder_start_token_id"] = tokenizer.convert_tokens_to_ids(start)
        maker = AutoModelForSeq2SeqLM
    else:
        model_type, settings = _SETTINGS[family]
    config = CONFIG_MAPPING[model_type](**{**settings, **ids, "vocab_size": VOCABULARY})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = maker.from_config(config).eval()
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
        if (bias := getattr(model, "final_logits_bias", None)) is not None:
            bias.copy_(0.5 * torch.randn(bias.shape, generator=generator))
    return model, tokenizer


def make_family_tokenizer(family: str) -> Any:
    """A byte-level BPE with a few merges.

    It puts BOS in front unless the family is one of ``WITHOUT_BOS``, and EOS behind if it has an encoder.
    """
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(_byte_pairs())
    front = [BOS] if family not in WITHOUT_BOS else []
    back = [EOS] if family in _ENCODER_DECODERS else []
    if front or back:
        single, pair = ([*front, text, *back] for text in ("$A", "$B"))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(single),
            pair=" ".join([*single, *pair]),
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in {*front, *back}],
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)


@cache
def _byte_pairs() -> str:
    """The tokenizer that all families share, as JSON."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

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
    return str(tokenizer.to_str())
