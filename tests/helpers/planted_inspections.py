"""Inspections made up of records, sound but for what a test plants, and one with everything in it."""

from typing import Any

from softprompt.analysis.inspection.inspection_findings import judge_inspection
from softprompt.analysis.inspection.inspection_records import (
    Answers,
    Attention,
    Calibration,
    ChangedAnswer,
    Comparison,
    Continuation,
    DuplicateGroup,
    DuplicateRow,
    Duplicates,
    Inspection,
    LabelError,
    LabelErrors,
    Memorization,
    Neighbor,
    NextToken,
    Quantiles,
    ReliabilityBin,
    Reproduction,
    Slice,
    StartCandidate,
    StoreNeighbors,
    TrainingFit,
    VirtualToken,
    Vocabulary,
)
from softprompt.metrics.scores import Mean, Score


def about(value: float, width: float = 0.02, n: int = 200) -> Mean:
    return Mean(value=value, low=value - width, high=value + width, n=n)


def accuracy(value: float, width: float = 0.02, n: int = 200) -> Score:
    return Score(metric="accuracy", value=value, low=value - width, high=value + width, n=n)


def quantiles(middle: float) -> Quantiles:
    return Quantiles(least=0.5 * middle, p5=0.8 * middle, median=middle, p95=1.2 * middle, most=1.5 * middle)


def token(index: int, **fields: Any) -> VirtualToken:
    return VirtualToken(**{"index": index, "norm": 12.0, "moved": 1.0, "ablation": about(0.1), "changed": 0.1} | fields)


def answers(**fields: Any) -> Answers:
    sound = {"split": "test", "metric": accuracy(0.9), "loss": about(0.3)}
    return Answers(**sound | {"confusion": (("a", "a", 90), ("a", "b", 10), ("b", "b", 100))} | fields)


def inspection(**fields: Any) -> Inspection:
    """A sound one, but for what is given."""
    sound: dict[str, Any] = {
        "place": "p",
        "base": "m",
        "kind": "classification",
        "state_kind": "embeddings",
        "labels": ("a", "b"),
        "length": 4,
        "embedding_size": 8,
        "members": 1,
        "data": "d",
        "sizes": {"train": 1000, "validation": 200, "test": 200},
        "same_data": True,
        "training": {"learning_rate": 0.1},
        "vocabulary": Vocabulary(sampled=10, cosine=quantiles(0.5), distance=quantiles(1.0), norm=quantiles(10.0)),
        "tokens": tuple(token(index) for index in range(4)),
        "answers": answers(),
        "fit": fit(0.3, 0.3),
        "prior_loss": 0.69,
    }
    return Inspection(**sound | fields)


def fit(train: float, validation: float) -> TrainingFit:
    gap = about(validation - train)
    return TrainingFit(
        train_loss=about(train), validation_loss=about(validation), gap=gap, train_metric=0.9, validation_metric=0.9
    )


def losses(*pairs: tuple[float, float]) -> tuple[dict[str, float], ...]:
    return tuple({"step": 10.0 * i, "train_loss": a, "validation_loss": b} for i, (a, b) in enumerate(pairs, 1))


def comparison(difference: float, broken: int = 12) -> Comparison:
    return Comparison(
        reference="written", before=accuracy(0.9), difference=about(difference), p_value=0.5, fixed=2, broken=broken
    )


def calibration(excess: float) -> Calibration:
    return Calibration(error=accuracy(0.1), excess=about(excess), bins=())


def twins(**fields: int) -> Duplicates:
    none = {"rows": 400, "groups": 0, "redundant": 0, "leaked": 0, "held_out": 200, "conflicting": 0}
    return Duplicates(**{**none, **fields}, listed=())


def memorization(difference: float, auc: float, same: bool = True) -> Memorization:
    gain = about(0.1)
    return Memorization(
        what="texts", trained=gain, held_out=gain, difference=about(difference), auc=auc, same_data=same
    )


def reproduction(now: float, n: int = 200, same: bool = True, saved: int = 200) -> tuple[Reproduction, ...]:
    before, after = accuracy(0.9, n=saved), accuracy(now, n=n)
    return (Reproduction(split="test", saved=before, now=after, same_data=same),)


def full_inspection(word: str = "word", layers: int = 18, tokens: int = 20) -> Inspection:
    """One with everything in it; ``word`` stands wherever somebody else's text does."""
    change = ChangedAnswer(index=3, text=word, gold=word, now=word, before="b", gain=1.2)
    bins = tuple(
        ReliabilityBin(
            low=0.5 + i / 10,
            high=0.6 + i / 10,
            n=9,
            confidence=0.55 + i / 10,
            right=0.6 + i / 12,
            right_low=0.4,
            right_high=0.9,
        )
        for i in range(5)
    )
    parts = answers(
        comparison=comparison(0.1).model_copy(
            update={"reference": word, "fixed_examples": (change,), "broken_examples": (change,)}
        ),
        confusion=((word, word, 90), (word, "b", 10), ("b", "b", 100)),
        calibration=calibration(0.1).model_copy(update={"bins": bins}),
        slices=tuple(
            Slice(by=word, name=word, n=30, value=0.8, low=0.7, high=0.9, rest=0.9, p_value=0.01, adjusted=0.04)
            for _ in range(14)
        ),
        truncated=9,
    )
    near = (Neighbor(token=word, token_id=1, value=0.5), Neighbor(token=word, token_id=2, value=0.4))
    shares = tuple(0.3 for _ in range(layers))
    says = (NextToken(token=word, probability=0.2),)
    row = DuplicateRow(split="train", index=1, answer=word, text=word)
    suspect = LabelError(index=2, text=word, gold=word, instead="b", score=0.9, reason=word)
    fields: dict[str, Any] = {
        "place": word,
        "data": word,
        "tokens": tuple(
            token(i, by_cosine=near, by_distance=near, start_token=word, start_cosine=0.4, attention=shares)
            for i in range(tokens)
        ),
        "attention": Attention(examples=9, bos=shares, prompt=shares, text=shares, even=0.3),
        "continuation": Continuation(text=word, next=says, without=word, without_next=says),
        "answers": parts,
        "history": losses((0.7, 0.6), (0.5, 0.4), (0.8, 0.9)),
        "label_errors": LabelErrors(looked_at=100, found=60, listed=(suspect,)),
        "duplicates": twins(leaked=9, groups=1, conflicting=1).model_copy(
            update={"listed": (DuplicateGroup(rows=(row, row), size=2, conflicting=True),)}
        ),
        "memorization": Memorization(
            what="texts", trained=about(0.2), held_out=about(0.1), difference=about(0.1), auc=0.7, same_data=True
        ),
        "neighbors": StoreNeighbors(
            names=(word, "b"),
            matrix=((1.0, -0.2), (-0.2, 1.0)),
            starts=(
                StartCandidate(
                    place=word, average_tokens=0.5, same_start=None, loss=about(0.4), options=("--init", word)
                ),
            ),
            own_loss=about(0.2),
        ),
        "training": {"template": word, "init": word, "learning_rate": 0.1},
        "notes": (word,),
        "created": "2026-11-25T16:00:00Z",
    }  # fmt: skip
    made = inspection(**fields)
    return made.model_copy(update={"findings": tuple(judge_inspection(made))})
