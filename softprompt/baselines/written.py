"""The written prompt: an instruction and perhaps examples in front of the template, as text.

The words in front are the same for every input, so they too are a prefix: their embeddings make a PromptState, and a
written prompt is evaluated by the same code, at the same speed, as a learned one.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch

from softprompt.base import FrozenLM
from softprompt.batch import Encoder
from softprompt.data import Example
from softprompt.errors import DataError
from softprompt.prefix import PromptState
from softprompt.shots import GAP, solved
from softprompt.task import TaskSpec
from softprompt.verbalizer import plain_ids


def written_prompt(
    base: FrozenLM, spec: TaskSpec, instruction: str = "", shots: Sequence[Example] = ()
) -> PromptState | None:
    """An instruction and solved examples as a prefix of ``[P, H]``; ``None`` if there is neither."""
    return words_in_front(base, written_ids(base, spec, instruction, shots))


def words_in_front(base: FrozenLM, ids: Sequence[int]) -> PromptState | None:
    """Token ids as a prefix of ``[P, H]``; ``None`` if there are none."""
    if not ids:
        return None
    with torch.no_grad():
        return PromptState.of_embeddings(base.embed(torch.tensor(ids, device=base.device)).float())


def written_ids(base: FrozenLM, spec: TaskSpec, instruction: str = "", shots: Sequence[Example] = ()) -> list[int]:
    """Token ids of an instruction and solved examples.

    Each example is the filled-in template with its answer; a blank line stands between the parts, and behind them.
    """
    ids = instruction_ids(base.tokenizer, instruction)
    for shot in solved(Encoder(base, spec, 0), shots):
        ids += shot
    return ids


def instruction_ids(tokenizer: Any, instruction: str) -> list[int]:
    """Token ids of an instruction and the blank line behind it; none for none."""
    return [*plain_ids(tokenizer, instruction), *plain_ids(tokenizer, GAP)] if instruction else []


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
