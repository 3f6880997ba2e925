"""Runs in vLLM's environment: ``python in_vllm.py JOB.json RESULT.json``."""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def main(job_file: str, result_file: str) -> None:
    import torch
    import vllm
    from vllm.config import KVTransferConfig

    job: dict[str, Any] = json.loads(Path(job_file).read_text())
    more: dict[str, Any] = {}
    if "connector" in job:
        # chunks that are shorter than the longest prompts, and blocks for a few requests
        more = {"kv_transfer_config": KVTransferConfig(**job["connector"]), "max_num_batched_tokens": 128}
    model = vllm.LLM(
        model=job["model"],
        dtype=job["dtype"],
        enforce_eager=True,
        max_model_len=job["context"],
        enable_prompt_embeds="chat_template" in job,
        **more,
    )

    def ask(params: Any) -> list[Any]:
        if "chat_template" in job:
            chats = [request["messages"] for request in job["requests"]]
            return list(model.chat(chats, params, chat_template=job["chat_template"]))
        return list(model.generate([{"prompt_token_ids": request["ids"]} for request in job["requests"]], params))

    bias = dict.fromkeys(job["never"], -100.0) or None
    named = [
        {"kv_transfer_params": {"softprompt": request["key"]}} if request.get("key") else None
        for request in job["requests"]
    ]
    ends = {"ignore_eos": job.get("ignore_eos", False)}
    greedy = [
        vllm.SamplingParams(temperature=0, max_tokens=job["tokens"], logit_bias=bias, extra_args=name, **ends)
        for name in named
    ]
    labels = [
        vllm.SamplingParams(temperature=0, max_tokens=1, allowed_token_ids=request.get("allowed"), extra_args=name)
        for request, name in zip(job["requests"], named, strict=True)
    ]
    result = {
        "completions": [list(one.outputs[0].token_ids) for one in ask(greedy)],
        "labels": [one.outputs[0].token_ids[0] for one in ask(labels)],
        "versions": {"vllm": vllm.__version__, "torch": torch.__version__},
    }
    if job["never"]:
        free = ask(vllm.SamplingParams(temperature=0, max_tokens=job["tokens"]))
        result["unforbidden"] = [list(one.outputs[0].token_ids) for one in free]
    Path(result_file).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
