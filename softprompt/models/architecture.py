"""Decoder-only or encoder-decoder: which tokens stand around prompt and text, and how hidden states come about.

    decoder-only      one stack reads      BOS, prompt, text, answer
    encoder-decoder   the encoder reads    BOS, prompt, text, and what the tokenizer puts behind it
                      the decoder reads    start, answer, and looks at what the encoder made

One rule for both: what the tokenizer puts in front of a text stands in front of the prompt too, so a prompt of words is
what the tokenizer makes of these words and the text. T5 has no BOS (prompt, text, EOS: as Lester et al. and PEFT have
it); BART reads <s>, prompt, text, </s>.

Shapes: ``B`` batch, ``T`` text length, ``U`` answer length, ``H`` hidden size, ``N`` positions, ``V`` vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softprompt.data.encoding.special_tokens import SpecialTokens
from softprompt.errors import BaseModelError


def encode(model: Any, embeddings: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
    """What the encoder makes of input embeddings ``[B, T, H]`` with padding where ``mask [B, T]`` is 0."""
    output: Tensor = model.get_encoder()(inputs_embeds=embeddings, attention_mask=mask, **options).last_hidden_state
    return output


def decode(model: Any, encoded: Tensor, mask: Tensor | None, cache: Any = None, **inputs: Any) -> Tensor:
    """Hidden states ``[B, U, H]`` of the decoder, which looks at ``encoded [B, T, H]`` where ``mask [B, T]`` is 1.

    Args:
        cache: what it has read so far, an ``EncoderDecoderCache`` that is added to.
        inputs: ``input_ids [B, U]`` or ``inputs_embeds``, and other options of the decoder. Padding may stand behind
            answers without a mask: none of their tokens looks there.
    """
    hidden: Tensor = model.get_decoder()(
        encoder_hidden_states=encoded,
        encoder_attention_mask=mask,
        past_key_values=cache,
        use_cache=cache is not None,
        **inputs,
    ).last_hidden_state
    return hidden


def find_batch_independent_length(config: Any) -> int | None:
    """Tokens up to which a text is read alike whatever stands beside it; ``None``: any number.

    Of longrope and dynamic NTK, the length of a batch decides beyond it how all of its positions are encoded, those of
    short texts and of a prefix too; of BigBird's blocks, which tokens see each other.
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    longest = getattr(config, "max_position_embeddings", None)
    found = []
    # some families have such a description for each kind of layer
    for one in (rope, *(each for each in rope.values() if isinstance(each, dict))):
        kind = str(one.get("rope_type") or one.get("type"))
        if kind in ("longrope", "su"):
            own = getattr(config, "original_max_position_embeddings", None)
            found.append(one.get("original_max_position_embeddings") or own or longest)
        elif "dynamic" in kind:
            found.append(longest)
    if getattr(config, "use_dynamic_ntk", False):
        found.append(getattr(config, "seq_length", longest))
    if getattr(config, "attention_type", None) == "block_sparse":
        found.append((5 + 2 * config.num_random_blocks) * config.block_size)
    return min((one for one in found if isinstance(one, int)), default=None)


def configure_outputs(model: Any) -> None:
    """Turn off what a configuration asks for beside the answer, or in another form, in all of a model's parts."""
    plain = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}
    for module in model.modules():
        config = getattr(module, "config", None)
        for name, value in plain.items():
            if getattr(config, name, value) != value:
                setattr(config, name, value)


def embedding_scale(model: Any) -> float:
    """What some encoders multiply token embeddings by, where the embedding does not do it itself."""
    if not is_encoder_decoder(model.config):
        return 1.0
    return float(getattr(model.get_encoder(), "embed_scale", None) or 1.0)


def logits_bias(model: Any) -> Tensor | None:
    """What BART's family adds to its logits beside the output layer: ``[V]``."""
    bias = getattr(model, "final_logits_bias", None)
    return None if bias is None else bias[0]


def list_logit_transforms(config: Any) -> list[Callable[[Tensor], Tensor]]:
    """What families are known to do to ``head(hidden)``, where their configuration says that they may."""
    candidates: list[Callable[[Tensor], Tensor]] = [lambda logits: logits]
    for attribute in ("final_logit_softcapping", "logits_soft_cap"):
        if cap := getattr(config, attribute, None):
            candidates.append(lambda logits, cap=cap: torch.tanh(logits / cap) * cap)  # type: ignore[misc]
    for attribute in ("logit_scale", "lm_head_multiplier"):
        if factor := getattr(config, attribute, None):
            candidates.append(lambda logits, factor=factor: logits * factor)  # type: ignore[misc]
    if divisor := getattr(config, "logits_scaling", None):
        candidates.append(lambda logits: logits / divisor)
    if is_encoder_decoder(config) and (width := getattr(config, "d_model", None)):
        # T5 with tied embeddings
        candidates.append(lambda logits: logits * width**-0.5)
    return candidates


def read_special_tokens(model: Any, tokenizer: Any, name: str) -> SpecialTokens:
    """What the tokenizer adds to a text, and what the model's configuration starts answers with.

    Raises:
        BaseModelError: an encoder-decoder model that does not say what an answer starts with.
    """
    bos, back = _find_frame(tokenizer)
    if not is_encoder_decoder(model.config):
        return SpecialTokens(bos)
    start = getattr(model.config, "decoder_start_token_id", None)
    if start is None:
        start = getattr(getattr(model, "generation_config", None), "decoder_start_token_id", None)
    if not isinstance(start, int):
        raise BaseModelError(
            f"'{name}' is an encoder-decoder model whose config.json has no decoder_start_token_id: expected the "
            "token that answers start with, add it"
        )
    # what stands in front of a text stands in front of an answer too: BART's are start, <s>, answer
    return SpecialTokens(bos, back, (start, *bos))


def is_encoder_decoder(config: Any) -> bool:
    """Whether a ``transformers`` configuration is that of a model with an encoder and a decoder."""
    return bool(getattr(config, "is_encoder_decoder", False))


def _find_frame(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids that the tokenizer puts before and behind every text."""
    whole = list(tokenizer("a").input_ids)
    plain = list(tokenizer("a", add_special_tokens=False).input_ids)
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start]), tuple(whole[start + len(plain) :])
    return (), ()
