"""scale: the same comparison on several base models, and the gap between the first method and the others.

Lester et al. 2021 (figure 1) report that prompt tuning comes level with full fine-tuning as models grow; this measures
it on the user's own models and data.
"""

import gc
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from softprompt.data.examples import gold_answers
from softprompt.data.split_assignment import sample_examples
from softprompt.data.task import Task
from softprompt.errors import ConfigError
from softprompt.experiments.comparison.candidates import Candidate
from softprompt.experiments.comparison.compare import compare
from softprompt.experiments.comparison.comparison_run import ComparisonSettings
from softprompt.experiments.comparison.study_records import SizePoint, SizeStudy, Study
from softprompt.metrics.bootstrap import paired_difference, resample_scores
from softprompt.metrics.registry import score_runs
from softprompt.models.deferred_base import DeferredBase
from softprompt.models.frozen_lm import FrozenLM
from softprompt.training.callbacks.callback import Callback
from softprompt.utils.run_folder import make_file_name


def compare_sizes(
    models: Sequence[str],
    load: Callable[[str], FrozenLM | DeferredBase],
    task: Task,
    methods: Sequence[Candidate],
    out: Path,
    settings: ComparisonSettings,
    callback: Callback,
) -> tuple[SizeStudy, dict[Path, Study]]:
    """Compare on each model in turn, one in memory at a time; a second run goes on.

    Returns:
        What the sizes tell, and the study of each model by its folder.

    Raises:
        as ``compare``.
    """
    points: list[SizePoint] = []
    studies: list[Study] = []
    for model in models:
        folder = out / make_folder_name(model)
        study = compare(load(model), task, methods, folder, settings, callback)
        points.append(
            SizePoint(
                model=model,
                parameters=study.base_parameters,
                folder=folder.name,
                rows={row.method: row for row in study.rows},
                gaps=measure_gaps(study, task, methods[0].name),
            )
        )
        studies.append(study)
        gc.collect()
    points.sort(key=lambda point: point.parameters)
    names = tuple(method.name for method in methods)
    found = SizeStudy(
        methods=names,
        metric=studies[0].metric,
        data=studies[0].data,
        points=tuple(points),
        sentence=describe_gaps(names, points),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return found, dict(zip((out / make_folder_name(base) for base in models), studies, strict=True))


def check_models(names: str) -> list[str]:
    """``A,B,C`` to the models' names; ConfigError unless there are two or more, each once."""
    models = [name.strip() for name in names.split(",")]
    if len(models) < 2 or not all(models):
        raise ConfigError(f"--models '{names}': expected two models or more, with commas between them")
    if len({make_folder_name(model) for model in models}) < len(models):
        raise ConfigError(f"--models '{names}': expected each model once")
    return models


def make_folder_name(model: str) -> str:
    """A model's name as a folder's."""
    return make_file_name(model.strip("/"))


def measure_gaps(study: Study, task: Task, first: str) -> dict[str, dict[str, float | int]]:
    """The first method minus each other one that has a result, as ``paired_difference`` gives it."""
    gold = gold_answers(sample_examples(task.test, len(study.gold)))
    runs: dict[str, list[Any]] = {}
    for result in study.results:
        if result.status == "ok":
            runs.setdefault(result.method, []).append(result.predictions)
    scores = {name: score_runs(study.metric, gold, some) for name, some in runs.items()}
    values = resample_scores(scores)
    if first not in scores:
        return {}
    return {
        name: paired_difference(scores[first], scores[name], values[first], values[name]).model_dump()
        for name in scores
        if name != first
    }


def describe_gaps(methods: Sequence[str], points: Sequence[SizePoint]) -> str:
    """Whether the gap to the best of the other methods closes from the smallest to the largest model."""
    worst = [min(point.gaps.values(), key=lambda gap: gap["difference"], default=None) for point in points]
    known = [(point, gap) for point, gap in zip(points, worst, strict=True) if gap is not None]
    if len(known) < 2:
        return "Too few models have results to say how the gap changes with size."
    (small, first), (large, last) = known[0], known[-1]
    told = (
        f"{methods[0]} minus the best other method: {first['difference']:+.3f} on {small.model}, "
        f"{last['difference']:+.3f} on {large.model}"
    )
    if last["low"] > first["high"]:
        return f"The gap closes as models grow. {told}."
    if last["high"] < first["low"]:
        return f"The gap widens as models grow. {told}."
    return f"No clear change of the gap with size (the intervals overlap). {told}."
