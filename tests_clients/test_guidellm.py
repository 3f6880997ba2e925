"""guidellm: a short benchmark, of which every request is answered."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Server


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/completions"])
def test_a_short_benchmark(server: Server, endpoint: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    target = server.url.removesuffix("/v1")
    backend = f"kind=openai_http,target={target},model={server.model},request_format={endpoint}"
    command = [
        *(str(Path(sys.executable).with_name("guidellm")), "run", "--backend", backend),
        *("--profile", "kind=synchronous", "--constraint", "kind=max_requests,count=3"),
        *("--tokenizer", f"kind=huggingface_auto,model={server.tokenizer}"),
        *("--data", "kind=synthetic_text,prompt_tokens=24,output_tokens=8"),
        *("--output", f"kind=json,path={report}", "--disable-console"),
    ]
    done = subprocess.run(
        command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    assert (len(benchmark["requests"]["successful"]), len(benchmark["requests"]["errored"])) == (3, 0)
