"""bench/: growth, evaluation beside PEFT, start-up, the plan's check, and the table of all, with tiny models."""

import json
from pathlib import Path
from typing import Any

import aims
import evaluate_vs_peft
import growth
import plan_check
import pytest
import run_all
import startup
from helpers.tiny_models import save_tiny
from helpers.word_model import tiny_model, write_rows

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and sentences."""
    folder = tmp_path_factory.mktemp("bench")
    tiny_model(folder / "model")  # knows the words of its sentences only
    save_tiny(folder / "bytes", "llama")  # and any labels
    write_rows(folder / "rows.jsonl", 60)
    return folder


def report_of(script: Any, capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert script.main(["--json", *map(str, arguments)]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    # the same object tells itself as a table
    assert script.text_report(report)
    return report


class TestAims:
    def test_bounds_are_met(self) -> None:
        assert aims.judged("a", 2.0, 2.0, "s")["met"]
        assert aims.judged("a", 2.0, 2.0, "s", at_most=True)["met"]
        assert not aims.judged("a", 1.9, 2.0, "s")["met"]
        assert not aims.judged("a", 2.1, 2.0, "s", at_most=True)["met"]

    def test_lines(self) -> None:
        found = {"aims": [aims.judged("help", 0.4, 0.5, "s", at_most=True), aims.judged("share", 0.5, 0.55, "of it")]}
        assert aims.aim_lines(found) == [
            "aim met: help: 0.4 s, expected at most 0.5",
            "aim missed: share: 0.5 of it, expected at least 0.55",
        ]


class TestGrowth:
    def test_slopes(self) -> None:
        found = growth.fitted([1, 2, 4, 8], [0.3, 0.5, 0.9, 1.7])
        assert found["seconds_per_unit"] == pytest.approx(0.2)
        assert found["seconds_at_zero"] == pytest.approx(0.1)
        assert found["last_over_first"] == pytest.approx(17 / 3)
        assert growth.fitted([1, 2, 4], [3, 6, 12])["exponent"] == pytest.approx(1)
        assert growth.fitted([1, 2, 4], [3, 3, 3])["exponent"] == pytest.approx(0)

    @pytest.mark.parametrize("count", [2, 60, 77])
    def test_labels_are_different(self, count: int) -> None:
        assert len(set(growth.planted_labels(count))) == count

    def test_one_size_is_varied_at_a_time(self) -> None:
        points = growth.points_of({"batch": [2, 4], "labels": [3]}, growth.Point())
        assert points == {
            "batch": [growth.Point(batch=2), growth.Point(batch=4)],
            "labels": [growth.Point(labels=3)],
        }

    def test_with_a_tiny_model(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        sizes = ("--batch", 2, 4, "--text", 12, 24, "--prompt", 2, 8, "--labels", 2, 3)
        more = ("--rounds", 2, "--at-text", 12, "--no-compile")
        report = report_of(growth, capsys, "--model", place / "bytes", *sizes, *more)
        assert {name: one["sizes"] for name, one in report["series"].items()} == {
            "batch": [2, 4],
            "text": [12, 24],
            "prompt": [2, 8],
            "labels": [2, 3],
        }
        for one in report["series"].values():
            assert [len(times) for times in one["step_seconds"]] == [2, 2]
            assert min(one["median_seconds_per_step"]) > 0

    def test_texts_are_as_long_as_they_are_to_be(self, place: Path) -> None:
        from softprompt.models.loading import load_model

        base = load_model(place / "bytes", device="cpu")
        point = growth.Point(batch=4, text=15, prompt=3, labels=3)
        timed = growth.Timed(base, point)
        (batch,) = timed._steps.batches[:1]
        assert len(batch) == 4
        # what all labels begin with stands behind the text, and is not asked for
        (asked,) = {item.positions[0] for item in batch}
        assert asked in (14, 15)


class TestEvaluation:
    def test_with_a_tiny_model(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        data = ("--data", place / "rows.jsonl", "--examples", 32, "--rounds", 2, "--batch-size", 4, "--length", 3)
        data = (*data, "--peft-examples", 16)
        report = report_of(evaluate_vs_peft, capsys, "--model", place / "model", *data)
        peft = ["peft-float32", "peft-float32, loop", "peft-bf16", "peft-bf16, loop"]
        assert list(report["contestants"]) == ["softprompt", *peft]
        for name, one in report["contestants"].items():
            assert one["sentences"] == (32 if name == "softprompt" else 16)
            first, second = one["milliseconds_a_sentence_of_rounds"]
            assert one["sentences_per_second"] == pytest.approx(2000 / (first + second))
        assert [one["value"] for one in report["aims"]] == [report["ratios"][name] for name in peft[::2]]

    def test_rounds_that_leave_sentences_over(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert evaluate_vs_peft.main(["--examples", "33", "--rounds", "2"]) == 2
        assert "--examples to be a multiple of --rounds 2, got 33" in capsys.readouterr().err
        assert evaluate_vs_peft.main(["--examples", "32", "--rounds", "2", "--peft-examples", "15"]) == 2
        assert "--peft-examples to be a multiple of --rounds 2, got 15" in capsys.readouterr().err

    def test_peft_answers_as_the_model_does(self, place: Path) -> None:
        """The last position is that of the text, with padding too."""
        import torch
        from train_vs_peft import choose_data

        from softprompt.data.task import Task

        task = Task.classification(choose_data(str(place / "rows.jsonl"), 16))
        folder = str(place / "model")
        alone = evaluate_vs_peft.loop_labels(folder, "cpu", task, 3, 1, torch.float32)(task.train)
        together = evaluate_vs_peft.loop_labels(folder, "cpu", task, 3, 8, torch.float32)(task.train)
        assert alone == together
        assert set(alone) <= {"negative", "positive"}

    def test_trainer_is_asked_where_the_answer_stands(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where no other token is likelier than those of the labels, its answers are the loop's."""
        import torch
        from train_vs_peft import choose_data
        from transformers import AutoTokenizer

        from softprompt.data.task import Task

        task = Task.classification(choose_data(str(place / "rows.jsonl"), 16))
        folder = str(place / "model")
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        first = evaluate_vs_peft.first_tokens(tokenizer, task.spec)

        def likeliest_label(logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            return torch.tensor(first)[logits[..., first].argmax(dim=-1)]

        loop = evaluate_vs_peft.loop_labels(folder, "cpu", task, 3, 1, torch.float32)(task.train)
        monkeypatch.setattr(evaluate_vs_peft, "likeliest", likeliest_label)
        trainer = evaluate_vs_peft.trainer_labels(folder, "cpu", task, 3, False)
        assert trainer(task.train) == loop


@pytest.mark.slow
class TestStartup:
    def test_with_a_tiny_model(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        data = ("--data", place / "rows.jsonl", "--examples", 32, "--rounds", 1)
        report = report_of(startup, capsys, *data, "--model", place / "model", "--", "--length", 4, "--max-length", 32)
        assert set(report["median_seconds"]) == {"help", "import", "model", "first step"}
        assert report["median_seconds"]["first step"] > report["median_seconds"]["import"]

    def test_command_that_fails(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert startup.main(["--data", str(place / "rows.jsonl"), "--examples", "32", "--model", str(place)]) == 2
        assert "is no model folder" in capsys.readouterr().err


class TestPlanCheck:
    def test_a_case_is_measured_and_predicted(self) -> None:
        case = plan_check.Case("llama-tiny", "float32", 4, 8, 2)
        found = plan_check.in_process(case, {})
        assert 0 < found["process"] <= found["before"] <= found["peak"]
        plan = plan_check.predicted(case)
        assert plan["all"] > plan["step"] > 0
        assert plan["step"] < plan_check.predicted(plan_check.replace(case, batch=4))["step"]

    def test_cases_are_different(self) -> None:
        assert len(set(plan_check.cases())) == len(plan_check.cases()) > 20


class TestAll:
    def report(self, name: str, value: float) -> dict[str, Any]:
        box = {"cpu": "Some CPU", "bf16_flags": [], "cores": 2, "memory_gb": 8.0, "load_average_at_start": 0.1}
        return {
            "benchmark": name,
            "machine": {**box, "versions": {"torch": "2.13.0"}},
            "median_seconds": {"help": value},
            "aims": [aims.judged("start: help", value, 0.5, "s", at_most=True)],
        }

    def test_table(self) -> None:
        text = run_all.markdown({"startup": self.report("startup", 0.4)})
        assert "| startup | start: help | 0.4 s | at most 0.5 | met |" in text
        assert (
            "Some CPU, 2 cores, no bfloat16 instructions, 8.0 GB; load average at the start 0.1; torch 2.13.0" in text
        )
        assert "help            0.40 s" in text

    def test_results_that_are_there(self, tmp_path: Path) -> None:
        for name, value in (("startup", 0.4), ("unknown", 1.0)):
            (tmp_path / f"{name}.json").write_text(json.dumps(self.report("startup", value)))
        assert run_all.main(["--table", "--results", str(tmp_path)]) == 0
        text = (tmp_path / "README.md").read_text()
        assert "0.4 s" in text
        assert "unknown" not in text

    def test_every_script_is_there(self) -> None:
        for script, *_ in run_all.BENCHMARKS.values():
            assert (BENCH / f"{script}.py").is_file()

    @pytest.mark.slow
    def test_runs_and_keeps(self, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes = ("--batch", "2", "4", "--text", "12", "24", "--prompt", "2", "4", "--labels", "2", "3")
        more = ("--model", str(place / "bytes"), "--rounds", "1", "--at-text", "12", "--no-compile")
        monkeypatch.setitem(run_all.BENCHMARKS, "growth", ("growth", *sizes, *more))
        monkeypatch.setitem(run_all.BENCHMARKS, "startup", ("startup", "--model", str(tmp_path / "none")))
        (tmp_path / "startup.json").write_text(json.dumps(self.report("startup", 0.4)))
        assert run_all.main(["--results", str(tmp_path), "--only", "growth", "startup"]) == 1
        assert json.loads((tmp_path / "growth.json").read_text())["wall_seconds"] > 0
        text = (tmp_path / "README.md").read_text()
        assert "## growth" in text
        assert "| startup | start: help | 0.4 s" in text
