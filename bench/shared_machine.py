"""What the waiting of threads costs: the same work alone, and beside processes that keep every core busy.

GNU OpenMP's threads wait by spinning; beside other work the core that one spins on is taken from the thread it waits
for. Each contestant is a setting of the environment, which PyTorch reads when it is loaded, so each is a process of its
own; they take turns, alone and beside the load, and medians are compared.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aims import aim_lines, judged
from command import finished, say
from train_vs_peft import machine

from softprompt.errors import SoftpromptError
from softprompt.models.builtin_models import MODEL_NAME
from softprompt.utils.threads import choose_threads

SETTINGS: dict[str, dict[str, str]] = {
    "PyTorch's default": {},
    "softprompt's": choose_threads({}, 1, None),
    "GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0"},
    "GOMP_SPINCOUNT=100": {"GOMP_SPINCOUNT": "100"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
WORK = ("training step", "evaluation", "request")
SLOWER_BESIDE = 2.5  # times the idle time, at most
SLOWER_ALONE = 1.02  # of PyTorch's default, at most

# a step of 16 sentences, an evaluation of 128, and one sentence answered: seconds of each, once a round
_CONTESTANT = """
import json, sys, time
import torch
import softprompt as sp
from softprompt.data.builtin_data import rotten_tomatoes
from softprompt.data.splits import Splits
from softprompt.inference.predictor import Predictor
from softprompt.training.callbacks.callback import Callback

class Clock(Callback):
    def on_train_begin(self, *rest):
        self.ends = [time.perf_counter()]
    def on_step_end(self, *rest):
        self.ends.append(time.perf_counter())

model, rounds = sys.argv[1], int(sys.argv[2])
base = sp.load_model(model)
splits = rotten_tomatoes()
task = sp.Task.of(splits, template="Review: {{ text }}\\nSentiment:")
some = Splits(splits.train[::100], splits.validation[::100], (), splits.source, ())
small = sp.Task.of(some, template=task.spec.template)
clock = Clock()
prompt = sp.fit(base, small, steps=3 + 3 * rounds, compile="never", evaluate_test=False, callback=clock)
steps = [after - before for before, after in zip(clock.ends, clock.ends[1:])][3:]
predictor = Predictor.of_prompt(base, prompt)
seconds = {"training step": steps, "evaluation": [], "request": []}
list(predictor.predict(splits.test[:128]))
for _ in range(rounds):
    began = time.perf_counter()
    list(predictor.predict(splits.test[:128]))
    seconds["evaluation"].append(time.perf_counter() - began)
    for one in splits.test[:5]:
        began = time.perf_counter()
        list(predictor.predict([one]))
        seconds["request"].append(time.perf_counter() - began)
print(json.dumps(seconds))
"""
_BUSY = "while True: pass"


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes that do nothing but count, until its end."""
    started = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for one in started:
            one.kill()
            one.wait()


def measure(settings: dict[str, str], model: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each kind of work under these settings, in a process of its own.

    Raises:
        SoftpromptError: it failed.
    """
    chosen = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in chosen} | settings
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", _CONTESTANT, model, str(rounds)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise SoftpromptError(f"{settings} ended with {done.returncode}: {done.stderr[-500:]}")
    seconds: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    described, cores = machine(), len(os.sched_getaffinity(0))
    settings = {name: SETTINGS[name] for name in options.only or SETTINGS}
    seconds: dict[str, dict[str, dict[str, list[float]]]] = {"alone": {}, "beside": {}}
    for turn in range(options.turns):
        for place, load in (("alone", 0), ("beside", cores)):
            for name, chosen in settings.items():
                with busy_processes(load):
                    found = measure(chosen, options.model, options.rounds)
                for work, times in found.items():
                    seconds[place].setdefault(name, {}).setdefault(work, []).extend(times)
                say(f"turn {turn + 1} of {options.turns}, {place}: {name}")
    medians = {
        place: {name: {work: statistics.median(times) for work, times in by.items()} for name, by in names.items()}
        for place, names in seconds.items()
    }
    aims = []
    if (ours := "softprompt's") in settings:
        for work in WORK:
            alone, beside = medians["alone"][ours][work], medians["beside"][ours][work]
            aims.append(judged(f"{work} beside busy cores", beside / alone, SLOWER_BESIDE, "times", at_most=True))
            if (default := "PyTorch's default") in settings:
                ratio = alone / medians["alone"][default][work]
                aims.append(judged(f"{work} alone, of PyTorch's default", ratio, SLOWER_ALONE, "times", at_most=True))
    return {
        "benchmark": "shared_machine",
        "machine": described,
        "configuration": {"model": options.model, "turns": options.turns, "rounds": options.rounds, "load": cores},
        "settings": settings,
        "median_seconds": medians,
        "aims": aims,
    }


def text_report(report: dict[str, Any]) -> str:
    medians = report["median_seconds"]
    lines = [f"{'seconds alone / beside':<26}" + "".join(f"{work:>20}" for work in WORK)]
    for name in report["settings"]:
        pairs = [f"{medians['alone'][name][work]:.3f} / {medians['beside'][name][work]:.3f}" for work in WORK]
        lines.append(f"{name:<26}" + "".join(f"{pair:>20}" for pair in pairs))
    return "\n".join([*lines, "", *aim_lines(report)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a mistake in what the user gave."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made.add_argument("--turns", type=int, default=2, help="processes of each setting (default: %(default)s)")
    made.add_argument("--rounds", type=int, default=5, help="measurements in each (default: %(default)s)")
    made.add_argument("--only", nargs="+", choices=SETTINGS, help="these settings (default: all)")
    made.add_argument("--model", default=MODEL_NAME, help="or the folder of another model (default: %(default)s)")
    return finished(made.parse_args(arguments), benchmark, text_report)


if __name__ == "__main__":
    sys.exit(main())
