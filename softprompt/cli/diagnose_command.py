"""What fits: ``doctor`` tries a model's architecture, ``plan`` estimates the memory of a run."""

import os
import re
from typing import Any

from softprompt.analysis.diagnostics.doctor import diagnose, diagnose_families
from softprompt.analysis.diagnostics.memory_estimate import Workload
from softprompt.analysis.diagnostics.memory_plan import plan_memory
from softprompt.analysis.diagnostics.meta_model import make_meta_model
from softprompt.cli.base_loading import load_base
from softprompt.cli.console import say
from softprompt.cli.printing import print_result
from softprompt.errors import ConfigError
from softprompt.models.devices import parse_dtype
from softprompt.models.loading import silence_transformers
from softprompt.report.pages.diagnosis_page import make_diagnosis_document, make_families_document, make_plan_document
from softprompt.report.render.markdown import render_markdown

_UNITS = {"": 10**9, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
LEAST_MEMORY, MOST_MEMORY = 10**8, 10**15  # bytes; what is beyond is a slip


def run_plan(
    model_name: str,
    gpus: int,
    gpu_memory: str | None,
    gradient_checkpointing: bool | None,
    trust_remote_code: bool,
    as_json: bool,
    **options: Any,
) -> None:
    if gpu_memory is not None:
        memory = parse_bytes(gpu_memory)
    else:
        memory = 80 * 10**9 if gpus else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    given = {name: value for name, value in options.items() if value is not None}
    workload = Workload(gpus=gpus, memory=memory, checkpointing=bool(gradient_checkpointing), **given)
    workload.check()
    made = plan_memory(
        make_meta_model(model_name, parse_dtype(workload.dtype or "bfloat16"), trust_remote_code=trust_remote_code),
        workload,
    )
    print_result(made.to_dict(), make_plan_document(made), as_json)


def run_doctor(model_name: str | None, families: bool, as_json: bool, **model: Any) -> None:
    if families == (model_name is not None):
        got = "both" if families else "neither"
        raise ConfigError(f"expected --model NAME or --families; got {got}: give one of them")
    device = model["device"] or "cpu"
    if families and any(value for name, value in model.items() if name != "device"):
        raise ConfigError("--dtype, --quantize and --trust-remote-code are for --model: leave them out with --families")

    if model_name is None:
        silence_transformers()
        rows = diagnose_families(say, device)
        lines = render_markdown(make_families_document(rows)).splitlines()
        print_result({"families": [row.to_dict() for row in rows]}, lines, as_json)
        return
    base = load_base(model_name, model)
    say("measuring")
    diagnosis = diagnose(base)
    print_result(diagnosis.to_dict(), make_diagnosis_document(diagnosis), as_json)


def parse_bytes(text: str) -> int:
    """Bytes of a size as ``80GB`` or ``24GiB``, or ``80``, which are GB; raises ConfigError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if (
        found is None
        or found[2].upper() not in _UNITS
        or (size := round(float(found[1]) * _UNITS[found[2].upper()])) < 1
    ):
        raise ConfigError(f"--gpu-memory '{text}': expected a size, as in 80GB or 24GiB")
    if not LEAST_MEMORY <= size <= MOST_MEMORY:
        raise ConfigError(
            f"--gpu-memory '{text}' is {size / 1e9:.3g} GB: expected 0.1 GB to a petabyte, with its unit, as in 80GB"
        )
    return size
