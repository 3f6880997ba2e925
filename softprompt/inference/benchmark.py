"""What a comparison measures beside quality: time, memory, bytes, calibration, forgetting."""

import math
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import nn

from softprompt.data.examples import Example
from softprompt.data.split_assignment import sample_examples
from softprompt.inference.evaluation import Evaluation
from softprompt.inference.neutral_text import PASSAGES
from softprompt.metrics.calibration import calibration_error
from softprompt.metrics.scores import Score, Speed
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import make_prefix

REQUESTS = 50  # single requests that are timed, at most
FEWEST_REQUESTS = 5
BATCH_SIZE = 32  # examples given at once when throughput is measured
BATCHES = 8  # at most
SECONDS = 20.0  # after which no more requests are timed, nor batches
PASSAGE_TOKENS = 256  # of neutral text in one context, at most
POSITIONS_AT_ONCE = 64  # whose logits over the whole vocabulary are in memory together
CALIBRATION_BINS = 15


class PredictorLike(Protocol):
    """What is timed: anything that predicts."""

    def iterate_predictions(self, examples: Sequence[Example]) -> Any: ...


def measure_speed(
    answers: PredictorLike, reference: PredictorLike, examples: Sequence[Example], added_tokens: float
) -> Speed:
    """Latency of single requests and throughput of batches; also the median latency of ``reference``.

    Requests to the two alternate on the same texts, drawn from ``examples``: what slows the machine down for a while
    slows both, and the reference tells how far figures that were measured at different times can be compared.
    """
    examples = draw_timed_examples(examples)
    for one in (answers, reference):
        _time_answers(one, examples[:1])
    own: list[float] = []
    others: list[float] = []
    began = time.perf_counter()
    for number in range(REQUESTS):
        if number >= FEWEST_REQUESTS and time.perf_counter() - began > SECONDS:
            break
        example = examples[number % len(examples)]
        own.append(_time_answers(answers, [example]))
        others.append(_time_answers(reference, [example]))
    answered, spent = 0, 0.0
    for number in range(BATCHES):
        if number and spent > SECONDS:
            break
        batch = [examples[(number * BATCH_SIZE + index) % len(examples)] for index in range(BATCH_SIZE)]
        spent += _time_answers(answers, batch)
        answered += len(batch)
    p50, p95 = (1000 * float(value) for value in np.quantile(own, (0.5, 0.95)))
    return Speed(
        p50_ms=p50,
        p95_ms=p95,
        requests=len(own),
        batch_size=BATCH_SIZE,
        examples_per_second=answered / spent,
        added_tokens=added_tokens,
        reference_ms=1000 * float(np.median(others)),
    )


def draw_timed_examples(examples: Sequence[Example]) -> list[Example]:
    """Examples to time requests and batches with, in random order: files are sorted, by length too."""
    some = list(sample_examples(examples, max(REQUESTS, BATCHES * BATCH_SIZE)))
    random.Random(0).shuffle(some)
    return some


def _time_answers(answers: PredictorLike, examples: Sequence[Example]) -> float:
    began = time.perf_counter()
    for _ in answers.iterate_predictions(examples):
        pass
    return time.perf_counter() - began


class PeakMemory:
    """The largest memory in use within a ``with`` block.

    On CUDA the allocations on ``device``; on the CPU the resident size of the process, which only Linux can start to
    measure anew: elsewhere ``bytes`` is ``None``.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.bytes: int | None = None

    def __enter__(self) -> Self:
        self._measuring = True
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            try:
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:
                self._measuring = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self._device)
        elif self._measuring and self._device.type == "cpu":
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            self.bytes = 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


@torch.no_grad()
def perplexity(base: FrozenLM, passages: Sequence[str] | None = None) -> tuple[float, int] | None:
    """Perplexity per token of neutral text, and over how many tokens; ``None`` for an encoder-decoder model.

    ``passages``: other text than the one that comes with softprompt.

    Each passage stands behind BOS, cut to ``PASSAGE_TOKENS`` or to the model's context; its first token is not scored,
    because some models have nothing in front of it.
    """
    if base.architecture == "encoder-decoder":
        return None
    room = PASSAGE_TOKENS
    if base.context_length is not None:
        room = min(room, base.context_length - len(base.bos_ids))
    prefix: Any = make_prefix(base, None)
    total, count = 0.0, 0
    for passage in PASSAGES if passages is None else passages:
        tokens = base.tokenizer(passage, add_special_tokens=False).input_ids[:room]
        ids = torch.tensor([tokens], device=base.device)
        hidden = prefix.hidden(ids, torch.ones_like(ids))[0, :-1]
        for states, targets in zip(hidden.split(POSITIONS_AT_ONCE), ids[0, 1:].split(POSITIONS_AT_ONCE), strict=True):
            total += float(nn.functional.cross_entropy(base.logits(states), targets, reduction="sum"))
        count += len(tokens) - 1
    # of a model that learning has ruined there may be none that is a number
    return (math.exp(total / count), count) if total / count < 700 else None


def folder_bytes(folder: Path) -> int:
    """Of all files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def confidences(evaluation: Evaluation) -> tuple[float, ...]:
    """Probability of each predicted label; empty for generation."""
    return tuple(max(one.probabilities.values()) for one in evaluation.predictions if one.probabilities)


def collect_metrics(evaluation: Evaluation) -> dict[str, Score]:
    """The further metrics by name, the calibration error of classification among them."""
    metrics = list(evaluation.others)
    if probabilities := confidences(evaluation):
        correct = [one.label == gold for one, gold in zip(evaluation.predictions, evaluation.gold, strict=True)]
        metrics.append(calibration_error(probabilities, correct, CALIBRATION_BINS))
    return {metric.metric: metric for metric in metrics}


def describe_machine() -> str:
    """The processor, how many cores this process may use, and how many threads it computes with."""
    import platform

    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, {torch.get_num_threads()} threads, {platform.system()}"
