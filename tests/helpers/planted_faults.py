"""Prompts that a tiny model learned from rows of two labels, and their inspections."""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from helpers.small_tasks import FAST, TEMPLATE, WORDS
from helpers.tiny_models import tiny_base

from softprompt.analysis.inspection.inspect_prompt import InspectionLimits, inspect
from softprompt.analysis.inspection.inspection_records import Inspection
from softprompt.data.examples import Example
from softprompt.data.splits import Splits
from softprompt.data.task import Task
from softprompt.prompts.saved_prompt import Prompt
from softprompt.training.fit import fit

SETTINGS: dict[str, Any] = {**FAST, "steps": 160, "eval_every": 16, "patience": 0, "length": 8}
FAMILY = "gemma3"
OTHER = {"good": "bad", "bad": "good"}
FILLERS = ("actor", "ending", "plot", "music", "song", "scene", "story", "camera", "voice", "cast", "pace", "joke")


def rows(count: int, seed: int) -> tuple[Example, ...]:
    """Sentences that differ enough to be no near duplicates; the last three words tell the label."""
    generator = random.Random(seed)

    def one() -> Example:
        label = generator.choice(sorted(WORDS))
        words = " ".join(generator.choice(WORDS[label]) for _ in range(3))
        return Example(f"{' '.join(generator.sample(FILLERS, 4))} film is {words}", label)

    return tuple(one() for _ in range(count))


def data(train: Sequence[Example] | None = None, validation: Sequence[Example] | None = None) -> Splits:
    return Splits(tuple(train or rows(240, 1)), tuple(validation or rows(80, 2)), rows(80, 3), "made here", ())


def shuffled(examples: Sequence[Example]) -> list[Example]:
    labels = [str(example.label) for example in examples]
    random.Random(5).shuffle(labels)
    return [replace(example, label=label) for example, label in zip(examples, labels, strict=True)]


@cache
def learned(**settings: Any) -> Prompt:
    return fit(tiny_base(FAMILY), Task.classification(data(), template=TEMPLATE), **{**SETTINGS, **settings})


def inspected(prompt: Prompt, splits: Splits | None = None, **options: Any) -> Inspection:
    limits = InspectionLimits(ablation=60, texts=60)
    return inspect(tiny_base(FAMILY), prompt, splits or data(), limits=limits, **options)
