"""A long run against ``softprompt serve``: many clients, a store that changes all the while, every answer checked.

``python tests_soak/run.py [--requests 20000] [--seconds 300] [--model embedded:gemma-3-270m] [--json]``
"""

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent / "bench")]

from served import served  # noqa: E402
from soak_checks import Right, memory  # noqa: E402
from soak_client import Clients  # noqa: E402
from soak_world import World  # noqa: E402

import softprompt as sp  # noqa: E402
from softprompt.analysis.diagnostics.tiny_models import make_family_model, make_family_tokenizer  # noqa: E402

SETTINGS = {
    "SOFTPROMPT_REFRESH": "0.7",  # beside the looks that are asked for
    "SOFTPROMPT_MAX_LOADED": "12",  # so that versions are let go of and loaded again
    # fewer than the clients ask for now and then: some are refused
    "SOFTPROMPT_ENGINE": "waiting=56,prefix_bytes=200000",
    "OMP_NUM_THREADS": "1",
}
WARMUP = 0.3  # share of the requests
SAMPLED = 0.5  # seconds between looks at the memory


def main() -> int:
    options = _options()
    report = asyncio.run(soak(options))
    print(json.dumps(report, indent=2) if options.json else _text(report))
    return int(bool(report["failed"]))


def _options() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--requests", type=int, help="end behind so many (default: 20000, or none with --seconds)")
    made.add_argument("--seconds", type=float, help="end behind so many")
    made.add_argument("--clients", type=int, default=64, help="requests at once (default: %(default)s)")
    made.add_argument("--every", type=float, default=0.5, help="seconds between changes of the store (%(default)s)")
    made.add_argument("--slope", type=float, default=10.0, help="MiB in 10,000 requests, at most (%(default)s)")
    made.add_argument("--model", help="base model (default: a tiny one); it runs in float32")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--json", action="store_true", help="print one JSON object")
    options = made.parse_args()
    if options.requests is None and options.seconds is None:
        options.requests = 20_000
    return options


async def soak(options: argparse.Namespace) -> dict[str, Any]:
    """The whole run; ``failed`` says in words what was not as it must be."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model or str(_tiny(folder / "model"))
        base = sp.load_model(model, device="cpu", dtype="float32")
        world = World(base, folder / "store", options.seed)
        arguments = ["--model", model, "--store", str(folder / "store"), "--device", "cpu", "--dtype", "float32"]
        log = folder / "log"
        with served([*arguments, "--base-name", "base"], log, SETTINGS) as (address, process):
            say(f"{address}, process {process.pid}")
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=options.clients)
            async with httpx.AsyncClient(base_url=address, limits=limits, timeout=120, trust_env=False) as http:
                report = await _run(
                    options, world, Clients(http, world, Right(base), base, options.seed, 2e-4), http, process.pid
                )
        report["exit_code"] = process.returncode
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in said if '"level": "error"' in line or line.startswith("Traceback")]
    report["log_errors"] = errors[:10]
    report["failed"] += [f"{len(errors)} errors in the log"] * bool(errors)
    report["failed"] += [f"exit code {process.returncode} at the end"] * bool(process.returncode)
    return report


async def _run(
    options: argparse.Namespace, world: World, clients: Clients, http: httpx.AsyncClient, number: int
) -> dict[str, Any]:
    tally, samples, start = clients.tally, [], time.monotonic()
    most, seconds = options.requests or sys.maxsize, options.seconds or float("inf")

    def over() -> bool:
        return tally.requests >= most or time.monotonic() - start >= seconds

    async def reload() -> None:
        response = await http.post("/admin/reload")
        if response.status_code != 200:
            tally.fault(f"reload: status {response.status_code}: {response.text}")

    async def change() -> None:
        while not over():
            await world.change(reload)
            await asyncio.sleep(options.every)

    async def watch() -> None:
        told = start
        while not over():
            samples.append((tally.requests, _resident(number)))
            await asyncio.sleep(SAMPLED)
            if time.monotonic() - told > 20:
                told = time.monotonic()
                say(f"{told - start:.0f} s: {tally.requests} requests, {samples[-1][1]:.0f} MiB, {tally.faults} faults")

    await asyncio.gather(change(), watch(), *(clients.ask_until(over, "base") for _ in range(options.clients)))
    took = time.monotonic() - start
    left = await _left(http)
    flat = memory(samples, WARMUP)
    failed = [f"{tally.faults} faults"] * bool(tally.faults)
    failed += [f"memory grows by {flat.slope:.1f} MiB in 10,000 requests"] * (flat.slope > options.slope)
    failed += [f"when all had ended: {left}"] * any(left.values())
    refused = tally.statuses[429] / max(1, tally.requests)
    failed += [f"{refused:.0%} of the requests were refused"] * (refused > 0.25)
    return {
        "requests": tally.requests,
        "seconds": round(took, 1),
        "requests_per_second": round(tally.requests / took, 1),
        "clients": options.clients,
        "asked": dict(tally.asked),
        "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
        "checked": tally.checked,
        "undecided": tally.undecided,
        "left_early": tally.left,
        "changes": dict(world.changes),
        "memory_mib": asdict(flat),
        "bound_mib": options.slope,
        "samples": samples,
        "left_over": left,
        "wrong": tally.wrong,
        "failed": failed,
    }


async def _left(http: httpx.AsyncClient) -> dict[str, float]:
    """What the server still has to do when nobody asks any more."""
    ends = time.monotonic() + 10
    while True:
        text = (await http.get("/metrics")).text
        names = ("engine_waiting", "engine_running")
        found = {name: float(re.findall(rf"^softprompt_{name} (\S+)$", text, re.MULTILINE)[0]) for name in names}
        if not any(found.values()) or time.monotonic() > ends:
            return found
        await asyncio.sleep(0.1)


def _resident(number: int) -> float:
    """MiB of a process in memory."""
    pages = int(Path(f"/proc/{number}/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 2**20


def _tiny(folder: Path) -> Path:
    make_family_model("gemma3")[0].save_pretrained(folder)
    make_family_tokenizer("gemma3").save_pretrained(folder)
    return folder


def _text(report: dict[str, Any]) -> str:
    flat = report["memory_mib"]
    lines = [
        f"{report['requests']:,} requests in {report['seconds']:.0f} s by {report['clients']} clients "
        f"({report['requests_per_second']:.0f} a second)",
        ", ".join(f"{name} {count:,}" for name, count in report["asked"].items()),
        "statuses: " + ", ".join(f"{status}: {count:,}" for status, count in report["statuses"].items()),
        f"{report['checked']:,} answers checked, {report['undecided']:,} completions too near to a tie to be compared, "
        f"{report['left_early']:,} clients left early",
        "changes of the store: " + ", ".join(f"{name} {count}" for name, count in report["changes"].items()),
        f"memory {flat['first']:.1f} MiB behind the warm-up, {flat['last']:.1f} MiB at the end, "
        f"{flat['slope']:.2f} MiB more in 10,000 requests (at most {report['bound_mib']:g})",
        *report["wrong"],
        "failed: " + "; ".join(report["failed"]) if report["failed"] else "all as it must be",
    ]
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
