"""Results to rows, rows to a study: means over seeds, intervals, differences on the same examples."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from statistics import mean
from typing import Any

from softprompt.data.examples import Example, gold_answers
from softprompt.data.split_assignment import Subsample
from softprompt.data.task import Task
from softprompt.experiments.baselines.fitted_baseline import VALIDATION_LIMIT
from softprompt.experiments.comparison.recommendation import Evidence, recommend
from softprompt.experiments.comparison.study_records import Cost, Forgetting, Result, Row, Study
from softprompt.inference.benchmark import describe_machine
from softprompt.inference.evaluation import truncation_notes
from softprompt.inference.speed_drift import describe_drift, find_speed_drift
from softprompt.metrics.bootstrap import Floats, RunScores, bootstrap_interval, paired_difference, resample_scores
from softprompt.metrics.registry import score_runs
from softprompt.models.frozen_lm import FrozenLM
from softprompt.utils.messages import excerpt

TEXT_SHOWN = 300  # characters of a test text that the study keeps


def summarize(
    base: FrozenLM,
    task: Task,
    test: Sequence[Example],
    results: Sequence[Result],
    current: str | None,
    price_per_hour: float | None,
    settings: Mapping[str, Any],
) -> Study:
    """What the results of one comparison say together; ``test``: the examples that were scored."""
    spec, splits = task.spec, task.splits
    metric = next((result.test.metric for result in results if result.test is not None), "none")
    rows = make_rows(metric, gold_answers(test), results, current)
    gold = tuple(str(one.label) if spec.kind == "classification" else one.references[0] for one in test)
    guessing = max(gold.count(label) for label in spec.labels) / len(gold) if spec.labels else None
    return Study(
        title=f"{task.name} on {base.name}",
        base=base.name,
        base_parameters=base.parameter_count,
        data=splits.source,
        sizes={"train": len(task.train), "validation": len(task.validation), "test": len(task.test)},
        metric=metric,
        kind=spec.kind,
        labels=spec.labels,
        gold=gold,
        texts=tuple(excerpt(one.text, TEXT_SHOWN) for one in test),
        current=current,
        price_per_hour=price_per_hour,
        machine=f"{describe_machine()}, {base.device.type}, {str(base.dtype).removeprefix('torch.')}",
        settings={
            **settings,
            "template": spec.template,
            **({} if spec.chat is None else {"conversations": str(spec.chat)}),
            "max_length": spec.max_length,
        },
        notes=(*splits.notes, *_collect_notes(task, test, results)),
        rows=rows,
        results=tuple(results),
        recommendation=recommend(Evidence(rows, metric, len(gold), guessing, current, price_per_hour)),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def make_rows(metric: str, gold: Sequence[Any], results: Sequence[Result], current: str | None) -> tuple[Row, ...]:
    """One row a method, in the order in which methods first appear; ``gold`` as ``gold_answers`` the test examples."""
    by_method: dict[str, list[Result]] = {}
    for result in results:
        by_method.setdefault(result.method, []).append(result)
    good = {name: [one for one in some if one.status == "ok"] for name, some in by_method.items()}
    scores = {name: score_runs(metric, gold, [one.predictions for one in some]) for name, some in good.items() if some}
    values = resample_scores(scores)
    best = max(scores, key=lambda name: scores[name].means.mean(), default=None)
    return tuple(_make_row(name, by_method[name], good[name], scores, values, best, current) for name in by_method)


def _make_row(
    name: str,
    results: Sequence[Result],
    good: Sequence[Result],
    scores: Mapping[str, RunScores],
    values: Mapping[str, Floats],
    best: str | None,
    current: str | None,
) -> Row:
    facts: dict[str, Any] = {
        "method": name,
        "family": results[0].family,
        "seeds": tuple(one.seed for one in good),
        "failed": len(results) - len(good),
        "error": next((one.error for one in results if one.error), None),
    }
    if not good:
        return Row(**facts, mean=None, deviation=None, low=None, high=None)
    own = bootstrap_interval(scores[name], values[name])

    def against(other: str | None) -> dict[str, float | int] | None:
        if other is None or other == name or other not in scores:
            return None
        return paired_difference(scores[name], scores[other], values[name], values[other]).model_dump()

    errors = [one.others["calibration_error"].value for one in good if "calibration_error" in one.others]
    shifts = [one.shift.value for one in good if one.shift is not None]
    return Row(
        **facts,
        mean=own.mean,
        deviation=own.deviation,
        low=own.low,
        high=own.high,
        against_best=against(best),
        against_current=against(current),
        cost=_average_costs([one.cost for one in good if one.cost is not None]),
        speed=next((one.speed for one in good if one.speed is not None), None),
        engine=next((one.engine for one in good if one.engine is not None), None),
        forgetting=_average_forgetting([one.forgetting for one in good if one.forgetting is not None]),
        calibration_error=mean(errors) if errors else None,
        shift=mean(shifts) if shifts else None,
    )


def _average_costs(costs: Sequence[Cost]) -> Cost | None:
    """The mean time, the highest peak; sizes are the same for all seeds but for the last bytes of their files."""
    if not costs:
        return None
    peaks = [one.peak_memory_bytes for one in costs if one.peak_memory_bytes is not None]
    return costs[0].model_copy(
        update={
            "training_seconds": mean(one.training_seconds for one in costs),
            "peak_memory_bytes": max(peaks, default=None),
        }
    )


def _average_forgetting(some: Sequence[Forgetting]) -> Forgetting | None:
    return some[0].model_copy(update={"after": mean(one.after for one in some)}) if some else None


def _collect_notes(task: Task, test: Sequence[Example], results: Sequence[Result]) -> list[str]:
    notes = []
    if words := Subsample(len(test), len(task.test)).describe("test"):
        notes.append(f"scored {words}")
    whole = len(task.validation)
    if words := Subsample(min(whole, VALIDATION_LIMIT), whole).describe("validation"):
        notes.append(f"the best step, rate or strength of each method is chosen {words}")
    together = {one.method for one in results if one.settings.get("learned_together", 1) > 1}
    if together:
        notes.append(
            f"the seeds of {', '.join(sorted(together))} learned in the same forward passes: training seconds are the "
            "share of one, peak memory is of all together"
        )
    if (changed := find_speed_drift(one.speed for one in results)) is not None:
        notes.append(describe_drift(changed))
    notes += [
        f"{one.method} seed {one.seed}: {told}"
        for one in results
        for told in truncation_notes(one.settings.get("cut", 0), len(one.predictions))
    ]
    notes += dict.fromkeys(f"{one.method} {why}" for one in results if (why := one.settings.get("engine_note")))
    failed = [f"{one.method} seed {one.seed}: {one.error}" for one in results if one.status == "failed"]
    return notes + [f"failed, remove its file in results/ to try it again: {line}" for line in failed]
