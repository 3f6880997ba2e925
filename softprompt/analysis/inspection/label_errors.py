"""Training rows that look mislabelled: the model is sure of another answer.

Classification: confident learning (Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in
Dataset Labels"). A row with gold label g is suspected to be of label j when p(j) is the highest and at least t_j, the
mean of p(j) over the rows labelled j: the model is as sure of j here as it is where j is the label. Rows are ranked by
p(j) - p(g). Deviations from the paper: three to one is sure enough, however high t_j is (with t_j alone, half of the
planted flips were found at the same precision); and the probabilities are not out of sample. A prompt has few numbers
and sees a row few times, so it seldom learns a single wrong label by heart (see docs/how-to/inspect.md).

Generation: rows whose loss lies far above the others', by the median absolute deviation.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from softprompt.analysis.inspection.inspection_records import LabelError, LabelErrors
from softprompt.analysis.inspection.score_records import PromptScores, label_indices
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec

LISTED = 1000
_SURE = 0.75  # three to one
_FAR = 6.0  # median absolute deviations above the median: 1 in 20,000 of normal numbers


def find_label_errors(
    spec: TaskSpec,
    scored: PromptScores,
    examples: Sequence[Example],
    indices: Sequence[int],
    twins: Mapping[int, Sequence[str]] | None = None,
    most: int = LISTED,
) -> LabelErrors:
    """The rows to look at, most suspicious first.

    Args:
        scored: of ``examples``, under the prompt.
        indices: of the examples in the training split.
        twins: by index, the answers of near duplicates in train.
    """
    if scored.log_probabilities is None:
        found = _unlikely(scored, examples)
    else:
        found = _confidently_other(spec, np.exp(scored.log_probabilities[0]), examples)
    listed = []
    for row, instead, score, reason in found[:most]:
        others = [answer for answer in (twins or {}).get(indices[row], ()) if answer == instead]
        if others:
            reason += f"; a near duplicate of it is labelled '{instead}'"
        example = examples[row]
        gold = str(example.label) if example.label is not None else example.references[0]
        listed.append(
            LabelError(index=indices[row], text=example.text, gold=gold, instead=instead, score=score, reason=reason)
        )
    return LabelErrors(looked_at=len(examples), found=len(found), listed=tuple(listed))


def _confidently_other(
    spec: TaskSpec, probabilities: np.ndarray, examples: Sequence[Example]
) -> list[tuple[int, str, float, str]]:
    """Row, label that it may be, score and reason; ``probabilities [n, C]``."""
    gold = label_indices(spec, examples)
    rows = np.arange(len(gold))
    # a label without rows has no mean
    bars = [
        min(_SURE, float(probabilities[gold == j, j].mean())) if (gold == j).any() else _SURE
        for j in range(len(spec.labels))
    ]
    likeliest = probabilities.argmax(axis=1)
    sure, given = probabilities[rows, likeliest], probabilities[rows, gold]
    suspected = (likeliest != gold) & (sure >= np.array(bars)[likeliest])
    order = sorted(rows[suspected].tolist(), key=lambda row: -(sure[row] - given[row]))
    return [
        (
            row,
            spec.labels[likeliest[row]],
            float(sure[row] - given[row]),
            f"{sure[row]:.2f} for '{spec.labels[likeliest[row]]}', {given[row]:.2f} for its label "
            f"'{spec.labels[gold[row]]}'",
        )
        for row in order
    ]


def _unlikely(scored: PromptScores, examples: Sequence[Example]) -> list[tuple[int, str, float, str]]:
    losses = scored.losses[0]
    median = float(np.median(losses))
    # 1.4826: makes it the standard deviation, of normal numbers
    spread = 1.4826 * float(np.median(np.abs(losses - median))) or 1e-12
    far = (losses - median) / spread
    order = [int(row) for row in np.argsort(-far, kind="stable") if far[row] > _FAR]
    return [
        (row, "", float(far[row]), f"loss {losses[row]:.2f} nats a token, the median row has {median:.2f}")
        for row in order
    ]
