"""bench/first_hour.py and bench/shared_machine.py: what the demo's lines say, and one work under several settings."""

import json
from pathlib import Path

import first_hour
import pytest
import shared_machine
from helpers.small_tasks import reviews
from helpers.tiny_models import save_tiny, tiny_base

from softprompt.data.task import Task
from softprompt.experiments import demo
from softprompt.training.callbacks.progress import ProgressPrinter


class Lines:
    """A stream that gives every line the second it came at: one later than the line before."""

    def __init__(self) -> None:
        self.lines: list[tuple[float, str]] = []

    def write(self, text: str) -> None:
        self.lines += [(float(len(self.lines)), line) for line in text.splitlines()]

    def flush(self) -> None:
        """Nothing waits."""


def test_the_figures_and_estimates_of_a_demo_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # words in front that fit into a tiny model's context
    monkeypatch.setattr(demo, "SHOTS", 2)
    monkeypatch.setattr(demo, "INSTRUCTION", "Judge.")
    stream = Lines()
    printer = ProgressPrinter(stream)  # type: ignore[arg-type]
    task = Task.classification(reviews(), template=demo.TEMPLATE)
    result = demo.run_demo(tiny_base("llama"), task, tmp_path / "demo", printer, printer.on_message, steps=60)
    found = first_hour.read_lines(stream.lines)
    assert {name: at for name, (_, at) in found["figures"].items()} == {
        name: pytest.approx(one.metric.value, abs=5e-4) for name, one in result.results.items()
    }
    assert list(found["estimate_errors"]) == [20, 40]
    assert found["seconds"] == len(stream.lines) - 1


def test_how_wrong_an_estimate_was() -> None:
    lines = [
        (10.0, "step 20/40  training loss 0.5  1.0 examples/s  0:10 left"),
        (20.0, "step 40/40  training loss 0.5  1.0 examples/s  0:05 left"),
        (30.0, "step 40  validation accuracy 0.5  loss 0.1"),
    ]
    assert first_hour.read_lines(lines)["estimate_errors"] == {20: pytest.approx(-0.5)}


@pytest.mark.slow
def test_a_setting_alone_and_beside_busy_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny(tmp_path / "model", "llama")
    arguments = ["--json", "--turns", "1", "--rounds", "1", "--model", str(tmp_path / "model"), "--only"]
    assert shared_machine.main([*arguments, "softprompt's"]) == 0
    report = json.loads(capsys.readouterr().out)
    for place in ("alone", "beside"):
        assert all(seconds > 0 for seconds in report["median_seconds"][place]["softprompt's"].values())
    assert [aim["what"] for aim in report["aims"]] == [f"{work} beside busy cores" for work in shared_machine.WORK]
    assert shared_machine.text_report(report)
