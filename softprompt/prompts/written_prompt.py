"""The written prompt: an instruction and perhaps examples in front of the template, or a system message and turns.

The words in front are the same for every input, so they too are a prefix, and a written prompt is evaluated by the same
code, at the same speed, as a learned one. Of plain texts their embeddings make a PromptState. In chats the instruction
is the system message and each example turns of its own: they stand in the task's chat format.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from softprompt.data.chats.chat_template import find_chat_template
from softprompt.data.chats.conversation import Conversation, Message
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.encoding.tokenization import safe_tokenizer
from softprompt.data.examples import Example
from softprompt.data.few_shot import choose_fitting, encode_few_shot
from softprompt.data.task import LONGEST, TaskSpec
from softprompt.errors import ConfigError, DataError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.methods.initializers import default_instruction
from softprompt.prompts.state import PromptState

_PROBE = (Message("user", "a"),)


def write_prompt(
    base: FrozenLM, spec: TaskSpec, instruction: str = "", shots: Sequence[Example] = ()
) -> tuple[TaskSpec, PromptState | None]:
    """An instruction and solved examples: the task that has them, and what stands in front of its texts.

    In chats the instruction is the system message of every conversation without one of its own, in place of one that
    was kept; there is no state then.
    """
    if spec.chat is None:
        return spec, written_prompt(base, spec, instruction, shots)
    system, turns = instruction or spec.chat.system, (*spec.chat.turns, *solved_turns(base, spec, shots))
    written = replace(spec.without_prompt, chat=replace(spec.chat, system=system, turns=turns, placement="first"))
    if not spec.chat.shared:
        # where nothing is shared each text brings the turns along, and must not be cut for it
        more = count_written(base, written) - count_written(base, spec.without_prompt)
        written = replace(written, max_length=min(LONGEST - 1, spec.max_length + max(0, more)))
    return written, None


def written_prompt(
    base: FrozenLM, spec: TaskSpec, instruction: str = "", shots: Sequence[Example] = ()
) -> PromptState | None:
    """An instruction and solved examples in front of plain text, as a prefix of ``[P, H]``; ``None`` without either."""
    if not (ids := written_ids(base, spec, instruction, shots)):
        return None
    with torch.no_grad():
        words = base.embed(torch.tensor(ids, device=base.device)).float()
    return PromptState("embeddings", (words,), words=True)


def written_ids(base: FrozenLM, spec: TaskSpec, instruction: str = "", shots: Sequence[Example] = ()) -> list[int]:
    """Token ids of an instruction and solved examples in front of plain text.

    Each example is the filled-in template with its answer; a blank line stands between the parts, and behind them.
    """
    return encode_few_shot(ExampleEncoder(base, spec, 0), instruction, shots)


def solved_turns(base: FrozenLM, spec: TaskSpec, shots: Sequence[Example]) -> tuple[Message, ...]:
    """Each example as the turns of its conversation, its answer the last; none of them is learned."""
    return tuple(turn for one in _solved_conversations(base, spec, shots) for turn in one)


def fit_shots(base: FrozenLM, spec: TaskSpec, examples: Sequence[Example], length: int, seed: int) -> list[Example]:
    """In chats: as many solved examples as are no more than ``length`` tokens as turns (see ``choose_fitting``)."""
    return choose_fitting(examples, length, seed, lambda pool: count_turns(base, spec, pool))


def count_turns(base: FrozenLM, spec: TaskSpec, shots: Sequence[Example]) -> list[int]:
    """In chats: tokens that each of some solved examples has as turns."""
    without = _count_tokens(base, spec, _PROBE)
    return [
        _count_tokens(base, spec, (*turns, *_PROBE)) - without for turns in _solved_conversations(base, spec, shots)
    ]


def count_written(base: FrozenLM, spec: TaskSpec, state: PromptState | None = None) -> int:
    """Tokens of a prompt, written or learned, that come to each text; in chats with system message and fixed turns.

    The words that a template writes where nobody gives a system message count as one.
    """
    virtual = 0 if state is None else state.length
    if spec.chat is None:
        return virtual
    empty = replace(spec, chat=replace(spec.chat, system=None, turns=(), placement="system-start"))
    return virtual + max(0, _count_tokens(base, spec, _PROBE) - _count_tokens(base, empty, _PROBE))


def choose_instruction(spec: TaskSpec, examples: Sequence[Example] = ()) -> str:
    """What a person would have written: the system message that is kept, or a plain instruction.

    Of conversations that are to be gone on with nobody knows what they are about: they have none.
    """
    going_on = spec.kind == "generation" and any(one.conversation is not None for one in examples)
    if spec.chat is not None and not spec.chat.system and going_on:
        return ""
    return default_instruction(spec)


def check_instruction(instruction: str, examples: Sequence[Example]) -> None:
    """Raise ConfigError for an instruction where conversations have a system message of their own, in its place."""
    own = {one.conversation.system for one in examples if one.conversation is not None} - {None, instruction}
    if instruction and own:
        raise ConfigError(
            "these conversations have a system message of their own, and an instruction would stand in its place: "
            "leave --instruction out, or the system messages"
        )


def choose_shots(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """``count`` examples, as many of each label as can be, in random order.

    Raises:
        DataError: there are fewer than ``count``.
    """
    check_enough(examples, count)
    shuffled = list(examples)
    generator = random.Random(seed)
    generator.shuffle(shuffled)
    rank: dict[str | None, int] = {}
    order = []
    for example in shuffled:
        rank[example.label] = rank.get(example.label, 0) + 1
        order.append(rank[example.label])
    chosen = sorted(range(len(shuffled)), key=lambda i: order[i])[:count]
    generator.shuffle(chosen)
    return [shuffled[i] for i in chosen]


def check_enough(examples: Sequence[Example], count: int) -> None:
    """Raise DataError if there are fewer than ``count``."""
    if count > len(examples):
        raise DataError(f"{count} examples wanted for the written prompt, but the training split has {len(examples)}")


def _solved_conversations(base: FrozenLM, spec: TaskSpec, shots: Sequence[Example]) -> list[list[Message]]:
    asked = ExampleEncoder(base, spec.without_prompt, 0).conversations(shots) if shots else []
    return [
        [*(replace(turn, learned=False) for turn in one.messages if turn.role != "system"), _answer(spec, shot)]
        for one, shot in zip(asked, shots, strict=True)
    ]


def _answer(spec: TaskSpec, shot: Example) -> Message:
    if spec.kind == "classification":
        return Message("assistant", spec.verbalizers[spec.label_index[str(shot.label)]], learned=False)
    answer = None if shot.conversation is None else shot.conversation.answer
    return replace(answer or Message("assistant", shot.references[0]), learned=False)


def _count_tokens(base: FrozenLM, spec: TaskSpec, messages: Sequence[Message]) -> int:
    """Of a conversation of chats that asks."""
    assert spec.chat is not None
    rendered = find_chat_template(base.tokenizer, spec.chat).render(Conversation(tuple(messages)))
    return len(safe_tokenizer(base.tokenizer).encode(rendered.text, rendered.fields))
