"""Tiny GGUF files."""

import json
from pathlib import Path

import pytest
from helpers.tiny_models import BOS, EOS, PAD, tiny_base

gguf = pytest.importorskip("gguf")

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Llama's modules, in a layer and outside, in ``transformers`` and in GGUF."""


def write_gguf(
    path: Path, embedding: str = "F32", *, tied: bool = False, chat_template: str | None = None, turn_end: str = PAD
) -> Path:
    """The tiny Llama in float32, but for embeddings in the type ``embedding``; without an output layer if ``tied``.

    ``turn_end`` is what the first token of its vocabulary, a special one, is called.
    """
    base = tiny_base("llama")
    config = base.model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = json.loads(base.tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([turn_end if token == PAD else token for token in tokens])
    writer.add_token_types([3 if token in (BOS, EOS, PAD) else 1 for token in tokens])
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_bos_token_id(base.tokenizer.bos_token_id)
    writer.add_eos_token_id(base.tokenizer.eos_token_id)
    for name, tensor in base.model.state_dict().items():
        module = name.removesuffix(".weight")
        layer = ""
        if module.startswith("model.layers."):
            number, module = module.removeprefix("model.layers.").split(".", 1)
            layer = f"blk.{number}."
        if NAMES[module] in ("attn_q", "attn_k"):
            # a GGUF file keeps the two values that rotate together side by side
            tensor = tensor.view(-1, 2, config.head_dim // 2, config.hidden_size).transpose(1, 2).flatten(0, 2)
        kind = gguf.GGMLQuantizationType[embedding if NAMES[module] == "token_embd" else "F32"]
        if not (tied and NAMES[module] == "output"):
            data = gguf.quants.quantize(tensor.contiguous().numpy(), kind)
            writer.add_tensor(f"{layer}{NAMES[module]}.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
