"""The demo: a written prompt against a learned one, on the embedded model and data, in minutes on a laptop."""

import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompt.config import TrainConfig
from softprompt.data.chats.chat_resolution import resolve_chat
from softprompt.data.task import Task, TaskSpec
from softprompt.inference.evaluation import Evaluation, evaluate
from softprompt.inference.reading_progress import report_progress
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.prompts.written_prompt import choose_shots, write_prompt
from softprompt.training.callbacks.callback import Callback
from softprompt.training.fit import fit
from softprompt.utils.files import check_free

TEMPLATE = "Review: {{ text }}\nSentiment:"
INSTRUCTION = "Decide whether each movie review is negative or positive."
SHOTS = 8
STEPS = 150
EVAL_EVERY = 50
EXAMPLE = "a quiet film that stays with you for days"  # of nobody's data
CORRECTED = 5  # sentences shown


@dataclass(frozen=True)
class DemoResult:
    """What the demo found, on the test split.

    Attributes:
        results: what was tried, and its evaluation, in the order of the story.
        prompt: the learned prompt.
        folder: where it was saved.
        corrected: text and right label of sentences that the zero-shot prompt got wrong and the learned one right.
        fixed, broken: how many there are of those, and of the opposite.
    """

    results: dict[str, Evaluation]
    prompt: Prompt
    folder: Path
    corrected: list[tuple[str, str]]
    fixed: int
    broken: int

    @property
    def next_commands(self) -> list[str]:
        """Three commands to try on the saved prompt, as they can be typed where this one was."""
        found = shutil.which("softprompt")
        # another environment's may come first in the user's shell
        same = found is not None and Path(found).parent == Path(sys.executable).parent
        typed = [sys.executable, "-m", "softprompt"] if Path(sys.argv[0]).name == "__main__.py" else sys.argv[:1]
        program = "softprompt" if same else shlex.join(typed)
        return [
            f'{program} predict {shlex.quote(str(self.folder))} "{EXAMPLE}"',
            f"{program} show {shlex.quote(str(self.folder))}",
            f"{program} train --model {self.prompt.base_name} --data YOUR_DATA.csv --out prompts/yours",
        ]

    def to_dict(self) -> dict[str, Any]:
        """All of it, for ``--json``."""
        return {
            "results": {name: evaluation.to_dict() for name, evaluation in self.results.items()},
            "learned_parameters": self.prompt.training["learned_parameters"],
            "base_parameters": self.prompt.training["base_parameters"],
            "prompt": str(self.folder),
            "fixed": self.fixed,
            "broken": self.broken,
            "corrected": [{"text": text, "label": label} for text, label in self.corrected],
            "next_commands": self.next_commands,
        }


def run_demo(
    base: FrozenLM, task: Task, folder: Path, callback: Callback, say: Callable[[str], None], steps: int = STEPS
) -> DemoResult:
    """Evaluate the written prompt, learn one, evaluate it; the prompt is saved in ``folder``.

    Args:
        task: with examples in all three splits.
        say: receives a line before each part.
    """
    check_free(folder)

    task = resolve_chat(base, task)

    def read(name: str, spec: TaskSpec, prompt: Prompt | PromptState | None) -> Evaluation:
        say(f"{name}: reading {len(task.test):,} test sentences")
        with report_progress(callback.on_read):
            evaluation = evaluate(base, task.test, prompt, spec=spec)
        say(f"{name}: {evaluation.metric}")
        return evaluation

    results: dict[str, Evaluation] = {}
    for name, count in (("written prompt, zero-shot", 0), (f"written prompt, {SHOTS} examples", SHOTS)):
        results[name] = read(name, *write_prompt(base, task.spec, INSTRUCTION, choose_shots(task.train, count, seed=0)))
    say(f"learned prompt: {steps} steps on {len(task.train):,} training sentences")
    config = TrainConfig(steps=steps, eval_every=EVAL_EVERY)
    prompt = fit(
        base,
        task,
        out=folder,
        config=config,
        callback=callback,
        restart=True,
        evaluate_test=False,
        baseline=False,
        example=EXAMPLE,
    )
    results["learned prompt"] = read("learned prompt", task.spec, prompt)

    written, learned = results["written prompt, zero-shot"], results["learned prompt"]
    right = [
        (before.label == gold, after.label == gold)
        for before, after, gold in zip(written.predictions, learned.predictions, learned.gold, strict=True)
    ]
    fixed = [i for i, (before, after) in enumerate(right) if after and not before]
    return DemoResult(
        results,
        prompt,
        folder,
        [(task.test[i].text, str(task.test[i].label)) for i in fixed[:CORRECTED]],
        len(fixed),
        sum(before and not after for before, after in right),
    )


def free_folder(parent: Path, name: str) -> Path:
    """``parent/name``, or with the first number behind it that is not taken."""
    candidate, number = parent / name, 2
    while candidate.exists():
        candidate, number = parent / f"{name}-{number}", number + 1
    return candidate
