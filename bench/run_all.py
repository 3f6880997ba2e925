"""Runs the benchmarks one after the other, and puts their results side by side.

Each writes its JSON, with the machine that it ran on, into a file of ``bench/results``; all files there make up
``bench/results/README.md``, those of earlier runs too. One that fails leaves its earlier result as it was.
"""

import argparse
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train_vs_peft import say

BENCH = Path(__file__).resolve().parent
RESULTS = BENCH / "results"

# result: script and its options; what is added here is run, and has its place in the table
BENCHMARKS: dict[str, tuple[str, ...]] = {
    "first_hour": ("first_hour",),
    "startup": ("startup",),
    "train_vs_peft_20": ("train_vs_peft", "--length", "20"),
    "train_vs_peft_100": ("train_vs_peft", "--length", "100"),
    "chat_step": ("chat_step",),
    "distill_system_prompt": ("distill_system_prompt",),
    "floor": ("floor",),
    "growth": ("growth",),
    "evaluate_vs_peft": ("evaluate_vs_peft",),
    "serve": ("serve",),
    "shared_machine": ("shared_machine",),
}


def run(name: str, extra: Sequence[str], results: Path) -> bool:
    """Run one and keep its result; whether it came to its end."""
    script, *options = BENCHMARKS[name]
    began = time.perf_counter()
    command = [sys.executable, str(BENCH / f"{script}.py"), *options, *extra, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    taken = time.perf_counter() - began
    if done.returncode:
        say(f"{name} failed with exit code {done.returncode} after {taken:.0f} s")
        return False
    report = {**json.loads(done.stdout), "wall_seconds": round(taken, 1)}
    part = results / f".{name}.json.part"
    part.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    part.rename(results / f"{name}.json")
    say(f"{name} took {taken:.0f} s")
    return True


def markdown(reports: dict[str, dict[str, Any]]) -> str:
    """One table of what was aimed at, and each report as it tells itself."""
    lines = [
        "# Results",
        "",
        "Made by `make bench` (`bench/run_all.py`); [bench/README.md](../README.md) says what each one measures.",
        "",
        "| benchmark | figure | measured | aim | |",
        "|---|---|---:|---:|---|",
    ]
    for name, report in reports.items():
        for one in report.get("aims", []):
            bound = "at most" if one["at_most"] else "at least"
            lines.append(
                f"| {name} | {one['what']} | {one['value']:.3g} {one['unit']} | {bound} {one['aim']:g} "
                f"| {'met' if one['met'] else 'missed'} |"
            )
    for name, report in reports.items():
        box = report["machine"]
        flags = ", ".join(box["bf16_flags"]) or "no bfloat16 instructions"
        versions = ", ".join(f"{package} {number}" for package, number in box["versions"].items())
        told = importlib.import_module(report["benchmark"]).text_report(report)
        lines += [
            "",
            f"## {name}",
            "",
            f"{box['cpu']}, {box['cores']} cores, {flags}, {box['memory_gb']} GB; load average at the start "
            f"{box['load_average_at_start']}; {versions}; took {report.get('wall_seconds', 0):.0f} s.",
            "",
            "```",
            told,
            "```",
        ]
    return "\n".join(lines) + "\n"


def collected(results: Path) -> dict[str, dict[str, Any]]:
    """Results that are there, in the order of ``BENCHMARKS``."""
    there = [name for name in BENCHMARKS if (results / f"{name}.json").is_file()]
    return {name: json.loads((results / f"{name}.json").read_text(encoding="utf-8")) for name in there}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 if one of them failed."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--only", nargs="+", choices=list(BENCHMARKS), help="these (default: all)")
    made.add_argument("--table", action="store_true", help="run none, only make the table of the results there are")
    made.add_argument("--results", type=Path, default=RESULTS, help="folder (default: bench/results)")
    made.add_argument("extra", nargs="*", help="further options of each, behind --")
    options = made.parse_args(arguments)
    options.results.mkdir(parents=True, exist_ok=True)
    chosen = [] if options.table else options.only or list(BENCHMARKS)
    ended = [run(name, options.extra, options.results) for name in chosen]
    (options.results / "README.md").write_text(markdown(collected(options.results)), encoding="utf-8")
    say(f"results are in {options.results}")
    return 0 if all(ended) else 1


if __name__ == "__main__":
    sys.exit(main())
