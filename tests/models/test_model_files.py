"""Where a base model is read from; the embedded model's tokenizer is the one that ``AutoTokenizer`` makes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_models import save_tiny, tiny_tokenizer
from transformers import AutoTokenizer

from softprompt.errors import BaseModelError
from softprompt.models import model_files
from softprompt.models.builtin_models import MODEL_NAME
from softprompt.models.model_files import ModelSource, find_source

TEXTS = ("", "Hello <bos> wörld,  two\n", "\ta\n\nb ", "naïve <eos>", "1,234.5")


def assert_same(one: Any, other: Any) -> None:
    """The two tokenizers do the same."""
    assert one.get_vocab() == other.get_vocab()
    assert one.special_tokens_map == other.special_tokens_map
    assert (one.padding_side, one.model_max_length) == (other.padding_side, other.model_max_length)
    for text in TEXTS:
        for options in ({}, {"add_special_tokens": False}, {"split_special_tokens": True}):
            ids = one(text, **options).input_ids
            assert ids == other(text, **options).input_ids
            assert one.decode(ids) == other.decode(ids)
            assert one.decode(ids, skip_special_tokens=True) == other.decode(ids, skip_special_tokens=True)


def test_folder_and_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny(tmp_path / "tiny", "gemma3")
    plain = find_source(str(folder), trust_remote_code=True)
    assert plain == ModelSource(str(folder), str(folder), {"trust_remote_code": True})
    assert plain.convert_gguf(torch.float32) is plain
    monkeypatch.setattr(model_files, "embedded_model_folder", lambda progress: folder)
    assert find_source(MODEL_NAME) == ModelSource(MODEL_NAME, str(folder), {"trust_remote_code": False})


def test_the_embedded_models_tokenizer_is_read_as_it_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_tokenizer("gemma3").save_pretrained(tmp_path)
    source = ModelSource(MODEL_NAME, str(tmp_path), {"trust_remote_code": False})
    expected = AutoTokenizer.from_pretrained(tmp_path, padding_side="left")  # as Gemma's is
    monkeypatch.delattr(AutoTokenizer, "from_pretrained")
    assert_same(source.tokenizer(), expected)


def test_another_embedded_model_is_unknown() -> None:
    with pytest.raises(BaseModelError, match=f"unknown embedded model 'embedded:x': expected '{MODEL_NAME}'"):
        find_source("embedded:x")


@pytest.mark.slow
def test_the_real_one() -> None:
    source = find_source(MODEL_NAME)
    settings = json.loads((Path(source.place) / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "GemmaTokenizer"
    assert_same(source.tokenizer(), AutoTokenizer.from_pretrained(source.place))
