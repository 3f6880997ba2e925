"""The public names, each written here once: type checkers read this file, ``__init__`` finds names through it."""

from .analysis.inspection.inspect_prompt import inspect as inspect
from .analysis.inspection.pruning import prune as prune
from .config import TrainConfig as TrainConfig
from .data.examples import Example as Example
from .data.splits import read_splits as read_splits
from .data.task import Task as Task
from .errors import SoftpromptError as SoftpromptError
from .experiments.comparison.compare import compare as compare
from .experiments.sweep.search import sweep as sweep
from .export.prompt_exchange import export_prompt as export_prompt
from .export.prompt_exchange import import_prompt as import_prompt
from .inference.evaluation import evaluate as evaluate
from .inference.generation import GenerationConfig as GenerationConfig
from .inference.grammar import Grammar as Grammar
from .inference.predictions import Prediction as Prediction
from .inference.predictions import Predictions as Predictions
from .inference.predictor import Predictor as Predictor
from .models.frozen_lm import FrozenLM as FrozenLM
from .models.loading import load_model as load_model
from .prompts.saved_prompt import Prompt as Prompt
from .serving.serve import serve as serve
from .store.prompt_loading import load_prompt as load_prompt
from .store.version_store import Store as Store
from .training.attached_prompts.soft_prompt import SoftPrompt as SoftPrompt
from .training.callbacks.callback import Callback as Callback
from .training.distillation.distill import distill as distill
from .training.fit import fit as fit

__all__: list[str]
__version__: str
