"""softprompt in front of a real vLLM server with the connector: prompts that come while it runs, and many at once."""

import json
import os
import resource
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

import softprompt as sp
from softprompt.data.builtin_data import rotten_tomatoes
from softprompt.store.version_store import Store

REQUESTS = 1000  # of two prompts of equal length, on equal texts
TEXTS = 50
CLOSE = 0.01  # of a probability
AT_ONCE = 16
STARTS_WITHIN = 600.0  # seconds


def connector(folder: Path) -> dict[str, Any]:
    """vLLM's ``--kv-transfer-config`` for a folder of prompts."""
    return {
        "kv_connector": "SoftpromptConnector",
        "kv_role": "kv_consumer",
        "kv_connector_module_path": "softprompt.engines.vllm_connector",
        "kv_connector_extra_config": {"prompts": str(folder)},
    }


def serve_in_front(
    base: sp.FrozenLM, prompts: Mapping[str, sp.Prompt], folder: Path, python: Path
) -> tuple[float, str]:
    """Two prompts of equal length as versions of one name: by an alias that moves while requests run, and by both.

    Returns:
        The share of answers that were one version's and no other's, and what there is to tell.
    """
    (folder / "prompts").mkdir(parents=True)
    texts = [example.text for example in rotten_tomatoes().test[:TEXTS]]
    versions = list(prompts.values())[::2][:2]
    first, second = (_ask_ourselves(base, prompt, texts) for prompt in versions)
    store = Store(folder / "store")
    store.put(versions[0], "task")
    store.promote("task@1", "prod")
    with _vllm(base, folder / "prompts", python) as (url, process):
        settings: dict[str, Any] = {"engine_kind": "vllm", "engine_url": url, "engine_prompts": str(folder / "prompts")}
        server = sp.serve(base.name, store, port=0, block=False, refresh=0, **settings)
        assert server is not None
        with server, httpx.Client(base_url=server.url, timeout=600) as client, ThreadPoolExecutor(AT_ONCE) as pool:

            def ask(models: Sequence[str]) -> "list[Future[dict[str, float]]]":
                """Each text in turn, of each of the models one after the other."""
                places = [at // len(models) % TEXTS for at in range(REQUESTS // 3)]
                return [
                    pool.submit(_ask, client, models[at % len(models)], texts[one]) for at, one in enumerate(places)
                ]

            before = [one.result() for one in ask(["task"])]
            memory = _memory(process.pid)
            store.put(versions[1], "task")
            store.promote("task@2", "prod")
            # asked while the new version is taken into use
            running = ask(["task"])
            began = time.monotonic()
            client.post("/admin/reload").raise_for_status()
            taken = time.monotonic() - began
            moved = [one.result() for one in running]
            named = [one.result() for one in ask(["task@1", "task@2"])]
            grown = _memory(process.pid) - memory
    right = [_is(answer, first[at % TEXTS]) for at, answer in enumerate(before)]
    right += [_is(answer, first[at % TEXTS]) or _is(answer, second[at % TEXTS]) for at, answer in enumerate(moved)]
    right += [_is(answer, (first, second)[at % 2][at // 2 % TEXTS]) for at, answer in enumerate(named)]
    apart = sum(not _is(one, two) for one, two in zip(first, second, strict=True))
    told = f"{sum(right)} of {len(right)} answers are one version's ({apart} of {TEXTS} texts tell the two apart); "
    told += f"a new version is in use after {taken:.1f} s; vLLM grew by {grown:.0f} MB"
    return sum(right) / len(right), told


def _ask_ourselves(base: sp.FrozenLM, prompt: sp.Prompt, texts: Sequence[str]) -> list[dict[str, float]]:
    return [dict(one.probabilities or {}) for one in sp.Predictor.of_prompt(base, prompt).predict(list(texts))]


def _ask(client: httpx.Client, model: str, text: str) -> dict[str, float]:
    answer = client.post("/v1/classify", json={"model": model, "input": [text]})
    answer.raise_for_status()
    found: dict[str, float] = answer.json()["results"][0]["probabilities"]
    return found


def _is(answer: Mapping[str, float], expected: Mapping[str, float]) -> bool:
    return answer.keys() == expected.keys() and all(abs(answer[one] - expected[one]) < CLOSE for one in answer)


@contextmanager
def _vllm(base: sp.FrozenLM, prompts: Path, python: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """vLLM's own server on the model, with the connector."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", base.model.config.name_or_path]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--port", str(port)]
    command += ["--served-model-name", "base", "--kv-transfer-config", json.dumps(connector(prompts))]
    with tempfile.NamedTemporaryFile() as log:
        environment = {"VLLM_CPU_KVCACHE_SPACE": "2", **os.environ}
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            began = time.monotonic()
            while True:
                if process.poll() is not None or time.monotonic() - began > STARTS_WITHIN:
                    raise RuntimeError(f"vLLM did not start:\n{Path(log.name).read_text(errors='replace')[-3000:]}")
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).is_success:
                        break
                except httpx.TransportError:
                    time.sleep(1)
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.terminate()
            process.wait(60)


def _memory(pid: int) -> float:
    """Megabytes of a process and of those that it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6 + sum(_memory(int(child)) for child in children)
