"""Runs to make over any number of processes: imported for one process, started by ``torchrun`` for several.

As a script: ``distributed_runs.py MODELS OUT`` saves every case below OUT, first with the model whole in each
process, then with its layers shared, and leaves what only the processes themselves can tell in ``OUT/facts.json``.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.small_tasks import FAST, TEMPLATE, Recorder, answers, reviews_task

import softprompt.inference.scoring as objective
import softprompt.training.validation as validation
from softprompt.config import TrainConfig, make_population
from softprompt.data.task import Task
from softprompt.models.distributed import ProcessGroup, join_process_group
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.training.fit import fit

ROOT = Path(__file__).parents[2]
# settings that are not those of FAST; of "family", "task" and "seeds" see learn_all() and made()
CASES: dict[str, dict[str, Any]] = {
    "embeddings": {},
    "key_values": {"method": "prefix-tuning"},
    "generation": {"task": "generation", "init": "text"},
    "accumulated": {"micro_batch_size": 2, "batch_size": 7, "gradient_checkpointing": True, "method": "residual"},
    "fewer examples than processes": {"batch_size": 1},
    "averaged": {"averaging": 0.5, "optimizer": "adafactor"},
    "population": {"seeds": 2},
    "encoder-decoder": {"family": "t5", "method": "prefix-tuning"},
}
SHARED = [name for name in CASES if name not in ("population", "encoder-decoder")]
FAMILIES = ("llama", "t5")


def made(base: FrozenLM, name: str, out: Path) -> Recorder:
    """Learn a case and save it."""
    settings = {key: value for key, value in CASES[name].items() if key != "family"}
    whole = Task.generation(answers(), template=TEMPLATE)
    task = whole if settings.pop("task", None) else reviews_task()
    seeds = settings.pop("seeds", 1)
    config = TrainConfig.build(**{**FAST, "patience": 0, "init": "random", **settings})
    seen = Recorder()
    fit(base, task, config=make_population(config, seeds, ""), out=out, callback=seen)
    return seen


def launched(
    count: int, *command: object, timeout: int = 240, launcher: str = "torchrun", **environment: object
) -> tuple[int, str, str]:
    """Exit code and both streams of a Python command as ``count`` processes; all of them end with it."""
    given = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    given |= {"PYTHONFAULTHANDLER": "1"}  # where a process stood that the system ended
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


def assert_close(one: Path, other: Path, *, processes: int | None = 2, flips: float = 0.0) -> None:
    """Two saved prompts are equal to rounding, and all that was measured of them is equal.

    ``flips``: the share of answers so close to the next one that rounding may turn them.
    """
    expected, actual = (load_file(folder / "prompt.safetensors") for folder in (one, other))
    assert expected.keys() == actual.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], atol=1e-4, rtol=1e-4)
    manifests = [json.loads((folder / "prompt.json").read_text()) for folder in (one, other)]
    if not flips:
        assert manifests[0]["metrics"] == manifests[1]["metrics"]
    assert manifests[0]["base"] == manifests[1]["base"]
    histories = [[json.loads(line) for line in (f / "history.jsonl").read_text().splitlines()] for f in (one, other)]
    for ours, theirs in zip(*histories, strict=True):
        assert theirs.pop("processes", None) == processes
        assert theirs.pop("name", "") == ours.pop("name", "")
        assert theirs.pop("value") == pytest.approx(ours.pop("value"), abs=flips or 1e-4)
        assert theirs == pytest.approx(ours, abs=1e-4)


def _facts(base: FrozenLM) -> dict[str, Any]:
    local = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in base.model.parameters())
    return {"weights": local, "parameters": base.parameter_count, "fingerprint": dict(base.fingerprint)}


def learn_all(models: Path, out: Path, processes: ProcessGroup, sharding: str | None) -> dict[str, Any]:
    """Learn every case that can be learned so; what the first model is like in this process."""
    bases = {
        family: load_model(models / family, device="cpu", dtype="float32", sharding=sharding, processes=processes)
        for family in (FAMILIES[:1] if sharding else FAMILIES)
    }
    for name in SHARED if sharding else CASES:
        seen = made(bases[CASES[name].get("family", FAMILIES[0])], name, out / name)
        assert bool(seen.losses) == processes.is_main
    return _facts(bases[FAMILIES[0]])


def main(models: Path, out: Path, processes: ProcessGroup) -> None:
    asked = [0]

    def counted(items: Any, *rest: Any) -> Any:
        asked[0] += sum(bool(item.positions) for item in items)
        return collate(items, *rest)

    collate, objective.collate = objective.collate, counted
    # several passes, to be taken in turn
    objective.EVALUATION_TOKENS = validation.EVALUATION_TOKENS = 64
    facts: dict[str, Any] = {}
    for kind, sharding in (("whole", None), ("fsdp", "fsdp")):
        asked[0] = 0
        facts[kind] = learn_all(models, out / kind, processes, sharding)
        facts[kind]["asked"] = asked[0]
    of_all: list[Mapping[str, Any]] = processes.all_gather(facts)
    if processes.is_main:
        (out / "facts.json").write_text(json.dumps(of_all))


if __name__ == "__main__":
    with join_process_group("cpu") as started:
        main(Path(sys.argv[1]), Path(sys.argv[2]), started)
