"""fit: data and base model in, a learned and evaluated prompt out."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, overload

from softprompt.config import TrainConfig
from softprompt.data.chats.chat_resolution import resolve_chat
from softprompt.data.task import Task
from softprompt.data.task_arguments import Data, is_several_tasks, pop_task_options, resolve_task
from softprompt.errors import ConfigError
from softprompt.inference.reading_progress import report_progress
from softprompt.models.deferred_base import BaseSource, load_checked, resolve_base
from softprompt.models.distributed import ProcessGroup
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.store.prompt_loading import pin_reference
from softprompt.training.callbacks.callback import Callback
from softprompt.training.callbacks.callback_arguments import AnyCallback, resolve_callback
from softprompt.training.callbacks.progress import ProgressChoice
from softprompt.training.callbacks.trackers import TRACKED_FILE, RunTracker, Track, describe_run
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.loop import TrainingResult, train_together
from softprompt.training.multitask import train_multitask
from softprompt.training.run_checks import (
    check_ensemble,
    check_example,
    check_multitask,
    check_output,
    check_prompts_base,
    check_settings,
    check_tasks,
    load_teachers,
    resolve_steps,
)
from softprompt.training.training_run import (
    build_prompt,
    evaluate_prompt,
    find_day,
    limit_length,
    open_run,
    report_data_notes,
    report_validation_sample,
    reserve_answer_room,
    save_run_result,
)
from softprompt.utils.arguments import check_arguments, refuse_argument
from softprompt.utils.files import expand_user

METHOD = "multitask"


@overload
def fit(base: BaseSource, data: Mapping[str, Task], **options: Any) -> dict[str, Prompt]: ...


@overload
def fit(base: BaseSource, data: Data, **options: Any) -> Prompt: ...


@check_arguments
def fit(
    base: BaseSource,
    data: Data | Mapping[str, Task],
    *,
    out: str | Path | None = None,
    config: TrainConfig | Mapping[str, TrainConfig] | None = None,
    callback: AnyCallback | None = None,
    callbacks: AnyCallback | None = None,
    progress: ProgressChoice = None,
    track: Track = None,
    resume: bool = False,
    restart: bool = False,
    evaluate_test: bool = True,
    baseline: bool = True,
    ensemble: bool = False,
    example: str | None = None,
    teachers: Mapping[str, Prompt | str] | None = None,
    distillation: float = 0.9,
    **settings: Any,
) -> Prompt | dict[str, Prompt]:
    """Learn a prompt for ``data`` on ``base``; evaluate it on validation and test.

    Args:
        base: the model, or its name; it is then loaded once everything else is checked.
        data: a task, or what it is made from (see ``Task.of``); or several tasks, which learn together (Wang et al.
            2023; see ``train_multitask``), each by a name of letters, digits, ``.``, ``_`` and ``-``, which is also its
            prompt's folder within ``out``.
        out: folder to save to. The unfinished run is kept beside it, in ``OUT.run``.
        config: the settings; or single ones by name (``length=20``, ``steps=300`` or ``epochs=3``, ``init="labels"``,
            ``lr=0.1`` in standard deviations of the base's token embeddings, ...), beside which stand those of a task
            that is made here (``template=``, ``label_column=``, ..., see ``Task.of``). Several configurations, by the
            name each is reported under (see ``make_population``), learn one task in the same forward passes; the best
            on validation is given, what each reached is under ``training["population"]``. Several tasks take no method.
        callback, callbacks: told of the run: objects with some of ``Callback``'s methods, or of ``transformers``.
        progress: what shows the run: a bar in a notebook or terminal, else lines on standard error; ``False``: nothing.
        track: where it is written down: ``wandb``, ``mlflow``, ``trackio``, ``tensorboard:FOLDER``, one or several.
        resume, restart: go on with the unfinished run of ``out``, to the same bytes; or throw it away.
        evaluate_test, baseline: score the test split at the end; and the written prompt on its rows, to tell the gain.
        ensemble: give the prompts of several settings as one that answers by vote, instead of the best.
        example: a text, saved with the prompt, that the page of a server offers to begin with.
        teachers: of several tasks, prompts saved for single ones to learn from, or their places, by the task's name.
        distillation: weight of the distance from the teachers.

    Returns:
        The prompt, with intervals under ``metrics["validation"]`` and ``["test"]``; of several tasks one each, by name.

    Raises:
        SoftpromptError: one line that says what to do.
    """
    base, task_options = resolve_base(base), pop_task_options(settings)
    tasks, configs = _resolve_tasks(data, task_options, resolve_configs(config, settings))
    several, processes = is_several_tasks(data), base.processes
    # the other processes learn and score with it, and neither say nor write anything
    told = resolve_callback(callback, callbacks, progress) if processes.is_main else Callback()
    tracker = RunTracker.of(track if processes.is_main else None, told)
    out = None if out is None or not processes.is_main else expand_user(out)
    if several:
        _check_several(tasks, configs, teachers or {}, distillation, ensemble or example is not None, processes)
    taught = load_teachers(teachers or {})
    _check_prompts(tasks, configs, ensemble, example, sharded=processes.in_lockstep)
    if out is not None:
        check_output(out, resume=resume, restart=restart)
    base = load_checked(base, partial(check_prompts_base, configs, taught.values()))
    tasks, configs = _prepare(base, tasks, configs, day := find_day(out, restart=restart))
    run: AbstractContextManager[Checkpoint | None] = nullcontext()
    if out is not None:
        identity = {"day": str(day), **(_describe_teaching(taught, distillation) if several else {})}
        run = open_run(out, base, tasks, configs, resume=resume, restart=restart, callback=told, **identity)
    with run as checkpoint, tracker:
        told = tracker.join(told, describe_run(base, tasks, configs, out), checkpoint)
        _report_data(base, tasks, configs, told)
        learn = partial(_learn_tasks, tasks, taught, distillation)
        learn = learn if several else partial(_learn_prompts, tasks[""], ensemble, example)
        learned = learn(base, configs, told, checkpoint)
        prompts = _score_prompts(base, tasks, learned, told, evaluate_test=evaluate_test, baseline=baseline)
        tracker.conclude_splits({name: prompt.metrics for name, prompt in prompts.items()})
        if out is not None and checkpoint is not None:
            _save(prompts, {name: outcome for name, (_, outcome) in learned.items()}, out, checkpoint, processes)
    processes.wait()
    return prompts if several else prompts[""]


def _resolve_tasks(
    data: Data | Mapping[str, Task], options: Mapping[str, Any], configs: dict[str, TrainConfig]
) -> tuple[dict[str, Task], dict[str, TrainConfig]]:
    """Tasks by name, the name of a single one being empty, and the settings with steps for its rows."""
    if not is_several_tasks(data):
        task = resolve_task(data, options=options)
        return {"": task}, resolve_steps(configs, task)
    if options:
        raise ConfigError(f"these are tasks already: give {', '.join(options)} where they are made")
    return dict(data), configs


def _report_data(
    base: FrozenLM, tasks: Mapping[str, Task], configs: Mapping[str, TrainConfig], callback: Callback
) -> None:
    for task in tasks.values():
        report_data_notes(base, task, max(config.length for config in configs.values()), callback)
        report_validation_sample(task, next(iter(configs.values())), callback)


def _describe_teaching(teachers: Mapping[str, Prompt], distillation: float) -> dict[str, Any]:
    digests = {name: teacher.state.digest for name, teacher in teachers.items()}
    return {"distillation": distillation, "teachers": digests}


def _check_several(
    tasks: Mapping[str, Task],
    configs: Mapping[str, TrainConfig],
    teachers: Mapping[str, Any],
    distillation: float,
    of_one_task: bool,
    processes: ProcessGroup,
) -> None:
    processes.check_alone("learning several tasks")
    check_multitask(tasks, configs, teachers, distillation, of_one_task)


def _check_prompts(
    tasks: Mapping[str, Task],
    configs: Mapping[str, TrainConfig],
    ensemble: bool,
    example: str | None,
    *,
    sharded: bool,
) -> None:
    check_settings(configs, sharded=sharded)
    check_tasks(tasks, configs)
    if ensemble:
        check_ensemble(tasks[""], configs)
    if example is not None:
        check_example(tasks[""], example)


def resolve_configs(
    config: TrainConfig | Mapping[str, TrainConfig] | None, settings: Mapping[str, Any]
) -> dict[str, TrainConfig]:
    """By name, each with the single settings in place of its own."""
    if config is not None and not isinstance(config, TrainConfig | Mapping):
        advice = {"": "give sp.TrainConfig(steps=300, ...), or single settings by name"}
        raise refuse_argument("config", "a TrainConfig, or several by name", config, advice)
    if isinstance(config, Mapping) and config and not any(isinstance(one, TrainConfig) for one in config.values()):
        config = TrainConfig(**config)
    configs = dict(config) if isinstance(config, Mapping) else {"": config or TrainConfig()}
    if not settings:
        return configs
    known = {name: one.model_dump(exclude_unset=True) for name, one in configs.items()}
    return {name: TrainConfig.build(**TrainConfig.override(one, settings)) for name, one in known.items()}


Learned: TypeAlias = dict[str, tuple[Prompt, TrainingResult]]


def _prepare(
    base: FrozenLM, tasks: Mapping[str, Task], configs: Mapping[str, TrainConfig], day: date
) -> tuple[dict[str, Task], dict[str, TrainConfig]]:
    """Tasks and settings with the lengths that go together, and with the versions that references mean now."""
    first = next(iter(configs.values()))
    limited = {name: limit_length(resolve_chat(base, task, day), first) for name, task in tasks.items()}
    if set(tasks) != {""}:
        return limited, dict(configs)
    task = reserve_answer_room(base, limited[""])
    if "max_length" not in first.model_fields_set:
        longest = {"max_length": task.spec.max_length}
        configs = {name: config.model_copy(update=longest) for name, config in configs.items()}
    return {"": task}, {name: _pin_version(config) for name, config in configs.items()}


def _learn_prompts(
    task: Task,
    ensemble: bool,
    example: str | None,
    base: FrozenLM,
    configs: Mapping[str, TrainConfig],
    callback: Callback,
    checkpoint: Checkpoint | None,
) -> Learned:
    outcomes = train_together(base, task, configs, callback, checkpoint)
    prompt = build_prompt(base, task, configs, outcomes, ensemble=ensemble)
    if example is not None:
        prompt = replace(prompt, training={**prompt.training, "example": example})
    return {"": (prompt, outcomes[0])}


def _learn_tasks(
    tasks: Mapping[str, Task],
    teachers: Mapping[str, Prompt],
    distillation: float,
    base: FrozenLM,
    configs: Mapping[str, TrainConfig],
    callback: Callback,
    checkpoint: Checkpoint | None,
) -> Learned:
    config = next(iter(configs.values()))
    states = {name: teacher.state for name, teacher in teachers.items()}
    outcomes = train_multitask(
        base, tasks, config, callback, teachers=states, distillation=distillation, checkpoint=checkpoint
    )
    told = {"tasks": list(tasks), "teachers": sorted(teachers), "distillation": distillation}
    learned = {}
    for name, task in tasks.items():
        prompt = build_prompt(base, task, {"": config}, [outcomes[name]], ensemble=False)
        learned[name] = replace(prompt, method=METHOD, training={**prompt.training, **told}), outcomes[name]
    return learned


def _score_prompts(
    base: FrozenLM,
    tasks: Mapping[str, Task],
    learned: Learned,
    callback: Callback,
    *,
    evaluate_test: bool,
    baseline: bool,
) -> dict[str, Prompt]:
    with report_progress(callback.on_read):
        return {
            name: evaluate_prompt(prompt, base, tasks[name], callback, evaluate_test=evaluate_test, baseline=baseline)
            for name, (prompt, _) in learned.items()
        }


def _save(
    prompts: Mapping[str, Prompt],
    outcomes: Mapping[str, TrainingResult],
    out: Path,
    checkpoint: Checkpoint,
    processes: ProcessGroup,
) -> None:
    """All of the prompts appear at once, or none; of one task, ``out`` itself is its folder."""
    finished = checkpoint.stage() / out.name
    for name, prompt in prompts.items():
        save_run_result(prompt, finished / name, outcomes[name], checkpoint.folder, processes)
    checkpoint.publish(finished, out, TRACKED_FILE)


def _pin_version(config: TrainConfig) -> TrainConfig:
    """With the version that ``prompt:NAME@ALIAS`` means now: the parent of a prompt must not move with an alias."""
    name, colon, place = config.init.partition(":")
    return (
        config.model_copy(update={"init": f"prompt:{pin_reference(place)}"})
        if (name, colon) == ("prompt", ":")
        else config
    )
