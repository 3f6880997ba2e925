"""Runs in llama-cpp-python's environment: ``python in_llama.py JOB.json RESULT.json``."""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main(job_file: str, result_file: str) -> None:
    from llama_cpp import Llama

    job: dict[str, Any] = json.loads(Path(job_file).read_text())
    # 0 is float32; else keys and values are kept in half precision
    kept = {"type_k": 0, "type_v": 0} if job["exact"] else {}
    model = Llama(job["model"], n_ctx=job["context"], n_batch=job["context"], logits_all=True, verbose=False, **kept)
    tokens = {name: model.tokenize(text.encode(), add_bos=False, special=True) for name, text in job["words"].items()}
    completions, labels = [], []
    for request in job["requests"]:
        model.reset()
        model.eval(request["ids"])
        first = model.scores[model.n_tokens - 1].copy()
        labels.append(max(request["allowed"], key=lambda one, row=first: row[one]))
        completion: list[int] = []
        while len(completion) < job["tokens"]:
            completion.append(int(model.scores[model.n_tokens - 1].argmax()))
            if completion[-1] == model.token_eos():
                break
            model.eval(completion[-1:])
        completions.append(completion)
    versions = {"llama-cpp-python": version("llama-cpp-python")}
    result = {"completions": completions, "labels": labels, "words": tokens, "versions": versions}
    Path(result_file).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
