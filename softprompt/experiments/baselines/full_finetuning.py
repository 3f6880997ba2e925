"""Full fine-tuning: every weight of the model learns, in a copy of it.

On a base in bfloat16 the copy computes in bfloat16 and learns in float32: with Adam's two averages and the gradients
that makes 16 to 18 bytes a parameter. A base in float16 is tuned and served in float32, for its small gradients vanish.
"""

import time
from pathlib import Path

import torch

from softprompt.data.task import Task
from softprompt.errors import BaseModelError
from softprompt.experiments.baselines.finetuning import FinetuningConfig, finetune, limit_length
from softprompt.experiments.baselines.fitted_baseline import FittedBaseline, count_bytes, describe_baseline
from softprompt.experiments.baselines.model_copies import copy_weights
from softprompt.experiments.baselines.tuned_chats import write_chat_files
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictor import Predictor
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.gguf_conversion import no_progress_bars
from softprompt.training.callbacks.callback import Callback
from softprompt.utils.files import atomic_folder, check_free, write_durably

RATE = 2e-5


def fit_full(
    base: FrozenLM,
    task: Task,
    config: FinetuningConfig,
    callback: Callback,
    *,
    generation: GenerationConfig | None = None,
) -> FittedBaseline:
    """Tune a copy of the whole model; ``save`` writes it with its tokenizer, for ``from_pretrained``.

    Args:
        sampling: how completions are made (generation).

    Raises:
        BaseModelError: the base is quantized.
        DataError, TemplateError: the data cannot be used.
        TrainingError: the loss is no longer a number.
    """
    began = time.perf_counter()
    if base.quantization is not None:
        raise BaseModelError(
            f"full fine-tuning needs a base model with plain weights, '{base.name}' is quantized ({base.quantization}):"
            " load it without --quantize, or use LoRA"
        )
    task = limit_length(task, config)
    own = copy_weights(base)
    if base.dtype == torch.float16:
        own.float()
    learning = FrozenLM(own, base.tokenizer, base.name, lasting=False)
    learned = finetune(learning, task, config, list(own.parameters()), callback, default_rate=RATE, began=began)
    model = FrozenLM(own, base.tokenizer, base.name)

    def save(folder: Path) -> None:
        check_free(folder)
        with atomic_folder(folder) as place, no_progress_bars():
            own.save_pretrained(place)
            base.tokenizer.save_pretrained(place)
            write_durably(place / "task.json", describe_baseline(base, task.spec.without_prompt))
            write_chat_files(place, base, task.spec, adapter=False)

    answers = Predictor(model, task.spec, None, generation)
    return FittedBaseline(
        **learned, answers=answers, base_bytes=0, base_shared=False, task_bytes=count_bytes(own), save=save
    )
