"""Solved examples as tokens, as a few-shot prompt has them: of a written prompt, and of the start of a learned one."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from softprompt.data.encoding.encoder import EncodedSequence, ExampleEncoder
from softprompt.data.encoding.tokenization import FilledText, Span, safe_tokenizer
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec

GAP = "\n\n"  # between instruction, examples and text
BEHIND_WORDS = f"a{GAP}"  # how written words end, for a tokenizer: texts behind them go on from it
POOL = 64  # examples of each label among which those are looked for that fit


def encode_few_shot(encoder: ExampleEncoder, instruction: str, shots: Sequence[Example]) -> list[int]:
    """Token ids of an instruction and solved examples, each with the gap behind it, in front of another text."""
    said: list[FilledText] = [(instruction, [(0, len(instruction))])] if instruction else []
    return _encode_parts(encoder, [*said, *_fill_solved(encoder, shots)], "")


def encode_solved(encoder: ExampleEncoder, shots: Sequence[Example], *, first: bool = False) -> list[list[int]]:
    """Token ids of each example with its answer and the gap behind it: words stand before it, or it is the first."""
    return [_encode_parts(encoder, [one], "" if first else BEHIND_WORDS) for one in _fill_solved(encoder, shots)]


def _fill_solved(encoder: ExampleEncoder, shots: Sequence[Example]) -> list[FilledText]:
    spec = encoder.spec
    found: list[FilledText] = []
    for shot, (text, fields) in zip(shots, encoder.texts(shots), strict=True):
        whole = text + spec.answer_separator + _answer(spec, shot)
        found.append((whole, [*fields, (len(text), len(whole))]))
    return found


def _encode_parts(encoder: ExampleEncoder, parts: Sequence[FilledText], before: str) -> list[int]:
    """Of all parts as one text, which the template's first words go on from: gaps are read by what follows them."""
    if not parts:
        return []
    tokens, text, fields = safe_tokenizer(encoder.base.tokenizer), "", list[Span]()
    for part, given in parts:
        fields += [(start + len(text), end + len(text)) for start, end in given if end > start]
        text += part + GAP
    following = encoder.spec.template.partition("{")[0] or "a"
    (whole,) = tokens.encode_after(before, [(text + following, fields)])
    (rest,) = tokens.encode_after(BEHIND_WORDS, [(following, ())])
    if whole[len(whole) - len(rest) :] == rest:
        return whole[: len(whole) - len(rest)]
    (alone,) = tokens.encode_after(before, [(text, fields)])
    return alone


def prepend_tokens(items: Sequence[EncodedSequence], fronts: Sequence[Sequence[int]]) -> list[EncodedSequence]:
    """``items``, the text of each behind the tokens that ``fronts`` has for its example."""
    # what an encoder-decoder model is asked is counted in the answer
    shifts = [0 if items[0].decoder_ids else len(front) for front in fronts]
    return [
        replace(
            item,
            ids=(*fronts[item.example], *item.ids),
            positions=tuple(position + shifts[item.example] for position in item.positions),
            parents=tuple(parent + shifts[item.example] for parent in item.parents),
        )
        for item in items
    ]


def encode_solved_within(encoder: ExampleEncoder, examples: Sequence[Example], length: int, seed: int) -> list[int]:
    """Token ids of the examples of ``fit_solved``, one behind the other."""
    return [token for ids in fit_solved(encoder, examples, length, seed) for token in ids]


def fit_solved(encoder: ExampleEncoder, examples: Sequence[Example], length: int, seed: int) -> list[list[int]]:
    """Token ids of as many solved examples as fit into ``length`` (see ``choose_fitting``)."""
    known: dict[int, list[int]] = {}

    def measure(pool: Sequence[Example]) -> list[int]:
        encoded = encode_solved(encoder, pool)
        known.update(zip(map(id, pool), encoded, strict=True))
        return list(map(len, encoded))

    return [known[id(one)] for one in choose_fitting(examples, length, seed, measure)]


def choose_fitting(
    examples: Sequence[Example], length: int, seed: int, measure: Callable[[Sequence[Example]], list[int]]
) -> list[Example]:
    """As many solved examples as fit into ``length`` tokens, of each label in turn, drawn by ``seed``.

    None at all where no example of some label fits into its share of ``length``: examples of some labels only would
    speak against the others.

    Args:
        measure: tokens of each of some examples.
    """
    generator = random.Random(seed)
    shuffled = list(examples)
    generator.shuffle(shuffled)
    pools: dict[str | None, list[Example]] = {}
    for example in shuffled:
        pool = pools.setdefault(example.label, [])
        if len(pool) < POOL:
            pool.append(example)
    ready = {
        label: list(zip(measure(pool), pool, strict=True))
        for label, pool in sorted(pools.items(), key=lambda one: str(one[0]))
    }
    labels = list(ready)
    generator.shuffle(labels)
    chosen: list[Example] = []
    turn, left = 0, length
    while labels:
        label = labels[turn % len(labels)]
        room = length // len(labels) if turn < len(labels) else left
        place = next((at for at, (tokens, _) in enumerate(ready[label]) if tokens <= room), None)
        if place is None:
            return chosen if turn >= len(labels) else []
        tokens, example = ready[label].pop(place)
        chosen.append(example)
        turn, left = turn + 1, left - tokens
    return chosen


def _answer(spec: TaskSpec, example: Example) -> str:
    if spec.kind == "generation":
        return example.references[0]
    return spec.verbalizers[spec.label_index[str(example.label)]]
