"""distill: a long written prompt, solved examples or a saved prompt in; a short soft prompt that behaves like it out.

On a model with a chat template the written prompt is a system prompt (system_prompt.py).

The teacher answers every input once; students learn to give the same probabilities, in the loop of any prompt.
Context distillation: Askell et al. 2021, Snell, Klein and Zhong 2022, Mu, Li and Goodman 2023.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, overload

from softprompt.config import DistillConfig, TrainConfig
from softprompt.data.chats.chat_resolution import resolve_chat
from softprompt.data.examples import Example
from softprompt.data.split_assignment import Subsample, sample_examples, sample_indices
from softprompt.data.task import Task
from softprompt.data.task_arguments import Data, pop_task_options, resolve_task
from softprompt.errors import ConfigError
from softprompt.inference.generation import GenerationConfig, choose_max_new_tokens
from softprompt.models.deferred_base import BaseSource, load_checked, resolve_base
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.callbacks.callback import Callback
from softprompt.training.callbacks.callback_arguments import AnyCallback, resolve_callback
from softprompt.training.callbacks.progress import ProgressChoice
from softprompt.training.callbacks.step_timer import CLOCK_FILE, StepTimer
from softprompt.training.callbacks.trackers import TRACKED_FILE, RunTracker, Track, describe_run
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.distillation.distillation_loss import distillation_objective
from softprompt.training.distillation.distillation_records import DistillationReport
from softprompt.training.distillation.fidelity import (
    add_speeds,
    drop_timings,
    measure_fidelity,
    measure_speeds,
    request_tokens,
)
from softprompt.training.distillation.student_initialization import check_teacher_start, initialize_students
from softprompt.training.distillation.system_prompt import check_teacher, cut_inputs, write_teacher
from softprompt.training.distillation.teacher import Teacher, own_split
from softprompt.training.distillation.teacher_answers import Answers
from softprompt.training.distillation.teacher_cache import ANSWERS_FILE, ask_or_load_answers
from softprompt.training.fit import resolve_configs
from softprompt.training.loop import TrainingResult, train_together
from softprompt.training.run_checks import (
    check_init_fits,
    check_output,
    check_prompts_base,
    check_settings,
    check_splits,
    resolve_steps,
)
from softprompt.training.training_run import (
    TEST_LIMIT,
    attach_records,
    build_prompt,
    describe_data,
    find_day,
    limit_length,
    open_run,
    report_data_notes,
    reserve_answer_room,
    save_run_result,
)
from softprompt.utils.arguments import check_arguments, refuse_argument
from softprompt.utils.files import expand_user
from softprompt.utils.notebook_display import Displayed
from softprompt.utils.summaries import summarize

REPORT_FILE = "distillation.json"
SPEED_EXAMPLES = 256  # held-out inputs whose requests are timed, at most


@dataclass(frozen=True)
class Distillation(Displayed):
    """A distilled prompt, and how it does beside its teacher."""

    prompt: Prompt
    report: DistillationReport

    def __repr__(self) -> str:
        report = repr(self.report).partition("(")[2].removesuffix(")")
        return summarize(self, report)


AnyTeacher: TypeAlias = Teacher | Prompt | Path | str


@overload
def distill(
    base: BaseSource,
    inputs: Data,
    teacher: AnyTeacher = "",
    *,
    config: TrainConfig | None = None,
    **options: Any,
) -> Distillation: ...


@overload
def distill(
    base: BaseSource,
    inputs: Data,
    teacher: AnyTeacher = "",
    *,
    config: Mapping[str, TrainConfig],
    **options: Any,
) -> dict[str, Distillation]: ...


@check_arguments
def distill(
    base: BaseSource,
    inputs: Data,
    teacher: AnyTeacher = "",
    *,
    shots: Sequence[Example] = (),
    keep_system: str | None = None,
    out: str | Path | None = None,
    config: TrainConfig | Mapping[str, TrainConfig] | None = None,
    callback: AnyCallback | None = None,
    callbacks: AnyCallback | None = None,
    progress: ProgressChoice = None,
    track: Track = None,
    resume: bool = False,
    restart: bool = False,
    evaluate_test: bool = True,
    measure: bool = True,
    **settings: Any,
) -> Distillation | dict[str, Distillation]:
    """Learn a soft prompt under which ``base`` behaves as under ``teacher``.

    Args:
        inputs: a task (``Task.of_inputs`` makes one of unlabelled rows), or what it is made from. In chats its
            ``system`` is what is distilled; without one, the system message that all rows begin with.
        teacher: a text, which is the system prompt of chats; a saved prompt, or its folder as a ``Path``; or a
            ``Teacher``. Left out where ``system`` or ``shots`` teach.
        shots: solved examples behind the text, in chats as turns.
        keep_system: what stays written beside the virtual tokens, in chats.
        out, callback, callbacks, progress, track, resume, restart, evaluate_test: as for ``fit``.
        config: the settings of learning; or single ones by name (``length=16``, ``steps=300``, ...), those of
            ``DistillConfig`` and of a task that is made here among them (``distillation_temperature=2``, ...). ``init``
            is ``teacher`` by default. The settings of several students (see ``make_length_configs``), by the folder
            within ``out`` that each is saved in (``""``: ``out``), learn in the same passes, and all are given.
        measure: time student and teacher at the end.

    Raises:
        ConfigError, DataError, TemplateError, OutputError, PromptFileError, TrainingError: one line that says what
            to do.
    """
    how = {name: settings.pop(name) for name in tuple(settings) if name in DistillConfig.model_fields}
    task_options = pop_task_options(settings)
    configs, base = resolve_configs(config, settings), resolve_base(base)
    teacher, told = resolve_teacher(teacher), resolve_callback(callback, callbacks, progress)
    spec = teacher.spec if isinstance(teacher, Prompt) and not isinstance(inputs, Task) else None
    task = resolve_task(inputs, spec, unlabelled=True, options=task_options)
    configs = resolve_steps(configs, task)
    out, tracker = None if out is None else expand_user(out), RunTracker.of(track, told)
    base.processes.check_alone("distillation")
    check_settings(configs, taught=True)
    check_splits(task)
    if isinstance(teacher, str):
        check_teacher(task, teacher, shots, keep_system)
    elif keep_system is not None:
        raise ConfigError("a kept system prompt is for a teacher of text: leave it out")
    for one in configs.values():
        check_student_init(one)
        check_init_fits(one.init, task.spec)
    if out is not None:
        check_output(out, resume=resume, restart=restart)
    saved = [teacher] if isinstance(teacher, Prompt) else []
    base = load_checked(base, partial(check_prompts_base, configs, saved))
    day = find_day(out, restart=restart)
    if isinstance(teacher, str):
        task, teacher = write_teacher(base, task, teacher, shots, keep_system, day)
    done = _distill(
        base,
        resolve_chat(base, task, day),
        configs,
        Teacher.saved(teacher) if isinstance(teacher, Prompt) else teacher,
        DistillConfig.build(**how),
        day,
        out=out,
        callback=told,
        tracker=tracker,
        resume=resume,
        restart=restart,
        evaluate_test=evaluate_test,
        measure=measure,
    )
    return done if isinstance(config, Mapping) else done[""]


def resolve_teacher(teacher: AnyTeacher) -> Teacher | Prompt | str:
    """A teacher as it is; a saved prompt read from its folder. Raises ConfigError for what is none of these."""
    if isinstance(teacher, Path):
        return load_prompt(teacher)
    if not isinstance(teacher, Teacher | Prompt | str):
        raise refuse_argument("teacher", "a text, a saved prompt or its folder as a Path", teacher, {})
    return teacher


def make_length_configs(config: TrainConfig, lengths: Sequence[int]) -> dict[str, TrainConfig]:
    """The settings of students of several lengths, by what their folders are called; raises ConfigError."""
    if len(set(lengths)) < len(lengths):
        raise ConfigError(f"lengths {', '.join(map(str, lengths))}: expected each once")
    given = config.model_dump(exclude_unset=True)
    return {str(length): TrainConfig.build(**{**given, "length": length}) for length in lengths}


def _distill(
    base: FrozenLM,
    task: Task,
    configs: Mapping[str, TrainConfig],
    teacher: Teacher,
    settings: DistillConfig,
    day: date,
    *,
    out: Path | None,
    callback: Callback,
    tracker: RunTracker,
    resume: bool,
    restart: bool,
    evaluate_test: bool,
    measure: bool,
) -> dict[str, Distillation]:
    """Students of one teacher, in the same forward passes; by the folders they are saved in."""
    configs = {name: _resolve_init(config, teacher) for name, config in configs.items()}
    first = next(iter(configs.values()))
    whole = reserve_answer_room(base, limit_length(task, first))
    room = settings.max_new_tokens or choose_max_new_tokens(base, whole.spec, whole.splits["all"])
    settings = settings.model_copy(update={"max_new_tokens": room})
    task, notes = _sample_inputs(whole, first, evaluate_test)
    configs = {name: config.model_copy(update={"max_length": task.spec.max_length}) for name, config in configs.items()}
    run: AbstractContextManager[Checkpoint | None] = nullcontext()
    how = settings.model_dump()
    if out is not None:
        taught = {"teacher": teacher.digest, "distillation": how, "day": str(day)}
        run = open_run(out, base, {"": task}, configs, resume=resume, restart=restart, callback=callback, **taught)
    with run as checkpoint, tracker:
        described = describe_run(base, {"": task}, configs, out, teacher=teacher.source, **how)
        callback = tracker.join(callback, described, checkpoint)
        report_data_notes(
            base, task, max(config.length for config in configs.values()), callback, settings.max_new_tokens
        )
        for note in notes:
            callback.on_message(note)
        if checkpoint is not None:
            checkpoint.load()  # one of another run is refused before the teacher is asked
        longest = max(config.length for config in configs.values())
        read = cut_inputs(base, task, teacher, longest, room)
        splits = {"train": read.train, "validation": read.validation, **({"test": read.test} if read.test else {})}
        answers, seconds = ask_or_load_answers(base, read, teacher, settings, splits, checkpoint, restart, callback)
        lengths = {name: config.length for name, config in configs.items() if config.init == "teacher"}
        starts = initialize_students(base, read, teacher, lengths, answers["validation"])
        given = {length: state for length, (_, state) in starts.items()}
        scale = settings.distillation_temperature
        objective = distillation_objective(base, read, list(configs.values()), answers, given, scale)
        clock = StepTimer(callback, None if checkpoint is None else checkpoint.folder / CLOCK_FILE)
        outcomes = train_together(base, read, configs, clock, checkpoint, objective)
        by_name = {name: one for name, one in zip(configs, outcomes, strict=True) if not one.failed}
        sizes = {"validation": len(whole.validation), "test": len(whole.test)}
        done = {}
        for name, outcome in by_name.items():
            spent = seconds, clock.at(outcome.steps) / len(configs)
            told = {**settings.model_dump(), "start": starts[lengths[name]][0] if name in lengths else None}
            one = _build_report(base, read, configs[name], outcome, teacher, told, answers, sizes, spent)
            # what was given, which inspect can know again
            done[name] = replace(one, prompt=replace(one.prompt, data=describe_data(whole)))
        if measure:
            done = _measure_students(base, read, done, teacher, settings)
        tracker.conclude_splits({name: one.prompt.metrics for name, one in done.items()})
        if out is not None and checkpoint is not None:
            finished = checkpoint.stage() / out.name
            for name, one in done.items():
                facts = one.report.model_dump_json(indent=2) + "\n"
                files = {**one.prompt.extra_files, REPORT_FILE: facts}
                save_run_result(
                    replace(one.prompt, extra_files=files), finished / name, by_name[name], checkpoint.folder
                )
            checkpoint.publish(finished, out, ANSWERS_FILE, CLOCK_FILE, TRACKED_FILE)
    return done


def check_student_init(config: TrainConfig) -> None:
    """Raise ConfigError if a start is asked for that would need labels."""
    if "init" in config.model_fields_set and config.init == "examples":
        raise ConfigError(
            "init 'examples' needs labels, of which distill uses none: leave --init out to start from the teacher's "
            "own text, or give --shots N"
        )


def _resolve_init(config: TrainConfig, teacher: Teacher) -> TrainConfig:
    """With the start that is chosen where none is given: the teacher's own text, or, where it is none, ``text``."""
    if config.init == "teacher":
        check_teacher_start(teacher.start, config.length)
    if "init" in config.model_fields_set:
        return config
    return config.model_copy(update={"init": "text" if teacher.start.kind == "key_values" else "teacher"})


def _sample_inputs(task: Task, config: TrainConfig, evaluate_test: bool) -> tuple[Task, list[str]]:
    """The inputs that learning and reporting come by: the teacher need not answer others."""
    limits = {
        "train": (config.steps * config.batch_size, f"{config.steps:,} steps see no more"),
        "validation": (config.validation_limit, "validation_limit"),
        "test": (TEST_LIMIT[task.spec.kind] if evaluate_test else 0, "scored at the end"),
    }
    given = {split: getattr(task, split) for split in limits}
    used: dict[str, Any] = {split: sample_examples(given[split], most) for split, (most, _) in limits.items()}
    notes = [
        f"{len(used[split]):,} of {len(given[split]):,} {split} inputs are used, drawn by seed 0 ({why})"
        for split, (_, why) in limits.items()
        if 0 < len(used[split]) < len(given[split])
    ]
    return replace(task, splits=replace(task.splits, **used)), notes


def _build_report(
    base: FrozenLM,
    task: Task,
    config: TrainConfig,
    outcome: TrainingResult,
    teacher: Teacher,
    told: Mapping[str, Any],
    answers: Mapping[str, Answers],
    given: Mapping[str, int],
    spent: tuple[float, float],
) -> Distillation:
    """The prompt, and how it does on what was held out.

    ``told``: what its manifest says of how it was distilled; ``given``: rows of each split of which those of ``task``
    are a sample; ``spent``: seconds of teacher and training.
    """
    prompt = build_prompt(base, task, {"": config}, [outcome], ensemble=False)
    generation = GenerationConfig(max_new_tokens=told["max_new_tokens"])
    held_out, metrics, answered = {}, {}, {}
    for split, examples in (("validation", task.validation), ("test", task.test)):
        if examples:
            chosen = sample_indices(examples, TEST_LIMIT[task.spec.kind])
            some, learned = [examples[index] for index in chosen], answers[split].at(chosen)
            own = answers.get(own_split(split), learned)
            near, metrics[split], answered[split] = measure_fidelity(
                base, task.spec, some, learned, own, outcome.state, generation
            )
            metrics[split] |= Subsample(len(chosen), given[split]).to_dict()
            held_out[split] = near
    last = next(reversed(held_out.values()))
    report = DistillationReport(
        teacher=teacher.source,
        method=config.method,
        length=outcome.state.length,
        metric=last.agreement.metric if last.student is None else last.student.metric,
        held_out=held_out,
        tokens=request_tokens(base, task.spec, task.test or task.validation, teacher, outcome.state),
        teacher_seconds=spent[0],
        training_seconds=spent[1],
    )
    training = {**prompt.training, "distillation": {**told, **drop_timings(report)}}
    prompt = replace(prompt, metrics=metrics, training=training)
    return Distillation(attach_records(prompt, base, task, answered.get("validation", ())), report)


def _measure_students(
    base: FrozenLM, task: Task, done: Mapping[str, Distillation], teacher: Teacher, settings: DistillConfig
) -> dict[str, Distillation]:
    """With latency and throughput before and after."""
    examples = sample_examples(task.test or task.validation, SPEED_EXAMPLES)
    states = [one.prompt.state for one in done.values()]
    after, cached, read = measure_speeds(base, task.spec, examples, teacher, states, settings)
    return {
        name: replace(one, report=add_speeds(one.report, speed, cached, read))
        for (name, one), speed in zip(done.items(), after, strict=True)
    }
