"""How many threads PyTorch gets and how they wait."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from softprompt.utils.threads import SPINS, choose_threads, read_cpu_quota


def test_threads_wait_a_short_time_unless_the_user_says_how():
    assert choose_threads({}, 8, None) == {"GOMP_SPINCOUNT": str(SPINS)}
    assert choose_threads({"GOMP_SPINCOUNT": "300000"}, 8, None) == {}
    assert choose_threads({"OMP_WAIT_POLICY": "ACTIVE"}, 8, None) == {}


@pytest.mark.parametrize(
    ("quota", "threads"), [(1.5, "2"), (0.2, "1"), (2.0, "2"), (8.0, None), (12.0, None), (None, None)]
)
def test_no_more_threads_than_the_control_group_grants_cores(quota: float | None, threads: str | None):
    assert choose_threads({"GOMP_SPINCOUNT": "0"}, 8, quota).get("OMP_NUM_THREADS") == threads


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_number_of_threads_that_the_user_chose_stays(name: str):
    assert "OMP_NUM_THREADS" not in choose_threads({name: "4"}, 8, 1.0)


def _write_groups(root: Path, quotas: dict[str, str]) -> None:
    for group, text in quotas.items():
        (root / group).mkdir(parents=True, exist_ok=True)
        (root / group / "cpu.max").write_text(text)


def test_the_tightest_of_nested_control_groups_counts(tmp_path: Path):
    membership = tmp_path / "membership"
    membership.write_text("0::/user/job\n")
    groups = tmp_path / "groups"
    _write_groups(groups, {"": "max 100000\n", "user": "150000 100000\n", "user/job": "400000 100000\n"})
    assert read_cpu_quota(groups, membership) == 1.5


def test_in_a_container_the_root_is_its_own_group(tmp_path: Path):
    membership = tmp_path / "membership"
    membership.write_text("0::/\n")
    groups = tmp_path / "groups"
    _write_groups(groups, {"": "50000 100000\n"})
    assert read_cpu_quota(groups, membership) == 0.5


@pytest.mark.parametrize("text", ["max 100000", "", "nonsense", "100 0", "\u00e4 1"])
def test_what_bounds_nothing_or_cannot_be_read_is_no_bound(tmp_path: Path, text: str):
    membership = tmp_path / "membership"
    membership.write_text("12:cpu:/old\n0::/\n")
    _write_groups(tmp_path / "groups", {"": ""})
    (tmp_path / "groups" / "cpu.max").write_text(text)
    assert read_cpu_quota(tmp_path / "groups", membership) is None
    assert read_cpu_quota(tmp_path / "missing", tmp_path / "none") is None


def test_the_command_line_chooses_before_pytorch_is_loaded():
    script = (
        "import json, os, sys\n"
        "from softprompt.cli import main\n"
        "assert 'torch' not in sys.modules\n"
        "told = lambda **options: print(json.dumps([os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules]))\n"
        "main.cli.main = told\n"
        "main.main()\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    shown = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout) == [str(SPINS), False]
