"""Models that are a little different: what cannot be used is said when loading, by name; the rest is used rightly."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_models import save_tiny
from transformers import AddedToken, BertConfig, EncoderDecoderConfig, EncoderDecoderModel

from softprompt.analysis.diagnostics.tiny_models import VOCABULARY, make_family_model, make_family_tokenizer
from softprompt.errors import BaseModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model

BERT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": VOCABULARY,
}


def with_settings(folder: Path, family: str, **settings: Any) -> Path:
    save_tiny(folder, family)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


@pytest.mark.parametrize("family", ["llama", "bart", "t5", "mamba"])
@pytest.mark.parametrize("asked", [{"return_dict": False}, {"output_hidden_states": True}])
def test_what_a_configuration_asks_for_beside_the_answer_changes_nothing(
    tmp_path: Path, family: str, asked: dict[str, bool]
) -> None:
    usual = load_model(save_tiny(tmp_path / "usual", family), dtype="float32")
    base = load_model(with_settings(tmp_path / "asked", family, **asked), dtype="float32")
    assert torch.equal(base._probe(), usual._probe())
    assert base.fingerprint == usual.fingerprint


def test_attention_that_is_asked_for_is_left_out() -> None:
    model, tokenizer = make_family_model("llama")
    expected = FrozenLM(make_family_model("llama")[0], tokenizer, "x")._probe()
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    assert torch.allclose(FrozenLM(model, tokenizer, "x")._probe(), expected, atol=1e-5)


def test_an_encoder_and_a_decoder_of_two_families_are_refused_by_name(tmp_path: Path) -> None:
    tokenizer = make_family_tokenizer("bart")
    parts = BertConfig(**BERT), BertConfig(**BERT, is_decoder=True, add_cross_attention=True)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(*parts, decoder_start_token_id=1, pad_token_id=0)
    EncoderDecoderModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BaseModelError, match=r"\(EncoderDecoderModel\) does not run as a language model.*cannot use"):
        load_model(tmp_path, dtype="float32")


class TestTokensWithoutARow:
    def base_with(self, token: AddedToken, special: bool) -> FrozenLM:
        model, tokenizer = make_family_model("llama")
        tokenizer.add_tokens([token], special_tokens=special)
        return FrozenLM(model, tokenizer, "the model")

    def test_a_word_that_any_text_may_have_is_refused_by_name(self) -> None:
        with pytest.raises(BaseModelError, match=r"'the model' .* below 320, got 320 for 'story!'.*resize_token"):
            self.base_with(AddedToken("story!"), special=False)

    def test_a_mark_that_no_text_can_spell_may_lack_one(self) -> None:
        assert self.base_with(AddedToken("<padding>", special=True), special=True).vocabulary_size == 320

    @pytest.mark.parametrize("which", ["eos_token", "bos_token"])
    def test_not_one_that_every_sequence_needs(self, which: str) -> None:
        model, tokenizer = make_family_model("llama")
        tokenizer.add_special_tokens({which: "<other>"})
        if which == "bos_token":
            tokenizer = make_family_tokenizer("llama")
            tokenizer.add_special_tokens({"bos_token": "<other>"})
            from tokenizers import processors

            tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single="<other> $A", special_tokens=[("<other>", 320)]
            )
        with pytest.raises(BaseModelError, match="got 320 for '<other>'"):
            FrozenLM(model, tokenizer, "the model")
