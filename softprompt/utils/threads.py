"""How many threads PyTorch gets and how they wait, chosen before it is loaded: it reads its environment only then."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

# turns of GNU OpenMP's waiting loop before a thread sleeps. Its own 300,000 keep a core for milliseconds, which beside
# other work are taken from the thread that is waited for; with so few it is as fast alone (bench/shared_machine.py)
SPINS = 10_000

_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_CGROUPS = Path("/sys/fs/cgroup")


def prepare_threads() -> None:
    """Set in this process's environment what ``choose_threads`` gives; without effect once PyTorch is loaded."""
    os.environ.update(choose_threads(os.environ, _count_allowed_cores(), read_cpu_quota()))


def choose_threads(environment: Mapping[str, str], cores: int, quota: float | None) -> dict[str, str]:
    """Variables to set; never one that the user has set, nor one that says the same in other words.

    Args:
        cores: that this process may run on.
        quota: cores' worth of time that its control group grants it, if that is bounded.
    """
    chosen = {}
    if not any(name in environment for name in _WAITING):
        chosen["GOMP_SPINCOUNT"] = str(SPINS)
    if quota is not None and quota < cores and not any(name in environment for name in _COUNTS):
        chosen["OMP_NUM_THREADS"] = str(max(1, math.ceil(quota)))
    return chosen


def _count_allowed_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_cpu_quota(root: Path = _CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """Cores' worth of time that this process's control groups (version 2) grant it; ``None`` where none is bounded."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    folder = root / own
    groups = [folder, *folder.parents]
    # in a container the root of the tree is its own group, whatever its name outside
    quotas = [_read_quota(group / "cpu.max") for group in groups[: groups.index(root) + 1]] if root in groups else []
    return min((quota for quota in quotas if quota is not None), default=None)


def _read_quota(path: Path) -> float | None:
    try:
        granted, period = path.read_text(encoding="ascii").split()
        return None if granted == "max" else int(granted) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
