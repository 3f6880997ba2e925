"""Whether a confidence is how often an answer is right."""

from collections.abc import Sequence

import numpy as np

from softprompt.errors import DataError
from softprompt.metrics.bootstrap import Floats, bootstrap_score, check_lengths
from softprompt.metrics.scores import Score


def expected_calibration_error(confidences: Sequence[float], correct: Sequence[bool], bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equally wide bins, weighted by their examples; 0..1.

    After Guo et al., "On Calibration of Modern Neural Networks", 2017, equation 3; bins are open on the left.

    Raises:
        DataError: no examples, not as many outcomes as confidences, a confidence outside 0..1, or ``bins`` below 1.
    """
    return float(np.abs(_calibration_gaps(confidences, correct, bins).sum(axis=0)).sum() / len(confidences))


def calibration_error(
    confidences: Sequence[float], correct: Sequence[bool], bins: int = 15, *, resamples: int = 2000, seed: int = 0
) -> Score:
    """``expected_calibration_error`` with its interval; resamples lie higher, as small samples do.

    Raises:
        DataError: as ``expected_calibration_error``.
    """
    gaps = _calibration_gaps(confidences, correct, bins)
    n = len(gaps)
    return bootstrap_score(
        "calibration_error",
        lambda weights: np.abs(weights @ gaps).sum(axis=1) / n,
        np.ones(n, dtype=np.int64),
        resamples,
        seed,
    )


def _calibration_gaps(confidences: Sequence[float], correct: Sequence[bool], bins: int) -> Floats:
    """``[n, bins]``: of each example, outcome minus confidence, in the column of its bin."""
    check_lengths(confidences, correct, "confidences", "outcomes")
    if bins < 1:
        raise DataError(f"expected at least 1 bin, got {bins}: the usual number is 15")
    confidence = np.asarray(confidences, dtype=np.float64)
    # a softmax in float32 may end a rounding error above 1
    outside = confidence[~((confidence >= 0) & (confidence <= 1 + 1e-5))]
    if outside.size:
        raise DataError(f"expected confidences between 0 and 1, got {outside[0]}: pass probabilities, not logits")
    edges = np.linspace(0, 1, bins + 1)
    gaps = np.zeros((len(confidence), bins))
    index = np.searchsorted(edges[1:-1], confidence, side="left")
    gaps[np.arange(len(confidence)), index] = np.asarray(correct, dtype=np.float64) - confidence
    return gaps
