"""How near ``softprompt plan`` comes to the memory that training steps really take, on the CPU.

Each measurement runs in a process of its own: the model is loaded, memory that was freed is given back, and then the
peak of resident memory over a few steps is read (softprompt/measure.py). ``step`` is what a step takes beside the
model: the plan's parts behind the weights. ``all`` is the whole process. A plan is of memory in use, so glibc is told
to give back at once what is freed (``MALLOC_MMAP_THRESHOLD_``). As it comes (``--as-it-comes``) it keeps pieces for
later, which raises the peak.

    own             our layers, as a CPU runs them
    transformers    transformers' layers under autograd, as a GPU or --sharding fsdp runs them
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from train_vs_peft import machine, say

from softprompt.models.builtin_models import MODEL_NAME, embedded_model_folder

STEPS = 2
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
ASKED = 8  # positions of each text whose next token is learned, where a completion is

# sizes of models that are made for this, with random weights
LLAMAS: dict[str, dict[str, int]] = {
    "llama-200m": {"hidden": 768, "wide": 2048, "layers": 24, "heads": 12, "kv_heads": 4, "vocabulary": 32000},
    "llama-350m": {"hidden": 1536, "wide": 4096, "layers": 10, "heads": 12, "kv_heads": 3, "vocabulary": 32000},
    "llama-tiny": {"hidden": 32, "wide": 64, "layers": 2, "heads": 2, "kv_heads": 1, "vocabulary": 320},
}


@dataclass(frozen=True)
class Case:
    """One measurement."""

    model: str
    dtype: str
    length: int
    text: int
    batch: int
    checkpointing: bool = False
    generation: bool = False
    own: bool = True


def cases() -> list[Case]:
    """Each model with one setting changed at a time."""
    found = []
    for model, dtype in ((MODEL_NAME, "bfloat16"), ("llama-200m", "float32"), ("llama-350m", "bfloat16")):
        first = Case(model, dtype, 100, 64, 16)
        found += [first, replace(first, length=20), replace(first, text=192, batch=8), replace(first, generation=True)]
        checkpointed = replace(first, batch=32, text=128, checkpointing=True)
        found += [checkpointed, replace(first, own=False), replace(checkpointed, own=False)]
    found.append(Case(MODEL_NAME, "float32", 100, 64, 16))
    return found


def measure(case: Case) -> dict[str, int]:
    """Bytes in this process: before a model is loaded, before the steps, and at the peak of the steps."""
    import torch

    from softprompt.data.encoding.batching import batch_by_token_budget, collate
    from softprompt.data.encoding.encoder import EncodedSequence
    from softprompt.inference.benchmark import PeakMemory
    from softprompt.inference.scoring import EVALUATION_TOKENS, AnswerScorer
    from softprompt.prompts.inline_prefix import make_learning_prefix
    from softprompt.prompts.methods.prompt_tuning import PromptTuning
    from softprompt.training.gradient_checkpointing import checkpoint_gradients

    process = resident()
    base = loaded(case)
    torch.manual_seed(0)
    known = min(base.vocabulary_size, 300)
    asked = ASKED if case.generation else 1
    items = [
        EncodedSequence(
            i,
            tuple(torch.randint(2, known, (case.text,)).tolist()),
            tuple(range(case.text - asked, case.text)),
            (1,) * asked,
        )
        for i in range(case.batch)
    ]
    method = PromptTuning(base.embed(torch.arange(2, 2 + case.length) % known).float(), base.embedding_std)
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.1)
    objective, rows = AnswerScorer(base, None), torch.arange(2, 4)

    # as train.py cuts a step on a CPU; the formulas of transformers' layers are asked about a whole batch
    budget = EVALUATION_TOKENS if case.own else case.batch * case.text

    def step(some: Sequence[EncodedSequence]) -> None:
        for chunk in batch_by_token_budget(some, budget):
            with checkpoint_gradients(base, case.checkpointing):
                prefix = make_learning_prefix(base, method.state())
                batch = collate(chunk, base.device)
                if case.generation:
                    loss = objective.losses(prefix, batch).mean()
                else:
                    loss = -base.logits(prefix.scored(batch), rows).log_softmax(-1)[:, 0].mean()
                loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step([replace(items[0], ids=items[0].ids[:ASKED], positions=(0,), targets=(1,))])  # what is set up once
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident()
    with PeakMemory(base.device) as peak:
        for _ in range(STEPS):
            step(items)
    return {"process": process, "before": before, "peak": peak.bytes or 0}


def loaded(case: Case) -> Any:
    """The model of a case; one that is made has random weights, and a tokenizer of a few tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    from softprompt.analysis.diagnostics.tiny_models import make_family_tokenizer
    from softprompt.models.devices import parse_dtype
    from softprompt.models.frozen_lm import FrozenLM
    from softprompt.models.loading import load_model

    if case.model in LLAMAS:
        torch.set_default_dtype(parse_dtype(case.dtype))
        model: Any = LlamaForCausalLM(llama(case.model))
        torch.set_default_dtype(torch.float32)
        return FrozenLM(model, make_family_tokenizer("llama"), case.model, lasting=case.own)
    if case.own:
        return load_model(case.model, device="cpu", dtype=case.dtype)
    folder = embedded_model_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=parse_dtype(case.dtype))
    return FrozenLM(model, AutoTokenizer.from_pretrained(folder), case.model, lasting=False)


def llama(name: str) -> Any:
    from transformers import LlamaConfig

    sizes = LLAMAS[name]
    return LlamaConfig(
        vocab_size=sizes["vocabulary"],
        hidden_size=sizes["hidden"],
        intermediate_size=sizes["wide"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv_heads"],
        max_position_embeddings=2048,
    )


def resident() -> int:
    """Bytes of this process that are in memory."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))


def predicted(case: Case) -> dict[str, int]:
    """What the plan says of a case: of the steps, and of all."""
    import tempfile

    from softprompt.analysis.diagnostics.activation_memory import activations
    from softprompt.analysis.diagnostics.memory_estimate import Workload
    from softprompt.analysis.diagnostics.memory_plan import plan_memory
    from softprompt.analysis.diagnostics.meta_model import make_meta_model
    from softprompt.models.devices import parse_dtype

    with tempfile.TemporaryDirectory() as folder:
        if case.model in LLAMAS:
            llama(case.model).save_pretrained(folder)
        made = make_meta_model(folder if case.model in LLAMAS else case.model, parse_dtype(case.dtype))
    workload = Workload(
        gpus=0,
        memory=10**12,
        length=case.length,
        text_length=case.text,
        batch_size=case.batch,
        checkpointing=case.checkpointing,
        generation=case.generation,
    )
    estimate = plan_memory(made, workload).training
    parts = {part.name: part.bytes for part in estimate.parts}
    if not case.own:
        kept = activations(
            made,
            case.length + 1,
            case.text,
            own_layers=False,
            checkpointing=case.checkpointing,
            generation=case.generation,
        )
        parts |= {"activations kept": kept.kept(case.batch), "at work": kept.at_work(case.batch)}
    step = sum(size for name, size in parts.items() if name not in ("Python, libraries, tokenizer", "weights"))
    return {"step": step, "all": sum(parts.values()), **{f"part: {name}": size for name, size in parts.items()}}


def in_process(case: Case, environment: dict[str, str]) -> dict[str, int]:
    """``measure`` in a process of its own."""
    command = [sys.executable, __file__, "--one", json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    if done.returncode:
        raise SystemExit(f"failed: {case}: {done.stderr[-2000:]}")
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def benchmark(chosen: Sequence[Case], *, as_it_comes: bool) -> dict[str, Any]:
    described, rows = machine(), []
    for case in chosen:
        found = in_process(case, {} if as_it_comes else GIVEN_BACK)
        plan = predicted(case)
        step = found["peak"] - found["before"]
        rows.append(
            {**asdict(case), **found, "step": step, "predicted": plan, "step_ratio": plan["step"] / step}
            | {"all_ratio": plan["all"] / found["peak"]}
        )
        say(f"{case}: step {step / 1e6:.0f} MB, predicted {plan['step'] / 1e6:.0f}")
    return {"benchmark": "plan_check", "machine": described, "cases": rows}


def text_report(report: dict[str, Any]) -> str:
    """A table in Markdown, sizes in MB."""
    told = [
        "| model | dtype | layers | P | T | batch | | step, planned | measured | | all, planned | measured | |",
        "|---|---|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in report["cases"]:
        plan = row["predicted"]
        how = " ".join(["checkpointed"] * row["checkpointing"] + ["generation"] * row["generation"])
        told.append(
            f"| {row['model']} | {row['dtype']} | {'own' if row['own'] else 'transformers'} | {row['length']} "
            f"| {row['text']} | {row['batch']} | {how} | {plan['step'] / 1e6:,.0f} | {row['step'] / 1e6:,.0f} "
            f"| {row['step_ratio'] - 1:+.0%} | {plan['all'] / 1e6:,.0f} | {row['peak'] / 1e6:,.0f} "
            f"| {row['all_ratio'] - 1:+.0%} |"
        )
    return "\n".join(told)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made.add_argument("--only", help="model whose cases are measured (default: all)")
    made.add_argument("--as-it-comes", action="store_true", help="let glibc keep what is freed, as it does by itself")
    made.add_argument("--one", help=argparse.SUPPRESS)
    options = made.parse_args(arguments)
    if options.one:
        print(json.dumps(measure(Case(**json.loads(options.one)))))
        return 0
    chosen = [case for case in cases() if options.only in (None, case.model)]
    report = benchmark(chosen, as_it_comes=options.as_it_comes)
    print(json.dumps(report, indent=2) if options.json else text_report(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
