"""fit with what people have: names and plain data, settings of a task beside those of learning, epochs."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.small_tasks import TEMPLATE, answers, reviews, reviews_task, write_data
from helpers.tiny_models import save_tiny, tiny_base

from softprompt.config import TrainConfig
from softprompt.data.streaming import stream_splits
from softprompt.data.task import Task
from softprompt.errors import ConfigError
from softprompt.training.fit import fit

pandas = pytest.importorskip("pandas")
datasets = pytest.importorskip("datasets")

FAST: dict[str, Any] = {"steps": 3, "length": 2, "batch_size": 4}
ROWS = [{"text": one.text, "label": one.label, "n": number} for number, one in enumerate(reviews()["all"])]


def renamed() -> Any:
    return pandas.DataFrame(ROWS).rename(columns={"text": "body", "label": "category"})


def test_plain_data_learns_the_prompt_of_its_task() -> None:
    task = Task.of(renamed(), template="{{ body }}:", text_column="body", label_column="category")
    expected = fit(tiny_base("llama"), task, **FAST)
    found = fit(
        tiny_base("llama"), renamed(), template="{{ body }}:", text_column="body", label_column="category", **FAST
    )
    assert found.digest == expected.digest
    assert found.metrics == expected.metrics


@pytest.mark.parametrize("make", [list, pandas.DataFrame, datasets.Dataset.from_list], ids=["list", "frame", "dataset"])
def test_every_source_learns_the_same(make: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    expected = fit(tiny_base("llama"), tmp_path / "rows.jsonl", template=TEMPLATE, **FAST)
    found = fit(tiny_base("llama"), make(ROWS), template=TEMPLATE, **FAST)
    assert found.digest == expected.digest
    assert found.data["fingerprint"] == expected.data["fingerprint"]


def test_model_by_its_name(tmp_path: Path) -> None:
    save_tiny(tmp_path / "llama", "llama")
    found = fit(str(tmp_path / "llama"), reviews_task(), **FAST)
    assert found.base_name == str(tmp_path / "llama")
    assert fit(tmp_path / "llama", reviews_task(), **FAST).digest == found.digest


class TestEpochs:
    def test_become_the_steps_of_the_training_rows(self) -> None:
        task = reviews_task(train=50)
        prompt = fit(tiny_base("llama"), task, epochs=1.5, batch_size=8, length=2)
        assert prompt.training["steps"] == round(1.5 * (50 // 8))
        assert "epochs" not in prompt.training
        alone = fit(tiny_base("llama"), task, steps=9, batch_size=8, length=2)
        assert prompt.digest == alone.digest

    def test_stand_in_place_of_a_configurations_steps(self) -> None:
        config = TrainConfig(steps=50, batch_size=30, length=2)
        assert fit(tiny_base("llama"), reviews_task(), config=config, epochs=2).training["steps"] == 4
        config = TrainConfig(epochs=50, batch_size=30, length=2)
        assert fit(tiny_base("llama"), reviews_task(), config=config, steps=3).training["steps"] == 3

    def test_of_streamed_rows_are_refused(self, tmp_path: Path) -> None:
        streamed = stream_splits(write_data(tmp_path / "rows", reviews()))
        with pytest.raises(ConfigError, match="streamed rows are not counted: give steps"):
            fit(tiny_base("llama"), Task.of(streamed), epochs=2)

    def test_of_several_tasks_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="epochs are not counted here: give steps"):
            fit(tiny_base("llama"), {"a": reviews_task(), "b": Task.of(answers())}, epochs=2)


def test_streamed_data_set_is_streamed() -> None:
    rows = datasets.Dataset.from_list(ROWS * 20).shuffle(seed=0).to_iterable_dataset()
    prompt = fit(tiny_base("llama"), rows, template=TEMPLATE, **FAST)
    assert prompt.metrics["validation"]["n"] > 0


def test_options_of_tasks_that_are_made() -> None:
    tasks = {"a": reviews_task(), "b": Task.of(answers())}
    with pytest.raises(ConfigError, match="these are tasks already: give template where they are made"):
        fit(tiny_base("llama"), tasks, template="{{ text }}", steps=2)
