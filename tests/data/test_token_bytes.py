"""What single tokens spell, joined, is the text, whatever the tokenizer's style."""

import pytest
from helpers.tiny_models import FAMILIES, tiny_tokenizer
from helpers.tokenizer_styles import STYLES, style

from softprompt.data.encoding.token_bytes import token_bytes

TEXT = "a good film, and a great story: 7 €!"


@pytest.mark.parametrize("name", [one for one in STYLES if one not in ("bert", "t5")])
def test_joined_they_are_the_text(name: str) -> None:
    tokenizer = style(name)
    spelling = token_bytes(tokenizer)
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    joined = b"".join(map(spelling.spell, ids)).decode()
    # some put a blank in front
    assert joined.removeprefix(" ") == TEXT
    assert spelling.write(ids) == joined


@pytest.mark.parametrize("family", FAMILIES[:2])
def test_bytes_of_a_sign(family: str) -> None:
    tokenizer = tiny_tokenizer(family)
    spelled = [token_bytes(tokenizer).spell(one) for one in tokenizer("é€", add_special_tokens=False).input_ids]
    assert len(spelled) > 2
    assert b"".join(spelled) == "é€".encode()


def test_marks_have_names_and_are_no_text() -> None:
    tokenizer = style("qwen")
    spelling = token_bytes(tokenizer)
    end = tokenizer.eos_token_id
    assert spelling.spell(end) == tokenizer.eos_token.encode()
    assert end in spelling.marks
    assert spelling.write([end, *tokenizer("a", add_special_tokens=False).input_ids]) == "a"
    assert spelling.spell(len(tokenizer) + 5) == b""


def test_the_same_for_one_tokenizer() -> None:
    tokenizer = style("gemma")
    assert token_bytes(tokenizer) is token_bytes(tokenizer)
