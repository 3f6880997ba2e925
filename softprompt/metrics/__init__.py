"""How good answers are: metrics by name (definitions.py), intervals and paired differences (intervals.py), calibration.

Pure functions of what was expected and what was predicted.
"""

from softprompt.metrics.calibration import calibration_error, expected_calibration_error
from softprompt.metrics.intervals import (
    QUANTILES,
    Floats,
    Metric,
    PairedDifference,
    draw_resamples,
    make_difference,
    mean_metric,
    paired_bootstrap,
)
from softprompt.metrics.registry import (
    METRICS,
    SHORT,
    Scorer,
    accuracy,
    bleu,
    chrf,
    digits_of,
    exact_match,
    macro_f1,
    metrics_for,
    rouge_l,
    scorer_for,
    token_f1,
)

__all__ = [
    "METRICS",
    "QUANTILES",
    "SHORT",
    "Floats",
    "Metric",
    "PairedDifference",
    "Scorer",
    "accuracy",
    "bleu",
    "calibration_error",
    "chrf",
    "digits_of",
    "draw_resamples",
    "exact_match",
    "expected_calibration_error",
    "macro_f1",
    "make_difference",
    "mean_metric",
    "metrics_for",
    "paired_bootstrap",
    "rouge_l",
    "scorer_for",
    "token_f1",
]
