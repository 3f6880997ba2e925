"""What the program computes stays what it was: digests of saved tensors, recorded before the rooms were made.

Where the processor's own arithmetic is another than that of the recording, which a probe that uses nothing of ours
tells, the tests are skipped.
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
SCRIPT = ROOT / "tests" / "helpers" / "recording.py"
RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("recorded_numbers.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Probe and cases, computed now in a process of its own."""
    out = tmp_path_factory.mktemp("recording") / "now.json"
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, str(SCRIPT), str(out)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    if found["probe"] != RECORDED["probe"]:
        pytest.skip("this processor's arithmetic is another than that of the recording")
    return found


@pytest.mark.parametrize("case", sorted(RECORDED["cases"]))
def test_computes_what_was_recorded(computed: dict[str, Any], case: str) -> None:
    assert computed["cases"][case] == RECORDED["cases"][case]


def test_every_case_is_recorded(computed: dict[str, Any]) -> None:
    assert sorted(computed["cases"]) == sorted(RECORDED["cases"])
