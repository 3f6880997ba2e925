"""What can be wrong with a run, checked once, before a model is loaded: nothing behind it checks again."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from softprompt.config import TrainConfig
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import ConfigError, DataError, OutputError
from softprompt.models.fingerprint import UnloadedModel
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.methods.initializers import INITIALIZERS
from softprompt.prompts.methods.method_registry import METHODS, check_method
from softprompt.prompts.saved_prompt import LONGEST_EXAMPLE, Prompt
from softprompt.store.prompt_loading import load_prompt, read_manifest
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.optimization import choose_steps
from softprompt.utils.files import check_free

# what prompts that learn together have in common: these decide when something happens, or for how many at once
SHARED = (
    "steps",
    "batch_size",
    "micro_batch_size",
    "token_budget",
    "gradient_checkpointing",
    "compile",
    "soft_verbalizer",
    "max_length",
    "eval_every",
    "validation_limit",
    "checkpoint_every",
)
_INITS_WITH_ARGUMENT = {"text": "text:Classify the review.", "prompt": "prompt:prompts/sentiment"}


def run_folder(out: Path) -> Path:
    """Where the unfinished run of ``out`` is kept."""
    return out.with_name(f"{out.name}.run")


def check_output(out: Path, *, resume: bool = False, restart: bool = False) -> None:
    """Raise OutputError if ``out`` cannot be written, is being trained to, or has an unfinished run left in doubt.

    ConfigError if the run is to be kept and dropped at once.
    """
    if resume and restart:
        raise ConfigError("--resume and --restart exclude each other: give one of them")
    check_free(out)
    run = run_folder(out)
    if run.exists() and not run.is_dir():
        raise OutputError(f"'{run}' is where the unfinished run is kept, but it is a file: give another --out")
    if not run.exists():
        return
    with Checkpoint(run, {}) as unfinished:
        if unfinished.exists() and not (resume or restart):
            raise OutputError(
                f"'{run}' holds an unfinished run for '{out}': --resume goes on with it, --restart drops it"
            )


def check_settings(configs: Mapping[str, TrainConfig], *, taught: bool = False, sharded: bool = False) -> None:
    """Raise ConfigError unless prompts with these settings can learn in the same passes, of a ``sharded`` model.

    PromptFileError, where one starts from a prompt that cannot be read. ``taught``: there is a teacher to start from.
    """
    if not configs:
        raise ConfigError("expected the settings of at least one prompt, got none")
    if any(config.epochs is not None for config in configs.values()):
        raise ConfigError("epochs are not counted here: give steps")
    for config in configs.values():
        check_method(config.method, config.method_options)
        check_init(config.init, taught=taught)
        if taught and config.soft_verbalizer == "always":
            raise ConfigError("a soft verbalizer learns from labels, and a teacher tells words: leave it out")
    if sharded and len(configs) > 1:
        raise ConfigError("--sharding fsdp: expected one prompt to learn, got several: leave --seeds and --grid out")
    first = next(iter(configs.values()))
    for config in configs.values():
        for name in SHARED:
            if getattr(config, name) != getattr(first, name):
                raise ConfigError(
                    f"prompts that learn together share '{name}', got {getattr(first, name)!r} and "
                    f"{getattr(config, name)!r}: train them one by one"
                )


def resolve_steps(configs: Mapping[str, TrainConfig], task: Task) -> dict[str, TrainConfig]:
    """The settings with steps in place of epochs, and with enough of them for many labels where none are named.

    Raises:
        ConfigError: the training rows are not counted.
    """
    if any(config.epochs is not None for config in configs.values()) and task.splits.stream is not None:
        raise ConfigError("epochs need the number of training rows, and streamed rows are not counted: give steps")
    return {name: _with_usual_steps(config.with_steps_for(len(task.train)), task) for name, config in configs.items()}


def _with_usual_steps(config: TrainConfig, task: Task) -> TrainConfig:
    if "steps" in config.model_fields_set:
        return config
    steps = choose_steps(len(task.spec.labels), config.batch_size)
    return config if steps == config.steps else config.model_copy(update={"steps": steps})


def check_init(how: str, *, taught: bool = False) -> None:
    """What can be said of an initialiser without a base model: ConfigError or PromptFileError."""
    if how in INITIALIZERS or (taught and how == "teacher"):
        return
    name, colon, argument = how.partition(":")
    if name not in _INITS_WITH_ARGUMENT:
        raise ConfigError(
            f"unknown init '{how}': expected text, examples, text:WORDS, labels, vocab, random or prompt:FOLDER"
        )
    if not argument.strip():
        behind = "something behind the colon" if colon else "a colon and more"
        raise ConfigError(f"init '{how}': expected {behind}, as in {_INITS_WITH_ARGUMENT[name]}")
    if name == "prompt":
        read_manifest(argument)


def check_prompts_base(
    configs: Mapping[str, TrainConfig], teachers: Iterable[Prompt], base: UnloadedModel | FrozenLM
) -> None:
    """Raise PromptFileError if a prompt to start or to learn from was learned on another model than ``base``."""
    for config in configs.values():
        name, _, argument = config.init.partition(":")
        if name == "prompt":
            load_prompt(argument).check_base(base)
    for teacher in teachers:
        teacher.check_base(base)


def check_tasks(tasks: Mapping[str, Task], configs: Mapping[str, TrainConfig]) -> None:
    """Raise DataError or ConfigError unless these tasks can be learned with these settings."""
    for task in tasks.values():
        check_trainable(task)
    for config in configs.values():
        check_init_fits(config.init, next(iter(tasks.values())).spec)


def check_init_fits(how: str, spec: TaskSpec) -> None:
    """Raise ConfigError for an initialiser that needs another kind of task."""
    if how == "labels" and spec.kind == "generation":
        raise ConfigError("init 'labels' needs a classification task: use text, vocab or random")


def check_splits(task: Task) -> None:
    """Raise DataError unless there are training and validation examples."""
    source = task.splits.source
    if not task.train:
        raise DataError(f"{source}: expected a train split, got no training examples: add train.jsonl or the like")
    if not task.validation:
        raise DataError(
            f"{source}: expected validation examples, got none and too few others to set some aside: add rows, or a "
            "validation file"
        )


def check_trainable(task: Task) -> None:
    """Raise DataError unless there are training examples, of more than one label, and validation examples."""
    check_splits(task)
    if task.spec.kind == "classification" and len({example.label for example in task.train}) == 1:
        raise DataError(
            f"{task.splits.source}: expected training examples of at least two labels, got only "
            f"'{task.train[0].label}': add examples of another class"
        )


def check_ensemble(task: Task, configs: Mapping[str, TrainConfig]) -> None:
    """Raise ConfigError unless prompts with these settings can answer together."""
    if len({METHODS[config.method].kind for config in configs.values()}) > 1:
        raise ConfigError("the prompts of an ensemble are of one kind: give methods that learn the same kind")
    if task.spec.kind == "generation":
        raise ConfigError("an ensemble answers by vote, expected a classification task, got generation")


def check_example(task: Task, example: str) -> None:
    """Raise ConfigError for a text that no page can begin with."""
    if not example.strip() or len(example) > LONGEST_EXAMPLE:
        raise ConfigError(f"expected an example of 1 to {LONGEST_EXAMPLE:,} characters, got {len(example.strip()):,}")
    if "text" not in task.spec.compiled.names:
        raise ConfigError("an example is a text, expected a template that uses it: leave the example out")


def check_multitask(
    tasks: Mapping[str, Any],
    configs: Mapping[str, TrainConfig],
    teachers: Mapping[str, Any],
    distillation: float,
    of_one_task: bool = False,
) -> None:
    """Raise ConfigError for tasks and teachers that cannot learn together.

    ``of_one_task``: whether something was asked for that only a task alone has.
    """
    for name in tasks:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            shown = json.dumps(name)
            raise ConfigError(f"task name {shown}: expected at most 64 letters, digits, '.', '_' and '-'")
    if len(tasks) < 2:
        raise ConfigError(
            f"multitask prompt tuning needs at least two tasks, got {len(tasks)}: learn a single one by train"
        )
    if len(configs) > 1 or of_one_task:
        raise ConfigError("several tasks learn with one configuration, without an ensemble or an example")
    if unknown := sorted(set(teachers) - set(tasks)):
        raise ConfigError(f"a teacher for '{unknown[0]}': expected one of the tasks {', '.join(tasks)}")
    if any(config.averaging for config in configs.values()):
        raise ConfigError("averaging is not available for multitask prompt tuning: leave it at 0")
    if any(config.soft_verbalizer == "always" for config in configs.values()):
        raise ConfigError("a soft verbalizer is not available for multitask prompt tuning: leave it out")
    if not 0 <= distillation < math.inf:
        raise ConfigError(f"distillation must be 0 or more, got {distillation}")


def load_teachers(teachers: Mapping[str, Prompt | str]) -> dict[str, Prompt]:
    """Prompts to learn from, read where their places are given; raises PromptFileError, for an ensemble too."""
    loaded = {name: load_prompt(one) if isinstance(one, str) else one for name, one in teachers.items()}
    for teacher in loaded.values():
        _ = teacher.state  # refuses an ensemble
    return loaded
