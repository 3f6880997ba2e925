"""The tiny models of chat families are like the real ones in what matters to a conversation."""

from pathlib import Path
from typing import Any

import pytest
from helpers.chat_models import (
    CHAT_FAMILIES,
    MARKED_FAMILIES,
    WITH_TOOLS,
    WITHOUT_SYSTEM,
    chat_base,
    chat_template,
    chat_tokenizer,
    save_chat_model,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

CONVERSATION = [
    {"role": "system", "content": "Be good."},
    {"role": "user", "content": "What is the film?"},
    {"role": "assistant", "content": "A great story."},
    {"role": "user", "content": "And the story?"},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "find_film",
        "description": "Find a film.",
        "parameters": {"type": "object", "properties": {"name": {"type": "string", "description": "Its name."}}},
    },
}


def render(family: str, **options: Any) -> str:
    messages = CONVERSATION[1:] if family in WITHOUT_SYSTEM else CONVERSATION
    text: str = chat_tokenizer(family).apply_chat_template(messages, tokenize=False, **options)
    return text


@pytest.mark.parametrize("family", CHAT_FAMILIES)
class TestEveryFamily:
    def test_its_marks_are_tokens_of_their_own(self, family: str) -> None:
        tokenizer = chat_tokenizer(family)
        text = render(family, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        added = tokenizer.added_tokens_encoder
        marks = {token for token in added if token.strip() and token in text}
        assert len(marks) >= 2
        assert marks <= set(tokenizer.convert_ids_to_tokens(ids))

    def test_an_answer_ends_at_ids_that_the_tokenizer_has(self, family: str) -> None:
        base = chat_base(family)
        stops = base.model.generation_config.eos_token_id
        assert base.tokenizer.unk_token_id not in stops
        assert base.model.config.eos_token_id == base.tokenizer.eos_token_id
        assert base.tokenizer.eos_token_id in stops

    def test_is_the_same_from_a_folder(self, family: str, tmp_path: Path) -> None:
        folder = save_chat_model(family, tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        text = render(family)
        assert tokenizer.chat_template == chat_template(family)
        assert tokenizer(text).input_ids == chat_tokenizer(family)(text).input_ids
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.generation_config.eos_token_id == chat_base(family).model.generation_config.eos_token_id


@pytest.mark.parametrize("family", MARKED_FAMILIES)
def test_what_the_assistant_says_is_marked(family: str) -> None:
    tokenizer = chat_tokenizer(family)
    made: Any = tokenizer.apply_chat_template(
        CONVERSATION[1:3],
        chat_template=chat_template(family, marked=True),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    said = [token for token, mark in zip(made["input_ids"], made["assistant_masks"], strict=True) if mark]
    assert "A great story." in tokenizer.decode(said)
    assert "film" not in tokenizer.decode(said)


@pytest.mark.parametrize("family", WITH_TOOLS)
def test_tools_are_offered(family: str) -> None:
    assert "find_film" not in render(family)
    assert "find_film" in render(family, tools=[TOOL])
