"""The written prompt: an instruction and perhaps examples in front of the template, as text.

The words in front are the same for every input, so they too are a prefix: their embeddings make a PromptState, and a
written prompt is evaluated by the same code, at the same speed, as a learned one.
"""

import random
from collections.abc import Sequence

import torch

from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.few_shot import encode_few_shot
from softprompt.data.task import TaskSpec
from softprompt.errors import DataError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.state import PromptState


def written_prompt(
    base: FrozenLM, spec: TaskSpec, instruction: str = "", shots: Sequence[Example] = ()
) -> PromptState | None:
    """An instruction and solved examples as a prefix of ``[P, H]``; ``None`` if there is neither."""
    if not (ids := written_ids(base, spec, instruction, shots)):
        return None
    with torch.no_grad():
        words = base.embed(torch.tensor(ids, device=base.device)).float()
    return PromptState("embeddings", (words,), words=True)


def written_ids(base: FrozenLM, spec: TaskSpec, instruction: str = "", shots: Sequence[Example] = ()) -> list[int]:
    """Token ids of an instruction and solved examples.

    Each example is the filled-in template with its answer; a blank line stands between the parts, and behind them.
    """
    return encode_few_shot(ExampleEncoder(base, spec, 0), instruction, shots)


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
