"""Metrics of the user's own: chosen by import path, with an interval, and never imported because a file says so."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from softprompt.data.examples import Example
from softprompt.data.splits import Splits
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import ConfigError, DataError
from softprompt.inference.evaluation import score
from softprompt.inference.predictions import Prediction
from softprompt.metrics.bootstrap import bootstrap_interval, resample_scores
from softprompt.metrics.formatting import format_interval, format_metric, metric_heading
from softprompt.metrics.registry import METRICS, choose_metric, mean_metric, metric_format, metrics_of_kind, score_runs
from softprompt.metrics.user_metrics import import_metric

MODULE = """
from softprompt.metrics.user_metrics import metric_properties

def same_first_letter(prediction, reference):
    return prediction[:1] == (reference if isinstance(reference, str) else reference[0])[:1]

def share_right(predictions, references):
    assert isinstance(predictions, list) and isinstance(references, list)
    return sum(map(str.__eq__, predictions, references)) / len(predictions)

@metric_properties(heading="Length off", limits=(0, 50), digits=1, higher_is_better=False)
def length_off(prediction, reference):
    return abs(len(prediction) - len(reference[0]))

def fails(prediction, reference):
    return {}[prediction]

def other(x, y):
    return 0
"""
GOLD, PREDICTED = ["apple", "bean", "corn", "apple"], ["apple", "berry", "date", "corn"]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module of the user's, which lies in the folder that commands run in."""
    (tmp_path / "my_metrics.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = dict(METRICS)
    yield "my_metrics"
    METRICS.clear()
    METRICS.update(known)
    sys.modules.pop("my_metrics", None)


class Answers:
    """Answers the same, whatever is asked."""

    truncated = 0

    def __init__(self, spec: TaskSpec, words: list[str]) -> None:
        self.spec, self._words = spec, words

    def iterate_predictions(self, examples: list[Example]) -> Iterator[Prediction]:
        for index, word in enumerate(self._words):
            label = word if self.spec.kind == "classification" else None
            yield Prediction(index, label, None, None if label else word)


class TestFunctions:
    def test_of_one_example_is_a_mean(self, module: str) -> None:
        metric = METRICS[str(import_metric(f"{module}:same_first_letter"))]
        found = metric(GOLD, PREDICTED)
        assert (found.value, found.n, found.metric) == (0.5, 4, "my_metrics:same_first_letter")
        assert (found.low, found.high) == (0.0, 1.0)
        assert metric.score_each(GOLD, PREDICTED) == [1.0, 1.0, 0.0, 0.0]

    def test_of_all_examples_is_computed_on_each_resample(self, module: str) -> None:
        metric = METRICS[str(import_metric(f"{module}:share_right"))]
        same = METRICS["accuracy"](GOLD * 20, PREDICTED * 20)
        found = metric(GOLD * 20, PREDICTED * 20)
        assert (found.value, found.low, found.high) == pytest.approx((same.value, same.low, same.high), abs=0.03)
        assert metric.score_each(GOLD, PREDICTED) == [1.0, 0.0, 0.0, 0.0]
        assert metric.standard_error(GOLD * 20, PREDICTED * 20, 0.25) == pytest.approx(0.048, abs=0.01)

    def test_where_less_is_better_values_are_negated(self, module: str) -> None:
        name = str(import_metric(f"{module}:length_off"))
        assert METRICS[name]([["four"], ["fives"]], ["four", "six"]).value == -1.0
        assert metric_heading(name) == "Length off"
        assert format_metric(name, -1.25) == "\N{MINUS SIGN}1.2"
        assert metric_format(name).limits == (-50.0, 0.0)

    def test_compared_runs_share_their_resamples(self, module: str) -> None:
        name = str(import_metric(f"{module}:share_right"))
        scores = {"a": score_runs(name, GOLD, [PREDICTED, GOLD]), "b": score_runs(name, GOLD, [GOLD])}
        values = resample_scores(scores, 200)
        assert bootstrap_interval(scores["a"], values["a"]).mean == pytest.approx(0.625)
        assert (values["b"] == 1.0).all()

    @pytest.mark.parametrize(
        ("function", "words"),
        [
            ("other", "expected a function of (prediction, reference) or (predictions, references), got (x, y)"),
            ("missing", "cannot be imported: AttributeError"),
        ],
    )
    def test_what_is_no_metric_is_refused(self, module: str, function: str, words: str) -> None:
        with pytest.raises(ConfigError) as caught:
            import_metric(f"{module}:{function}")
        assert words in str(caught.value)
        assert f"'my_metrics:{function}'" in str(caught.value)

    def test_a_function_that_fails_says_whose_it_is(self, module: str) -> None:
        with pytest.raises(DataError, match=r"metric 'my_metrics:fails' failed: KeyError: 'apple'"):
            METRICS[str(import_metric(f"{module}:fails"))](GOLD, PREDICTED)


class TestTasks:
    def test_a_task_is_judged_by_it(self, module: str) -> None:
        rows = tuple(Example(f"text {one}", one) for one in GOLD)
        task = Task.classification(Splits(rows, (), (), "here", ()), metric=f"{module}:share_right")
        result = score(Answers(task.spec, PREDICTED), list(rows))  # type: ignore[arg-type]
        assert str(result).startswith("my_metrics:share_right 0.250 [0.000, ")
        assert result.to_dict()["others"]["accuracy"]["value"] == 0.25

    def test_a_saved_task_imports_nothing_by_itself(self, module: str) -> None:
        name = f"{module}:share_right"
        saved = {**TaskSpec.of(labels=["apple", "bean", "corn"]).to_dict(), "metric": name}
        spec = TaskSpec.from_dict(json.loads(json.dumps(saved)))
        rows = [Example(one, one) for one in GOLD]
        with pytest.raises(ConfigError) as caught:
            score(Answers(spec, PREDICTED), rows)  # type: ignore[arg-type]
        assert str(caught.value) == (
            f"metric '{name}' is a function of its maker's own, which is imported only where you name it: give "
            f"--metric {name} if you trust it, or another metric"
        )
        assert module not in sys.modules
        import_metric(name)
        assert score(Answers(spec, PREDICTED), rows).metric.value == 0.25  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", ["os", "os.system", "a:b:c", "../evil:f", "module:function()"])
    def test_what_is_no_path_of_a_function_is_an_unknown_metric(self, name: str) -> None:
        with pytest.raises(ConfigError, match="expected one for classification: accuracy, macro_f1, or a function"):
            TaskSpec.of(labels=["a", "b"], metric=name)


def test_a_metric_is_added_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """All else asks the registry: options, evaluation, interval, heading, digits and limits."""

    def score_each(gold: list[str], predicted: list[str]) -> list[float]:
        return [100.0 * (a[0] == b[0]) for a, b in zip(gold, predicted, strict=True)]

    new = mean_metric("initials", "classification", "Initials", score_each, (0.0, 100.0), digits=1)
    monkeypatch.setitem(METRICS, "initials", new)
    assert new in metrics_of_kind("classification")
    assert choose_metric("classification", "initials") is new
    spec = TaskSpec.of(labels=sorted(set(GOLD)), metric="initials")
    result = score(Answers(spec, PREDICTED), [Example(one, one) for one in GOLD])  # type: ignore[arg-type]
    assert str(result.metric) == "initials 50.0 [0.0, 100.0] n=4"
    assert [one.metric for one in result.others] == ["accuracy", "macro_f1"]
    assert metric_heading("initials") == "Initials"
    assert format_interval("initials", result.metric.low, result.metric.high) == "[0.0, 100.0]"
    assert metric_format("initials").limits == (0.0, 100.0)
