"""softprompt: learn a few virtual tokens for a task on a frozen language model, see what they gain, use them.

The flow, each name being public here::

    base   = sp.load("embedded:gemma-3-270m")            # frozen, fingerprinted
    task   = sp.Task.classification("reviews/", template="{{ text }}; sentiment:")
    prompt = sp.fit(base, task)                          # learns, keeps the best, evaluates
    print(sp.evaluate(base, task.test, prompt))          # value, 95% interval, n
    prompt.save("prompts/sentiment")
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softprompt.base import FrozenLM, load
    from softprompt.baselines.written import choose_shots, written_prompt
    from softprompt.config import DistillConfig, GateConfig, TrainConfig, population
    from softprompt.data import Example, Splits, read_splits
    from softprompt.distill import Distillation, distill, distill_together
    from softprompt.errors import SoftpromptError
    from softprompt.evaluate import Evaluation, evaluate
    from softprompt.fit import fit, fit_together
    from softprompt.fit_multitask import fit_multitask
    from softprompt.gate import Gate
    from softprompt.generate import Sampling
    from softprompt.metrics import Metric
    from softprompt.predict import Prediction, Predictor
    from softprompt.prefix import PromptState
    from softprompt.store import Prompt, load_prompt
    from softprompt.task import Task, TaskSpec
    from softprompt.teacher import Teacher
    from softprompt.versions import Store

__version__ = "0.1.0"

_HOME = {
    "DistillConfig": "config",
    "Distillation": "distill",
    "Evaluation": "evaluate",
    "Example": "data",
    "FrozenLM": "base",
    "Gate": "gate",
    "GateConfig": "config",
    "Metric": "metrics",
    "Prediction": "predict",
    "Predictor": "predict",
    "Prompt": "store",
    "PromptState": "prefix",
    "Sampling": "generate",
    "SoftpromptError": "errors",
    "Splits": "data",
    "Store": "versions",
    "Task": "task",
    "TaskSpec": "task",
    "Teacher": "teacher",
    "TrainConfig": "config",
    "choose_shots": "baselines.written",
    "distill": "distill",
    "distill_together": "distill",
    "evaluate": "evaluate",
    "fit": "fit",
    "fit_multitask": "fit_multitask",
    "fit_together": "fit",
    "load": "base",
    "load_prompt": "store",
    "population": "config",
    "read_splits": "data",
    "written_prompt": "baselines.written",
}

__all__ = [
    "DistillConfig",
    "Distillation",
    "Evaluation",
    "Example",
    "FrozenLM",
    "Gate",
    "GateConfig",
    "Metric",
    "Prediction",
    "Predictor",
    "Prompt",
    "PromptState",
    "Sampling",
    "SoftpromptError",
    "Splits",
    "Store",
    "Task",
    "TaskSpec",
    "Teacher",
    "TrainConfig",
    "choose_shots",
    "distill",
    "distill_together",
    "evaluate",
    "fit",
    "fit_multitask",
    "fit_together",
    "load",
    "load_prompt",
    "population",
    "read_splits",
    "written_prompt",
]


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import: only when a name that needs them is used
    if name not in _HOME:
        raise AttributeError(f"module 'softprompt' has no attribute '{name}'")
    value = getattr(import_module(f"softprompt.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _Package(ModuleType):
    """This package, where a function keeps its name beside the module of the same name: fit, evaluate, distill."""

    def __setattr__(self, name: str, value: object) -> None:
        # what importing a submodule does, whoever imports it; the function would be hidden
        if not (isinstance(value, ModuleType) and _HOME.get(name) == name):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
