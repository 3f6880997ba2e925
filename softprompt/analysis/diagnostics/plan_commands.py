"""Command lines that a plan suggests: options that the verbs have, with the numbers of the plan."""

from softprompt.analysis.diagnostics.memory_estimate import Wish
from softprompt.analysis.diagnostics.meta_model import Skeleton


def training_command(skeleton: Skeleton, wish: Wish, at_once: int | None) -> tuple[str, ...]:
    """What trains a prompt as planned; where no text fits, the model over all devices of one process."""
    name = skeleton.name
    options = [f"--model {name}", "--data DATA", f"--length {wish.length}", f"--batch-size {wish.batch_size}"]
    options += [] if wish.method == "prompt-tuning" else [f"--method {wish.method}"]
    options += ["--dtype " + (wish.dtype or str(skeleton.dtype).removeprefix("torch."))]
    options += [] if wish.quantise is None else [f"--quantise {wish.quantise}"]
    out = "--out prompts/NAME"
    checkpointing = ["--gradient-checkpointing"] if wish.checkpointing else []
    if at_once is None:
        # what does not fit waits in memory or on disk
        spread = ["--device-map auto", "--gradient-checkpointing"] if wish.gpus else []
        return (" ".join(["softprompt train", *options, *spread, out]),) if spread else ()
    if at_once < -(-wish.batch_size // max(1, wish.gpus)):
        checkpointing += [f"--micro-batch-size {at_once}"]
    if wish.gpus > 1:
        sharding = ["--sharding fsdp"] if wish.sharding == "fsdp" else []
        start = f"torchrun --nproc-per-node {wish.gpus} -m softprompt train"
        return (" ".join([start, *options, *sharding, *checkpointing, out]),)
    device = [] if wish.gpus else ["--device cpu"]
    return (" ".join(["softprompt train", *options, *device, *checkpointing, out]),)


def serving_commands(skeleton: Skeleton, wish: Wish, *, prefix_bytes: int | None) -> tuple[str, ...]:
    """What serves a store: our engine with ``prefix_bytes`` for prefixes, or vLLM with baked prompts where ``None``."""
    store = "prompts/store"
    if prefix_bytes is not None:
        options = [f"--model {skeleton.name}", f"--store {store}"]
        options += ["--dtype " + (wish.dtype or str(skeleton.dtype).removeprefix("torch."))]
        options += [] if wish.quantise is None else [f"--quantise {wish.quantise}"]
        options += [] if wish.gpus else ["--device cpu"]
        return (" ".join([f"SOFTPROMPT_ENGINE=prefix_bytes={prefix_bytes} softprompt serve", *options]),)
    parallel = f" --tensor-parallel-size {wish.gpus}" if wish.gpus > 1 else ""
    return (
        f"softprompt export {store}#NAME@prod {store}#OTHER@prod --model {skeleton.name} --device cpu --format vocab "
        "--out served",
        f"vllm serve served --port 8100{parallel}",
        f"softprompt serve --engine vllm --engine-url http://localhost:8100 --model served --store {store}",
    )
