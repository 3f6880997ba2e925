"""softprompt: learn a few virtual tokens for a task on a frozen language model, see what they gain, use them.

The flow, each name being public here::

    base   = sp.load_model("embedded:gemma-3-270m")            # frozen, fingerprinted
    task   = sp.Task.classification("reviews/", template="{{ text }}; sentiment:")
    prompt = sp.fit(base, task)                          # learns, keeps the best, evaluates
    print(sp.evaluate(base, task.test, prompt))          # value, 95% interval, n
    prompt.save("prompts/sentiment")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softprompt.config import DistillConfig, GateConfig, TrainConfig, population
    from softprompt.data.examples import Example
    from softprompt.data.splits import Splits, read_splits
    from softprompt.data.task import Task, TaskSpec
    from softprompt.errors import SoftpromptError
    from softprompt.inference.evaluation import Evaluation, evaluate
    from softprompt.inference.generation import GenerationConfig
    from softprompt.inference.predictor import Prediction, Predictor
    from softprompt.metrics.scores import Score
    from softprompt.models.frozen_lm import FrozenLM
    from softprompt.models.loading import load_model
    from softprompt.prompts.saved_prompt import Prompt
    from softprompt.prompts.state import PromptState
    from softprompt.prompts.written_prompt import choose_shots, written_prompt
    from softprompt.store.gate import Gate
    from softprompt.store.prompt_loading import load_prompt
    from softprompt.store.version_store import Store
    from softprompt.training.distillation.distill import Distillation, distill
    from softprompt.training.distillation.teacher import Teacher
    from softprompt.training.fit import fit

__version__ = "0.1.0"

_HOME = {
    "DistillConfig": "config",
    "Distillation": "training.distillation.distill",
    "Evaluation": "inference.evaluation",
    "Example": "data.examples",
    "FrozenLM": "models.frozen_lm",
    "Gate": "store.gate",
    "GateConfig": "config",
    "GenerationConfig": "inference.generation",
    "Prediction": "inference.predictor",
    "Predictor": "inference.predictor",
    "Prompt": "prompts.saved_prompt",
    "PromptState": "prompts.state",
    "Score": "metrics.scores",
    "SoftpromptError": "errors",
    "Splits": "data.splits",
    "Store": "store.version_store",
    "Task": "data.task",
    "TaskSpec": "data.task",
    "Teacher": "training.distillation.teacher",
    "TrainConfig": "config",
    "choose_shots": "prompts.written_prompt",
    "distill": "training.distillation.distill",
    "evaluate": "inference.evaluation",
    "fit": "training.fit",
    "load_model": "models.loading",
    "load_prompt": "store.prompt_loading",
    "population": "config",
    "read_splits": "data.splits",
    "written_prompt": "prompts.written_prompt",
}

__all__ = [
    "DistillConfig",
    "Distillation",
    "Evaluation",
    "Example",
    "FrozenLM",
    "Gate",
    "GateConfig",
    "GenerationConfig",
    "Prediction",
    "Predictor",
    "Prompt",
    "PromptState",
    "Score",
    "SoftpromptError",
    "Splits",
    "Store",
    "Task",
    "TaskSpec",
    "Teacher",
    "TrainConfig",
    "choose_shots",
    "distill",
    "evaluate",
    "fit",
    "load_model",
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
