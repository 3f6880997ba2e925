"""Time, memory, calibration and perplexity, against what is known of the case or computed by hand."""

import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_models import plain_logits, tiny_base

from softprompt.data.examples import Example
from softprompt.experiments.comparison.study_records import Cost
from softprompt.inference import benchmark
from softprompt.inference.benchmark import collect_metrics, folder_bytes, measure_speed, perplexity
from softprompt.inference.evaluation import Evaluation
from softprompt.inference.neutral_text import PASSAGES
from softprompt.inference.predictions import Prediction
from softprompt.metrics.calibration import calibration_error, expected_calibration_error
from softprompt.metrics.scores import Score, Speed


class TestPerplexity:
    @pytest.mark.parametrize("family", ["llama", "gpt2", "mamba", "gemma3"])
    def test_is_that_of_the_models_own_logits(self, family: str) -> None:
        base = tiny_base(family)
        passages = ["the film is great", "a dull and poor one"]
        losses = []
        for passage in passages:
            ids = base.tokenizer(passage, add_special_tokens=False).input_ids
            with torch.no_grad():
                log_probabilities = plain_logits(base, None, ids).log_softmax(-1)
            losses += [-float(log_probabilities[place - 1, ids[place]]) for place in range(1, len(ids))]
        found = perplexity(base, passages)
        assert found is not None
        assert found == (pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4), len(losses))

    def test_cuts_passages_to_the_context(self) -> None:
        base = tiny_base("llama")
        assert base.context_length is not None
        found = perplexity(base, [PASSAGES[0]])
        assert found is not None
        assert found[1] == base.context_length - len(base.bos_ids) - 1

    def test_is_not_measured_of_an_encoder_decoder_model(self) -> None:
        assert perplexity(tiny_base("t5")) is None


class TestCalibrationError:
    def test_by_hand(self) -> None:
        # two bins: (0, 0.5] holds 0.3 (right) and 0.5 (wrong), (0.5, 1] holds 0.9 and 0.7 (right, wrong)
        found = calibration_error([0.3, 0.5, 0.9, 0.7], [True, False, True, False], bins=2)
        assert found.value == pytest.approx((abs(0.7 - 0.5) + abs(0.1 - 0.7)) / 4)
        assert (found.metric, found.n) == ("calibration_error", 4)

    def test_fifteen_bins_by_hand(self) -> None:
        # in the last bin, (14/15, 1]: accuracy 3/4, confidence 0.97
        found = calibration_error([0.97] * 4, [True, True, True, False])
        assert found.value == pytest.approx(0.97 - 0.75)
        assert found.value == expected_calibration_error([0.97] * 4, [True, True, True, False])

    def test_interval_holds_a_known_error(self) -> None:
        confidences, correct = [0.9] * 400, [True] * 280 + [False] * 120
        found = calibration_error(confidences, correct)
        assert found.value == pytest.approx(0.2)
        # one bin: the error is 0.9 minus a mean of 400 outcomes
        width = 1.96 * math.sqrt(0.7 * 0.3 / 400)
        assert (found.low, found.high) == pytest.approx((0.2 - width, 0.2 + width), abs=0.01)

    def test_is_among_the_further_figures_of_classification_alone(self) -> None:
        metric = Score(metric="accuracy", value=0.5, low=0, high=1, n=2)
        labelled = [Prediction(0, "a", {"a": 0.9, "b": 0.1}), Prediction(1, "a", {"a": 0.6, "b": 0.4})]
        found = collect_metrics(Evaluation(metric, (), tuple(labelled), ("a", "b"), 0))
        assert found["calibration_error"].value == pytest.approx((0.1 + 0.6) / 2)
        completed = (Prediction(0, completion="x"),)
        assert collect_metrics(Evaluation(metric, (metric,), completed, (("x",),), 0)).keys() == {"accuracy"}


class Sleeping:
    """Answers after a while."""

    def __init__(self, name: str, seconds: float, log: list[tuple[str, int]]) -> None:
        self.name, self.seconds, self.log = name, seconds, log

    def iterate_predictions(self, examples: Sequence[Example]) -> Iterator[Any]:
        self.log.append((self.name, len(examples)))
        time.sleep(self.seconds * len(examples))
        yield from examples


class TestSpeed:
    examples = tuple(Example(str(number)) for number in range(3))

    def test_of_what_takes_a_known_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(benchmark, "REQUESTS", 6)
        monkeypatch.setattr(benchmark, "BATCHES", 2)
        log: list[tuple[str, int]] = []
        speed = measure_speed(Sleeping("own", 0.02, log), Sleeping("bare", 0.005, log), self.examples, 4.0)
        assert 20 <= speed.p50_ms <= speed.p95_ms < 200
        assert 5 <= (speed.reference_ms or 0) < speed.p50_ms
        assert 10 < speed.examples_per_second <= 50
        assert (speed.requests, speed.batch_size, speed.added_tokens) == (6, benchmark.BATCH_SIZE, 4.0)
        # one of each to warm up, then by turns
        assert log[:14] == [("own", 1), ("bare", 1)] * 7
        assert log[14:] == [("own", benchmark.BATCH_SIZE)] * 2

    def test_ends_when_it_takes_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(benchmark, "SECONDS", 0.0)
        speed = measure_speed(Sleeping("own", 0, []), Sleeping("bare", 0, []), self.examples, 0.0)
        assert speed.requests == benchmark.FEWEST_REQUESTS

    def test_price_of_a_million_requests(self) -> None:
        speed = Speed(p50_ms=1, p95_ms=1, requests=1, batch_size=1, examples_per_second=100, added_tokens=0)
        # 10,000 seconds at 0.36 an hour
        assert speed.cost_per_million(0.36) == pytest.approx(1.0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux starts to measure anew")
def test_peak_memory_is_that_of_the_block() -> None:
    # in a process of its own: another one may have that much at hand, freed and not given back
    code = """
import torch
from softprompt.inference.benchmark import PeakMemory

with PeakMemory(torch.device("cpu")) as first:
    block = bytearray(200_000_000)
    del block
with PeakMemory(torch.device("cpu")) as second:
    pass
print(first.bytes - second.bytes)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150_000_000


@pytest.mark.parametrize(("shared", "expected"), [(True, [1010, 1100, 2000, 11000]), (False, [10, 100, 1000, 10000])])
def test_memory_for_many_tasks(shared: bool, expected: list[int]) -> None:
    cost = Cost(
        trained_parameters=1,
        stored_bytes=1,
        base_shared=shared,
        base_bytes=1000 if shared else 0,
        task_bytes=10,
        training_seconds=1,
    )
    assert [cost.memory_for(tasks) for tasks in (1, 10, 100, 1000)] == expected


def test_bytes_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"12345")
    (tmp_path / "c").write_bytes(b"12")
    assert folder_bytes(tmp_path) == 7
