"""Rows that begin otherwise than those a prompt was learned with: each as if it were asked by itself."""

from typing import Any

import pytest
import torch
from helpers.chat_models import CHAT_FAMILIES, WITHOUT_SYSTEM, chat_base
from helpers.chat_server import SYSTEM, chat_prompt, chat_spec

from softprompt.data.chats.conversation import Conversation, Message
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.errors import DataError
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictor import Predictor
from softprompt.prompts.prefix import compute_keys_and_values

ROOM = GenerationConfig(max_new_tokens=5)
TOOL: Any = {
    "type": "function",
    "function": {"name": "find", "description": "", "parameters": {"type": "object", "properties": {}}},
}


def row(*turns: tuple[Any, str], tools: tuple[Any, ...] = (), place: str = "") -> Example:
    messages = tuple(Message(role, content) for role, content in turns)
    return Example("x", conversation=Conversation(messages, tools), place=place)


PLAIN = row(("user", "Hello there"))
KEPT = row(("system", SYSTEM), ("user", "Hello there"))
OWN = row(("system", "Talk at length."), ("user", "Hello there"))
OTHER = row(("system", "Sing."), ("user", "Hello there"), ("assistant", "La."), ("user", "More"))


@pytest.mark.parametrize("placement", ["system-start", "system-end", "first"])
@pytest.mark.parametrize("family", [name for name in CHAT_FAMILIES if name not in WITHOUT_SYSTEM])
def test_mixed_rows_are_answered_as_alone(family: str, placement: str) -> None:
    spec = chat_spec(family, system=SYSTEM, placement=placement)
    predictor = Predictor(chat_base(family), spec, chat_prompt(family, spec).states, ROOM)
    rows = [PLAIN, OWN, KEPT, OTHER, OWN]
    together = [one.completion for one in predictor.predict(rows)]
    assert together == [predictor.predict(one).completion for one in rows]
    assert together[0] == together[2]
    assert together[1] == together[4]
    # a prompt that was learned on conversations with that very message says the same
    same = chat_spec(family, system="Talk at length.", placement=placement)
    states = chat_prompt(family, same).states
    assert Predictor(chat_base(family), same, states, ROOM).predict(PLAIN).completion == together[1]


def test_labels_too() -> None:
    base = chat_base("qwen2_5")
    chat = chat_spec("qwen2_5", system=SYSTEM).chat
    spec = TaskSpec("classification", "{{ text }}", ("good", "bad"), ("good", "bad"), chat=chat, max_length=500)
    predictor = Predictor(base, spec, chat_prompt("qwen2_5", spec).states)
    rows = [OWN, PLAIN, OTHER, KEPT]
    together = predictor.label_log_probabilities(rows)
    alone = torch.cat([predictor.label_log_probabilities([one]) for one in rows])
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(together[0], together[1])


def test_a_system_message_is_refused_where_none_was_learned_with() -> None:
    spec = chat_spec("qwen2_5")
    predictor = Predictor(chat_base("qwen2_5"), spec, chat_prompt("qwen2_5", spec).states, ROOM)
    with pytest.raises(DataError, match=r"^row 7: it has a system message, and the prompt was learned without one"):
        predictor.predict([PLAIN, row(("system", "Sing."), ("user", "x"), place="row 7")])
    assert Predictor(chat_base("qwen2_5"), spec, None, ROOM).predict(OWN).completion


def test_any_is_taken_where_each_brought_its_own() -> None:
    spec = chat_spec("qwen2_5", shared=False)
    predictor = Predictor(chat_base("qwen2_5"), spec, chat_prompt("qwen2_5", spec).states, ROOM)
    assert len({predictor.predict(one).completion for one in (PLAIN, OWN, OTHER)}) == 3


@pytest.mark.parametrize("family", ["qwen2_5", "llama3_1", "gptoss", "mistral_v3"])
def test_tools_of_a_row(family: str) -> None:
    spec = chat_spec(family, system=SYSTEM)
    predictor = Predictor(chat_base(family), spec, chat_prompt(family, spec).states, ROOM)
    asked = row(("user", "Hello there"), tools=(TOOL,))
    with_system = row(("system", SYSTEM), ("user", "Hello there"), tools=(TOOL,))
    assert predictor.predict(asked).completion == predictor.predict(with_system).completion
    same = chat_spec(family, system=SYSTEM, tools=(TOOL,))
    learned = Predictor(chat_base(family), same, chat_prompt(family, same).states, ROOM)
    assert learned.predict(PLAIN).completion == predictor.predict(asked).completion


def test_tools_are_refused_where_the_template_has_no_place_for_them() -> None:
    spec = chat_spec("llama3")
    predictor = Predictor(chat_base("llama3"), spec, chat_prompt("llama3", spec).states, ROOM)
    with pytest.raises(DataError, match="no place for them"):
        predictor.predict(row(("user", "Hello"), tools=(TOOL,)))


def test_keys_and_values_stay_where_they_were_learned() -> None:
    base = chat_base("qwen2_5")
    for placement, taken in (("system-start", True), ("system-end", False)):
        spec = chat_spec("qwen2_5", system=SYSTEM, placement=placement)
        state = chat_prompt("qwen2_5", spec).states[0]
        layers = compute_keys_and_values(base, state.tensor, state.placement)
        predictor = Predictor(base, spec, layers, ROOM)
        assert predictor.predict(KEPT).completion
        if taken:
            words = Predictor(base, spec, state, ROOM)
            assert predictor.predict(OWN).completion == words.predict(OWN).completion
        else:
            with pytest.raises(DataError, match="keys and values were learned behind"):
                predictor.predict(OWN)
