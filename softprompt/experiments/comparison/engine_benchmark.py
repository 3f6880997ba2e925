"""How fast an exported prompt is in vLLM or llama.cpp: in a process of its own, on the texts that all are timed on.

The prompt is baked (``vocab``, or ``gguf`` for llama.cpp) into a folder that is gone afterwards; the engine answers by
its tokens, held to the labels, as ``softprompt.export.engine_client`` makes requests.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softprompt.data.examples import Example
from softprompt.errors import ConfigError, SoftpromptError
from softprompt.experiments.comparison import engine_script
from softprompt.experiments.comparison.study_records import EngineSpeed
from softprompt.export.engine_client import Tasks
from softprompt.export.gguf import bake_gguf, gguf_usage
from softprompt.export.vocabulary import bake_vocabulary
from softprompt.inference import benchmark
from softprompt.inference.predictor import Predictor
from softprompt.metrics.scores import Speed
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt

ENGINES = {"vllm": "vLLM", "llama_cpp": "llama.cpp"}  # the module that each is imported as
LIMIT = 1800  # seconds until an engine must have loaded and answered
CONTEXT = 2048  # tokens of a request, at most
LOOK = "import importlib.util as u, sys; print(*[n for n in sys.argv[1:] if u.find_spec(n)])"
_TASK = "task"


@dataclass(frozen=True)
class EnginePython:
    """A Python with an engine.

    Attributes:
        python: its executable.
        engine: the module that is there.
        gguf: a GGUF file of the base model, which llama.cpp needs.
    """

    python: Path
    engine: str
    gguf: Path | None = None


def find_engine(python: Path | None, gguf: Path | None = None) -> EnginePython | str:
    """The engine of an environment, vLLM before llama.cpp; in words, why there is none in softprompt's own.

    Args:
        python: of an environment that is said to have one.

    Raises:
        ConfigError: it has none, is no Python, or llama.cpp would need a GGUF file.
    """
    if python is None:
        asked, found = Path(sys.executable), [name for name in ENGINES if find_spec(name) is not None]
    else:
        asked, found = python, _list_engines(python)
    if not found:
        return (
            "no exported engine was timed: neither vLLM nor llama.cpp is installed here; --engine-python names the "
            "Python of an environment that has one"
        )
    if found[0] == "llama_cpp" and gguf is None:
        why = "llama.cpp needs a GGUF file of the base model: give it with --engine-gguf"
        if python is not None:
            raise ConfigError(f"--engine-python '{asked}': {why}")
        return f"no exported engine was timed: {why}"
    return EnginePython(asked, found[0], gguf)


def _list_engines(python: Path) -> list[str]:
    try:
        done = subprocess.run(
            [python, "-c", LOOK, *ENGINES], capture_output=True, text=True, timeout=60, check=True, cwd=os.path.sep
        )
    except (OSError, subprocess.SubprocessError) as error:
        why = f"does not run ({type(error).__name__}): expected the Python of an environment"
        raise ConfigError(f"--engine-python '{python}' {why}") from error
    if not (found := done.stdout.split()):
        raise ConfigError(f"--engine-python '{python}' has no vllm and no llama_cpp: expected an environment with one")
    return found


def measure_engine_speed(where: EnginePython, answers: Any, examples: Sequence[Example]) -> EngineSpeed | str:
    """The speed of a learned prompt in an engine; in words, why it was not measured."""
    name = ENGINES[where.engine]
    if not isinstance(answers, Predictor) or not answers.states:
        return ""  # no prompt: there is nothing to export
    prompt = Prompt(answers.states, answers.spec, answers.base.name, answers.base.fingerprint, "compared")
    with tempfile.TemporaryDirectory(prefix="softprompt-engine-") as folder:
        try:
            job = _make_job(where, answers, prompt, examples, Path(folder))
            result = _run_job(where.python, job, Path(folder))
        except SoftpromptError as error:
            return f"not timed in {name}: {error}"
    singles = [float(one) for one in result["singles"]]
    p50, p95 = (1000 * float(value) for value in np.quantile(singles, (0.5, 0.95)))
    speed = Speed(
        p50_ms=p50,
        p95_ms=p95,
        requests=len(singles),
        batch_size=job["batch_size"],
        examples_per_second=result["answered"] / result["spent"],
        added_tokens=prompt.length,
    )
    return EngineSpeed(engine=f"{name} {result['version']}", speed=speed)


def _make_job(
    where: EnginePython, answers: Predictor, prompt: Prompt, examples: Sequence[Example], folder: Path
) -> dict[str, Any]:
    """What the engine is to do; bakes the prompt into ``folder``."""
    base: FrozenLM = answers.base
    place = folder / "baked"
    if where.engine == "vllm":
        bake_vocabulary(base, {_TASK: prompt}, place)
        tasks = Tasks.load(place)
    else:
        assert where.gguf is not None
        place = folder / "baked.gguf"
        bake_gguf(base, {_TASK: prompt}, where.gguf, place)
        tasks = Tasks(base.tokenizer, gguf_usage(place))
    some = benchmark.draw_timed_examples(examples)
    requests = [
        tasks.request(_TASK, one.text, model="", max_tokens=answers.generation.max_new_tokens, **one.columns)
        for one in some
    ]
    if "structured_outputs" in requests[0]:
        raise ConfigError("its labels part behind their first token, and an engine would be timed at something else")
    prompts = [request["prompt"] for request in requests]
    tokens = requests[0]["max_tokens"]
    return {
        "engine": where.engine,
        "model": str(place),
        "dtype": str(base.dtype).removeprefix("torch."),
        "eager": base.device.type == "cpu",
        "threads": torch.get_num_threads(),
        "context": min(base.context_length or CONTEXT, max(map(len, prompts)) + tokens + 1),
        "prompts": prompts,
        "tokens": tokens,
        "allowed": requests[0].get("allowed_token_ids"),
        "bias": requests[0].get("logit_bias"),
        "requests": benchmark.REQUESTS,
        "fewest": benchmark.FEWEST_REQUESTS,
        "seconds": benchmark.SECONDS,
        "batch_size": benchmark.BATCH_SIZE,
        "batches": benchmark.BATCHES,
    }


def _run_job(python: Path, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What came of it; raises ConfigError with the last line that the engine said."""
    asked, answered, log = folder / "job.json", folder / "result.json", folder / "log"
    asked.write_text(json.dumps(job))
    # in a folder of its own, for a script's folder is searched for modules, and ours has names that engines use
    alone = folder / "script"
    alone.mkdir()
    script = Path(shutil.copy(engine_script.__file__, alone))
    environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"])}
    try:
        with log.open("wb") as stream:
            subprocess.run(
                [python, script, asked, answered],
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=LIMIT,
                check=True,
                cwd=alone,
                env=environment,
            )
        result: dict[str, Any] = json.loads(answered.read_text())
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = log.read_text(errors="replace").split("\n") if log.exists() else []
        last = next((line.strip() for line in reversed(said) if line.strip()), type(error).__name__)
        raise ConfigError(f"it failed: {last[:200]}") from error
    return result
