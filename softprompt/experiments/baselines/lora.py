"""LoRA: beside every linear layer a low-rank one, ``W x + (alpha / r) B A x``, which learns while ``W`` stays.

Hu et al. 2021, by the ``peft`` library; beside all linear layers but the output layer, as in Dettmers et al. 2023.
``A`` and ``B`` are float32. They go into a copy of the model that shares its weights, so the caller's model has none.
"""

import time
import warnings
from pathlib import Path
from typing import Any

import torch

from softprompt.data.task import Task
from softprompt.errors import BaseModelError
from softprompt.experiments.baselines.finetuning import FinetuningConfig, finetune, limit_length
from softprompt.experiments.baselines.fitted_baseline import (
    FittedBaseline,
    count_bytes,
    describe_baseline,
    extra_module,
)
from softprompt.experiments.baselines.model_copies import copy_sharing_weights
from softprompt.experiments.baselines.tuned_chats import write_chat_files
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictor import Predictor
from softprompt.models.frozen_lm import FrozenLM
from softprompt.training.callbacks.callback import Callback
from softprompt.utils.files import atomic_folder, check_free, write_durably

RATE = 1e-3
RANK, ALPHA = 8, 16


def fit_lora(
    base: FrozenLM,
    task: Task,
    config: FinetuningConfig,
    callback: Callback,
    *,
    rank: int = RANK,
    alpha: float = ALPHA,
    generation: GenerationConfig | None = None,
) -> FittedBaseline:
    """Learn an adapter for ``task``; ``save`` writes it as ``peft`` does, for ``PeftModel.from_pretrained``.

    Args:
        rank, alpha: ``r`` and ``alpha`` above.
        sampling: how completions are made (generation).

    Raises:
        MissingExtraError: ``peft`` is not installed.
        BaseModelError: ``peft`` has no adapter for this model.
        DataError, TemplateError: the data cannot be used.
        TrainingError: the loss is no longer a number.
    """
    began = time.perf_counter()
    peft = extra_module("peft")
    task = limit_length(task, config)
    torch.manual_seed(config.seed)
    adapted = _add_adapter(peft, base, rank, alpha)
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    model = FrozenLM(adapted.get_base_model(), base.tokenizer, base.name)
    learned = finetune(model, task, config, weights, callback, default_rate=RATE, began=began)

    def save(folder: Path) -> None:
        check_free(folder)
        with atomic_folder(folder) as place:
            # what is looked for on the hub otherwise: whether the vocabulary has grown
            adapted.save_pretrained(place, save_embedding_layers=False)
            # a model card without content
            (place / "README.md").unlink(missing_ok=True)
            write_durably(place / "task.json", describe_baseline(base, task.spec.without_prompt))
            write_chat_files(place, base, task.spec, adapter=True)

    learned["settings"] |= {"rank": rank, "alpha": alpha}
    return FittedBaseline(
        **learned,
        answers=Predictor(model, task.spec, None, generation),
        base_bytes=count_bytes(base.model),
        base_shared=True,
        task_bytes=sum(weight.nbytes for weight in weights),
        save=save,
    )


def _add_adapter(peft: Any, base: FrozenLM, rank: int, alpha: float) -> Any:
    """A PeftModel around a copy of the base that shares its weights."""
    from transformers.pytorch_utils import Conv1D

    model = copy_sharing_weights(base)
    config = peft.LoraConfig(
        task_type="SEQ_2_SEQ_LM" if base.architecture == "encoder-decoder" else "CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        target_modules="all-linear",
        # GPT-2 keeps its weights transposed
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        with warnings.catch_warnings():
            # peft asks transformers 5 by names of transformers 4
            warnings.simplefilter("ignore", FutureWarning)
            return peft.get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        reason = str(error).partition(". ")[0]
        raise BaseModelError(
            f"peft has no LoRA for all linear layers of '{base.name}' ({type(model).__name__}): {reason}; use a soft "
            "prompt or full fine-tuning"
        ) from error
