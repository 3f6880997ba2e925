"""Where a model runs and how precisely: what the user asks for, or what this machine is good at."""

from pathlib import Path

import torch

from softprompt.errors import BaseModelError


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it faster than float32 (measured: 4x on AVX512-BF16), else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and _cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"}:
        return torch.bfloat16
    return torch.float32


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split(":", 1)[1].split()}


def choose_device(name: str | None) -> torch.device:
    """The device of this name; a GPU where there is one, if none is named.

    Raises:
        BaseModelError: it cannot be used here.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BaseModelError(
            f"device '{name}' cannot be used here: {str(error).splitlines()[0]}; 'cpu' works everywhere"
        ) from error
    return device


def parse_dtype(name: str | torch.dtype) -> torch.dtype:
    """The dtype of this name.

    Raises:
        BaseModelError: a model cannot be loaded in it.
    """
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if isinstance(name, torch.dtype):
        return name
    if name not in dtypes:
        raise BaseModelError(f"unknown dtype '{name}': expected one of {', '.join(dtypes)}")
    return dtypes[name]
