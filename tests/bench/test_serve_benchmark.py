"""bench/serve.py: its arithmetic, PEFT's queue, and one run with a tiny model."""

import json
import statistics
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import serve
import servers
from helpers.word_model import tiny_model, write_rows
from servers import Done, Peft, Request, Setup, Turn

BENCH = Path(__file__).resolve().parents[2] / "bench"

WAITS = {"peft-bf16": 100.0, "engine": 99.0, "http": 101.0}  # ms


def done(answers: int, seconds: float, latencies: tuple[float, ...] = (), tokens: int = 0) -> Done:
    made = Done(["x"] * answers, list(latencies or [0.1] * answers), [tokens] * answers, seconds)
    return replace(made, facts={"dtype": "float32"})


class TestArithmetic:
    def test_throughput_is_the_median_of_the_turns(self) -> None:
        one = serve.throughput([done(10, 1.0, tokens=3), done(10, 2.0, tokens=3), done(10, 10.0, tokens=3)])
        assert one["requests_per_second_of_rounds"] == [10.0, 5.0, 1.0]
        assert (one["requests_per_second"], one["tokens_per_second"], one["mean_tokens"]) == (5.0, 15.0, 3.0)

    def test_percentiles_are_of_all_turns_together(self) -> None:
        one = serve.latency([done(50, 1.0, tuple(i / 1000 for i in range(1, 51))), done(50, 1.0, (0.2,) * 50)])
        assert one["requests"] == 100
        assert 50 < one["p50_ms"] < 200
        assert one["p95_ms"] == 200

    def test_one_request_is_its_own_percentiles(self) -> None:
        one = serve.latency([done(1, 1.0, (0.25,))])
        assert one["p50_ms"] == one["p95_ms"] == 250

    def test_ratios_say_which_is_which(self) -> None:
        rates = {"engine": 90.0, "http": 40.0, "peft-float32, documented": 2.0, "peft-float32": 5.0, "peft-bf16": 20.0}
        found = serve.ratios({name: {"requests_per_second": rate} for name, rate in rates.items()})
        assert found == {
            "engine / peft-float32, documented": 45.0,
            "http / peft-float32, documented": 20.0,
            "engine / peft-float32": 18.0,
            "engine / peft-bf16": 4.5,
            "http / peft-float32": 8.0,
            "http / peft-bf16": 2.0,
        }

    def test_cost_of_prompts(self) -> None:
        turns = {"none": [done(100, 1.0)], "one": [done(96, 1.0)], "long": [done(90, 1.0)]}
        found = serve.cost(turns, "labels")
        assert found["cost"] == {"one": pytest.approx(0.04), "long": pytest.approx(0.1)}

    def test_cost_of_completions_is_of_tokens(self) -> None:
        turns = {"none": [done(9, 1.0, tokens=10)], "one": [done(9, 2.0, tokens=20)], "long": [done(9, 1.0, tokens=9)]}
        assert serve.cost(turns, "texts")["cost"] == {"one": 0.0, "long": pytest.approx(0.1)}

    def test_verdicts(self) -> None:
        part = {
            "ratios": {"engine / peft-bf16": 8.0, "http / peft-bf16": 7.9},
            "latency": {"peft-bf16": {"contestants": {name: {"p95_ms": p95} for name, p95 in WAITS.items()}}},
            "prompt_cost": {"cost": {"one": 0.05, "long": 0.06}},
        }
        assert {one["what"]: one["met"] for one in serve.verdicts("labels", part)} == {
            "labels, engine / peft-bf16": True,
            "labels, http / peft-bf16": False,
            "labels, p95 of engine at peft-bf16's load": True,
            "labels, p95 of http at peft-bf16's load": False,
            "labels, one long prompt": True,
            "labels, a long prompt for each task": False,
        }

    def test_arrivals_have_the_rate(self) -> None:
        times = serve.arrivals(4001, 20.0, seed=1)
        assert times[0] == 0
        assert all(one < other for one, other in pairwise(times))
        assert times[-1] == pytest.approx(200, rel=0.1)
        assert statistics.median(b - a for a, b in pairwise(times)) < 1 / 20  # now and then there is a long pause

    def test_requests_are_of_all_tasks(self) -> None:
        requests = serve.draw_requests(["text"] * 200, 16)
        assert {one.task for one in requests} == set(range(16))
        assert serve.draw_requests(["text"] * 200, 16) == requests


class TestTasks:
    def test_every_task_has_words_of_its_own(self) -> None:
        words = [word for pair in servers.WORDS for word in pair.split()]
        assert len(words) == len(set(words)) == 32


class Counting(Peft):
    """Takes no time, and remembers its batches."""

    def __init__(self, setup: Setup) -> None:
        self._setup, self.batches = setup, []

    def _answered(self, kind: str, task: int, texts: Any, documented: bool) -> tuple[list[str], list[int]]:
        self.batches.append((task, list(texts)))
        return [f"{task} {text}" for text in texts], [1] * len(texts)


class TestQueue:
    def peft(self, tasks: str, batch: int = 64) -> Counting:
        requests = tuple(Request(int(task), str(at)) for at, task in enumerate(tasks))
        return Counting(Setup("", "", Path(), 3, 4, 8, requests, 4, batch, None))

    def test_who_waits_longest_chooses_the_task(self) -> None:
        peft = self.peft("0110202")
        answered = peft.turn(Turn("labels", 7, outstanding=7))
        assert peft.batches == [(0, ["0", "3", "5"]), (1, ["1", "2"]), (2, ["4", "6"])]
        assert answered.answers == ["0 0", "1 1", "1 2", "0 3", "2 4", "0 5", "2 6"]

    def test_batches_are_bounded(self) -> None:
        peft = self.peft("000100", batch=2)
        peft.turn(Turn("labels", 6, outstanding=6))
        assert [texts for _, texts in peft.batches] == [["0", "1"], ["2", "4"], ["3"], ["5"]]

    def test_a_new_request_comes_for_each_answered(self) -> None:
        peft = self.peft("0110")
        peft.turn(Turn("labels", 4, outstanding=2))
        assert [texts for _, texts in peft.batches] == [["0"], ["1", "2"], ["3"]]

    def test_requests_that_come_by_themselves_wait_for_their_time(self) -> None:
        peft = self.peft("00")
        answered = peft.turn(Turn("labels", 2, arrivals=(0.0, 0.05)))
        assert [texts for _, texts in peft.batches] == [["0"], ["1"]]
        assert answered.seconds >= 0.05
        assert all(one < 0.05 for one in answered.latencies)


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--outstanding", "8"), "--outstanding of at least --tasks 16, got 8"),
            (("--model", "nowhere"), "expected embedded:gemma-3-270m or the folder of a model, got 'nowhere'"),
        ],
    )
    def test_one_line(self, arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert serve.main([*arguments, "--json"]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert said in captured.err


@pytest.mark.slow
class TestRun:
    NUMBERS = (
        *("--rounds", "2", "--latency-rounds", "2", "--cost-rounds", "2", "--tasks", "4", "--requests", "24"),
        *("--texts", "12", "--times", "2"),
        *("--warmup", "4", "--alone", "6", "--outstanding", "8", "--batch", "8", "--tokens", "4", "--length", "5"),
        *("--long", "20", "--threads", "1"),
    )

    def test_with_a_tiny_model(self, tmp_path: Path) -> None:
        words = [word for pair in servers.WORDS for word in pair.split()]
        model = tiny_model(tmp_path / "model", [*words, "It", "is", "Output", "the", "text", "as", "or", "."])
        data = write_rows(tmp_path / "rows.jsonl", 60)
        command = [sys.executable, str(BENCH / "serve.py"), "--model", str(model), "--data", str(data), "--json"]
        ran = subprocess.run([*command, *self.NUMBERS], capture_output=True, text=True, cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        report = json.loads(ran.stdout)
        assert {one["dtype"] for one in report["contestants"].values()} >= {"float32", "bfloat16"}
        for kind, count in (("labels", 24), ("texts", 12)):
            part = report[kind]
            rates = {name: one["requests_per_second"] for name, one in part["throughput"].items()}
            for names, ratio in part["ratios"].items():
                own, _, peft = names.partition(" / ")
                assert ratio == pytest.approx(rates[own] / rates[peft])
            assert {name: one["requests_per_turn"] for name, one in part["throughput"].items()} == {
                **dict.fromkeys(("engine", "http"), 2 * count),
                **dict.fromkeys(("peft-float32", "peft-bf16", serve.DOCUMENTED), count),
            }
            # the same prompts are on both sides
            assert part["same_answers"]["http"] == [count, count]
            assert part["same_answers"]["peft-float32, one by one"] == [6, 6]
            for peft, load in part["latency"].items():
                assert load["offered_per_second"] == pytest.approx(0.8 * rates[peft])
                assert set(load["contestants"]) == {peft, "engine", "http"}
                assert all(one["requests"] == 2 * count for one in load["contestants"].values())
                assert all(0 < one["p50_ms"] <= one["p95_ms"] for one in load["contestants"].values())
            medians = part["prompt_cost"]["medians"]
            assert part["prompt_cost"]["cost"]["one"] == pytest.approx(1 - medians["one"] / medians["none"])
        assert report["texts"]["throughput"]["engine"]["mean_tokens"] > 1
        text = serve.text_report(report)
        assert text.count("\naim ") == 2 * (6 + 4 + 2)
        assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 130
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "rows.jsonl"]
