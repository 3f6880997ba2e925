"""compare: methods x seeds on one task, each result kept as it lands, and what they say together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from softprompt.data.chats.chat_resolution import resolve_chat
from softprompt.data.split_assignment import Subsample
from softprompt.data.splits import Splits
from softprompt.data.task import Task
from softprompt.data.task_arguments import Data, pop_task_options, resolve_task
from softprompt.errors import ConfigError
from softprompt.experiments.comparison.candidates import Candidate, parse_methods
from softprompt.experiments.comparison.comparison_run import ComparisonRun, ComparisonSettings, resolve_settings
from softprompt.experiments.comparison.engine_benchmark import find_engine
from softprompt.experiments.comparison.study_folder import StudyFolder, describe_base_and_task
from softprompt.experiments.comparison.study_records import Study
from softprompt.experiments.comparison.study_summary import summarize
from softprompt.models.deferred_base import BaseSource, load_checked, resolve_base
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.written_prompt import check_instruction
from softprompt.training.callbacks.callback_arguments import AnyCallback, resolve_callback
from softprompt.training.callbacks.progress import ProgressChoice
from softprompt.training.callbacks.trackers import GroupTracker, Track, parse_trackers
from softprompt.training.run_checks import check_trainable
from softprompt.training.training_run import TEST_LIMIT, reserve_answer_room
from softprompt.utils.arguments import check_arguments
from softprompt.utils.run_folder import make_file_name


@check_arguments
def compare(
    base: BaseSource,
    data: Data,
    methods: str | Sequence[str | Candidate],
    out: str | Path,
    settings: ComparisonSettings | None = None,
    callback: AnyCallback | None = None,
    callbacks: AnyCallback | None = None,
    progress: ProgressChoice = None,
    track: Track = None,
    **options: Any,
) -> Study:
    """Run every method with every seed, or what of it is not in ``out`` yet; measure, summarize, recommend.

    Args:
        base: the frozen model, or its name; it is then loaded once everything else is checked.
        data: a task, or what it is made from, with examples in all three splits.
        methods: as ``--methods`` takes them, ``"zero-shot,few-shot:8,prompt-tuning,lora"`` or a list of such names.
        out: folder of the comparison: each result is kept there as it lands, and a second call goes on.
        settings: what is the same for all methods: seeds, steps, learning rates tried.
        callback, callbacks, progress: told of how it goes, and what shows it, as for ``fit``.
        track: where each run is written down, as for ``fit``, in a group of the name of ``out``.
        options: single ones of the settings by name (``seeds=3``, ``steps=300``, ...); and of rows that become a task
            here (``template=``, ``label_column=``, ...; see ``Task.of``).

    Returns:
        Scores with intervals, costs and differences of all methods, and which of them to deploy.

    Raises:
        ConfigError, DataError, OutputError: one line that says what to do. What goes wrong within one method (no
            memory, a loss that is not a number) is that method's result instead.
    """
    told, task_options = resolve_callback(callback, callbacks, progress), pop_task_options(options)
    settings = resolve_settings(settings, options)
    base, task = resolve_base(base), resolve_task(data, options=task_options)
    settings = settings.with_steps_for(task)
    methods, out = parse_methods(methods), Path(out)
    base.processes.check_alone("a comparison")
    check_comparison(methods, settings)
    check_trainable(task)
    check_instruction(settings.instruction, task.splits["test"])
    StudyFolder.check(out)
    tracker = GroupTracker(parse_trackers(track), out.name, told.on_message)
    engine = find_engine(settings.engine_python, settings.engine_gguf)
    base = load_checked(base)
    task = reserve_answer_room(base, resolve_chat(base, task))
    comparison = ComparisonRun(
        base, task, settings, StudyFolder(out, _describe_setup(base, task, settings)), told, engine, tracker
    )
    with comparison.folder as folder:
        for number, method in enumerate(methods, start=1):
            comparison.finish(method, f"[{number}/{len(methods)}] {method.name}")
        results = [
            result
            for method in methods
            for seed in comparison.seeds(method)
            if (result := folder.result(method.name, seed)) is not None
        ]
        if settings.keep:
            comparison.note_what_was_not_kept(results)
        facts = {
            **settings.to_dict(),
            "seeds": settings.seeds,
            **({"command": settings.command} if settings.command else {}),
        }
        study = summarize(base, task, comparison.test, results, settings.current, settings.price_per_hour, facts)
        if isinstance(engine, str) and any(row.family == "soft prompt" for row in study.rows):
            study = study.model_copy(update={"notes": (*study.notes, engine)})
    return study


def check_comparison(methods: Sequence[Candidate], settings: ComparisonSettings) -> None:
    """Raise ConfigError for what can be seen before anything is loaded."""
    names = [method.name for method in methods]
    if len(methods) < 2:
        raise ConfigError(f"expected at least two methods to compare, got {', '.join(names) or 'none'}")
    alike = {make_file_name(name) for name in names}
    if len(alike) < len(names):
        raise ConfigError("two methods differ only in characters that file names do not take: leave one of them out")
    if settings.current is not None and settings.current not in names:
        raise ConfigError(
            f"--current '{settings.current}' is not among the methods: expected one of {', '.join(names)}"
        )


def _describe_setup(base: FrozenLM, task: Task, settings: ComparisonSettings) -> dict[str, Any]:
    """What all results of a folder have in common."""
    shifted = Splits((), (), settings.shift, "", ()).fingerprint[:12] if settings.shift else None
    return {
        **settings.to_dict(),
        **describe_base_and_task(base, task),
        "shift_data": shifted,
        # a folder whose scores are of the first rows is another comparison
        **Subsample(min(len(task.test), TEST_LIMIT[task.spec.kind]), len(task.test)).to_dict(),
    }
