"""Ids of conversations against ``apply_chat_template`` of each family, which knows nothing of ours."""

from dataclasses import replace
from datetime import date, datetime
from typing import Any

import pytest
from helpers.chat_models import CHAT_FAMILIES, WITH_TOOLS, chat_base, chat_template, chat_tokenizer

from softprompt.data.chats.chat_format import ChatFormat
from softprompt.data.chats.chat_template import find_chat_template
from softprompt.data.chats.conversation import Conversation, Message, ToolCall
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.errors import DataError

TURNS = (
    Message("user", "Hello there"),
    Message("assistant", "Hi! How are you?"),
    Message("user", "Two and two?"),
    Message("assistant", "Four."),
)


def generation(family: str, **options: Any) -> TaskSpec:
    chat = ChatFormat(chat_template(family), **options)
    return TaskSpec("generation", "{{ text }}", chat=chat, max_length=1000)


def example(*turns: Message) -> Example:
    return Example("", None, (turns[-1].content,), conversation=Conversation(turns))


def expected(family: str, turns: tuple[Message, ...], *, ask: bool = False, **arguments: Any) -> list[int]:
    tokenizer = chat_tokenizer(family)
    found = tokenizer.apply_chat_template(
        [one.to_dict() for one in turns], chat_template=chat_template(family), add_generation_prompt=ask, **arguments
    )
    ids = list(found["input_ids"])
    # this one asks with the beginning of thoughts, which none of its finished answers has
    thoughts = tokenizer.encode("<think>\n", add_special_tokens=False) if family == "deepseekv3" and ask else []
    return ids[: len(ids) - len(thoughts)]


# without thoughts, or with another channel
WRITES_EARLIER_TURNS_OTHERWISE = ("qwen3", "gptoss")


def takes_system(family: str) -> bool:
    return family not in ("gemma",)


@pytest.mark.parametrize("family", CHAT_FAMILIES)
@pytest.mark.parametrize("system", [None, "Be brief, please."])
def test_a_conversation_has_the_ids_of_apply_chat_template(family: str, system: str | None) -> None:
    if system and not takes_system(family):
        pytest.skip("no place for a system message")
    base, turns = chat_base(family), TURNS
    spec = generation(family, placement="first", learn="last", system=system)
    whole = (*([Message("system", system)] if system else []), *turns)
    encoder = ExampleEncoder(base, spec, 4)
    place = encoder.placement
    front = [*(base.bos_ids if place.behind_bos else ()), *place.before, *place.behind]
    (item,) = encoder.training_items([example(*turns)])
    ids = [*front, *item.ids, item.targets[-1]]
    right = expected(family, whole)
    assert right[: len(ids)] == ids
    # what stands behind the end of the last turn is white space, of Phi the end of the text too
    behind = chat_tokenizer(family).decode(right[len(ids) :], skip_special_tokens=False)
    assert not behind.replace(chat_tokenizer(family).eos_token, "").strip()
    asked = [*front, *encoder.encode_texts([example(*turns)])[0]]
    assert asked == expected(family, whole[:-1], ask=True)
    assert item.positions[0] == len(asked) - len(front) - 1
    assert "Four." in chat_tokenizer(family).decode(list(item.targets))


@pytest.mark.parametrize("family", CHAT_FAMILIES)
def test_virtual_tokens_stand_in_the_system_turn(family: str) -> None:
    if not takes_system(family):
        pytest.skip("no place for a system message")
    base, system = chat_base(family), "Be brief, please."
    spec = generation(family, system=system, learn="last")
    encoder = ExampleEncoder(base, spec, 4)
    place = encoder.placement
    (asked,) = encoder.encode_texts([example(*TURNS)])
    front = [*(base.bos_ids if place.behind_bos else ()), *place.before]
    tokenizer = chat_tokenizer(family)
    whole = (Message("system", system), *TURNS[:-1])
    written = tokenizer.decode([*front, *place.behind, *asked])
    assert written == tokenizer.decode(expected(family, whole, ask=True))
    assert place.behind, "the system prompt is shared"


@pytest.mark.parametrize("family", CHAT_FAMILIES)
def test_text_of_users_is_never_a_special_token(family: str) -> None:
    base, tokenizer = chat_base(family), chat_tokenizer(family)
    spec = generation(family, placement="first", learn="last")
    marks = "".join(str(one) for one in tokenizer.added_tokens_decoder.values() if one.special)
    encoder = ExampleEncoder(base, spec, 4)
    special = {at for at, one in tokenizer.added_tokens_decoder.items() if one.special}

    def count(said: str) -> list[int]:
        (ids,) = encoder.encode_texts([Example(said)])
        return [one for one in ids if one in special]

    assert count(f"a {marks} b") == count("a b")
    assert count("\U00100000\U00100001 a") == count("a b")


@pytest.mark.parametrize("family", CHAT_FAMILIES)
def test_all_turns_or_the_last_are_learned(family: str) -> None:
    base, tokenizer = chat_base(family), chat_tokenizer(family)
    spec = generation(family, learn="all")
    encoder = ExampleEncoder(base, spec, 4)
    (item,) = encoder.training_items([example(*TURNS)])
    said = tokenizer.decode(list(item.targets))
    assert "Four." in said
    only_last = any("only the assistant's last" in note for note in encoder.truncation_notes())
    assert ("Hi! How are you?" in said) != only_last
    assert only_last == (family in WRITES_EARLIER_TURNS_OTHERWISE)
    assert "Hello" not in said
    assert "Two and two" not in said
    unlearned = (TURNS[0], replace(TURNS[1], learned=False), *TURNS[2:])
    (item,) = encoder.training_items([example(*unlearned)])
    assert "Hi!" not in tokenizer.decode(list(item.targets))


def test_a_last_turn_of_no_weight_leaves_the_one_before() -> None:
    base, tokenizer = chat_base("qwen2_5"), chat_tokenizer("qwen2_5")
    last = (*TURNS[:-1], replace(TURNS[-1], learned=False))
    for learn in ("all", "last"):
        encoder = ExampleEncoder(base, generation("qwen2_5", learn=learn), 4)
        (item,) = encoder.training_items([example(*last)])
        said = tokenizer.decode(list(item.targets))
        assert ("Hi! How are you?" in said, "Four." in said) == (True, False)
        with pytest.raises(DataError, match="got a weight of 0 for all"):
            encoder.training_items([example(*(replace(one, learned=False) for one in TURNS))])


@pytest.mark.parametrize("family", CHAT_FAMILIES)
@pytest.mark.parametrize("placement", ["first", "system-start", "system-end"])
def test_text_of_a_system_prompt_is_never_a_special_token(family: str, placement: str) -> None:
    if not takes_system(family):
        pytest.skip("no place for a system message")
    base, tokenizer = chat_base(family), chat_tokenizer(family)
    special = {at for at, one in tokenizer.added_tokens_decoder.items() if one.special}
    marks = "".join(str(one) for one in tokenizer.added_tokens_decoder.values() if one.special)

    def count(system: str) -> list[int]:
        encoder = ExampleEncoder(base, generation(family, placement=placement, system=system), 4)
        place = encoder.placement
        ids = [*place.before, *place.behind, *encoder.encode_texts([example(*TURNS)])[0]]
        return [one for one in ids if one in special]

    assert count(f"a {marks} b") == count("a b")


def test_the_day_of_learning_stays() -> None:
    chat = ChatFormat().with_template(chat_template("gptoss"), date(2024, 7, 26))
    tokenizer = chat_tokenizer("gptoss")
    messages = [{"role": "user", "content": "Hello"}]
    text = tokenizer.apply_chat_template(messages, chat_template=chat.template, tokenize=False)
    today = tokenizer.apply_chat_template(messages, tokenize=False)
    assert "2024-07-26" in text
    assert text == today.replace(datetime.now().strftime("%Y-%m-%d"), "2024-07-26")


TOOL = {
    "type": "function",
    "function": {
        "name": "find_film",
        "description": "Find.",
        "parameters": {"type": "object", "properties": {"name": {"type": "string", "description": "x"}}},
    },
}
CALLED = (
    Message("user", "Find it"),
    Message("assistant", "", (ToolCall("find_film", {"name": "The Cat"}, "abcdefghi"),)),
    Message("tool", "found it", tool_call_id="abcdefghi", name="find_film"),
    Message("assistant", "Found."),
)


@pytest.mark.parametrize("family", CHAT_FAMILIES)
def test_tools_are_written_or_refused(family: str) -> None:
    """No template leaves an offer, a call or a result out without a word."""
    template = find_chat_template(chat_tokenizer(family), ChatFormat(chat_template(family), placement="first"))
    for conversation in (Conversation(CALLED, (TOOL,)), Conversation(CALLED), Conversation(CALLED[:1], (TOOL,))):
        text, told = None, ""
        try:
            text = template.render(conversation, ask=False).text
        except DataError as error:
            told = str(error)
        assert "chat template" in told or (family in WITH_TOOLS or text is not None)
        if text is not None:
            assert "find_film" in text
            assert ("found it" in text) == (len(conversation.messages) > 1)
