"""Base models that are named, or loaded once all that can be told without them is checked."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from softprompt.models.distributed import SINGLE_PROCESS, ProcessGroup
from softprompt.models.fingerprint import UnloadedModel
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.utils.arguments import refuse_argument

BaseCheck = Callable[[UnloadedModel | FrozenLM], None]
_DATA_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_EXPECTED = "a base model (of sp.load_model), its name or its folder"
_ADVICE = {
    "PeftModel": "give the name of the model beneath it; sp.import_prompt reads what PEFT saved",
    "PreTrainedModel": "give its name or folder, or sp.FrozenLM(model, tokenizer, name)",
    "PreTrainedTokenizerBase": "give the model's name, its tokenizer is found with it",
    "Pipeline": "give the name or folder of its model",
    "Trainer": "give the name or folder of its model",
    "Module": "only language models of transformers can be a base; give the name or folder of one",
    "Predictor": "give its .base",
    "Prompt": "the base model comes first, the prompt behind the data",
    "Task": "the base model comes first, the data behind it",
    "Splits": "the base model comes first, the data behind it",
    "DataFrame": "the base model comes first, the data behind it",
    "Dataset": "the base model comes first, the data behind it",
    "DatasetDict": "the base model comes first, the data behind it",
    "list": "the base model comes first, the data behind it",
    "dict": "the base model comes first, the data behind it",
    "": "sp.load_model('NAME') gives one",
}


@dataclass(frozen=True)
class DeferredBase:
    """A base model that is loaded once all that can be told without it is checked.

    Attributes:
        load: takes a check of the model's outline, which raises before its weights are loaded.
        processes: those that it will be loaded for.
    """

    load: Callable[[BaseCheck], FrozenLM]
    processes: ProcessGroup = SINGLE_PROCESS


BaseSource: TypeAlias = FrozenLM | DeferredBase | str | Path


def resolve_base(base: BaseSource, **options: Any) -> FrozenLM | DeferredBase:
    """A base model as it is; one that is named, to be loaded later with these ``options`` of ``load_model``.

    Raises:
        ConfigError: neither a base model nor a name.
    """
    if isinstance(base, FrozenLM | DeferredBase):
        return base
    if not isinstance(base, str | os.PathLike) or not str(base).strip():
        raise refuse_argument("base", _EXPECTED, base, _ADVICE)
    if str(base).lower().endswith(_DATA_ENDINGS) or str(base).startswith("hf:"):
        raise refuse_argument("base", _EXPECTED, base, {"": "the base model comes first, the data behind it"})
    return DeferredBase(partial(_load_named, str(base), options))


def _load_named(name: str, options: dict[str, Any], check: BaseCheck) -> FrozenLM:
    return load_model(name, check=check, **options)


def load_checked(base: FrozenLM | DeferredBase, check: BaseCheck = lambda base: None) -> FrozenLM:
    """The model, if it passes ``check``."""
    if isinstance(base, DeferredBase):
        return base.load(check)
    check(base)
    return base
