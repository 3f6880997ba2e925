"""sweep: settings are proposed, tried and given up until the trials are made; the best on validation is the winner."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from softprompt.config import TrainConfig
from softprompt.data.chats.chat_resolution import resolve_chat
from softprompt.data.task import Task
from softprompt.data.task_arguments import Data, pop_task_options, resolve_task
from softprompt.errors import ConfigError, TrainingError
from softprompt.experiments.comparison.study_folder import describe_base_and_task
from softprompt.experiments.sweep.local_backend import run_here
from softprompt.experiments.sweep.ray_backend import ray_module, run_on_ray
from softprompt.experiments.sweep.search_space import SearchSpace, build_trial_config
from softprompt.experiments.sweep.sweep_folder import (
    SweepFolder,
    SweepResult,
    SweepSummary,
    SweepTrial,
    best_of,
    trial_name,
)
from softprompt.experiments.sweep.trial_log import SweepSettings, TrialLog
from softprompt.experiments.sweep.trial_sampler import Pruning, TrialSampler, optuna_module
from softprompt.experiments.sweep.workers import run_in_processes
from softprompt.metrics.scores import Score, read_score
from softprompt.models.deferred_base import BaseSource, load_checked, resolve_base
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.methods.method_registry import check_method
from softprompt.prompts.saved_prompt import Prompt
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.callbacks.callback_arguments import AnyCallback, resolve_callback
from softprompt.training.callbacks.progress import ProgressChoice
from softprompt.training.callbacks.trackers import GroupTracker, Track, parse_trackers
from softprompt.training.fit import resolve_configs
from softprompt.training.run_checks import check_init, check_init_fits, check_trainable, resolve_steps
from softprompt.training.training_run import evaluate_prompt, report_validation_sample
from softprompt.utils.arguments import check_arguments
from softprompt.utils.version import read_versions

SweepBackend: TypeAlias = Literal["optuna", "ray"]


def check_sweep(space: SearchSpace, fixed: TrainConfig, backend: SweepBackend) -> None:
    """Raise ConfigError or MissingExtraError for what can be seen before anything is loaded."""
    optuna_module()
    if backend == "ray":
        ray_module()

    def check(config: TrainConfig) -> None:
        check_method(config.method, config.method_options)
        check_init(config.init)

    space.check(fixed, check)


@check_arguments
def sweep(
    base: BaseSource,
    data: Data,
    space: SearchSpace | str,
    out: str | Path,
    *,
    fixed: TrainConfig | None = None,
    trials: int = 20,
    pruning: Pruning = "median",
    backend: SweepBackend = "optuna",
    workers: int = 1,
    options: Mapping[str, Any] | None = None,
    evaluate_test: bool = True,
    callback: AnyCallback | None = None,
    callbacks: AnyCallback | None = None,
    progress: ProgressChoice = None,
    track: Track = None,
    **settings: Any,
) -> SweepResult:
    """Make the trials that are not in ``out`` yet; save the best on validation as ``out/prompt``, scored on test once.

    Args:
        base: the frozen model, or its name.
        data: a task, or what it is made from, with training and validation examples; those of test are for the winner
            alone.
        space: what may be chosen, as ``"learning-rate=0.03..0.3:log;length=20,50"``.
        out: folder of the sweep: each trial is kept there as it ends, and a second call goes on.
        fixed: everything else, the sampler's seed too.
        trials: how many in all; or all combinations, where the space has no more.
        pruning: the rule for giving trials up: ``median``, ``asha`` or ``none``.
        backend: where trials run: on this machine (``optuna``), or on a cluster (``ray``).
        workers: trials at a time. One shares ``base``; several load their own, by its name and with these ``options``.
        evaluate_test: whether the winner is scored on test.
        callback, callbacks, progress: told of how it goes, and what shows it, as for ``fit``.
        track: where each trial is written down, as for ``fit``, in a group of the name of ``out``.
        settings: single settings that all trials have (``steps=300`` or ``epochs=3``, ...), and those of a task that is
            made here (``template=``, ...), as for ``fit``.

    Returns:
        What came of it, and all trials: ``summary, trials = sweep(...)``, or a table of them by ``to_pandas()``.

    Raises:
        ConfigError, DataError, OutputError, MissingExtraError: one line that says what to do. What goes wrong within
            one trial is that trial's result; TrainingError only if there is none that did not fail.
    """
    base, told, out = resolve_base(base), resolve_callback(callback, callbacks, progress), Path(out)
    space = SearchSpace.parse(space) if isinstance(space, str) else space
    task = resolve_task(data, options=pop_task_options(settings))
    fixed = _resolve_fixed(fixed, settings, space, task)
    check_sweep(space, fixed, backend)
    check_trainable(task)
    inits = space.axes["init"].probes if "init" in space.axes else (fixed.init,)
    for init in inits:
        check_init_fits(str(init), task.spec)
    SweepFolder.check(out)
    tracker = GroupTracker(parse_trackers(track), out.name, told.on_message)
    base = load_checked(base)
    task = resolve_chat(base, task)
    sampler = TrialSampler(space, space.defaults(fixed), trials, fixed.seed)
    chosen = SweepSettings(fixed, pruning, base.name, dict(options or {}), base.fingerprint)
    with SweepFolder(out, _describe_setup(base, task, space, chosen)) as folder:
        log = TrialLog(folder, sampler, chosen, task, told, tracker)
        if space.size < trials:
            told.on_message(f"the space has {space.size} combinations: each is tried once")
        report_validation_sample(task, fixed, told)
        if log.missing:
            _run_trials(log, base, backend, workers)
        summary = _conclude(log, base, space, evaluate_test=evaluate_test)
    return SweepResult(summary, log.landed)


def _resolve_fixed(
    fixed: TrainConfig | None, settings: Mapping[str, Any], space: SearchSpace, task: Task
) -> TrainConfig:
    """With single settings in place of its own, and steps in place of epochs."""
    chosen = resolve_configs(fixed, settings)[""]
    if chosen.epochs is not None and {"batch_size", "epochs", "steps"} & space.axes.keys():
        raise ConfigError("epochs are counted once for all trials, whose batch size differs: give steps")
    return resolve_steps({"": chosen}, task)[""]


def _run_trials(log: TrialLog, base: FrozenLM, backend: SweepBackend, workers: int) -> None:
    if backend == "ray":
        run_on_ray(log, workers)
    elif workers > 1:
        run_in_processes(log, workers)
    else:
        run_here(log, base)


def _describe_setup(base: FrozenLM, task: Task, space: SearchSpace, settings: SweepSettings) -> dict[str, Any]:
    """What all trials of a folder have in common."""
    return {
        "what": "sweep",
        "space": space.to_dict(),
        "fixed": settings.fixed.model_dump(exclude_unset=True),
        "pruning": settings.pruning,
        **describe_base_and_task(base, task),
    }


def _conclude(log: TrialLog, base: FrozenLM, space: SearchSpace, *, evaluate_test: bool) -> SweepSummary:
    """The winner, saved and scored if it is not the one of an earlier end."""
    folder, task, settings = log.folder, log.task, log.settings
    best = best_of(log.landed)
    if best is None:
        errors = [trial.error for trial in log.landed if trial.error]
        raise TrainingError(
            f"no trial of the sweep in '{folder.path}' came to its end: {errors[0] if errors else 'all were given up'}"
        )
    config = build_trial_config(settings.fixed, best.settings)
    known = folder.summary()
    scored = known is not None and (known.test is not None or not (evaluate_test and task.test))
    if known is not None and scored and known.winner == best.number and folder.prompt.is_dir():
        prompt = load_prompt(folder.prompt)
    else:
        log.callback.on_message(f"trial {best.number} is the best on validation")
        prompt = _save_winner(log, base, best, evaluate_test=evaluate_test)
    usual = space.defaults(settings.fixed)
    counts = {status: sum(one.status == status for one in log.landed) for status in _STATUSES}
    summary = SweepSummary(
        model=base.name,
        winner=best.number,
        settings=best.settings,
        config=config.model_dump(exclude_unset=True),
        validation=_read_split_score(prompt, "validation"),
        test=_read_split_score(prompt, "test") if "test" in prompt.metrics else None,
        usual=next((one.number for one in log.landed if one.settings == usual), None),
        trials={status: count for status, count in counts.items() if count},
        seconds=sum(one.seconds for one in log.landed),
        data=task.splits.fingerprint,
        base=dict(base.fingerprint),
        versions=read_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    folder.conclude(summary)
    return summary


_STATUSES = ("finished", "pruned", "failed", "repeated")


def _save_winner(log: TrialLog, base: FrozenLM, best: SweepTrial, *, evaluate_test: bool) -> Prompt:
    folder, kept = log.folder, log.folder.artifact(trial_name(best.number))
    prompt = load_prompt(kept)
    prompt = evaluate_prompt(prompt, base, log.task, evaluate_test=evaluate_test)
    told = {"trial": best.number, "trials": len(log.landed), "settings": best.settings}
    history = {"history.jsonl": (kept / "history.jsonl").read_text(encoding="utf-8")}
    prompt = replace(prompt, training={**prompt.training, "sweep": told}, extra_files={**prompt.extra_files, **history})
    saved = folder.scratch()
    prompt.save(saved)
    folder.put(saved, folder.prompt)
    return prompt


def _read_split_score(prompt: Prompt, split: str) -> Score:
    found = read_score(prompt.metrics[split])
    assert found is not None
    return found
