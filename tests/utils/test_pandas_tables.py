"""Results as tables of pandas, beside what pandas itself makes of the same numbers."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.large_results import (
    Answers,
    large_evaluation,
    large_prompt,
    large_results,
    large_state,
    large_store,
    large_summary,
    large_trials,
)
from helpers.planted_study import planted_study
from helpers.small_tasks import FAST, reviews_task
from helpers.tiny_models import tiny_base
from sklearn.metrics import accuracy_score, f1_score

import softprompt as sp
from softprompt.errors import ConfigError, MissingExtraError
from softprompt.experiments.sweep.sweep_folder import SweepResult
from softprompt.inference.evaluation import score
from softprompt.inference.predictions import Prediction


class TestEvaluation:
    def test_has_a_row_for_each_metric(self) -> None:
        task = reviews_task()
        generator = np.random.default_rng(3)
        answered = [str(generator.choice(["good", "bad"])) for _ in task.train]
        predictions = tuple(Prediction(index, label) for index, label in enumerate(answered))
        table = score(Answers(task.spec, predictions), task.train).to_pandas()
        gold = [one.label for one in task.train]
        assert list(table.columns) == ["value", "low", "high", "n"]
        assert list(table.index) == ["accuracy", "macro_f1"]
        assert table.index.name == "metric"
        assert table.loc["accuracy", "value"] == pytest.approx(accuracy_score(gold, answered))
        assert table.loc["macro_f1", "value"] == pytest.approx(f1_score(gold, answered, average="macro"))
        assert (table["low"] <= table["value"]).all()
        assert (table["value"] <= table["high"]).all()
        assert list(table["n"]) == [len(gold)] * 2
        assert [str(one) for one in table.dtypes] == ["float64"] * 3 + ["int64"]


class TestComparison:
    study = planted_study()

    def test_by_method_is_the_mean_over_its_runs(self) -> None:
        table = self.study.to_pandas()
        runs = pd.DataFrame(
            [{"method": one.method, "value": one.test and one.test.value} for one in self.study.results]
        )
        ended = runs.dropna().groupby("method")["value"]
        assert table.index.name == "method"
        for method, row in table.iterrows():
            assert row["value"] == pytest.approx(ended.mean()[method])
            assert row["deviation"] == pytest.approx(ended.std()[method])
            assert row["seeds"] == ended.count()[method]
            assert row["low"] <= row["value"] <= row["high"]
        assert table["failed"].sum() == runs["value"].isna().sum() == 1
        assert list(table.index[table["recommended"]]) == [self.study.recommendation.deploy]

    def test_by_run_is_a_row_for_each_method_and_seed(self) -> None:
        table = self.study.to_pandas(by="run")
        assert table.index.names == ["method", "seed"]
        assert len(table) == 27
        assert table.index.is_unique
        found = json.loads(self.study.model_dump_json())["results"]
        for one in found:
            row = table.loc[(one["method"], one["seed"])]
            assert row["status"] == one["status"]
            if one["status"] == "ok":
                assert row["value"] == one["test"]["value"]
                right = [a == b for a, b in zip(one["predictions"], self.study.gold, strict=True)]
                assert row["value"] == pytest.approx(np.mean(right))
            else:
                assert pd.isna(row["value"])
                assert row["error"].startswith("out of memory")
        assert str(table["n"].dtype) == "Int64"

    def test_other_rows_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="expected a row by 'method' or by 'run', got 'seed'"):
            self.study.to_pandas(by="seed")  # type: ignore[arg-type]


class TestSweep:
    def test_has_a_row_for_each_trial(self) -> None:
        trials = large_trials()
        table = SweepResult(large_summary(), trials).to_pandas()
        assert table.index.name == "trial"
        assert list(table.index) == list(range(200))
        assert table["value"].idxmax() == 198
        assert table["value"].isna().sum() == (table["status"] == "failed").sum() == 4
        assert list(table["length"]) == [10 + number for number in range(200)]
        types = {name: str(kind) for name, kind in table.dtypes.items()}
        assert (types["length"], types["learning_rate"], types["best_step"]) == ("int64", "float64", "Int64")

    def test_settings_that_are_called_as_a_column_keep_their_values(self) -> None:
        trials = [one.model_copy(update={"settings": {"loss": 3, "length": 5}}) for one in large_trials(count=3)]
        table = SweepResult(large_summary(), trials).to_pandas()
        assert list(table["setting_loss"]) == [3, 3, 3]
        assert list(table["loss"]) == [one.loss for one in trials]

    def test_is_a_pair_as_ever(self) -> None:
        summary, trials = SweepResult(large_summary(), large_trials())
        assert (summary.winner, len(trials)) == (198, 200)


class TestHistory:
    def test_is_what_the_run_kept(self, tmp_path: Path) -> None:
        prompt = sp.fit(tiny_base("llama"), reviews_task(), out=tmp_path / "prompt", **FAST)
        kept = pd.read_json(tmp_path / "prompt" / "history.jsonl", lines=True)
        for one in (prompt, sp.load_prompt(tmp_path / "prompt")):
            table = one.history.to_pandas()
            assert list(table.columns) == ["step", "train_loss", "validation_loss", "validation_accuracy", "best"]
            assert list(table["step"]) == list(kept["step"])
            for name, key in (("train_loss", "train_loss"), ("validation_loss", "validation_loss")):
                np.testing.assert_allclose(table[name], kept[key])
            np.testing.assert_allclose(table["validation_accuracy"], kept["value"])
            assert list(table["step"][table["best"]]) == [one.training["best_step"]]
            assert len(one.history) == len(kept)
            assert one.history[0]["step"] == kept["step"][0]

    def test_without_one_is_an_empty_table(self) -> None:
        table = sp.load_prompt(Path(__file__).parents[1] / "fixtures/saved_before/completions").history.to_pandas()
        assert {"step", "train_loss", "validation_loss", "best"} <= set(table.columns)

    def test_a_loaded_prompt_is_saved_with_it_again(self, tmp_path: Path) -> None:
        small = replace(large_prompt(), states=(large_state(2),))
        small.save(tmp_path / "first")
        sp.load_prompt(tmp_path / "first").save(tmp_path / "again")
        for path in (tmp_path / "first").iterdir():
            assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_store_has_a_row_for_each_version(tmp_path: Path) -> None:
    table = large_store(tmp_path / "store", versions=3).to_pandas()
    assert list(table.index) == ["reviews@1", "reviews@2", "reviews@3", "tickets@1"]
    for version, row in table.iterrows():
        folder = tmp_path / "store" / row["name"] / str(row["number"])
        record = json.loads((folder / "version.json").read_text())
        saved = json.loads((folder / "prompt.json").read_text())
        assert version == f"{record['name']}@{record['number']}"
        assert row["created"] == pd.Timestamp(record["created"])
        assert (row["by"], row["parent"]) == (record["by"], record["parent"])
        assert (row["validation"], row["test"]) == tuple(
            saved["metrics"][one]["value"] for one in ("validation", "test")
        )
        assert row["metric"] == saved["metrics"]["test"]["metric"]
    assert list(table["aliases"]) == ["", "prod", "", ""]
    assert str(table["created"].dtype) == "datetime64[us, UTC]"
    assert list(sp.Store(tmp_path / "store").to_pandas("tickets").index) == ["tickets@1"]


def test_where_pandas_is_missing_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found: dict[str, Any] = large_results(tmp_path / "store")
    found["sweep"], found["history"] = SweepResult(large_summary(), large_trials()), found["prompt"].history
    monkeypatch.setitem(sys.modules, "pandas", None)
    having = [one for one in found.values() if hasattr(one, "to_pandas")]
    assert len(having) >= 5
    for one in [*having, large_evaluation(rows=20, labels=2)]:
        with pytest.raises(
            MissingExtraError, match=r"'pandas', which is not installed: pip install 'softprompt\[pandas\]'"
        ):
            one.to_pandas()
