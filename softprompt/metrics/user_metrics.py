"""Metrics of the user's own: functions that are named by where they are imported from, ``package.module:function``.

    def word_error_rate(prediction, reference): ...      one example: the metric is the mean over all
    def correlation(predictions, references): ...        all examples: computed anew on each resample

The names of the two parameters tell which one it is. A reference is a label in classification, and a list of the
accepted outputs in generation. What is more is said by ``metric_properties``.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from softprompt.errors import ConfigError, DataError, SoftpromptError
from softprompt.metrics.bootstrap import Floats
from softprompt.metrics.registry import IMPORT_PATH, METRICS, Gold, Metric, mean_metric

Scorer = Callable[[Any, Any], float]
_Function = TypeVar("_Function", bound=Scorer)
_PARAMETERS = {("prediction", "reference"): False, ("predictions", "references"): True}
_PROPERTIES = "__softprompt_metric__"


def metric_properties(
    *,
    heading: str | None = None,
    limits: tuple[float, float] | None = None,
    digits: int = 3,
    higher_is_better: bool = True,
) -> Callable[[_Function], _Function]:
    """Say of a metric's function what its parameters do not.

    Args:
        heading: as people read it; the function's name, if not given.
        limits: the least and the greatest value; unknown, if not given.
        digits: behind the point, that its scale deserves.
        higher_is_better: of the function; where less is better its values are negated, as scikit-learn's scorers are.
    """

    def add(function: _Function) -> _Function:
        setattr(
            function, _PROPERTIES, {"heading": heading, "limits": limits, "digits": digits, "higher": higher_is_better}
        )
        return function

    return add


def import_metric(name: str | None) -> str | None:
    """Make ready the metric that the user of this process asks for by ``name``; the name.

    A function is imported, from the folder where the command runs too; every other name is left to ``choose_metric``.
    Call this with what somebody typed, never with what a file says.

    Raises:
        ConfigError: the function cannot be imported, or has other parameters than those of a metric.
    """
    if name is None or name in METRICS or not IMPORT_PATH.fullmatch(name):
        return name
    module, _, attribute = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the user's own code raises
        raise ConfigError(f"metric '{name}' cannot be imported: {type(error).__name__}: {error}") from error
    METRICS[name] = make_metric(name, function)
    return name


def make_metric(name: str, function: Scorer) -> Metric:
    """The metric that a user's ``function`` is; raises ConfigError where its parameters are none of a metric's."""
    try:
        parameters = tuple(inspect.signature(function).parameters)[:2]
    except (TypeError, ValueError):
        parameters = ()
    if parameters not in _PARAMETERS:
        expected = " or ".join(f"({', '.join(names)})" for names in _PARAMETERS)
        raise ConfigError(f"metric '{name}': expected a function of {expected}, got ({', '.join(parameters)})")
    told = getattr(function, _PROPERTIES, {})
    sign = 1.0 if told.get("higher", True) else -1.0
    heading = told.get("heading") or name.rpartition(":")[2].replace("_", " ").capitalize()
    low, high = sorted(sign * limit for limit in told.get("limits") or (-np.inf, np.inf))
    digits = told.get("digits", 3)

    def call(predicted: Any, expected: Any) -> float:
        try:
            return sign * float(function(predicted, expected))
        except SoftpromptError:
            raise
        except Exception as error:  # whatever the user's own code raises
            raise DataError(f"metric '{name}' failed: {type(error).__name__}: {error}") from error

    def score_each(gold: Gold, predicted: Sequence[str]) -> list[float]:
        pairs = zip(predicted, map(_reference, gold), strict=True)
        return [call([one], [other]) if of_all else call(one, other) for one, other in pairs]

    of_all = _PARAMETERS[parameters]
    if not of_all:
        return mean_metric(name, None, heading, score_each, (low, high), digits)
    place_of: dict[tuple[str, Any], int] = {}  # what rows stand for: equal examples are one row
    known: list[tuple[str, Any]] = []

    def rows(gold: Gold, predicted: Sequence[str]) -> Floats:
        pairs = [
            (one, other if isinstance(other, str) else tuple(other)) for one, other in zip(predicted, gold, strict=True)
        ]
        for pair in pairs:
            if place_of.setdefault(pair, len(known)) == len(known):
                known.append(pair)
        return np.array([[place_of[pair]] for pair in pairs], dtype=np.float64)

    def value(weights: Floats, rows: Floats) -> Floats:
        examples = [known[int(place)] for place in rows[:, 0]]
        found = []
        for counts in weights.astype(np.int64):
            drawn = [example for example, count in zip(examples, counts, strict=True) for _ in range(count)]
            found.append(call([one for one, _ in drawn], [_reference(other) for _, other in drawn]))
        return np.array(found)

    return Metric(name, None, heading, (low, high), rows, value, score_each, digits)


def _reference(gold: Any) -> Any:
    return gold if isinstance(gold, str) else list(gold)
