"""A comparison with planted numbers: nine methods on questions in six classes, as a real study would come out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from softprompt.experiments.comparison.study_records import (
    Cost,
    CurvePoint,
    Forgetting,
    Recommendation,
    Result,
    Row,
    Study,
    Trial,
)
from softprompt.metrics.bootstrap import paired_bootstrap
from softprompt.metrics.registry import accuracy
from softprompt.metrics.scores import Speed

LABELS = ("abbreviation", "description", "entity", "human", "location", "number")
_QUESTIONS = {
    "abbreviation": ("What does {} stand for ?", "What is the abbreviation of {} ?"),
    "description": ("What is {} ?", "Why do people speak of {} ?", "How does one explain {} to a child ?"),
    "entity": ("What animal is named after {} ?", "Which colour goes with {} ?", "What game has to do with {} ?"),
    "human": ("Who first wrote about {} ?", "What company made {} known ?", "Who is the father of {} ?"),
    "location": ("Where was {} seen first ?", "What country is best known for {} ?", "In which town is {} at home ?"),
    "number": ("How many years did {} last ?", "When did {} begin ?", "What share of homes has {} ?"),
}
_THINGS = (
    "the northern light", "a steam engine", "the silk road", "an ice age", "the printing press", "radio",
    "a lighthouse", "the gold rush", "sourdough", "a solar eclipse", "the violin", "jazz", "a monsoon", "the compass",
    "porcelain", "the tide", "an opera", "the zip", "a volcano", "the marathon", "linen", "a comet", "chess",
    "the metro",
)  # fmt: skip


@dataclass(frozen=True)
class Planted:
    """What one method is made to show."""

    name: str
    family: str
    accuracy: float
    parameters: int
    stored: int
    task: int
    seconds: float
    p50: float
    throughput: float
    added: float
    curve: bool = False
    base: int = 536_000_000
    shared: bool = True
    forgets: float = 1.0
    ece: float = 0.05


METHODS = (
    Planted("zero-shot", "written", 0.412, 0, 214, 0, 0.0, 58.0, 61.0, 0.0, ece=0.31),
    Planted("few-shot:8", "written", 0.634, 0, 1_932, 3_300_000, 0.0, 61.5, 54.0, 148.0, ece=0.17),
    Planted("few-shot-nearest:8", "written", 0.792, 0, 412_000, 900_000, 0.6, 233.0, 11.0, 151.0, ece=0.11),
    Planted("tfidf", "classical", 0.842, 52_140, 618_000, 640_000, 1.4, 0.4, 9_800.0, 0.0, base=0, ece=0.08),
    Planted("linear-probe", "classical", 0.894, 3_846, 16_400, 16_400, 41.0, 58.4, 60.0, 0.0, ece=0.06),
    Planted("prompt-tuning", "soft prompt", 0.958, 12_800, 52_700, 370_000, 402.0, 59.1, 60.0, 20.0, True, ece=0.021),
    Planted("prefix-tuning", "soft prompt", 0.951, 184_320, 739_000, 370_000, 371.0, 59.0, 60.0, 20.0, True, ece=0.024),
    Planted("lora", "adapter", 0.961, 737_280, 2_960_000, 2_960_000, 688.0, 66.2, 53.0, 0.0, True, ece=0.026),
    Planted(
        "full", "full", 0.960, 268_098_176, 536_200_000, 536_000_000, 1_250.0, 58.2, 61.0, 0.0, True,
        base=0, shared=False, forgets=1.61, ece=0.029,
    ),
)  # fmt: skip


def planted_study(
    *,
    n: int = 500,
    seeds: int = 3,
    methods: Sequence[Planted] = METHODS,
    labels: Sequence[str] = LABELS,
    deploy: str | None = "prompt-tuning",
    current: str | None = "few-shot:8",
    price_per_hour: float | None = 0.4,
) -> Study:
    """The study; the last method's last seed failed, where there are several."""
    rng = np.random.default_rng(4)
    gold = tuple(labels[i] for i in rng.integers(len(labels), size=n))
    texts = tuple(_question(rng, label) for label in gold)
    hardness = rng.uniform(size=n)
    results = [
        _result(rng, method, seed, gold, hardness, labels)
        if not (seeds > 1 and method is methods[-1] and seed == seeds - 1)
        else Result(
            method=method.name,
            family=method.family,
            seed=seed,
            status="failed",
            error="out of memory: 9.1 GB asked for, 7.9 GB free",
        )
        for method in methods
        for seed in range(seeds)
    ]
    rows = tuple(_row(method, results, gold, methods, current) for method in methods)
    return Study(
        title="Which class of question is it?",
        base="embedded:gemma-3-270m",
        base_parameters=268_098_176,
        data="questions/",
        sizes={"train": 4_952, "validation": 500, "test": n},
        metric="accuracy",
        kind="classification",
        labels=tuple(labels),
        gold=gold,
        texts=texts,
        current=current,
        price_per_hour=price_per_hour,
        machine="2 cores of an AMD EPYC 9R14, 8 GB, no GPU, bfloat16",
        settings={"steps": 300, "batch_size": 16, "seeds": seeds, "trials": 3, "budget": None, "max_length": 128},
        notes=("The splits are the same for every method.", "14 of 4,952 training texts were cut to 128 tokens."),
        rows=rows,
        results=tuple(results),
        recommendation=Recommendation(
            deploy=deploy,
            rule="smallest of the best",
            sentence="Use prompt-tuning: no method is measurably better, and a task takes 52.7 kB."
            if deploy
            else "Not enough data to tell: the intervals of the best methods overlap.",
            reasons=_reasons(rows, deploy, current),
            candidates=("lora", "prompt-tuning", "full", "prefix-tuning"),
        ),
        created="2026-11-24T18:20:11Z",
    )


def bare_study(**changes: object) -> Study:
    """Nothing measured but what must be there: two methods, one without any number, one that failed on every seed."""
    study = Study(
        title="Nothing much",
        base="tiny",
        base_parameters=0,
        data="data.csv",
        sizes={},
        metric="exact_match",
        kind="generation",
        labels=(),
        gold=(),
        texts=(),
        current=None,
        price_per_hour=None,
        machine="a laptop",
        settings={},
        notes=(),
        rows=(
            Row(method="zero-shot", family="written", seeds=(0,), failed=0, error=None, mean=None, deviation=None,
                low=None, high=None),
            Row(method="lora", family="adapter", seeds=(), failed=1, error="the loss is not a number", mean=None,
                deviation=None, low=None, high=None),
        ),
        results=(
            Result(method="zero-shot", family="written", seed=0, status="ok"),
            Result(method="lora", family="adapter", seed=0, status="failed", error="the loss is not a number"),
        ),
        recommendation=Recommendation(deploy=None, rule="too little", sentence="Not enough data to tell.", reasons=()),
        created="",
    )  # fmt: skip
    return study.model_copy(update=changes)


def _reasons(rows: Sequence[Row], deploy: str | None, current: str | None) -> tuple[str, ...]:
    chosen = next((row for row in rows if row.method == deploy), None)
    if chosen is None or chosen.cost is None:
        return ("Every interval of a difference to the best includes zero.",)
    found = []
    for name, paired in (("the best on test", chosen.against_best), (f"{current}, in use now", chosen.against_current)):
        if paired is not None:
            found.append(
                f"Against {name}: {paired['difference']:+.3f} "
                f"[{paired['low']:+.3f}, {paired['high']:+.3f}] on the same {paired['n']} questions."
            )
    return (*found, f"It stores {chosen.cost.stored_bytes:,} bytes for each task; all tasks share one base model.")


def _question(rng: np.random.Generator, label: str) -> str:
    patterns = _QUESTIONS.get(label, ("What about {} ?",))
    return str(rng.choice(patterns)).format(rng.choice(_THINGS))


def _result(
    rng: np.random.Generator,
    method: Planted,
    seed: int,
    gold: Sequence[str],
    hardness: np.ndarray,
    labels: Sequence[str],
) -> Result:
    n = len(gold)
    reached = min(method.accuracy + rng.normal(0, 0.004), 0.999)
    felt = 0.5 * hardness + 0.5 * rng.uniform(size=n)
    missed = felt > np.quantile(felt, reached)
    neighbour = {label: labels[(i + 1 + i % 2) % len(labels)] for i, label in enumerate(labels)}
    predictions = tuple(
        (neighbour[label] if rng.uniform() < 0.7 else str(rng.choice([one for one in labels if one != label])))
        if wrong
        else label
        for label, wrong in zip(gold, missed, strict=True)
    )
    test = accuracy(gold, predictions, resamples=300)
    curve = _curve(rng, method, test.value) if method.curve else ()
    return Result(
        method=method.name,
        family=method.family,
        seed=seed,
        status="ok",
        settings={"learning_rate": 0.1, "schedule": "cosine", "length": 20} if method.curve else {},
        trials=tuple(
            Trial(learning_rate=rate, value=test.value - lost, loss=0.2 + lost, chosen=lost == 0)
            for rate, lost in ((0.03, 0.02), (0.1, 0.0), (0.3, 0.011))
        )
        if method.curve and seed == 0
        else (),
        curve=curve,
        test=test,
        predictions=predictions,
        confidences=tuple(float(c) for c in rng.uniform(0.5, 1, size=n)),
        cost=_cost(method),
        speed=_speed(method),
        versions={"softprompt": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        created="2026-11-24T18:20:11Z",
    )


def _curve(rng: np.random.Generator, method: Planted, end: float) -> tuple[CurvePoint, ...]:
    steps = range(0, 301, 25)
    rate = {"adapter": 40, "full": 30}.get(method.family, 65)
    return tuple(
        CurvePoint(
            step=step,
            seconds=method.seconds * step / 300,
            value=min(1.0, 0.41 + (end - 0.41) * (1 - np.exp(-step / rate)) + rng.normal(0, 0.008)),
            loss=1.6 * np.exp(-step / rate) + 0.15,
        )
        for step in steps
    )


def _cost(method: Planted) -> Cost:
    return Cost(
        trained_parameters=method.parameters,
        stored_bytes=method.stored,
        base_shared=method.shared,
        base_bytes=method.base,
        task_bytes=method.task,
        training_seconds=method.seconds,
        search_seconds=1.5 * method.seconds if method.curve else 0.0,
        peak_memory_bytes=int(1.4e9 + 14 * method.parameters) if method.base or not method.shared else 210_000_000,
    )


def _speed(method: Planted) -> Speed:
    return Speed(
        p50_ms=method.p50,
        p95_ms=1.21 * method.p50,
        requests=100,
        batch_size=32,
        examples_per_second=method.throughput,
        added_tokens=method.added,
        reference_ms=20.0,
    )


def _row(
    method: Planted, results: Sequence[Result], gold: Sequence[str], methods: Sequence[Planted], current: str | None
) -> Row:
    scores = {one.name: _scores(results, one.name, gold) for one in methods}
    own, best = scores[method.name], max(methods, key=lambda one: float(np.mean(scores[one.name]))).name
    means = own.mean(axis=1)
    rng = np.random.default_rng(0)
    drawn = [
        own[rng.integers(len(own), size=len(own))][:, rng.integers(own.shape[1], size=own.shape[1])].mean()
        for _ in range(400)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))

    def against(other: str | None) -> dict[str, float | int] | None:
        if other is None or other == method.name or other not in scores:
            return None
        return paired_bootstrap(own.mean(axis=0), scores[other].mean(axis=0), resamples=500).model_dump()

    return Row(
        method=method.name,
        family=method.family,
        seeds=tuple(range(len(own))),
        failed=sum(result.status == "failed" for result in results if result.method == method.name),
        error=next((result.error for result in results if result.method == method.name and result.error), None),
        mean=float(means.mean()),
        deviation=float(means.std(ddof=1)) if len(means) > 1 else None,
        low=float(low),
        high=float(high),
        against_best=against(best),
        against_current=against(current),
        cost=_cost(method),
        speed=_speed(method),
        forgetting=Forgetting(before=24.1, after=24.1 * method.forgets, tokens=20_000),
        calibration_error=method.ece,
        shift=float(means.mean()) - 0.06 * (1.5 if method.family == "classical" else 1.0),
    )


def _scores(results: Sequence[Result], method: str, gold: Sequence[str]) -> np.ndarray:
    """``[seeds, examples]``: 1 where right."""
    return np.array(
        [
            [float(a == b) for a, b in zip(gold, result.predictions, strict=True)]
            for result in results
            if result.method == method and result.status == "ok"
        ]
    )
