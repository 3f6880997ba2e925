"""fit_multitask: several tasks and a base model in, a learned and evaluated prompt for each out."""

import json
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from softprompt.config import TrainConfig
from softprompt.data.task import Task
from softprompt.errors import ConfigError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.training.callbacks import Callback
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.fit import announce, best_prompt, finish, limited, open_run, say_sampled, with_metrics
from softprompt.training.multitask import train_multitask
from softprompt.utils.files import expand_user

METHOD = "multitask"


def fit_multitask(
    base: FrozenLM,
    tasks: Mapping[str, Task],
    *,
    out: str | Path | None = None,
    config: TrainConfig | None = None,
    teachers: Mapping[str, Prompt] | None = None,
    distillation: float = 0.9,
    callback: Callback | None = None,
    resume: bool = False,
    restart: bool = False,
    evaluate_test: bool = True,
) -> dict[str, Prompt]:
    """Learn a prompt for each of several tasks, all together (Wang et al. 2023; see ``train_multitask``).

    Args:
        tasks: by a name of letters, digits, ``.``, ``_`` and ``-``, which is also the folder of its prompt.
        out: folder to save to, a sub-folder for each task. The unfinished run is kept beside it, in ``OUT.run``.
        config: the settings; ``method`` and its options play no role.
        teachers: saved prompts of single tasks to learn from, by the task's name.
        distillation: weight of the distance from the teachers.
        callback, resume, restart, evaluate_test: as for ``fit``.

    Raises:
        ConfigError, DataError, TemplateError, OutputError, PromptFileError, TrainingError: one line that says what
            to do.
    """
    chosen, callback = config or TrainConfig(), callback or Callback()
    check_names(tasks)
    base.processes.check_alone("learning several tasks")
    tasks = {name: limited(task, chosen) for name, task in tasks.items()}
    for teacher in (teachers or {}).values():
        teacher.check_base(base)
    states = {name: teacher.state for name, teacher in (teachers or {}).items()}
    out = None if out is None else expand_user(out)
    run: AbstractContextManager[Checkpoint | None] = nullcontext()
    if out is not None:
        taught = {name: state.digest for name, state in states.items()}
        more = {"distillation": distillation, "teachers": taught}
        run = open_run(out, base, tasks, {"": chosen}, resume=resume, restart=restart, callback=callback, **more)
    with run as checkpoint:
        for task in tasks.values():
            announce(base, task, chosen.length, callback)
            say_sampled(task, chosen, callback)
        outcomes = train_multitask(
            base, tasks, chosen, callback, teachers=states, distillation=distillation, checkpoint=checkpoint
        )
        prompts = {}
        for name, task in tasks.items():
            prompt = best_prompt(base, task, {"": chosen}, [outcomes[name]], ensemble=False)
            told = {"tasks": list(tasks), "teachers": sorted(states), "distillation": distillation}
            prompt = replace(prompt, method=METHOD, training={**prompt.training, **told})
            prompts[name] = with_metrics(prompt, base, task, evaluate_test=evaluate_test)
        if out is not None and checkpoint is not None:
            finished = checkpoint.stage() / out.name
            for name, prompt in prompts.items():
                finish(prompt, finished / name, outcomes[name], checkpoint.folder)
            # all of the prompts appear at once, or none
            checkpoint.place(finished, out)
    return prompts


def check_names(tasks: Mapping[str, Task] | Mapping[str, str]) -> None:
    """Raise ConfigError unless every task's name can be a folder's."""
    for name in tasks:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            shown = json.dumps(name)
            raise ConfigError(f"task name {shown}: expected at most 64 letters, digits, '.', '_' and '-'")
