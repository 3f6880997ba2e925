"""The data of a public function as a task: a task that is there already, or rows of any source."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeGuard

from softprompt.config import DataOptions
from softprompt.data.readers.in_memory import DataSource
from softprompt.data.splits import Splits
from softprompt.data.streaming import stream_splits
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import ConfigError
from softprompt.utils.arguments import class_names, suggest_name

Data: TypeAlias = Task | Splits | DataSource

TASK_OPTIONS = frozenset(
    name
    for name, parameter in inspect.signature(Task.of).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name not in ("kind", "spec", "unlabelled")
) | frozenset(DataOptions.model_fields)


def pop_task_options(settings: dict[str, Any]) -> dict[str, Any]:
    """Of the arguments by name those that say how rows become a task (``template=``, ``text_column=``, ...).

    ``max_length`` is left in: it is a setting of training too. ConfigError for one that is nearly such a name.
    """
    for name in settings:
        near = difflib.get_close_matches(name, TASK_OPTIONS, n=1, cutoff=0.8)
        if name not in TASK_OPTIONS and near:
            raise ConfigError(f"unknown setting '{name}': did you mean '{near[0]}'?")
    return {name: settings.pop(name) for name in tuple(settings) if name in TASK_OPTIONS - {"max_length"}}


def check_option_names(function: str, options: Mapping[str, Any]) -> None:
    """Raise ConfigError for arguments by name that say nothing of a task."""
    if unknown := sorted(options.keys() - TASK_OPTIONS):
        raise ConfigError(
            f"{function} has no argument '{unknown[0]}': {suggest_name(unknown[0], sorted(TASK_OPTIONS))}"
        )


def is_several_tasks(data: Any) -> TypeGuard[Mapping[str, Task]]:
    """Whether these are tasks by name, and not splits of one."""
    return isinstance(data, Mapping) and bool(data) and all(isinstance(one, Task) for one in data.values())


def resolve_task(
    data: Data, spec: TaskSpec | None = None, *, unlabelled: bool = False, options: Mapping[str, Any] | None = None
) -> Task:
    """``data`` as a task, for ``spec`` where the task is known already.

    Args:
        options: as for ``Task.of``.

    Raises:
        ConfigError: no data, or options of a task that is made already.
        DataError: as ``Task.of``.
    """
    given = dict(options or {})
    if isinstance(data, Task):
        if given:
            raise ConfigError(f"this data is a Task already: give {', '.join(given)} where the task is made")
        return data if spec is None or data.spec == spec else Task.of(data.splits, spec=spec)
    if class_names(data)[0] in ("IterableDataset", "IterableDatasetDict"):
        data = stream_splits(data)
    if unlabelled:
        return Task.of_inputs(data, spec=spec, **given)
    return Task.of(data, spec=spec, **given)
