"""Runs in vLLM's environment, ``python vllm_rounds.py JOB RESULT``: the rounds of one way of vllm_prompts.py."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main(job_file: str, result_file: str) -> None:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    import vllm
    from vllm.config import KVTransferConfig

    job = json.loads(Path(job_file).read_text())
    more: dict[str, Any] = {"enable_prefix_caching": not job.get("uncached", False), "block_size": 32}
    named = None
    if "prompts" in job:
        more["kv_transfer_config"] = KVTransferConfig(
            kv_connector="SoftpromptConnector",
            kv_role="kv_consumer",
            kv_connector_module_path="softprompt.engines.vllm_connector",
            kv_connector_extra_config={"prompts": job["prompts"]},
        )
        named = {"kv_transfer_params": {"softprompt": job["key"]}}
    model = vllm.LLM(model=job["model"], dtype="float32", enforce_eager=True, max_model_len=512, **more)
    prompts = [{"prompt_token_ids": request["ids"]} for request in job["requests"]]
    kinds = {
        "labels": vllm.SamplingParams(temperature=0, max_tokens=1, allowed_token_ids=job["labels"], extra_args=named),
        "completions": vllm.SamplingParams(temperature=0, max_tokens=job["tokens"], ignore_eos=True, extra_args=named),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    answers: list[list[int]] = []
    size = len(prompts) // (job["rounds"] + 1)
    for turn in range(job["rounds"] + 1):
        # completions of other texts than labels, so that neither finds what the other has read
        parts = (prompts[turn * size : turn * size + size // 2], prompts[turn * size + size // 2 : (turn + 1) * size])
        for (kind, asked), part in zip(kinds.items(), parts, strict=True):
            began = time.perf_counter()
            found = model.generate(part, asked, use_tqdm=False)
            if turn:
                seconds[kind].append(time.perf_counter() - began)
        answers += [list(one.outputs[0].token_ids) for one in found]
    Path(result_file).write_text(json.dumps({"seconds": seconds, "answers": answers, "vllm": vllm.__version__}))


if __name__ == "__main__":
    main(*sys.argv[1:])
