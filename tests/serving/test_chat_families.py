"""Conversations with a server, of each chat family: the tokens that plain ``transformers`` generates."""

from pathlib import Path
from typing import Any

import openai
import pytest
from helpers.chat_models import CHAT_FAMILIES, WITHOUT_SYSTEM, chat_base
from helpers.chat_server import (
    BASE,
    SYSTEM,
    ChatPlace,
    chat_prompt,
    chat_spec,
    chat_store,
    generated_by_transformers,
    written_by_transformers,
)

from softprompt.data.encoding.token_bytes import token_bytes

ROOM = 6
TURNS: list[Any] = [
    {"role": "user", "content": "My name is Ada."},
    {"role": "assistant", "content": "Hello, Ada."},
    {"role": "user", "content": "Two and two?"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "What is my name?"},
]
OWN: Any = {"role": "system", "content": "Answer at length, please."}
KEPT: Any = {"role": "system", "content": SYSTEM}


def said(client: openai.OpenAI, model: str, messages: list[Any]) -> list[bytes]:
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=ROOM, logprobs=True)
    told = answer.choices[0].logprobs
    return [] if told is None else [bytes(one.bytes or []) for one in told.content or []]


def expected(family: str, messages: list[Any], prompt: Any = None) -> list[bytes]:
    base = chat_base(family)
    ids = written_by_transformers(family, messages)
    if family == "deepseekv3" and prompt is not None:
        # learned answers have no thoughts: they are not asked for
        ids = ids[: -len(base.tokenizer.encode("<think>\n", add_special_tokens=False))]
    found = generated_by_transformers(base, ids, prompt, ROOM)
    ends = {base.tokenizer.eos_token_id, *base.model.generation_config.eos_token_id}
    spelling = token_bytes(base.tokenizer)
    return [spelling.spell(one) for one in found if one not in ends]


@pytest.mark.parametrize("family", CHAT_FAMILIES)
def test_conversations_have_the_tokens_of_transformers(family: str, tmp_path: Path) -> None:
    takes_system = family not in WITHOUT_SYSTEM
    spec = chat_spec(
        family, system=SYSTEM if takes_system else None, placement="first" if not takes_system else "system-start"
    )
    prompt = chat_prompt(family, spec)
    place = ChatPlace.of_family(family, chat_store(family, tmp_path, talk=spec))
    with (
        place.running() as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        assert said(client, BASE, TURNS) == expected(family, TURNS)
        kept = [KEPT, *TURNS] if takes_system else TURNS
        assert said(client, "talk", TURNS) == expected(family, kept, prompt)
        if takes_system:
            assert said(client, BASE, [OWN, *TURNS]) == expected(family, [OWN, *TURNS])
            assert said(client, "talk", [OWN, *TURNS]) == expected(family, [OWN, *TURNS], prompt)
            assert said(client, "talk", [KEPT, *TURNS]) == expected(family, kept, prompt)
            assert len(said(client, BASE, TURNS)) == ROOM
