"""schemathesis, which nobody here wrote, against the OpenAPI page of a running server: it finds nothing."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.tiny_server import Place, a_store

from softprompt.serving.http.api_keys import add_key

HOOKS = Path(__file__).parents[1] / "helpers" / "schema_hooks.py"
EXAMPLES = 20  # of each operation


@pytest.mark.slow
@pytest.mark.parametrize("with_keys", [False, True], ids=["open", "keys"])
def test_schemathesis_finds_nothing(tmp_path: Path, with_keys: bool) -> None:
    settings: dict[str, Any] = {}
    headers = {}
    if with_keys:
        headers = {"Authorization": f"Bearer {add_key(tmp_path / 'keys.json', 'boss', admin=True)}"}
        # limits that are there and not reached
        settings = {"keys": str(tmp_path / "keys.json"), "requests_per_minute": 10**6, "tokens_per_minute": 10**9}
    place = Place.of_store(a_store(tmp_path), **settings)
    with place.running() as address:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", "--checks", "all"]
        options = ["--seed", "1", "--max-examples", str(EXAMPLES), "--no-color", "--generation-database", ":memory:"]
        given = [part for name, value in headers.items() for part in ("--header", f"{name}: {value}")]
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS)}
        done = subprocess.run(
            [*command, *options, *given], env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=600
        )
        metrics = httpx.get(f"{address}/metrics", headers=headers).text
    assert done.returncode == 0, done.stdout
    assert "9 selected / 9 total" in done.stdout
    # prompts were really asked
    for route, task in (("completions", "words"), ("chat/completions", "words"), ("classify", "tone")):
        assert f'softprompt_requests_total{{route="/v1/{route}",status="200",task="{task}"}}' in metrics
