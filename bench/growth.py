"""How a training step's time grows: with the batch, the texts, the prompt and the number of labels, one at a time.

All points are measured in turn, round after round, so that whatever else the machine does meets all of them alike.
``exponent`` is the slope of log seconds over log size (1: proportional, 0: no matter), ``per unit`` that of a line.
"""

import argparse
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from command import finished, say
from floor import Steps
from train_vs_peft import machine

from softprompt.data.examples import Example
from softprompt.data.splits import Splits
from softprompt.data.task import Task
from softprompt.models.builtin_models import MODEL_NAME
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.kernels.compilation import compiled
from softprompt.models.loading import load_model

SIZES: Mapping[str, tuple[int, ...]] = {
    "batch": (4, 8, 16, 32, 64),
    "text": (16, 32, 64, 128, 256),
    "prompt": (5, 10, 20, 50, 100, 200),
    "labels": (2, 8, 32, 77),
}
UNITS = {"batch": "examples", "text": "tokens of a text", "prompt": "virtual tokens", "labels": "labels"}
WORDS = ("the", "film", "is", "a", "long", "way", "from", "what", "its", "makers", "had", "in", "mind", "but", "good")


@dataclass(frozen=True)
class Point:
    """A step's sizes."""

    batch: int = 16
    text: int = 32
    prompt: int = 20
    labels: int = 2


def planted_labels(count: int) -> list[str]:
    """Names of ``count`` labels, all different, of one or a few tokens."""
    parts = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
    names = [first + second for first in parts for second in parts]
    return names[:: len(names) // count][:count]


def planted_task(point: Point) -> Task:
    """Texts longer than they may be, so that all are cut to the same length, with labels that mean nothing."""
    draw, names = random.Random(0), planted_labels(point.labels)
    examples = [
        Example(" ".join(draw.choices(WORDS, k=2 * point.text)), names[index % len(names)])
        for index in range(max(point.batch, len(names)))
    ]
    splits = Splits(tuple(examples), tuple(examples[:1]), (), "planted", ())
    return Task.classification(splits, labels=names, max_length=point.text)


class Timed:
    """One point's step, and the seconds that it has taken."""

    def __init__(self, base: FrozenLM, point: Point) -> None:
        self._steps = Steps(base, planted_task(point), point.prompt, point.batch)
        self.seconds: list[float] = []
        self.step()
        self.seconds.clear()

    def step(self) -> None:
        self.seconds.append(self._steps.step(self._steps.batches[0]))


def points_of(sizes: Mapping[str, Sequence[int]], at: Point) -> dict[str, list[Point]]:
    """The points of each series, the other sizes being those of ``at``."""
    return {name: [replace(at, **{name: size}) for size in values] for name, values in sizes.items()}


def fitted(sizes: Sequence[int], seconds: Sequence[float]) -> dict[str, float]:
    """How seconds grow with sizes."""
    exponent = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
    per_unit, start = np.polyfit(sizes, seconds, 1)
    return {
        "exponent": float(exponent),
        "seconds_per_unit": float(per_unit),
        "seconds_at_zero": float(start),
        "last_over_first": seconds[-1] / seconds[0],
    }


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    described = machine()
    base = load_model(options.model)
    sizes = {name: getattr(options, name) for name in SIZES}
    series = points_of(sizes, Point(text=options.at_text))
    with compiled(base, options.compile, say):
        timed = {point: Timed(base, point) for points in series.values() for point in points}
        for turn in range(options.rounds):
            for one in timed.values():
                one.step()
            say(f"round {turn + 1} of {options.rounds}")
    found = {}
    for name, points in series.items():
        medians = [statistics.median(timed[point].seconds) for point in points]
        found[name] = {
            "unit": UNITS[name],
            "sizes": list(sizes[name]),
            "median_seconds_per_step": medians,
            "step_seconds": [timed[point].seconds for point in points],
            **fitted(sizes[name], medians),
        }
    at = vars(Point(text=options.at_text))
    return {
        "benchmark": "growth",
        "machine": described,
        "configuration": {
            "model": options.model,
            "others_at": dict(at),
            "rounds": options.rounds,
            "threads": torch.get_num_threads(),
            "dtype": str(base.dtype).removeprefix("torch."),
            "compiled": options.compile,
        },
        "series": found,
        "aims": [],
    }


def text_report(report: dict[str, Any]) -> str:
    at = ", ".join(f"{name} {size}" for name, size in report["configuration"]["others_at"].items())
    lines = [f"seconds a step, the other sizes being {at}"]
    for one in report["series"].values():
        lines.append("")
        lines.append(f"{one['unit']:<17}" + "".join(f"{size:>9}" for size in one["sizes"]))
        lines.append(f"{'seconds':<17}" + "".join(f"{seconds:9.3f}" for seconds in one["median_seconds_per_step"]))
        lines.append(
            f"exponent {one['exponent']:.2f}, {1000 * one['seconds_per_unit']:.2f} ms per unit, "
            f"last over first {one['last_over_first']:.2f}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a mistake in what the user gave."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made.add_argument("--rounds", type=int, default=5, help="turns over all points (default: %(default)s)")
    made.add_argument("--at-text", type=int, default=32, help="tokens of a text elsewhere (default: %(default)s)")
    for name, sizes in SIZES.items():
        told = " ".join(map(str, sizes))
        made.add_argument(
            f"--{name}", type=int, nargs="+", default=list(sizes), help=f"{UNITS[name]} (default: {told})"
        )
    made.add_argument("--no-compile", dest="compile", action="store_false", help="let nothing be compiled")
    made.add_argument("--model", default=MODEL_NAME, help="or the folder of another model (default: %(default)s)")
    return finished(made.parse_args(arguments), benchmark, text_report)


if __name__ == "__main__":
    sys.exit(main())
