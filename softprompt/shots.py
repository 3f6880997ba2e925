"""Solved examples as tokens, as a few-shot prompt has them: of a written prompt, and of the start of a learned one."""

import random
from collections.abc import Sequence
from dataclasses import replace

from softprompt.batch import Encoder, Item
from softprompt.data import Example
from softprompt.task import TaskSpec
from softprompt.verbalizer import answer_ids, plain_ids

GAP = "\n\n"  # between instruction, examples and text
POOL = 64  # examples of each label among which those are looked for that fit


def solved(encoder: Encoder, shots: Sequence[Example]) -> list[list[int]]:
    """Token ids of each example with its answer, and the gap behind it."""
    spec, tokenizer = encoder.spec, encoder.base.tokenizer
    gap = plain_ids(tokenizer, GAP)
    return [
        [*text, *answer_ids(tokenizer, spec, _answer(spec, shot)), *gap]
        for shot, text in zip(shots, encoder.text_ids(shots), strict=True)
    ]


def behind(items: Sequence[Item], fronts: Sequence[Sequence[int]]) -> list[Item]:
    """``items``, the text of each behind the tokens that ``fronts`` has for its example."""
    # what an encoder-decoder model is asked is counted in the answer
    shifts = [0 if items[0].decoder_ids else len(front) for front in fronts]
    return [
        replace(
            item,
            ids=(*fronts[item.example], *item.ids),
            positions=tuple(position + shifts[item.example] for position in item.positions),
        )
        for item in items
    ]


def solved_within(encoder: Encoder, examples: Sequence[Example], length: int, seed: int) -> list[int]:
    """Token ids of as many solved examples as fit into ``length``, of each label in turn, drawn by ``seed``.

    None at all where no example of some label fits into its share of ``length``: examples of some labels only would
    speak against the others.
    """
    generator = random.Random(seed)
    shuffled = list(examples)
    generator.shuffle(shuffled)
    pools: dict[str | None, list[Example]] = {}
    for example in shuffled:
        pool = pools.setdefault(example.label, [])
        if len(pool) < POOL:
            pool.append(example)
    ready = {label: solved(encoder, pool) for label, pool in sorted(pools.items(), key=lambda one: str(one[0]))}
    labels = list(ready)
    generator.shuffle(labels)
    chosen: list[int] = []
    turn = 0
    while labels:
        label = labels[turn % len(labels)]
        room = length // len(labels) if turn < len(labels) else length - len(chosen)
        fitting = next((ids for ids in ready[label] if len(ids) <= room), None)
        if fitting is None:
            return chosen if turn >= len(labels) else []
        ready[label].remove(fitting)
        chosen += fitting
        turn += 1
    return chosen


def _answer(spec: TaskSpec, example: Example) -> str:
    if spec.kind == "generation":
        return example.references[0]
    return spec.verbalizers[spec.label_index[str(example.label)]]
