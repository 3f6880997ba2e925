"""One prompt in vLLM in every way: its keys and values by the connector, baked into a checkpoint, written.

Gemma 3 270M by vLLM on this machine's processor, one process for each way, the same texts behind the same 100 tokens:
solved examples as words, which is also what the virtual tokens start as, so that every way computes the same answers. A
round asks half of its texts for a label (one token), and half for 16 tokens, all of them new to vLLM; the first round
is not counted, so that what a prefix cache keeps of the front is in it (in blocks of 32 tokens: with the 128 that vLLM
takes on a processor it keeps no front of 101). ``--python`` is that of vLLM's environment (``make test-engines``).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from command import finished, say
from contestants import BenchmarkFailure
from train_vs_peft import machine

import softprompt as sp
from softprompt.data.builtin_data import rotten_tomatoes
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.few_shot import encode_solved_within
from softprompt.export.vllm_prefixes import key_of, write_prefixes
from softprompt.export.vocabulary import bake_vocabulary
from softprompt.models.builtin_models import MODEL_NAME
from softprompt.models.gguf_conversion import cache_folder
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState

PYTHON = cache_folder() / "engines" / "vllm-kv" / "bin" / "python"
ROUNDS = Path(__file__).resolve().parent / "vllm_rounds.py"
LENGTH = 100
TOKENS = 16
WAYS = {
    "connector": "virtual tokens' keys and values, by the connector",
    "baked": "virtual tokens of a baked checkpoint",
    "written": "the same words in every request",
    "written, no prefix cache": "the same, read anew with every request",
    "nothing": "the text alone",
}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds a round in each way."""
    if not options.python.exists():
        raise BenchmarkFailure(f"no Python of vLLM at '{options.python}': run make test-engines once, or give --python")
    base = sp.load_model(MODEL_NAME, device="cpu", dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        jobs = dict(_jobs(base, options, Path(folder)))
        found = {}
        for way, job in jobs.items():
            say(way)
            found[way] = _run(options.python, job, Path(folder))
    seconds = {way: {kind: median(rounds) for kind, rounds in one["seconds"].items()} for way, one in found.items()}
    return {
        "benchmark": "vllm_prompts",
        "machine": machine(),
        "model": base.name,
        "vllm": found["connector"]["vllm"],
        "texts": options.texts,
        "virtual_tokens": LENGTH,
        "text_tokens": len(jobs["nothing"]["requests"][0]["ids"]),
        "seconds": seconds,
        "same_answers": _count_same(found),
    }


def _jobs(base: sp.FrozenLM, options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What each way's process is told."""
    task = sp.Task.classification(rotten_tomatoes(), template="Review: {{ text }}\nSentiment:")
    encoder = ExampleEncoder(base, task.spec, LENGTH)
    words = encode_solved_within(encoder, task.train, LENGTH, 0)[-LENGTH:]
    rows = base.embed(torch.tensor(words)).float()
    prompt = Prompt((PromptState.of_embeddings(rows),), task.spec, base.name, base.fingerprint, "prompt-tuning")
    write_prefixes(base, {"task": prompt}, folder / "prompts")
    baked = bake_vocabulary(base, {"task": prompt}, folder / "baked")
    # other texts in each round: what vLLM's cache keeps is what stands in front of them
    texts = [list(ids) for ids in encoder.encode_texts(task.test[: options.texts * (options.rounds + 1)])]
    assert encoder.verbalizer is not None
    known = {"labels": list(encoder.verbalizer.rows), "tokens": TOKENS, "rounds": options.rounds}
    key, holder = key_of(prompt.digest), base.bos_ids[0]
    plain = base.model.config.name_or_path

    def job(model: str, front: list[int], **more: Any) -> dict[str, Any]:
        requests = [{"ids": [*base.bos_ids, *front, *text]} for text in texts]
        return {**known, "model": model, "requests": requests, **more}

    yield "connector", job(plain, [holder] * len(words), prompts=str(folder / "prompts"), key=key)
    yield "baked", job(str(folder / "baked"), baked.ids("task"))
    yield "written", job(plain, words)
    yield "written, no prefix cache", job(plain, words, uncached=True)
    yield "nothing", job(plain, [])


def _run(python: Path, job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    asked, answered = folder / "job.json", folder / "result.json"
    asked.write_text(json.dumps(job))
    command = [str(python), str(ROUNDS), str(asked), str(answered)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise BenchmarkFailure(f"vLLM ended with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(answered.read_text())
    return found


def _count_same(found: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Of each way that has the prompt, the answers of ``TOKENS`` tokens that are the connector's."""
    ours = found["connector"]["answers"]
    return {way: sum(a == b for a, b in zip(ours, one["answers"], strict=True)) for way, one in found.items()}


def text_report(report: Mapping[str, Any]) -> str:
    """A row a way."""
    lines = [
        f"{report['model']}, vLLM {report['vllm']}, {report['texts']} texts, {report['virtual_tokens']} tokens in front"
    ]
    ours = report["seconds"]["connector"]
    for way, one in report["seconds"].items():
        told = ", ".join(f"{kind} {seconds:.2f} s ({seconds / ours[kind]:.2f})" for kind, seconds in one.items())
        lines.append(f"{WAYS[way]:52} {told}; {report['same_answers'][way]} answers as the connector's")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, default=PYTHON, help="of vLLM's environment")
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    return finished(parser.parse_args(), measure, text_report)


if __name__ == "__main__":
    sys.exit(main())
