"""Command lines that a plan suggests: options that the verbs have, with the numbers of the plan."""

from softprompt.analysis.diagnostics.memory_estimate import Workload
from softprompt.analysis.diagnostics.meta_model import MetaModel


def training_command(meta: MetaModel, workload: Workload, at_once: int | None) -> tuple[str, ...]:
    """What trains a prompt as planned; where no text fits, the model over all devices of one process."""
    name = meta.name
    options = [f"--model {name}", "--data DATA", f"--length {workload.length}", f"--batch-size {workload.batch_size}"]
    options += [] if workload.method == "prompt-tuning" else [f"--method {workload.method}"]
    options += ["--dtype " + (workload.dtype or str(meta.dtype).removeprefix("torch."))]
    options += [] if workload.quantize is None else [f"--quantize {workload.quantize}"]
    out = "--out prompts/NAME"
    checkpointing = ["--gradient-checkpointing"] if workload.checkpointing else []
    if at_once is None:
        # what does not fit waits in memory or on disk
        spread = ["--device-map auto", "--gradient-checkpointing"] if workload.gpus else []
        return (" ".join(["softprompt train", *options, *spread, out]),) if spread else ()
    if at_once < -(-workload.batch_size // max(1, workload.gpus)):
        checkpointing += [f"--micro-batch-size {at_once}"]
    if workload.gpus > 1:
        sharding = ["--sharding fsdp"] if workload.sharding == "fsdp" else []
        start = f"torchrun --nproc-per-node {workload.gpus} -m softprompt train"
        return (" ".join([start, *options, *sharding, *checkpointing, out]),)
    device = [] if workload.gpus else ["--device cpu"]
    return (" ".join(["softprompt train", *options, *device, *checkpointing, out]),)


def serving_commands(meta: MetaModel, workload: Workload, *, prefix_bytes: int | None) -> tuple[str, ...]:
    """What serves a store: our engine with ``prefix_bytes`` for prefixes, or vLLM with baked prompts where ``None``."""
    store = "prompts/store"
    if prefix_bytes is not None:
        options = [f"--model {meta.name}", f"--store {store}"]
        options += ["--dtype " + (workload.dtype or str(meta.dtype).removeprefix("torch."))]
        options += [] if workload.quantize is None else [f"--quantize {workload.quantize}"]
        options += [] if workload.gpus else ["--device cpu"]
        return (" ".join([f"SOFTPROMPT_ENGINE=prefix_bytes={prefix_bytes} softprompt serve", *options]),)
    parallel = f" --tensor-parallel-size {workload.gpus}" if workload.gpus > 1 else ""
    return (
        f"softprompt export {store}#NAME@prod {store}#OTHER@prod --model {meta.name} --device cpu --format vocab "
        "--out served",
        f"vllm serve served --port 8100{parallel}",
        f"softprompt serve --engine vllm --engine-url http://localhost:8100 --model served --store {store}",
    )
