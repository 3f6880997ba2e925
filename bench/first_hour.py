"""How long the first hour's commands take: the demo's figures, `predict` and `show`, alone and beside busy processes.

The demo runs as a user types it, with a cache of its own if the model is to be converted too; each line that it prints
is timed, and what its progress said was left is compared with what was left.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aims import aim_lines, judged
from command import finished, say
from shared_machine import busy_processes
from startup import seconds_of
from train_vs_peft import machine

from softprompt.errors import SoftpromptError

FIRST_FIGURE, LEARNED_FIGURE, START = 60.0, 300.0, 4.0  # seconds, at most, alone
SLOWER_BESIDE = 2.5  # times that, at most
ACCURACY = 0.85  # of the learned prompt on 1,000 sentences, at least
ESTIMATE = 0.25  # of the time that was left, at most, by which the progress may be wrong from the tenth step on
_LEFT = re.compile(r"step (\d+)/(\d+) .* (\d+):(\d\d) left")
_FIGURE = re.compile(r"(written prompt, zero-shot|written prompt, \d+ examples|learned prompt): accuracy ([\d.]+)")


def run_demo(folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """The demo's lines by the second, its figures, and how wrong its estimates were.

    Raises:
        SoftpromptError: it failed.
    """
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "softprompt", "demo", "--out", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        lines = [(round(time.perf_counter() - began, 2), line.rstrip()) for line in process.stderr or ()]
    if process.returncode:
        raise SoftpromptError(f"the demo ended with {process.returncode}: {lines[-3:]}")
    return read_lines(lines)


def read_lines(lines: Sequence[tuple[float, str]]) -> dict[str, Any]:
    """What the demo's lines, each with the second it came at, say of its figures and its estimates."""
    figures = {match[1]: (at, float(match[2])) for at, line in lines if (match := _FIGURE.match(line))}
    told = [(at, *map(int, match.groups())) for at, line in lines if (match := _LEFT.match(line))]
    steps = told[-1][2]
    # the last evaluation belongs to the run
    ends = next(at for at, line in lines if line.startswith(f"step {steps} ") and "validation" in line)
    errors = {
        step: (minutes * 60 + seconds) / (ends - at) - 1 for at, step, _, minutes, seconds in told if step < steps
    }
    return {"seconds": lines[-1][0], "figures": figures, "estimate_errors": errors, "lines": lines}


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    described = machine()
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    }
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    results: dict[str, Any] = {}
    aims = []
    for place in options.only or ("alone", "beside"):
        factor = 1.0 if place == "alone" else SLOWER_BESIDE
        with tempfile.TemporaryDirectory() as temporary, busy_processes(0 if place == "alone" else options.load):
            folder = Path(temporary)
            fresh = {} if options.converted else {"SOFTPROMPT_CACHE": str(folder / "cache")}
            demo = run_demo(folder / "prompts", environment | fresh)
            say(f"{place}: the demo took {demo['seconds']:.0f} s")
            prompt = str(folder / "prompts" / "demo")
            program = [sys.executable, "-m", "softprompt"]
            commands = {"predict": [*program, "predict", prompt, "a quiet film"], "show": [*program, "show", prompt]}
            starts = {
                name: sorted(seconds_of(command, environment | fresh) for _ in range(3))[1]
                for name, command in commands.items()
            }
        results[place] = demo | {"start_seconds": starts}
        for name, limit in (("written prompt, zero-shot", FIRST_FIGURE), ("learned prompt", LEARNED_FIGURE)):
            aims.append(judged(f"{place}: {name}", demo["figures"][name][0], limit * factor, "s", at_most=True))
        aims.append(judged(f"{place}: accuracy learned", demo["figures"]["learned prompt"][1], ACCURACY, ""))
        worst = max(map(abs, demo["estimate_errors"].values()))
        aims.append(judged(f"{place}: error of the time left", worst, ESTIMATE, "of it", at_most=True))
        aims += [judged(f"{place}: {name}", taken, START * factor, "s", at_most=True) for name, taken in starts.items()]
    return {
        "benchmark": "first_hour",
        "machine": described,
        "configuration": {"load": options.load, "model converted before": options.converted},
        "results": results,
        "aims": aims,
    }


def text_report(report: dict[str, Any]) -> str:
    lines = []
    for place, found in report["results"].items():
        lines.append(f"{place}: the demo {found['seconds']:.0f} s")
        lines += [f"  {name:<28}{accuracy:.3f} after {at:.0f} s" for name, (at, accuracy) in found["figures"].items()]
        lines += [f"  {name:<28}{seconds:.1f} s" for name, seconds in found["start_seconds"].items()]
    return "\n".join([*lines, "", *aim_lines(report)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a mistake in what the user gave."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made.add_argument("--load", type=int, default=2, help="busy processes beside it (default: %(default)s)")
    made.add_argument("--converted", action="store_true", help="use the model that the cache has already")
    made.add_argument("--only", nargs="+", choices=("alone", "beside"), help="this part (default: both)")
    return finished(made.parse_args(arguments), benchmark, text_report)


if __name__ == "__main__":
    sys.exit(main())
