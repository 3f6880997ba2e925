"""Runs to make over any number of processes: imported for one process, started by ``torchrun`` for several.

As a script: ``spreading.py MODEL OUT`` saves every case below OUT, first with the model whole in each process, then
with its layers shared, and leaves what only the processes themselves can tell in ``OUT/facts.json``.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from small import FAST, TEMPLATE, Recorder, answers, reviews_task

import softprompt.objective as objective
import softprompt.validation as validation
from softprompt.base import FrozenLM, load
from softprompt.config import TrainConfig, population
from softprompt.fit import fit_together
from softprompt.spread import Processes, joined
from softprompt.task import Task

ROOT = Path(__file__).parent.parent
# settings that are not those of FAST; of "task" and "seeds" see made()
CASES: dict[str, dict[str, Any]] = {
    "embeddings": {},
    "key_values": {"method": "prefix-tuning"},
    "generation": {"task": "generation", "init": "text"},
    "accumulated": {"micro_batch_size": 2, "batch_size": 7, "gradient_checkpointing": True, "method": "residual"},
    "fewer examples than processes": {"batch_size": 1},
    "averaged": {"averaging": 0.5, "optimizer": "adafactor"},
    "population": {"seeds": 2},
}
SHARED = [name for name in CASES if name != "population"]


def made(base: FrozenLM, name: str, out: Path) -> Recorder:
    """Learn a case and save it."""
    settings = dict(CASES[name])
    whole = Task.generation(answers(), template=TEMPLATE)
    task = whole if settings.pop("task", None) else reviews_task()
    seeds = settings.pop("seeds", 1)
    config = TrainConfig.build(**{**FAST, "patience": 0, "init": "random", **settings})
    seen = Recorder()
    fit_together(base, task, population(config, seeds, ""), out=out, observer=seen)
    return seen


def launched(
    count: int, *command: object, timeout: int = 240, launcher: str = "torchrun", **environment: object
) -> tuple[int, str, str]:
    """Exit code and both streams of a Python command as ``count`` processes; all of them end with it."""
    given = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    paths = [str(environment.pop("sitecustomize", "")), str(ROOT), str(ROOT / "tests")]
    given |= {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    given |= {name.upper(): str(value) for name, value in environment.items()}
    starts = {
        "torchrun": f"torch.distributed.run --standalone --nproc-per-node {count}",
        "accelerate": f"accelerate.commands.launch --multi_gpu --num_processes {count} --main_process_port 0",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", *starts[launcher].split(), *map(str, command)],
        cwd=ROOT,
        env=given,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        # the launcher ends what it has started, if it is asked to
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)
    return process.returncode, out, err


def _facts(base: FrozenLM) -> dict[str, Any]:
    local = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in base.model.parameters())
    return {"weights": local, "parameters": base.parameter_count, "fingerprint": dict(base.fingerprint)}


def main(model: str, out: Path, processes: Processes) -> None:
    asked = [0]

    def counted(items: Any, *rest: Any) -> Any:
        asked[0] += sum(bool(item.positions) for item in items)
        return collate(items, *rest)

    collate, objective.collate = objective.collate, counted
    # several passes, to be taken in turn
    objective.EVALUATION_TOKENS = validation.EVALUATION_TOKENS = 64
    facts: dict[str, Any] = {}
    for sharding, names in ((None, list(CASES)), ("fsdp", SHARED)):
        base = load(model, device="cpu", dtype="float32", sharding=sharding, processes=processes)
        place = out / (sharding or "whole")
        facts[place.name] = _facts(base)
        asked[0] = 0
        for name in names:
            seen = made(base, name, place / name)
            assert bool(seen.losses) == processes.is_main
        facts[place.name]["asked"] = asked[0]
    of_all: list[Mapping[str, Any]] = processes.gathered(facts)
    if processes.is_main:
        (out / "facts.json").write_text(json.dumps(of_all))


if __name__ == "__main__":
    with joined("cpu") as started:
        main(sys.argv[1], Path(sys.argv[2]), started)
