"""Small tasks that a tiny model can learn in seconds, a callback that remembers, and the command line in-process."""

import contextlib
import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from softprompt.cli.main import main
from softprompt.data.examples import Example
from softprompt.data.splits import Splits
from softprompt.data.task import Task
from softprompt.training.callbacks.callback import Callback

WORDS = {"good": ("great", "fine"), "bad": ("dull", "poor")}
TEMPLATE = "{{ text }}:"


def reviews(train: int = 60, validation: int = 24, test: int = 24, seed: int = 0) -> Splits:
    """Sentences whose words tell the label."""
    generator = random.Random(seed)

    def one() -> Example:
        label = generator.choice(sorted(WORDS))
        words = " ".join(generator.choice(WORDS[label]) for _ in range(2))
        return Example(f"the film is {words} {generator.randrange(100)}", label)

    return _splits(one, train, validation, test)


def noise(train: int = 60, validation: int = 24, seed: int = 0) -> Splits:
    """The same sentence everywhere, with a label that nothing tells."""
    generator = random.Random(seed)
    return _splits(lambda: Example("the film is a film", generator.choice(sorted(WORDS))), train, validation, 0)


def answers(train: int = 40, validation: int = 12, test: int = 8, seed: int = 0) -> Splits:
    """Generation: what is said of a film, in one word."""
    generator = random.Random(seed)

    def one() -> Example:
        label = generator.choice(sorted(WORDS))
        return Example(f"{generator.choice(WORDS[label])} film {generator.randrange(10)}", references=(label,))

    return _splits(one, train, validation, test)


def _splits(one: Callable[[], Example], *sizes: int) -> Splits:
    train, validation, test = (tuple(one() for _ in range(size)) for size in sizes)
    return Splits(train, validation, test, "made here", ())


def reviews_task(**sizes: int) -> Task:
    return Task.classification(reviews(**sizes), template=TEMPLATE)


def write_data(folder: Path, splits: Splits) -> Path:
    """One JSONL file a split that is not empty."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "validation", "test"):
        rows = [
            {"text": one.text} | ({"label": one.label} if one.label else {"references": list(one.references)})
            for one in getattr(splits, name)
        ]
        if rows:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class Recorder(Callback):
    """A callback that keeps what it is told."""

    def __init__(self) -> None:
        self.first_step = -1
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.evaluations: list[tuple[int, str, float, float, bool]] = []
        self.notes: list[str] = []
        self.ended = 0

    def on_train_begin(self, first_step: int, steps: int, learned: int, frozen: int) -> None:
        self.first_step, self.learned, self.frozen = first_step, learned, frozen

    def on_step_end(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        self.losses.append(loss)
        self.rates.append(learning_rate)

    def on_evaluate(self, step: int, metric: str, value: float, loss: float, best: bool) -> None:
        self.evaluations.append((step, metric, value, loss, best))

    def on_message(self, text: str) -> None:
        self.notes.append(text)

    def on_train_end(self) -> None:
        self.ended += 1


FAST: dict[str, Any] = {
    "length": 4,
    "steps": 12,
    "batch_size": 8,
    "eval_every": 6,
    "init": "labels",
    "learning_rate": 0.3,
}
"""Settings of a run that takes a fraction of a second."""


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what was wrong; nothing on standard output, and no traceback."""
        assert self.out == ""
        assert "Traceback" not in self.err
        (line,) = [line for line in self.err.splitlines() if line.startswith("error:")]
        assert self.err.splitlines()[-1] == line
        return line.removeprefix("error: ")


def command(*arguments: object, stdin: bytes = b"") -> Ended:
    """``softprompt ARGUMENTS`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        patch.object(sys, "argv", ["softprompt", *map(str, arguments)]),
        patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin))),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return Ended(code, out.getvalue(), err.getvalue())
