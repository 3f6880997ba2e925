"""What the training loops compute under each setting stays what it was before the rooms, as in test_same_numbers.py.

The recording was made by the code of before the rooms. Where the processor's own arithmetic is another than that of the
recording, which a probe that uses nothing of ours tells, the tests are skipped.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.recording import ENVIRONMENT

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "helpers" / "recording_loops.py"
RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("recorded_loops.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Probe and cases, computed now in a process of its own."""
    out = tmp_path_factory.mktemp("recording") / "now.json"
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, str(SCRIPT), str(out)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    if found["probe"] != RECORDED["probe"]:
        pytest.skip(f"another arithmetic here: probe {found['probe']}, recorded {RECORDED['probe']}")
    return found


@pytest.mark.parametrize("case", sorted(RECORDED["cases"]))
def test_a_loop_computes_what_was_recorded(computed: dict[str, Any], case: str) -> None:
    now, then = computed["cases"].get(case), RECORDED["cases"][case]
    assert now == then, f"'{case}' learns other numbers than before the rooms: compare 'seen' and 'metrics'"


def test_every_loop_is_recorded(computed: dict[str, Any]) -> None:
    assert sorted(computed["cases"]) == sorted(RECORDED["cases"])
